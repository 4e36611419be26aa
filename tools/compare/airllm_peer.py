#!/usr/bin/env python3
"""AirLLM on the CPU: generates greedily from token ids and prints what run.py reads.

AirLLM asks the checkpoint for a tokenizer as it loads. A synthetic checkpoint has none, so `get_tokenizer`, which AirLLM
leaves to subclasses, gives none; generate() takes ids and needs no other. Everything else is AirLLM as it comes: it splits
the checkpoint into a file per layer under --split (once; --split-only does no more), then streams them with prefetching on.
"""
import argparse, sys, time
from contextlib import redirect_stdout
from common import answer, bytes_read, read_ids

parser = argparse.ArgumentParser()
parser.add_argument('--model', required=True)
parser.add_argument('--split', required=True, help='where AirLLM keeps its file per layer')
parser.add_argument('--ids')
parser.add_argument('--tokens', type=int, default=8)
parser.add_argument('--threads', type=int, default=2)
parser.add_argument('--dtype', choices=['bfloat16', 'float32'], help="what AirLLM computes in [default: the checkpoint's own]")
parser.add_argument('--split-only', action='store_true')
args = parser.parse_args()

with redirect_stdout(sys.stderr):  # AirLLM prints as it goes
    import torch, transformers
    from importlib.metadata import version
    torch.set_num_threads(args.threads)
    from airllm import AirLLMBaseModel

    class NoTokenizer(AirLLMBaseModel):
        def get_tokenizer(self, hf_token=None):
            return None

    model = NoTokenizer(args.model, device='cpu', layer_shards_saving_path=args.split, dtype=args.dtype and getattr(torch, args.dtype))
    if args.split_only:
        sys.exit()

    class Clock:
        """generate() gives a streamer the prompt first, then every token as it is known."""
        def __init__(self):
            self.marks = None
        def put(self, _):
            if self.marks is None:
                self.marks = []
            else:
                self.marks.append((time.perf_counter(), bytes_read()))
        def end(self):
            pass

    ids = read_ids(args.ids)
    clock = Clock()
    with torch.inference_mode():
        out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=args.tokens,
                             do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True, streamer=clock)

answer(out[0, len(ids):].tolist(), clock.marks, dtype=str(model.running_dtype).removeprefix('torch.'),
       version=f"airllm {version('airllm')}, torch {torch.__version__}, transformers {transformers.__version__}")

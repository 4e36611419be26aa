#!/usr/bin/env python3
"""llama.cpp through llama-cpp-python, CPU, weights mapped: evaluates ids step by step and prints what run.py reads.

The least of the wrapper is used: eval() and the logits of the last position, for a model without vocabulary has nothing to
sample text with.
"""
import argparse, time
import numpy as np
from common import answer, bytes_read, read_ids

parser = argparse.ArgumentParser()
parser.add_argument('--model', required=True, help='a GGUF')
parser.add_argument('--ids', required=True)
parser.add_argument('--tokens', type=int, default=8)
parser.add_argument('--threads', type=int, default=2)
parser.add_argument('--verbose', action='store_true')
args = parser.parse_args()

import llama_cpp
from importlib.metadata import version

ids = read_ids(args.ids)
n_ctx = (len(ids) + args.tokens + 255) // 256 * 256
llm = llama_cpp.Llama(model_path=args.model, n_gpu_layers=0, use_mmap=True, use_mlock=False, n_ctx=n_ctx, n_batch=min(n_ctx, 512),
                      n_threads=args.threads, n_threads_batch=args.threads, verbose=args.verbose)
vocabulary = llm.n_vocab()


def best():
    logits = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())


llm.eval(ids)
tokens = [best()]
marks = [(time.perf_counter(), bytes_read())]
while len(tokens) < args.tokens:
    llm.eval(tokens[-1:])
    tokens.append(best())
    marks.append((time.perf_counter(), bytes_read()))

answer(tokens, marks, dtype='bfloat16', version=f"llama-cpp-python {version('llama-cpp-python')}",
       features=llama_cpp.llama_print_system_info().decode())

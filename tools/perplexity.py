#!/usr/bin/env python3
"""Perplexity of a text by strided windows with Hugging Face transformers in float32, to compare `narrows eval` with.

usage: tools/perplexity.py MODEL TEXT WINDOW STRIDE [CHARACTERS]
"""
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

path, text, window, stride = sys.argv[1], open(sys.argv[2]).read(), int(sys.argv[3]), int(sys.argv[4])
if len(sys.argv) > 5: text = text[:int(sys.argv[5])]
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
ids = torch.tensor([AutoTokenizer.from_pretrained(path)(text).input_ids])
losses, done = [], 1
with torch.no_grad():
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        if done >= end: break
        logp = model(ids[:, begin:end]).logits[0].log_softmax(-1)
        losses.append(-logp[done - 1 - begin:end - 1 - begin].gather(1, ids[0, done:end, None])[:, 0])
        done = end
loss = torch.cat(losses).double()
print(f'perplexity {loss.mean().exp():.6f} +- {loss.mean().exp() * loss.std() / len(loss) ** 0.5:.4f}, {len(loss)} tokens')

#!/usr/bin/env python3
"""Makes small random checkpoints under tests/data/checkpoints with what Hugging Face transformers answers for them.

They cover what the models in tests/data/README.md do not. Needs torch, transformers and safetensors:

    pip install torch==2.15.0 transformers==5.23.0
    tools/make-goldens.py [NAME ...]
"""
import json, os, sys
import torch
from safetensors.torch import save_file, load_file
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'tests', 'data', 'checkpoints')
BASE = dict(hidden_size=48, intermediate_size=104, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=192,
            max_position_embeddings=128, initializer_range=0.15, bos_token_id=1, eos_token_id=2)

def v4(config, theta=10000.0, **scaling):
    """The style of transformers 4: rope_theta and rope_scaling on their own, torch_dtype, `type`."""
    config.pop('rope_parameters'); config['torch_dtype'] = config.pop('dtype')
    config.pop('transformers_version'); config['rope_theta'] = theta
    config['rope_scaling'] = scaling or None
    return config

def first_llama(config):
    """As the first Llama checkpoints: whatever equals the defaults of that day is not there."""
    config = v4(config)
    for key in ('rope_theta', 'rope_scaling', 'num_key_value_heads', 'head_dim', 'attention_bias', 'mlp_bias', 'attention_dropout', 'tie_word_embeddings', 'pretraining_tp'):
        config.pop(key, None)
    return config

# name: (model_type, changes to BASE, rewrite of config.json, dtype of the weights, rows x positions of the prompt)
MODELS = {
    'llama-first-config': ('llama', dict(num_key_value_heads=4), first_llama, torch.float16, (2, 24)),
    'llama-biases': ('llama', dict(attention_bias=True, mlp_bias=True), None, torch.bfloat16, (2, 24)),
    'llama-multi-query-f32': ('llama', dict(num_key_value_heads=1, head_dim=16, num_hidden_layers=3), None, torch.float32, (3, 17)),
    'rope-linear': ('llama', dict(rope_parameters=dict(rope_type='linear', factor=4.0, rope_theta=10000.0)), lambda c: v4(c, type='linear', factor=4.0), torch.bfloat16, (2, 40)),
    'rope-dynamic': ('llama', dict(max_position_embeddings=32, rope_parameters=dict(rope_type='dynamic', factor=2.0, rope_theta=10000.0)), lambda c: v4(c, type='dynamic', factor=2.0), torch.bfloat16, (2, 48)),
    'rope-yarn': ('qwen2', dict(rope_parameters=dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=32, rope_theta=1000000.0)), lambda c: v4(c, 1000000.0, type='yarn', factor=4.0, original_max_position_embeddings=32), torch.bfloat16, (2, 72)),
    'rope-yarn-mscale': ('llama', dict(rope_parameters=dict(rope_type='yarn', factor=8.0, original_max_position_embeddings=16, rope_theta=10000.0, beta_fast=16.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=1.2, truncate=False)), None, torch.bfloat16, (2, 48)),
    'mistral-wide-heads': ('mistral', dict(head_dim=20, sliding_window=None), None, torch.bfloat16, (2, 24)),
    'qwen2-window': ('qwen2', dict(use_sliding_window=True, sliding_window=8, max_window_layers=1, num_hidden_layers=3), lambda c: {k: v for k, v in c.items() if k != 'layer_types'}, torch.bfloat16, (2, 40)),
    'mixtral-window': ('mixtral', dict(num_local_experts=6, num_experts_per_tok=3, sliding_window=8, num_hidden_layers=3), None, torch.float16, (2, 24)),
    # Two layers with experts and a dense one, a shared expert as wide as two; the third layer is dense by its step.
    'qwen2-moe-dense-layer': ('qwen2_moe', dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=40, shared_expert_intermediate_size=72, norm_topk_prob=False, num_hidden_layers=4, mlp_only_layers=[1]), None, torch.bfloat16, (2, 24)),
    'qwen2-moe-windows': ('qwen2_moe', dict(num_experts=4, num_experts_per_tok=1, moe_intermediate_size=32, shared_expert_intermediate_size=32, norm_topk_prob=True, num_hidden_layers=4, qkv_bias=False, use_sliding_window=True, sliding_window=8, max_window_layers=3, decoder_sparse_step=2), lambda c: {k: v for k, v in c.items() if k != 'layer_types'}, torch.bfloat16, (2, 24)),
    'qwen3-moe-sparse': ('qwen3_moe', dict(num_experts=12, num_experts_per_tok=4, moe_intermediate_size=24, norm_topk_prob=False, decoder_sparse_step=2, num_hidden_layers=4, head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=12), None, torch.bfloat16, (3, 20)),
    'qwen3-tied-biases': ('qwen3', dict(head_dim=24, attention_bias=True, tie_word_embeddings=True), None, torch.bfloat16, (2, 24)),
}

def make(name):
    kind, changes, rewrite, dtype, (rows, positions) = MODELS[name]
    d = os.path.join(ROOT, name); os.makedirs(d, exist_ok=True)
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**BASE, **changes}))
    with torch.no_grad():  # norms and biases start as ones and zeros, which would hide a mistake in their use
        for key, p in model.named_parameters():
            if p.ndim == 1: p.add_(torch.randn_like(p) * 0.3)
    model.to(dtype).save_pretrained(d)
    if os.path.exists(d + '/generation_config.json'): os.remove(d + '/generation_config.json')
    config = json.load(open(d + '/config.json'))
    if rewrite: config = rewrite(config)
    json.dump(config, open(d + '/config.json', 'w'), indent=2, sort_keys=True)
    if name == 'llama-first-config':  # those files held the rotary frequencies too
        tensors = load_file(d + '/model.safetensors')
        for layer in range(2): tensors[f'model.layers.{layer}.self_attn.rotary_emb.inv_freq'] = 1.0 / (10000.0 ** (torch.arange(0, 12, 2) / 12))
        save_file(tensors, d + '/model.safetensors', metadata={'format': 'pt'})
    # What is answered is what the files say, not what was in memory.
    fresh = lambda: AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32, attn_implementation='eager').eval()
    ids = torch.randint(3, 192, (rows, positions), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = fresh()(ids).logits
        greedy, gaps = [], []
        for row in ids:  # token by token through its cache
            out = fresh().generate(row[None], max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
            greedy.append(out.sequences[0, positions:]); top = torch.stack(out.logits)[:, 0].topk(2).values; gaps.append((top[:, 0] - top[:, 1]).min().item())
    save_file({'input_ids': ids, 'logits': logits.contiguous(), 'greedy': torch.stack(greedy)}, d + '/expected.safetensors')
    print(f'{name}: logits up to {logits.abs().max():.2f}, smallest gap {min(gaps):.4f}, {sum(os.path.getsize(os.path.join(d, f)) for f in os.listdir(d)) >> 10} KiB')

def routing(name):
    """Beside a mixture of experts: how near each row is to going to another expert, the smallest difference over all
    layers between the scores of the last expert chosen and of the first that is not. A rounding can cross a small one.
    And how far each row of the same model run in bf16 is off."""
    d = os.path.join(ROOT, name)
    expected = load_file(d + '/expected.safetensors'); ids = expected['input_ids']
    model = AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32, attn_implementation='eager').eval()
    gaps = []
    def look(module, args, output):
        top = output[0].topk(module.top_k + 1, dim=-1).values
        gaps.append((top[:, -2] - top[:, -1]).reshape(ids.shape))
    for module in model.modules():
        if type(module).__name__.endswith('TopKRouter'): module.register_forward_hook(look)
    with torch.no_grad(): model(ids)
    if not gaps: return
    gap = torch.stack(gaps).min(dim=0).values.contiguous()
    with torch.no_grad():
        bf16 = AutoModelForCausalLM.from_pretrained(d, dtype=torch.bfloat16, attn_implementation='eager').eval()(ids).logits.float()
    off = (bf16 - expected['logits']).pow(2).mean(-1).sqrt().contiguous()
    save_file({'gap': gap, 'off_bf16': off}, d + '/routing.safetensors')
    print(f'{name}: {len(gaps)} layers with experts, smallest gaps {[round(g, 4) for g in gap.flatten().sort().values[:6].tolist()]}, bf16 off by {off.median():.4f}')

for name in sys.argv[1:] or MODELS:
    if name in MODELS: make(name)
    routing(name)

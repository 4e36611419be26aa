#!/usr/bin/env python3
"""Writes tests/data/config-defaults.json: what Hugging Face transformers makes of every config.json of tests/data/checkpoints
when one of its keys is left out, or is null. Needs no torch:

    pip install transformers==5.23.0
    tools/make-config-defaults.py

The values are those of the config class, and what its modeling code derives from them. Of each golden the entry "" has all
values; the others have what differs from it, or "refused" where the config class raises an error.
"""
import copy, json, os, logging
from transformers import AutoConfig

logging.disable(logging.CRITICAL)
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'tests', 'data')
# Without these AutoConfig has no class to take defaults from.
KEPT = {'model_type', 'architectures'}


def windows(c):
    layers = c.num_hidden_layers
    if c.model_type == 'llama': return [None] * layers
    if c.model_type in ('mistral', 'mixtral', 'qwen3_moe'): return [c.sliding_window] * layers
    return [c.sliding_window if kind == 'sliding_attention' else None for kind in c.layer_types]


def experts(c):
    if not hasattr(c, 'num_experts_per_tok'): return None
    mixtral = c.model_type == 'mixtral'
    sparse = [mixtral or (i not in c.mlp_only_layers and c.num_experts > 0 and (i + 1) % c.decoder_sparse_step == 0) for i in range(c.num_hidden_layers)]
    return {
        'count': c.num_experts, 'per_token': c.num_experts_per_tok,
        'intermediate_size': c.intermediate_size if mixtral else c.moe_intermediate_size,
        'normalised': True if mixtral else c.norm_topk_prob,
        'shared_intermediate_size': c.shared_expert_intermediate_size if c.model_type == 'qwen2_moe' else None,
        'layers': sparse,
    }


def rope(c):
    p = dict(c.rope_parameters)
    p.pop('type', None)
    kept = ['rope_type', 'rope_theta']
    if p['rope_type'] != 'default': kept += ['factor']
    if p['rope_type'] == 'llama3': kept += ['low_freq_factor', 'high_freq_factor']
    if p['rope_type'] in ('llama3', 'yarn'): kept += ['original_max_position_embeddings']
    return {key: p[key] for key in kept}


def facts(c):
    eos = c.eos_token_id
    qkv = {'qwen2': True, 'qwen2_moe': getattr(c, 'qkv_bias', None)}.get(c.model_type, getattr(c, 'attention_bias', False))
    return {
        'vocab_size': c.vocab_size, 'hidden_size': c.hidden_size, 'intermediate_size': c.intermediate_size,
        'layers': c.num_hidden_layers, 'heads': c.num_attention_heads, 'kv_heads': c.num_key_value_heads,
        'head_dim': getattr(c, 'head_dim', None) or c.hidden_size // c.num_attention_heads,
        'norm_eps': c.rms_norm_eps, 'rope': rope(c), 'max_position_embeddings': c.max_position_embeddings,
        'qkv_bias': qkv, 'o_bias': getattr(c, 'attention_bias', False), 'mlp_bias': getattr(c, 'mlp_bias', False),
        'tied_embeddings': c.tie_word_embeddings, 'windows': windows(c), 'experts': experts(c),
        'eos_token_ids': [] if eos is None else eos if isinstance(eos, list) else [eos],
    }


def resolve(config):
    config = copy.deepcopy(config)
    try:
        return facts(AutoConfig.for_model(config.pop('model_type'), **config))
    except Exception:
        return 'refused'


def variants(config):
    """Name and config: `key` without it, `key=null` with null, `key.inner` without a key of an object."""
    for key in config.keys() - KEPT:
        without = {k: v for k, v in config.items() if k != key}
        yield key, without
        if config[key] is not None: yield key + '=null', {**config, key: None}
        if isinstance(config[key], dict):
            for inner in config[key]:
                yield f'{key}.{inner}', {**config, key: {k: v for k, v in config[key].items() if k != inner}}


def table():
    out = {}
    for name in sorted(os.listdir(ROOT + '/checkpoints')):
        config = json.load(open(f'{ROOT}/checkpoints/{name}/config.json'))
        full = resolve(config)
        assert full != 'refused', name
        out[name] = {'': full}
        for variant, changed in sorted(variants(config)):
            got = resolve(changed)
            out[name][variant] = got if got == 'refused' else {k: v for k, v in got.items() if v != full[k]}
    return out


if __name__ == '__main__':
    lines = []
    for name, rows in table().items():
        inner = ',\n'.join(f'  {json.dumps(k)}: {json.dumps(v)}' for k, v in rows.items())
        lines.append(f'{json.dumps(name)}: {{\n{inner}\n}}')
    with open(ROOT + '/config-defaults.json', 'w') as f: f.write('{' + ',\n'.join(lines) + '}\n')

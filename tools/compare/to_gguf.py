#!/usr/bin/env python3
"""Writes a Llama checkpoint (Hugging Face, bf16 safetensors) as a GGUF with the same bf16 weights and no vocabulary.

What differs from the checkpoint is what llama.cpp's own converter changes: names, the norms as f32, and the rows of Q and K
in the order that its rotary embedding wants (pairs of neighbours where Hugging Face pairs halves). One tensor is in memory
at a time.
"""
import argparse, glob, json, mmap, os, struct
import numpy as np
import gguf

LAYER = {'input_layernorm': 'attn_norm', 'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
         'self_attn.o_proj': 'attn_output', 'post_attention_layernorm': 'ffn_norm', 'mlp.gate_proj': 'ffn_gate',
         'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down'}
TOP = {'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output'}


def gguf_name(name):
    stem = name.removesuffix('.weight')
    if stem in TOP:
        return TOP[stem] + '.weight'
    index, _, rest = stem.removeprefix('model.layers.').partition('.')
    return f'blk.{int(index)}.{LAYER[rest]}.weight'


def permute(weight, heads):
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tensors(directory):
    """(name, bf16 bits as u16) of every tensor, layer by layer, as views into the files."""
    found = []
    for path in sorted(glob.glob(os.path.join(directory, '*.safetensors'))):
        with open(path, 'rb') as f:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        (n,) = struct.unpack_from('<Q', data)
        for name, entry in json.loads(data[8:8 + n]).items():
            if name == '__metadata__':
                continue
            if entry['dtype'] != 'BF16':
                raise SystemExit(f"{path}: {name} is {entry['dtype']}; only bf16 checkpoints are converted")
            found.append((gguf_name(name), data, 8 + n + entry['data_offsets'][0], entry['shape']))

    def order(item):
        part = item[0].split('.')
        return (0, 0) if part[0] == 'token_embd' else (1, int(part[1])) if part[0] == 'blk' else (2, 0)
    for name, data, at, shape in sorted(found, key=order):
        yield name, np.frombuffer(data, '<u2', int(np.prod(shape)), at).reshape(shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model')
    parser.add_argument('out')
    args = parser.parse_args()
    with open(os.path.join(args.model, 'config.json')) as f:
        config = json.load(f)
    if config['model_type'] != 'llama':
        raise SystemExit(f"{args.model} is a {config['model_type']}; only llama is converted")
    heads = config['num_attention_heads']
    kv_heads = config.get('num_key_value_heads') or heads
    head_dim = config.get('head_dim') or config['hidden_size'] // heads
    theta = config.get('rope_theta') or (config.get('rope_parameters') or {}).get('rope_theta', 10000.0)
    if config.get('rope_scaling'):
        raise SystemExit('rope_scaling is not converted')

    part = args.out + '.part'
    writer = gguf.GGUFWriter(part, 'llama')
    writer.add_name('synthetic')
    writer.add_context_length(config['max_position_embeddings'])
    writer.add_embedding_length(config['hidden_size'])
    writer.add_block_count(config['num_hidden_layers'])
    writer.add_feed_forward_length(config['intermediate_size'])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
    writer.add_vocab_size(config['vocab_size'])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model('none')

    def as_written(name, bits):
        if bits.ndim == 1:
            return (bits.astype('<u4') << 16).view('<f4'), gguf.GGMLQuantizationType.F32
        if name.endswith('attn_q.weight'):
            bits = permute(bits, heads)
        elif name.endswith('attn_k.weight'):
            bits = permute(bits, kv_heads)
        return np.ascontiguousarray(bits).view(np.uint8), gguf.GGMLQuantizationType.BF16

    weights = list(tensors(args.model))
    for name, bits in weights:  # views: nothing is read yet but what a permutation touches
        f32 = bits.ndim == 1
        kind = gguf.GGMLQuantizationType.F32 if f32 else gguf.GGMLQuantizationType.BF16
        shape = bits.shape if f32 else (*bits.shape[:-1], 2 * bits.shape[-1])
        writer.add_tensor_info(name, shape, np.dtype('<f4' if f32 else 'u1'), bits.size * (4 if f32 else 2), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, bits in weights:
        writer.write_tensor_data(as_written(name, bits)[0])
    writer.close()
    os.replace(part, args.out)  # a run that was cut short leaves no file that looks whole


main()

#!/usr/bin/env python3
"""Makes tests/data/tokenizers.json: small tokenizers of several files with what Hugging Face transformers makes of them.

Each case is a tokenizer.json (one of `bases` with some of its keys replaced), the files beside it, and for some
texts the token ids with and without special tokens, and what they decode to. All files are written for this test.

    pip install transformers==5.23.0
    tools/make-tokenizer-goldens.py
"""
import copy, json, os, tempfile
from transformers import AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
END, BEGIN = "<|end|>", "<|begin|>"


def token(id, content, special=True, **more):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": not special, "special": special, **more}


def plain(content, special=True, **more):
    t = token(0, content, special, **more)
    del t["id"]
    return t


def around(bos, id):
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}}


def byte_chars():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    chars, n = {b: chr(b) for b in keep}, 0
    for b in range(256):
        if b not in chars:
            chars[b] = chr(256 + n)
            n += 1
    return [chars[b] for b in range(256)]


def bpe(vocab, merges, **more):
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": merges, **more}


def bytes_tokenizer():
    vocab = {END: 0, BEGIN: 1}
    for c in byte_chars():
        vocab[c] = len(vocab)
    merges = []
    for a, b in [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "a"), ("Ġ", "Ġ"), ("1", "2"), ("Ċ", "Ċ")]:
        merges.append([a, b])
        vocab[a + b] = len(vocab)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [token(0, END), token(1, BEGIN)],
            "normalizer": None, "pre_tokenizer": level, "post_processor": around(BEGIN, 1), "decoder": level,
            "model": bpe(vocab, merges)}


def llama_tokenizer():
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for b in range(256):
        vocab[f"<0x{b:02X}>"] = len(vocab)
    for c in "▁abcdehilmnorstx[]/<>":
        vocab[c] = len(vocab)
    merges = []
    for a, b in [("h", "e"), ("l", "l"), ("▁", "a"), ("▁", "he"), ("▁he", "ll"), ("▁", "▁")]:
        merges.append(f"{a} {b}")
        vocab[a + b] = len(vocab)
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": None, "post_processor": around("<s>", 1),
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": bpe(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)}


def unigram():
    words = ["<unk>", "<s>", "</s>", "▁", "a", "b", "e", "h", "l", "o", "▁he", "ll", "▁a", ".", "!", "'", "s"]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>")], "normalizer": {"type": "NFKC"},
            "pre_tokenizer": space, "post_processor": around("<s>", 1), "decoder": space,
            "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                      "vocab": [[w, -float(i) / 4 - 1] for i, w in enumerate(words)]}}


def words():
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [token(0, "[UNK]")],
            "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100,
                      "vocab": {"[UNK]": 0, "a": 1, "##a": 2, "hello": 3, ".": 4, "!": 5, "b": 6, "##b": 7}}}


BASES = {"bytes": bytes_tokenizer(), "llama": llama_tokenizer(), "unigram": unigram(), "words": words()}
FAST = "PreTrainedTokenizerFast"
TEXTS = {
    "bytes": ["hello a  12\n\nx", "", " a<|im_start|>hello<|end|> b", "<|begin|>x<img>  y é\u0301", "a 's  \r\n\t b"],
    "llama": ["hello a", "", " a[INST] hell <s>a</s> b", "<s> x\ny é", "a  <extra> b<img>"],
    "unigram": ["hello a.", " a !  b's", "", "<s>a<x> b"],
    "words": ["hello A ab . !", "zz"],
}
TRUNCATE = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PAD = {"strategy": {"Fixed": 20}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
IM, END_IM = "<|im_start|>", "<|im_end|>"
B = {"tokenizer_class": FAST, "bos_token": BEGIN, "eos_token": END}
L = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
Q = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": END}
# name, base, replaced keys of tokenizer.json, config.json's model_type, files beside it
CASES = [
    ("plain", "bytes", {}, "llama", {"tokenizer_config": B}),
    ("no other files", "bytes", {}, "llama", {}),
    ("no class", "bytes", {}, "llama", {"tokenizer_config": {"bos_token": BEGIN, "eos_token": END}}),
    ("an unknown class", "bytes", {}, "llama", {"tokenizer_config": {**B, "tokenizer_class": "MyTokenizer"}}),
    ("truncation", "bytes", {"truncation": TRUNCATE}, "llama", {"tokenizer_config": B}),
    ("truncation to the left", "bytes", {"truncation": {**TRUNCATE, "direction": "Left", "stride": 1}}, "llama", {"tokenizer_config": B}),
    ("padding", "bytes", {"padding": {**PAD, "pad_token": END}}, "llama", {"tokenizer_config": B}),
    ("padding with a new token", "bytes", {"padding": {**PAD, "pad_token": "x"}}, "llama", {"tokenizer_config": B}),
    ("padding and pad_token", "bytes", {"padding": {**PAD, "pad_token": "x"}}, "llama", {"tokenizer_config": {**B, "pad_token": END}}),
    ("padding and pad_token null", "bytes", {"padding": {**PAD, "pad_token": "x"}}, "llama", {"tokenizer_config": {**B, "pad_token": None}}),
    ("both", "bytes", {"truncation": TRUNCATE, "padding": {**PAD, "pad_token": END}}, "llama", {"tokenizer_config": B}),
    ("added in tokenizer_config", "bytes", {}, "llama", {"tokenizer_config": {**B, "added_tokens_decoder": {"266": plain(IM), "267": plain("<img>", False)}}}),
    ("added out of order", "bytes", {}, "llama", {"tokenizer_config": {**B, "added_tokens_decoder": {"300": plain(IM), "270": plain("<img>")}}}),
    ("added with stripping", "bytes", {}, "llama", {"tokenizer_config": {**B, "added_tokens_decoder": {"266": plain(IM, lstrip=True, rstrip=True), "267": plain("<img>", False, rstrip=True)}}}),
    ("added over what is there", "bytes", {}, "llama", {"tokenizer_config": {**B, "added_tokens_decoder": {"0": plain(END, rstrip=True), "1": plain(BEGIN, False)}}}),
    ("added single words", "bytes", {}, "llama", {"tokenizer_config": {**B, "added_tokens_decoder": {"266": plain("hello", False, single_word=True)}}}),
    ("eos that only the config has", "bytes", {}, "llama", {"tokenizer_config": {**B, "eos_token": END_IM}}),
    ("eos as an object", "bytes", {}, "llama", {"tokenizer_config": {**B, "eos_token": {"__type": "AddedToken", **plain(END_IM, False)}}}),
    ("eos null", "bytes", {}, "llama", {"tokenizer_config": {**B, "eos_token": None}}),
    ("eos empty", "bytes", {}, "llama", {"tokenizer_config": {**B, "eos_token": ""}}),
    ("eos in the vocabulary", "bytes", {}, "llama", {"tokenizer_config": {**B, "eos_token": "hello"}}),
    ("special_tokens_map alone", "bytes", {}, "llama", {"tokenizer_config": {"tokenizer_class": FAST}, "special_tokens_map": {"bos_token": BEGIN, "eos_token": {"content": END, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}}}),
    ("special_tokens_map without tokenizer_config", "bytes", {}, "llama", {"special_tokens_map": {"bos_token": BEGIN, "eos_token": END_IM, "pad_token": IM}}),
    ("special_tokens_map wins", "bytes", {}, "llama", {"tokenizer_config": B, "special_tokens_map": {"eos_token": IM}}),
    ("special_tokens_map beside added_tokens_decoder", "bytes", {}, "llama", {"tokenizer_config": {**B, "added_tokens_decoder": {"0": plain(END)}}, "special_tokens_map": {"eos_token": IM, "pad_token": "<img>"}}),
    ("special_tokens_map strips", "bytes", {}, "llama", {"tokenizer_config": B, "special_tokens_map": {"pad_token": {"content": "<img>", "lstrip": True, "normalized": False, "rstrip": True, "single_word": False}}}),
    ("additional tokens in special_tokens_map", "bytes", {}, "llama", {"tokenizer_config": B, "special_tokens_map": {"additional_special_tokens": [IM, "<img>"]}}),
    ("additional tokens in tokenizer_config", "bytes", {}, "llama", {"tokenizer_config": {**B, "additional_special_tokens": [IM, "hello"]}}),
    ("additional tokens in both", "bytes", {}, "llama", {"tokenizer_config": {**B, "additional_special_tokens": [IM]}, "special_tokens_map": {"additional_special_tokens": ["<img>"]}}),
    ("extra tokens", "bytes", {}, "llama", {"tokenizer_config": {**B, "extra_special_tokens": [IM]}, "special_tokens_map": {"extra_special_tokens": ["<img>", IM]}}),
    ("extra tokens by name", "bytes", {}, "llama", {"tokenizer_config": {**B, "extra_special_tokens": {"image_token": "<img>"}}}),
    ("a token of its own name", "bytes", {}, "llama", {"tokenizer_config": {**B, "image_token": "<img>", "start_token": IM}}),
    ("added_tokens.json", "bytes", {}, "llama", {"tokenizer_config": B, "added_tokens": {IM: 266, "<img>": 267}}),
    ("added_tokens.json and specials", "bytes", {}, "llama", {"tokenizer_config": {**B, "eos_token": IM}, "added_tokens": {"<img>": 267, IM: 266}}),
    ("added_tokens.json beside added_tokens_decoder", "bytes", {}, "llama", {"tokenizer_config": {**B, "added_tokens_decoder": {"266": plain(IM)}}, "added_tokens": {"<img>": 267}}),
    ("add_bos_token false", "bytes", {}, "llama", {"tokenizer_config": {**B, "add_bos_token": False, "add_eos_token": True}}),
    ("no post-processor", "bytes", {"post_processor": None}, "llama", {"tokenizer_config": {**B, "add_bos_token": True}}),
    ("split_special_tokens", "bytes", {}, "llama", {"tokenizer_config": {**B, "split_special_tokens": True}}),
    ("add_prefix_space", "bytes", {}, "llama", {"tokenizer_config": {**B, "add_prefix_space": True}}),
    ("Llama class of bytes", "bytes", {}, "llama", {"tokenizer_config": {**L, "bos_token": BEGIN, "eos_token": END}}),
    ("clean up byte pairs", "bytes", {}, "llama", {"tokenizer_config": {**B, "clean_up_tokenization_spaces": True}}),
    ("a normalized token", "bytes", {"normalizer": {"type": "Lowercase"}, "added_tokens": [token(0, END), token(1, BEGIN), token(266, "<IMG>", False)]}, "llama", {"tokenizer_config": B}),
    ("digits and a split", "bytes", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": False}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}}, "llama", {"tokenizer_config": B}),
    ("an inverted split", "bytes", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": r"\S+|\s+(?!\S)|\s+"}, "behavior": "Removed", "invert": True}, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]}}, "llama", {"tokenizer_config": B}),
    ("merges as strings", "bytes", {"model": {**BASES["bytes"]["model"], "merges": [" ".join(m) for m in BASES["bytes"]["model"]["merges"]]}}, "llama", {"tokenizer_config": B}),
    ("ignore_merges", "bytes", {"model": {**BASES["bytes"]["model"], "merges": [], "ignore_merges": True}}, "llama", {"tokenizer_config": B}),
    ("class in config.json", "llama", {}, "llama", {"config": {"tokenizer_class": "LlamaTokenizer"}}),
    ("Llama", "llama", {}, "llama", {"tokenizer_config": L}),
    ("LlamaTokenizerFast", "llama", {}, "llama", {"tokenizer_config": {**L, "tokenizer_class": "LlamaTokenizerFast"}}),
    ("Llama of the file", "llama", {}, "llama", {"tokenizer_config": {**L, "tokenizer_class": FAST}}),
    ("Llama without prefix", "llama", {}, "llama", {"tokenizer_config": {**L, "add_prefix_space": False}}),
    ("Llama prefix null", "llama", {}, "llama", {"tokenizer_config": {**L, "add_prefix_space": None}}),
    ("Llama legacy", "llama", {}, "llama", {"tokenizer_config": {**L, "legacy": True}}),
    ("Llama not legacy", "llama", {}, "llama", {"tokenizer_config": {**L, "legacy": False}}),
    ("Llama legacy null", "llama", {}, "llama", {"tokenizer_config": {**L, "legacy": None}}),
    ("Llama legacy without prefix", "llama", {}, "llama", {"tokenizer_config": {**L, "legacy": True, "add_prefix_space": False}}),
    ("Llama add_bos_token", "llama", {}, "llama", {"tokenizer_config": {**L, "add_bos_token": True, "add_eos_token": True}}),
    ("Llama without post-processor", "llama", {"post_processor": None}, "llama", {"tokenizer_config": {**L, "add_bos_token": True}}),
    ("Llama with added tokens", "llama", {"added_tokens": [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>"), token(287, "<extra>", False)]}, "llama", {"tokenizer_config": L}),
    ("Llama with added_tokens_decoder", "llama", {"added_tokens": [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>"), token(287, "<extra>", False)]}, "llama", {"tokenizer_config": {**L, "added_tokens_decoder": {"0": plain("<unk>"), "1": plain("<s>"), "2": plain("</s>", rstrip=True)}}}),
    ("Llama with special_tokens_map", "llama", {}, "llama", {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}, "special_tokens_map": {"eos_token": "[INST]"}}),
    ("Llama without names", "llama", {}, "llama", {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}}),
    ("Llama, no merges", "llama", {"model": {k: v for k, v in BASES["llama"]["model"].items() if k != "merges"}}, "llama", {"tokenizer_config": L}),
    ("Llama in Mistral", "llama", {}, "mistral", {"tokenizer_config": L}),
    ("Llama in Mixtral", "llama", {}, "mixtral", {"tokenizer_config": {**L, "add_prefix_space": False}}),
    ("Llama in Qwen3", "llama", {}, "qwen3", {"tokenizer_config": L}),
    ("CodeLlama", "llama", {}, "llama", {"tokenizer_config": {**L, "tokenizer_class": "CodeLlamaTokenizer"}}),
    ("Gemma", "llama", {}, "llama", {"tokenizer_config": {**L, "tokenizer_class": "GemmaTokenizer"}}),
    ("Qwen2", "bytes", {}, "qwen2", {"tokenizer_config": Q}),
    ("Qwen2 without class", "bytes", {}, "qwen2", {"tokenizer_config": {"eos_token": END}}),
    ("Qwen2 without files", "bytes", {}, "qwen2", {}),
    ("Qwen2 by another class", "bytes", {}, "qwen2", {"tokenizer_config": {**B, "tokenizer_class": "LlamaTokenizerFast"}}),
    ("Qwen2 by the general class", "bytes", {}, "qwen2", {"tokenizer_config": B}),
    ("Qwen2 prefix", "bytes", {}, "qwen2", {"tokenizer_config": {**Q, "add_prefix_space": True}}),
    ("Qwen2 added", "bytes", {}, "qwen2", {"tokenizer_config": {**Q, "pad_token": IM, "additional_special_tokens": ["<img>"], "added_tokens_decoder": {"266": plain(IM, rstrip=True), "267": plain("<img>"), "0": plain(END)}}}),
    ("Qwen3", "bytes", {}, "qwen3", {"tokenizer_config": Q}),
    ("Qwen3 without class", "bytes", {}, "qwen3", {"tokenizer_config": {"eos_token": END}}),
    ("Qwen3 by the general class", "bytes", {}, "qwen3", {"tokenizer_config": B}),
    ("Qwen3 MoE", "bytes", {}, "qwen3_moe", {"tokenizer_config": Q}),
    ("Qwen2 MoE without class", "bytes", {}, "qwen2_moe", {"tokenizer_config": {"eos_token": END}}),
    ("Qwen2 class in Llama", "bytes", {}, "llama", {"tokenizer_config": Q}),
    ("GPT2", "bytes", {}, "llama", {"tokenizer_config": {**B, "tokenizer_class": "GPT2Tokenizer"}}),
    ("GPT2 prefix", "bytes", {}, "llama", {"tokenizer_config": {**B, "tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}}),
    ("GPT2 without names", "bytes", {"post_processor": None}, "llama", {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}}),
    ("GPTNeoX", "bytes", {}, "llama", {"tokenizer_config": {**B, "tokenizer_class": "GPTNeoXTokenizer"}}),
    ("Cohere", "bytes", {}, "llama", {"tokenizer_config": {**B, "tokenizer_class": "CohereTokenizer"}}),
    ("Unigram", "unigram", {}, "llama", {"tokenizer_config": {"tokenizer_class": FAST, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}}),
    ("Unigram, cleaned up", "unigram", {}, "llama", {"tokenizer_config": {"tokenizer_class": FAST, "eos_token": "</s>", "clean_up_tokenization_spaces": True}}),
    ("Unigram with added", "unigram", {}, "llama", {"tokenizer_config": {"tokenizer_class": FAST, "eos_token": "<x>"}}),
    ("Llama class of a Unigram", "unigram", {}, "llama", {"tokenizer_config": L}),
    ("WordPiece", "words", {}, "llama", {"tokenizer_config": {"tokenizer_class": FAST, "unk_token": "[UNK]", "eos_token": "!"}}),
    ("WordPiece, cleaned up", "words", {}, "llama", {"tokenizer_config": {"tokenizer_class": FAST, "clean_up_tokenization_spaces": True}}),
    ("WordPiece without type", "words", {"model": {k: v for k, v in BASES["words"]["model"].items() if k != "type"}}, "llama", {"tokenizer_config": {"tokenizer_class": FAST}}),
]

cases = []
for name, base, keys, model_type, files in CASES:
    files = copy.deepcopy(files)
    files["config"] = {"model_type": model_type, **files.get("config", {})}
    with tempfile.TemporaryDirectory() as d:
        for file, content in files.items():
            json.dump(content, open(f"{d}/{file}.json", "w"))
        json.dump({**BASES[base], **keys}, open(f"{d}/tokenizer.json", "w"))
        t = AutoTokenizer.from_pretrained(d)
        texts = []
        for text in TEXTS[base]:
            ids = t(text)["input_ids"]
            texts.append({"text": text, "ids": ids, "bare": t(text, add_special_tokens=False)["input_ids"],
                          "decoded": t.decode(ids, skip_special_tokens=True)})
        eos = t.backend_tokenizer.token_to_id(t.eos_token) if t.eos_token else None
        cases.append({"name": name, "base": base, "keys": keys, "files": files, "eos": eos,
                      "specials": t.special_tokens_map, "texts": texts})
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "..", "tests", "data", "tokenizers.json"), "w") as f:
    dump = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    f.write('{"bases":' + dump(BASES) + ',\n"cases":[\n' + ",\n".join(map(dump, cases)) + "\n]}\n")
print(len(cases), "tokenizers,", sum(len(c["texts"]) for c in cases), "texts")

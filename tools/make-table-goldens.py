#!/usr/bin/env python3
"""Makes tests/data/tables: small SentencePiece models and tables of tiktoken, with what the two packages make of texts.

All models are trained here, on text that is generated here. `goldens.json` has 2,000 texts in many scripts; for each
model the ids and the decoded text of some of them and a digest for each ten of all; texts of random ids; and chats as
the published code of some families encodes them.

    pip install sentencepiece==0.2.1 tiktoken==0.14.0 protobuf
    tools/make-table-goldens.py            # keeps the models that are there: training is not the same everywhere
    tools/make-table-goldens.py --train    # trains all models again
"""
import base64, collections, io, json, os, random, sys
import sentencepiece as spm
import tiktoken
from sentencepiece import sentencepiece_model_pb2 as pb

TO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/data/tables")
SHOWN, STEP, TEXTS = 40, 10, 2000
rng = random.Random(16)

SCRIPTS = {
    "latin": "abcdefghijklmnopqrstuvwxyz", "accents": "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿœßłžšő",
    "greek": "αβγδεζηθικλμνξοπρστυφχψωάέήίόύώς", "cyrillic": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويةىءؤئ", "hebrew": "אבגדהוזחטיכלמנסעפצקרשתםןףךץ",
    "devanagari": "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह", "thai": "กขคงจฉชซญดตถทธนบปผพฟภมยรลวศสหอฮะาเแโไ",
    "han": "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后",
    "kana": "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをんアイウエオカキクケコ",
    "hangul": "가나다라마바사아자차카타파하고노도로모보소오조초코토포호이는을를에서의한국어말",
    "armenian": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցւփքօֆ", "georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "tamil": "அஆஇஈஉஊஎஏஐஒஓகஙசஞடணதநபமயரலவழளறன", "ethiopic": "ሀለሐመሠረሰሸቀበተቸኀነኘአከኸወዐዘዠየደጀገጠ",
}
COMMON = ("the of and to in a is that it for was on are with as be by this from or one had not but all were when we "
          "there can an your which their said if will each about how up out them then she many some so these would "
          "other into has more two like time no make than first been its who now people over down did get come made "
          "after back little only round man year came show every good give our under name very through just form").split()
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "❤️", "1️⃣", "🧑🏿‍🚀", "☺", "🫠"]
COMBINING = ["é", "ñ", "ạ̊", "क्षि", "ก็", "Z͑ͫ̓ͪ̂ͫ", "ö̲", "한"]
ODD = ["\u0000", "\u0001", "\u0007", "\u001b[31m", "\u007f", "\u0085", "\u00a0", "\u00ad", "\u200b", "\u200d", "\u200e",
       "\u2028", "\u2029", "\u202e", "\u2060", "\u3000", "\ufeff", "\ufffc", "\ufffd", "\uffff", "\ue000", "\U000e0041",
       "\U0010ffff", "\U0001f9ff", "\u2581", "\u2581\u2581", "ﬁ", "Ⅷ", "①", "ｶﾞ", "Ａｂ１", "㎏", "½", "™", "ſ", "İ", "ǆ", "ﷺ", "℃"]
SPACES = [" ", "  ", "   ", "     ", " " * 17, "\t", "\t\t", "\n", "\n\n", "\r\n", " \n ", "\n\t  ", "\u3000 ", "\xa0 "]
CODE = ["def f(x):\n    return x**2 + 1\n", "if (a != b && c[i] <= 0x1F) { i += 1; }", "<div class=\"a b\">&amp;</div>",
        "SELECT * FROM t WHERE id = 42;", "let x: Vec<u8> = vec![0; 16];", "#include <stdio.h>\n", "a = {'k': [1, 2.5e-3]}",
        "https://example.org/a?b=c&d=%20#e", "user@example.com", "C:\\dir\\file.txt", "$HOME/.cargo/bin", "```rust\nfn main() {}\n```"]
MARKS = [".", ",", "!", "?", ";", ":", "...", "—", "-", "(", ")", "“", "”", "'", "’s", "'ll", "'S", "«", "»", "。", "、", "！", "؟", "।", "…", "%", "€", "@", "#"]
WORDS = {name: ["".join(rng.choice(letters) for _ in range(rng.randint(1, 7))) for _ in range(60)] for name, letters in SCRIPTS.items()}
WORDS["latin"] = COMMON + WORDS["latin"][:20]


def number():
    return rng.choice([str(rng.randint(0, 9)), str(rng.randint(0, 10**9)), f"{rng.random():.4f}", "1,234,567.89", "2024-02-29", "0x7fff", "٣٤٥", "१२३", "１２３"])


def words(name, n):
    glue = "" if name in ("han", "kana", "thai") else " "
    return glue.join(rng.choice(WORDS[name]) for _ in range(n))


def text():
    parts = []
    for _ in range(rng.choice([1, 1, 2, 3, 4, 6])):
        kind = rng.randrange(12)
        if kind < 5: parts.append(words(rng.choice(list(SCRIPTS)), rng.randint(1, 5)))
        elif kind == 5: parts.append(rng.choice(EMOJI))
        elif kind == 6: parts.append(rng.choice(COMBINING))
        elif kind == 7: parts.append(rng.choice(ODD))
        elif kind == 8: parts.append(rng.choice(SPACES))
        elif kind == 9: parts.append(rng.choice(CODE))
        elif kind == 10: parts.append(number())
        else: parts.append(words("latin", 2).title() + rng.choice(MARKS))
        parts.append(rng.choice(["", "", " ", " ", rng.choice(SPACES), rng.choice(MARKS)]))
    return "".join(parts)


FIXED = ["", " ", "  ", "\n", "a", " a", "a ", "  a  b  ", "\u2581", "\u2581a \u2581", "aaaaaaaaaaaaaaaaaaaaaaaa", "abababababababab",
         "hello world", "Hello, World! 12345", "日本語のテキスト", "\u0000", "👩‍👩‍👧‍👦", "ĳﬃ㌖", " " * 40 + "x", "x" + "\n" * 30,
         "<|none|> in <sym> text<sym2>", "of the  of the", "\ufeffof", "ééé é", "x\u00ady", "the" * 50, "<0x41>", "<unk>"]


def corpus(n):
    for _ in range(n):
        name = rng.choice(["latin"] * 6 + list(SCRIPTS))
        yield words(name, rng.randint(3, 12)) + rng.choice([".", "!", "", " 12", " 2024"])


def train(**options):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, num_threads=1, minloglevel=2,
                                   hard_vocab_limit=False, max_sentence_length=1000, **options)
    proto = pb.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto


def edited(proto, edit):
    edit(proto)
    return proto


def unused(proto):
    """Every fifth piece of several letters is unused, and scores come in threes."""
    for n, piece in enumerate(proto.pieces):
        if piece.type == 1 and len(piece.piece) > 1:
            piece.score = float(int(piece.score) // 3)
            if n % 5 == 0: piece.type = 5


RULES = [("a", "A"), ("ab", "x y"), ("abc", ""), ("é", "e"), ("\u3000", " "), ("\t", " "), ("\u00ad", ""), ("ﬁ", "fi"),
         ("the", "THE"), ("。", " . "), ("\u2581", "_"), ("  ", " "), ("①", "1"), ("한국", "Korea "), ("😀", ":)")]


def rules(proto_options):
    path = os.path.join(TO, "rules.tsv")
    with open(path, "w") as f:
        for a, b in RULES:
            f.write(" ".join(f"{ord(c):x}" for c in a) + "\t" + " ".join(f"{ord(c):x}" for c in b) + "\n")
    try: return train(normalization_rule_tsv=path, **proto_options)
    finally: os.unlink(path)


def no_escape(proto): proto.normalizer_spec.escape_whitespaces = False


BPE, UNIGRAM = dict(model_type="bpe"), dict(model_type="unigram")
FALLBACK = dict(byte_fallback=True, character_coverage=0.98)
IDENTITY = dict(normalization_rule_name="identity")
MODELS = {
    "bpe-llama": lambda: train(vocab_size=1100, remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, **BPE, **FALLBACK, **IDENTITY),
    "bpe-bare": lambda: train(vocab_size=1100, add_dummy_prefix=False, remove_extra_whitespaces=False, split_digits=True,
                              user_defined_symbols=["<role_0>", "<role_1>", "<eoh>", "<eoa>", "<sym>", "<sym2>", "▁▁", "▁▁▁▁", "of the", "é"],
                              control_symbols=["<ctl>"], **BPE, **FALLBACK, **IDENTITY),
    "bpe-unknown": lambda: train(vocab_size=900, character_coverage=0.98, user_defined_symbols=["<sym>", "  ", "ab"], **BPE, **IDENTITY),
    "bpe-unused": lambda: edited(train(vocab_size=1100, remove_extra_whitespaces=False, **BPE, **FALLBACK, **IDENTITY), unused),
    "bpe-unescaped": lambda: edited(train(vocab_size=800, character_coverage=0.98, **BPE, **IDENTITY), no_escape),
    "unigram-nfkc": lambda: train(vocab_size=1100, character_coverage=0.98, control_symbols=["<ctl>"], **UNIGRAM),
    "unigram-bytes": lambda: train(vocab_size=1100, remove_extra_whitespaces=False, user_defined_symbols=["<sym>", "<sym2>", "of", "of the", "▁▁"],
                                   unk_surface="?", **UNIGRAM, **FALLBACK, **IDENTITY),
    "unigram-unused": lambda: edited(train(vocab_size=900, add_dummy_prefix=False, **UNIGRAM, **FALLBACK, **IDENTITY), unused),
    "unigram-rules": lambda: rules(dict(vocab_size=800, character_coverage=0.98, treat_whitespace_as_suffix=True, **UNIGRAM)),
}

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HAN = r"&&[^\p{Han}]"
KIMI = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}" + HAN + r"]*[\p{Ll}\p{Lm}\p{Lo}\p{M}" + HAN + r"]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}" + HAN + r"]+[\p{Ll}\p{Lm}\p{Lo}\p{M}" + HAN + r"]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
GLM4_TOKENS = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
               "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]
# Name: the file, the model_type that stands in config.json, the pattern, the code's special tokens, whether NFC.
TABLES = {"glm4": ("tokenizer.model", "chatglm", CL100K, GLM4_TOKENS, False),
          "qwen": ("qwen.tiktoken", "qwen", CL100K.replace("{1,3}", ""), QWEN_TOKENS, True),
          "kimi": ("tiktoken.model", "kimi_k2", KIMI, [], False)}


def train_ranks(count):
    """Byte pairs of the words of the corpus, the most frequent first."""
    import regex
    counts = collections.Counter(w for line in CORPUS for w in regex.findall(KIMI.replace(HAN, ""), line))
    seen = {tuple(bytes([b]) for b in w.encode()): n for w, n in counts.items()}
    order = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    ranks = [bytes([b]) for b in order + [b for b in range(256) if b not in order]]
    while len(ranks) < count:
        pairs = collections.Counter()
        for w, n in seen.items():
            for pair in zip(w, w[1:]): pairs[pair] += n
        (a, b), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        ranks.append(a + b)
        merged = {}
        for w, n in seen.items():
            out, i = [], 0
            while i < len(w):
                if w[i:i + 2] == (a, b): out.append(a + b); i += 2
                else: out.append(w[i]); i += 1
            merged[tuple(out)] = n
        seen = merged
    # One that merging does not lead to: only whole words become it.
    return ranks + ["wholly".encode()]


def fnv(data, h=0xcbf29ce484222325):
    for byte in data: h = (h ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return h


def digests(results):
    """Of every ten: ids as four bytes each and a line feed, then the decoded text and a line feed."""
    out = []
    for at in range(0, len(results), STEP):
        data = b"".join(b"".join(i.to_bytes(4, "little") for i in ids) + b"\n" + text.encode() + b"\n" for ids, text in results[at:at + STEP])
        out.append(f"{fnv(data):016x}")
    return "".join(out)


def goldens(encode, decode, size):
    results = [(encode(t), decode(encode(t))) for t in TEXTS_ALL]
    rows = []
    for _ in range(40):
        ids = [rng.randrange(size) for _ in range(rng.randint(1, 12))]
        rows.append([ids, decode(ids)])
    return {"shown": [list(r) for r in results[:SHOWN]], "digests": digests(results), "decoded": rows}


MESSAGES = [[["user", "hello of the"]],
            [["system", "be good"], ["user", " Hi\n\nthere  you"], ["assistant", "yes."], ["user", "日本 12"]]]


def chats(sp, bare, table):
    """What the published code of each family makes of chats, with special tokens by their ids."""
    out = []
    def add(family, messages, ids): out.append({"family": family, "messages": messages, "ids": ids})
    n = sp.get_piece_size()
    ids3 = {t: n + i for i, t in enumerate(["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"])}
    role = {"user": bare.piece_to_id("<role_0>"), "assistant": bare.piece_to_id("<role_1>")}
    for messages in MESSAGES:
        # ChatGLM 3: build_chat_input.
        ids = [ids3["[gMASK]"], ids3["sop"]]
        for r, text in messages: ids += [ids3[f"<|{r}|>"]] + sp.encode("\n") + sp.encode(text)
        add("chatglm3", messages, ids + [ids3["<|assistant|>"]])
        # ChatGLM 2: build_prompt; there is no system prompt.
        prompt, rounds = "", 0
        for r, text in messages:
            if r == "user": rounds += 1; prompt += f"[Round {rounds}]\n\n问：{text}\n\n答："
            elif r == "assistant": prompt += f"{text}\n\n"
        if messages[0][0] != "system": add("chatglm2", messages, [n + 1, n + 3] + sp.encode(prompt))
        # Baichuan: build_chat_input.
        ids = []
        for r, text in messages: ids += ([role[r]] if r in role else []) + bare.encode(text)
        add("baichuan", messages, ids + [role["assistant"]])
        # InternLM: build_inputs.
        prompt = ""
        for r, text in messages:
            prompt += {"system": f"<|System|>:{text}\n", "user": f"<|User|>:{text}<eoh>\n", "assistant": f"<|Bot|>:{text}<eoa>\n"}[r]
        add("internlm", messages, [bare.bos_id()] + bare.encode(prompt + "<|Bot|>:"))
        # InternLM 2, with its added tokens in the place of the last two pieces.
        n2, ids = bare.get_piece_size(), [bare.bos_id()]
        for r, text in messages: ids += [n2 - 1] + bare.encode(f"{r}\n{text}") + [n2 - 2] + bare.encode("\n")
        add("internlm2", messages, ids + [n2 - 1] + bare.encode("assistant\n"))
        # GLM-4: build_single_message.
        glm = table["glm4"]
        ids = [glm.n_base + 2, glm.n_base + 4]
        for r, text in messages: ids += [glm.special[f"<|{r}|>"]] + glm.encode("\n") + glm.encode(text)
        add("glm4", messages, ids + [glm.special["<|assistant|>"]])
        # Qwen: make_context.
        q = table["qwen"]
        start, end, nl = q.special["<|im_start|>"], q.special["<|im_end|>"], q.encode("\n")
        ids, rest = [], list(messages)
        if rest[0][0] != "system": rest.insert(0, ["system", "You are a helpful assistant."])
        for r, text in rest: ids += [start] + q.encode(r) + nl + q.encode(text) + [end] + nl
        add("qwen", messages, ids + [start] + q.encode("assistant") + nl)
    return out


class Table:
    def __init__(self, ranks, pattern, tokens, nfc):
        import unicodedata
        self.n_base = len(ranks)
        self.special = {t: len(ranks) + i for i, t in enumerate(tokens)}
        self.enc = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks={t: i for i, t in enumerate(ranks)}, special_tokens=self.special)
        self.form = (lambda t: unicodedata.normalize("NFC", t)) if nfc else (lambda t: t)
    def encode(self, t): return self.enc.encode(self.form(t), disallowed_special=())
    def decode(self, ids): return self.enc.decode(ids)


CORPUS = list(corpus(4000))
TEXTS_ALL = FIXED + [text() for _ in range(TEXTS - len(FIXED))]
os.makedirs(TO, exist_ok=True)
again = "--train" in sys.argv
out = {"texts": TEXTS_ALL, "step": STEP, "pieces": {}, "ranks": {}, "chats": []}
sps = {}
for name, make in MODELS.items():
    path = f"{TO}/{name}.model"
    if again or not os.path.exists(path):
        open(path, "wb").write(make().SerializeToString())
    sps[name] = sp = spm.SentencePieceProcessor(model_file=path)
    # Controls are matched in text by the code around the package, not by the package.
    out["pieces"][name] = goldens(sp.encode, sp.decode, sp.get_piece_size())
path = f"{TO}/ranks.tiktoken"
if again or not os.path.exists(path):
    with open(path, "wb") as f:
        for i, t in enumerate(train_ranks(700)): f.write(base64.b64encode(t) + b" %d\n" % i)
ranks = [base64.b64decode(line.split()[0]) for line in open(path, "rb")]
tables = {}
for name, (file, model_type, pattern, tokens, nfc) in TABLES.items():
    tables[name] = t = Table(ranks, pattern, tokens, nfc)
    out["ranks"][name] = {"file": file, "model_type": model_type, **goldens(t.encode, t.decode, len(ranks))}
out["chats"] = chats(sps["bpe-llama"], sps["bpe-bare"], tables)
with open(f"{TO}/goldens.json", "w") as f:
    json.dump(out, f, ensure_ascii=False, separators=(",", ":"))
    f.write("\n")
print({name: os.path.getsize(f"{TO}/{name}") for name in sorted(os.listdir(TO))})

#!/usr/bin/env python3
"""Make the reference data of tests/format/test_tokenizer.c with Hugging Face tokenizers.

    python tests/golden/make_tokenizers.py        writes tests/golden/tokenizers/

One small tokenizer per kind is built and run over two sets of texts:

  strings.txt      texts made here from fragments with a fixed seed, one per line, escaped
  code points      every code point that is assigned (private use included) in Unicode 13; the C
                   test builds the same texts from assigned.txt: see code_point_texts()

KIND.ids holds one line per text: FNV-1a (32 bit, 8 hex digits) of the ids as little-endian u32.
For strings.txt a line has four fields: ids, ids with special tokens in the text taken as plain
characters, bytes of the decoded text, the same without special tokens ("-": not valid UTF-8).
chat.txt: conversations as the published chat templates render them: T style kind generation,
M role text, I ids, K one digit per id: 1 where the token lies in an assistant's content or is the
token that ends it.
KIND.full lists the ids of the first strings in plain numbers, for people.

classes.txt      code points that the reference's regular expressions take for letter, number, space
differences.txt  code points where its tables and those of utf8proc differ:
                 C, the class: its regular expressions are newer than utf8proc, nothing of Unicode 13
                 differs;
                 F, the canonical combining class: its NFC has the tables of Unicode 9, so that newer
                 marks are not reordered; these are left out of the code points of qwen2

Needs perl (property Present_In) and libutf8proc.so.2 (Debian 12: 2.8.0).
"""
import ctypes
import json
import os
import random
import subprocess
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import AddedToken, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizers")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
FULL = 40


def training_text():
    """English words from character names, and runs of letters of every script."""
    lines = []
    for block in range(0, 0x30000, 0x10):
        names = [unicodedata.name(chr(c), "") for c in range(block, block + 0x10)]
        names = [n for n in names if n and "IDEOGRAPH" not in n and "HANGUL SYLLABLE" not in n]
        if names and block % 0x30 == 0:
            lines.append(" ".join(names[:6]).lower() + ".")
            lines.append(" ".join(n.title() for n in names[6:9]) + f" {block} {block * 7}\n")
        run = "".join(chr(c) for c in range(block, block + 0x10)
                      if unicodedata.category(chr(c))[0] in "LM")
        if run and block < 0xA000:
            lines.append(run + " " + run[:3] + " " + run[:3])
    lines += ["int main(void)\n{\n    return 0;\n}\n", "    if (x == 1) {\n\t\treturn;\n\t}\n",
              "I'll say they're here, we've won; it's his.\n\n", "  two  spaces   three    four\n"] * 40
    return lines


def train(pre_tokenizer, vocab, alphabet):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizer
    t.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=alphabet, show_progress=False, limit_alphabet=700))
    return json.loads(t.to_str())["model"]


ADDED = [
    # content, special, normalized, lstrip, rstrip, single_word
    ("<|begin_of_text|>", True, False, False, False, False),
    ("<|end_of_text|>", True, False, False, False, False),
    ("<|end_of_text|>x", False, False, False, False, False),
    ("<left>", False, False, True, False, False),
    ("<right>", False, False, False, True, False),
    ("<both>", True, False, True, True, False),
    ("word", False, False, False, False, True),
    ("norm", False, True, False, False, False),
    ("e\u0301n", False, True, False, False, False),
    ("two words", False, True, False, False, False),
    ("Single", False, True, True, True, True),
    ("\u00a0\u00a0", False, False, False, False, False),
    ("<|start_header_id|>", True, False, False, False, False),
    ("<|end_header_id|>", True, False, False, False, False),
    ("<|eot_id|>", True, False, False, False, False),
    ("<|im_start|>", True, False, False, False, False),
    ("<|im_end|>", True, False, False, False, False),
]


def add_tokens(t, first):
    for content, special, normalized, lstrip, rstrip, single in ADDED:
        token = AddedToken(content, special=special, normalized=normalized, lstrip=lstrip,
                           rstrip=rstrip, single_word=single)
        (t.add_special_tokens if special else t.add_tokens)([token])
    bos = t.token_to_id(first)
    return bos


def byte_level(split, normalizer, ignore_merges, prefix_space=False, digits=False, bos=True):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if split is None:
        pre = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=True)
    else:
        pre = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(split), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)])
    if digits:
        pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre])
    model = train(pre, 1400, alphabet)
    t = Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]],
                             ignore_merges=ignore_merges))
    t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    id_of_bos = add_tokens(t, "<|begin_of_text|>")
    if bos:
        t.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<|begin_of_text|> $A",
                                          special_tokens=[("<|begin_of_text|>", id_of_bos)])])
    return t


def sentence_piece(legacy, scheme="first", split=False, fallback=True, fuse=True):
    trained = train(pre_tokenizers.Metaspace(), 900, [])
    vocab, order = {}, sorted(trained["vocab"], key=trained["vocab"].get)
    for token in ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if fallback else []):
        vocab[token] = len(vocab)
    for token in order:
        vocab.setdefault(token, len(vocab))
    t = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m) for m in trained["merges"]],
                             unk_token="<unk>", fuse_unk=fuse, byte_fallback=fallback))
    if legacy:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"),
                                             normalizers.Replace(" ", "\u2581")])
        t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(),
                                       decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
        t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(),
                                       decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        if split:
            t.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    for name in ["<unk>", "<s>", "</s>"]:
        t.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    if scheme == "first" and not legacy:
        t.add_special_tokens(["[INST]", "[/INST]"])
    add_tokens(t, "<s>")
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if split else "<s> $A",
        special_tokens=[("<s>", 1), ("</s>", 2)])
    return t


KINDS = {
    "llama3": lambda: byte_level(LLAMA3, None, True),
    "qwen2": lambda: byte_level(QWEN2, normalizers.NFC(), False, bos=False),
    "tekken": lambda: byte_level(TEKKEN, None, True),
    "gpt2": lambda: byte_level(None, None, False, prefix_space=True),
    "digits": lambda: byte_level(None, None, False, digits=True),
    "sp-legacy": lambda: sentence_piece(True),
    "sp-first": lambda: sentence_piece(False),
    "sp-split": lambda: sentence_piece(False, scheme="always", split=True, fallback=False, fuse=False),
}


def fnv(data):
    h = 0x811C9DC5
    for b in data:
        h = (h ^ b) * 0x01000193 & 0xFFFFFFFF
    return f"{h:08x}"


def hash_ids(ids):
    return fnv(b"".join(i.to_bytes(4, "little") for i in ids))


UTF8PROC = ctypes.CDLL("libutf8proc.so.2")
UTF8PROC.utf8proc_unicode_version.restype = ctypes.c_char_p
UTF8PROC.utf8proc_category_string.restype = ctypes.c_char_p
UTF8PROC.utf8proc_NFC.restype = ctypes.c_void_p
UTF8PROC.utf8proc_NFC.argtypes = [ctypes.c_char_p]
LIBC = ctypes.CDLL(None)
LIBC.free.argtypes = [ctypes.c_void_p]


def our_category(c):
    return UTF8PROC.utf8proc_category_string(c).decode()


def our_nfc(text):
    at = UTF8PROC.utf8proc_NFC(text.encode())
    out = ctypes.string_at(at).decode()
    LIBC.free(at)
    return out


def assigned():
    """Present in Unicode 13, without surrogates, noncharacters and NUL."""
    out = subprocess.run(["perl", "-e", r"for (1 .. 0x10ffff) { next if $_ >= 0xd800 && $_ < 0xe000;"
                          r' print "$_\n" if chr($_) =~ /^\p{Present_In: 13.0}$/'
                          r" && chr($_) !~ /\p{Cn}/ }"], check=True, capture_output=True).stdout
    return [int(line) for line in out.split()]


SEPARATORS = ["", "a", " ", "1", "'s", "\n", "  ", "e", "!", " z"]


def code_point_texts(points):
    """Blocks of 96: the characters in a row; then each between separators, the first doubled."""
    for at in range(0, len(points), 96):
        block = points[at:at + 96]
        yield "".join(map(chr, block))
        yield "".join(chr(c) * (1 + (i % 7 == 0)) + SEPARATORS[i % len(SEPARATORS)]
                      for i, c in enumerate(block))


FRAGMENTS = [
    "Hello", " world", "'s", "'S", "'ll", "'LL", "'Re", "'ve", "'d", "'m", "'t", "'\u017f", "'l", "''s", "I",
    " ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", " \n", "\n ", "\u00a0", "\u2003", "\u3000", "\u0085",
    "\u2028", "\u180e", "\u200b", "\u2581", "\ufeff", "1", "23", "456", "7890", "12345", "\u0661\u0662", "\u00bd",
    "\u2168", "\u4e00", "\u4e2d\u6587", "\u3053\u3093\u306b\u3061\u306f", "\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab",
    "e\u0301", "\u00e9", "\u0301", "a\u0323\u0307", "a\u0307\u0323", "\u212b", "\u0958", "\ufb01", "\u1e9b\u0323",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U0001f44d\U0001f3fd",
    "!", "!!", "?", "...", "\u2026", "(", ")", "[", "]", "{", "}", ";", ",", ".", ":", "-", "--", "_", "=", "==", "+",
    "#include <stdio.h>", "for (int i = 0; i < n; i++)", "\treturn x;", "    def f(self):", "https://example.org/a?b=c",
    "<|begin_of_text|>", "<|end_of_text|>", "<|end_of_text|>x", "<|end_of_text", "<left>", "<right>", "<both>", "word",
    "words", "norm", "two words", "Single", "Singles", "<s>", "</s>", "<unk>", "<0x41>", "\u00a0\u00a0", "e\u0301n",
    "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\U0001d4d0", "\U00010330", "\U000e0041", "\ue000", "\U0010fffd", "\ufffd", "\x00"[:0],
    "\x01", "\x7f", "\x1b[0m", "the", " the", "of", " of", "letter", " small letter", "SMALL", "return", "A", "a", "z",
]


def literal_texts():
    rng = random.Random(20260101)
    fixed = ["", " ", "  ", "Hello  world's 12345!!\n\n  x", "I'LL go\t(now)  \n ok", "Hello world",
             " Hello", "word", " word ", "aword", "word word", "<s>", "<s>Hello", "Hello<s>Hello",
             "<|begin_of_text|>Hi<|end_of_text|>", "a" * 300, " " * 100, "\n" * 50, "1" * 50, "!" * 60,
             "\u0301" * 20, "norm norm", "normnorm", "Single Single", "two  words", "two words",
             "<left>  <right>  <both>  x", "  <both>  <both>  ", "<right>   <left>", "ab<left>\n\u00a0<right>"]
    texts = list(fixed)
    while len(texts) < 2200:
        n = rng.choice([1, 2, 3, 4, 6, 8, 12])
        texts.append("".join(rng.choice(FRAGMENTS) + rng.choice(["", "", "", " "]) for _ in range(n)))
    return texts


def escape(text):
    out = []
    for c in text:
        if c in "\\\n\r\t" or ord(c) < 0x20 or c == "\x7f":
            out.append("\\x%02x" % ord(c))
        else:
            out.append(c)
    return "".join(out)


def ranges(points):
    out, start, last = [], None, None
    for c in points:
        if last is not None and c == last + 1:
            last = c
            continue
        if start is not None:
            out.append((start, last))
        start = last = c
    if start is not None:
        out.append((start, last))
    return out


def write_ranges(f, label, points):
    for first, last in ranges(points):
        f.write(f"{label} {first:x} {last:x}\n")


def class_of(splitters, c):
    """How the reference's regular expressions see a character."""
    text = "\x01" + chr(c) + "\x01"
    for label, splitter in splitters.items():
        if len(splitter.pre_tokenize_str(text)) == 3:
            return label
    return "O"


def main():
    os.makedirs(HERE, exist_ok=True)
    texts, points = literal_texts(), assigned()
    with open(os.path.join(HERE, "strings.txt"), "w", encoding="utf-8", newline="\n") as f:
        f.writelines(escape(t) + "\n" for t in texts)
    with open(os.path.join(HERE, "assigned.txt"), "w") as f:
        write_ranges(f, "A", points)
    splitters = {k: pre_tokenizers.Split(Regex(p), "isolated")
                 for k, p in {"L": r"\p{L}", "N": r"\p{N}", "S": r"\s"}.items()}
    nfc, old = normalizers.NFC(), set(points)
    classes, newer, newer_nfc = {"L": [], "N": [], "S": []}, [], []
    for c in range(2, 0x110000):
        if 0xD800 <= c < 0xE000:
            continue
        label = class_of(splitters, c)
        if label != "O":
            classes[label].append(c)
        ours = {"L": "L", "N": "N"}.get(our_category(c)[0], "O")
        ours = "S" if c in SPACES else ours
        if ours != label:
            assert c not in old, f"U+{c:04X}: class {label}, utf8proc {ours}"
            newer.append(c)
        for text in (chr(c), "\u0301" + chr(c), chr(c) + "\u0334"):
            if nfc.normalize_str(text) == our_nfc(text):
                continue
            assert nfc.normalize_str(text) == text, f"U+{c:04X}: NFC"
            newer_nfc.append(c)
            break
    with open(os.path.join(HERE, "classes.txt"), "w") as f:
        for label, members in classes.items():
            write_ranges(f, label, members)
    with open(os.path.join(HERE, "differences.txt"), "w") as f:
        write_ranges(f, "C", newer)
        write_ranges(f, "F", newer_nfc)
    for name, make in KINDS.items():
        t = make()
        t.save(os.path.join(HERE, name + ".json"), pretty=False)
        # What was saved is what the C program reads.
        t = Tokenizer.from_file(os.path.join(HERE, name + ".json"))
        skipped = set(newer_nfc) if name == "qwen2" else set()
        write_kind(name, t, texts, [c for c in points if c not in skipped])
    write_chat(lambda kind: Tokenizer.from_file(os.path.join(HERE, kind + ".json")))
    with open(os.path.join(HERE, "ORIGIN"), "w") as f:
        f.write(f"made by tests/golden/make_tokenizers.py\ntokenizers {tokenizers.__version__}\n"
                f"python {sys.version.split()[0]}, unicodedata {unicodedata.unidata_version}\n"
                f"utf8proc of Unicode {UTF8PROC.utf8proc_unicode_version().decode()}\n")


SPACES = set([0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
             + list(range(9, 14)) + list(range(0x2000, 0x200B)))


TEMPLATES = {
    "llama3": ("<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
               "{{ '{' if m.role == 'assistant' }}{{ m.content | trim }}<|eot_id|>"
               "{{ '}' if m.role == 'assistant' }}{% endfor %}"
               "{% if generation %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"),
    "chatml": ("{% for m in messages %}<|im_start|>{{ m.role }}\n"
               "{{ '{' if m.role == 'assistant' }}{{ m.content }}<|im_end|>"
               "{{ '}' if m.role == 'assistant' }}\n{% endfor %}"
               "{% if generation %}<|im_start|>assistant\n{% endif %}"),
    "mistral-inst": ("<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
                     "{% elif m.role == 'assistant' %} {{ '{' }}{{ m.content }}</s>{{ '}' }}{% endif %}{% endfor %}"),
}
TEMPLATES["llama3.1"] = (
    "<|begin_of_text|>{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{{ system }}<|eot_id|>" + TEMPLATES["llama3"].removeprefix("<|begin_of_text|>"))
TEMPLATES["qwen2.5"] = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}" + TEMPLATES["chatml"])
TEMPLATES["qwen3"] = (
    "{% set ns = namespace(last=messages | length - 1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% else %}{% set content, reasoning = m.content, '' %}{% if '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n{{ '{' }}"
    "{% if loop.index0 > ns.last and (loop.last or reasoning) %}<think>\n{{ reasoning.strip('\n') }}\n</think>\n\n"
    "{{ content.lstrip('\n') }}{% else %}{{ content }}{% endif %}<|im_end|>{{ '}' }}\n{% endif %}{% endfor %}"
    "{% if generation %}<|im_start|>assistant\n{% endif %}")
# Version 3 of Mistral's tokenizers has control tokens and no space before [/INST].
TEMPLATES["mistral-inst-v3"] = TEMPLATES["mistral-inst"].replace("{{ m.content }} [/INST]", "{{ m.content }}[/INST]")


def conversations(style):
    texts = ["Hello", "What is a letter?", "It's the small letter a,  of course.\n", "\n\nTwo lines\nhere",
             "", "  spaces  ", "\tint x;\r\n", "e\u0301 \U0001f600", "1234 567", "'s word", "\u3000x\u3000"]
    for i in range(24):
        messages, n = [], 2 + 2 * (i % 3)
        for k in range(n if i % 4 else n - 1):
            messages.append({"role": ["user", "assistant"][k % 2], "content": texts[(i * 5 + k * 3) % len(texts)]})
        if style in ("llama3.1", "qwen2.5", "qwen3") and i % 3 == 0:
            messages.insert(0, {"role": "system", "content": texts[i % len(texts)]})
        if style == "qwen3" and i % 2:
            thought = ["<think>\n\nSo\nso.\n\n</think>\n\n", "no mark</think>", "<think></think>\n"][i % 3]
            for m in messages:
                m["content"] = (thought if m["role"] == "assistant" else "") + m["content"]
        if style == "qwen3" and i % 8 == 7:  # two answers to the last question
            messages.append({"role": "assistant", "content": "and\n"})
        yield messages, i % 4 == 0


def write_chat(tokenizer_of):
    import jinja2
    pairs = [("llama3", "llama3", "llama3"), ("chatml", "qwen2", "chatml"), ("chatml", "gpt2", "chatml"),
             ("mistral-inst", "sp-legacy", "mistral-inst"), ("mistral-inst", "sp-first", "mistral-inst-v3"),
             ("llama3.1", "llama3", "llama3.1"), ("qwen2.5", "qwen2", "qwen2.5"), ("qwen3", "qwen2", "qwen3")]
    with open(os.path.join(HERE, "chat.txt"), "w", encoding="utf-8", newline="\n") as f:
        for style, kind, template in pairs:
            t = tokenizer_of(kind)
            for messages, generation in conversations(style):
                marked = jinja2.Template(TEMPLATES[template], keep_trailing_newline=True).render(
                    messages=messages, generation=generation)
                text, spans, start = "", [], None
                for c in marked:
                    if c == "{":
                        start = len(text)
                    elif c == "}":
                        spans.append((start, len(text)))
                    else:
                        text += c
                t.encode_special_tokens = False
                e = t.encode(text, add_special_tokens=False)
                inside = "".join("01"[any(a <= o[0] < b for a, b in spans)] for o in e.offsets)
                f.write(f"T {style} {kind} {int(generation)}\n")
                f.writelines(f"M {m['role']} {escape(m['content'])}\n" for m in messages)
                f.write("I " + " ".join(map(str, e.ids)) + f"\nK {inside}\n")


def encode(t, text, plain=False, special=False):
    t.encode_special_tokens = plain
    return t.encode(text, add_special_tokens=special).ids


def hash_decoded(t, ids, skip):
    text = t.decode(ids, skip_special_tokens=skip)
    return "-" if "\ufffd" in text else fnv(text.encode())


def write_kind(name, t, texts, points):
    with open(os.path.join(HERE, name + ".ids"), "w") as f:
        for text in texts:
            ids = encode(t, text, special=True)
            f.write(" ".join([hash_ids(ids), hash_ids(encode(t, text, plain=True)),
                              hash_decoded(t, ids, False), hash_decoded(t, ids, True)]) + "\n")
        for text in code_point_texts(points):
            f.write(hash_ids(encode(t, text)) + "\n")
    with open(os.path.join(HERE, name + ".full"), "w") as f:
        for text in texts[:FULL]:
            f.write(" ".join(map(str, encode(t, text, special=True))) + "\n")


if __name__ == "__main__":
    main()

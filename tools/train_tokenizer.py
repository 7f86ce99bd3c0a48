#!/usr/bin/env python3
"""Train the tokenizer of examples/base/ on the example corpus, with Hugging Face tokenizers.

    python tools/train_tokenizer.py [OUT]      default OUT: examples/base

Byte-level BPE with the split pattern of Llama 3 and 4096 tokens. Writes tokenizer.json and the
tokenizer_config.json that transformers needs. Made with the versions in tokenizer_origin.txt.
"""
import json
import lzma
import os
import sys

import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CORPUS = os.path.join(ROOT, "examples", "corpus", "postgresql.train.jsonl.xz")
VOCAB = 4096
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
           r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPECIAL = [BOS, EOS, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "examples", "base")
    os.makedirs(out, exist_ok=True)
    with lzma.open(CORPUS, "rt", encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1",
                                      special_tokens=[(BOS, tokenizer.token_to_id(BOS))])])
    assert tokenizer.get_vocab_size() == VOCAB
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
                   "clean_up_tokenization_spaces": False, "model_max_length": 1048576}, f, indent=2)
        f.write("\n")
    nbytes = sum(len(t.encode()) for t in texts)
    numel = sum(len(tokenizer.encode(t, add_special_tokens=False).ids) for t in texts)
    with open(os.path.join(out, "tokenizer_origin.txt"), "w") as f:
        f.write(f"made by tools/train_tokenizer.py with tokenizers {tokenizers.__version__}\n"
                f"corpus: examples/corpus/postgresql.train.jsonl.xz, {nbytes} bytes of text, "
                f"{numel} tokens ({nbytes / numel:.2f} bytes per token)\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes the seeds of tests/fuzz/corpus/ that are not crashes: legal files and edges of sizes.

    python tests/golden/make_fuzz_corpus.py

The seeds in corpus/token_file/ are not made here but by `tessera tokenize`: two texts, two prompts
with completions, and ids of a vocabulary above 65,536. Those in corpus/latents/ are by `tessera cache` from
tests/golden/caches: kohya in bf16, tensors in f32.
"""
import json
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE / "format"


def put(target, name, data):
    folder = HERE.parent / "fuzz" / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def tensors(header, data=b"", length=None):
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return (len(text) if length is None else length).to_bytes(8, "little") + text.encode() + data


def entry(dtype, shape, begin, end):
    return dict(dtype=dtype, shape=shape, data_offsets=[begin, end])


def gguf_string(text):
    return len(text).to_bytes(8, "little") + text.encode()


def gguf(pairs, infos, data=b"", version=3):
    """pairs: (key, type, bytes); infos: (name, ne, type, offset)"""
    out = b"GGUF" + version.to_bytes(4, "little") + len(infos).to_bytes(8, "little")
    out += len(pairs).to_bytes(8, "little")
    for key, kind, value in pairs:
        out += gguf_string(key) + kind.to_bytes(4, "little") + value
    for name, ne, kind, offset in infos:
        out += gguf_string(name) + len(ne).to_bytes(4, "little")
        out += b"".join(n.to_bytes(8, "little") for n in ne)
        out += kind.to_bytes(4, "little") + offset.to_bytes(8, "little")
    return out + bytes(-len(out) % 32) + data


def u32(value):
    return value.to_bytes(4, "little")


LLAMA = [("general.architecture", 8, gguf_string("llama"))] + [
    ("llama." + key, 4, u32(value)) for key, value in (
        ("embedding_length", 32), ("feed_forward_length", 32), ("block_count", 1),
        ("attention.head_count", 2), ("rope.dimension_count", 16))]

put("gguf", "minimal", gguf([("general.alignment", 4, u32(32))], [("w", [2], 0, 0)], bytes(8)))
put("gguf", "version2", gguf([], [("w", [2], 0, 0)], bytes(8), version=2))
put("gguf", "kinds", gguf([(f"k{i}", i, bytes(n)) for i, n in enumerate((1, 1, 2, 2, 4, 4, 4, 1, 8))] + [
    ("a", 9, u32(4) + (2).to_bytes(8, "little") + bytes(8)), ("b", 9, u32(8) + (1).to_bytes(8, "little") + bytes(8)),
    ("c", 10, bytes(8)), ("d", 11, b"\xff" * 8), ("e", 12, bytes(8))], []))
for kind in (0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30, 39):
    put("gguf", f"type{kind}", gguf([], [("t", [256], kind, 0)], bytes(1024)))
put("gguf", "llama", gguf(LLAMA, [("token_embd.weight", [32, 2], 0, 0), ("blk.0.attn_q.weight", [32, 32], 8, 256)],
                          bytes(256 + 1088)))
put("gguf", "divisors", gguf(LLAMA, [("token_embd.weight", [32, 2], 0, 0), ("rope_freqs.weight", [8], 0, 256)],
                             bytes(256) + b"\0\0\x80\x3f" * 8))
for i, n in enumerate((2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)):
    put("gguf", f"extent{i}", gguf([], [("w", [n, 2], 0, 0)], bytes(8)))
    put("gguf", f"offset{i}", gguf([], [("w", [2], 0, n)], bytes(8)))
    put("gguf", f"array{i}", gguf([("a", 9, u32(4) + n.to_bytes(8, "little"))], []))

put("safetensors", "minimal", tensors({"a": entry("BF16", [2], 0, 4)}, b"\x80\x3f\x00\xc0"))
put("safetensors", "mixed", tensors({
    "__metadata__": {"format": "pt", "k": "v"}, "x": entry("F32", [2, 1], 0, 8), "s": entry("F16", [], 8, 10),
    "e": entry("I64", [0, 7], 8, 8), "f4": entry("F4", [2], 10, 11), "f6": entry("F6_E2M3", [4], 11, 14)}, bytes(14)))
for i, n in enumerate((0, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)):
    put("safetensors", f"length{i}", tensors({"a": entry("BF16", [2], 0, 4)}, bytes(4), n))
    put("safetensors", f"extent{i}", tensors({"a": entry("U8", [n, 2], 0, 4)}, bytes(4)))
    put("safetensors", f"offset{i}", tensors({"a": entry("U8", [4], 0, n)}, bytes(4)))
put("safetensors", "hole", tensors({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, bytes(3)))
put("safetensors", "overlap", tensors({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, bytes(3)))
put("safetensors", "duplicate", tensors(
    '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', bytes(2)))
put("safetensors", "deep", tensors('{"a":' + "[" * 40 + "]" * 40 + "}"))

for name, text in dict(
        empty="", object='{"a":{"b":[1,-2,3.5e-7,true,false,null,"\\u00e9\\ud83d\\ude00\\n"]},"":{}}', zero="[-0]",
        zeros="[0,-0.0,0e0,1e-0]", limits="[9223372036854775807,-9223372036854775808]", big="[9223372036854775808]",
        huge="[1e999]", tiny="[5e-324,1.7976931348623157e308]", deep32="[" * 32 + "]" * 32, deep33="[" * 33 + "]" * 33,
        duplicate='{"a":1,"a":2}', trailing="{} {}", surrogate='["\\ud800"]', nul='["\\u0000"]', comment="/**/1",
        strings='["' + "x" * 200 + '","\\"\\\\\\/\\b\\f\\n\\r\\t"]').items():
    put("json", name, text)
put("json", "overlong", b'["\xc0\x80"]')
put("json", "latin1", b'["\xe9"]')

for i, case in enumerate(json.loads((GOLDEN / "configs.json").read_text())):
    put("hf_config", f"golden{i:02}", json.dumps(case["config"]))
put("hf_config", "saved", (GOLDEN / "model" / "config.json").read_bytes())
for i, n in enumerate((0, -1, 2**31, 2**32, 2**63 - 1)):
    put("hf_config", f"extent{i}", json.dumps(dict(
        model_type="llama", hidden_size=n, intermediate_size=n, num_hidden_layers=n, num_attention_heads=n, vocab_size=n)))

for i, case in enumerate(json.loads((GOLDEN / "matches.json").read_text())["cases"]):
    put("peft", f"golden{i:02}", json.dumps(case["config"]))
put("peft", "saved", (GOLDEN / "adapter" / "adapter_config.json").read_bytes())
put("peft", "explosive", json.dumps(dict(peft_type="LORA", target_modules="(a|a)*")))
put("peft", "recursive", json.dumps(dict(peft_type="LORA", target_modules="(a(?1)?|b)*")))
put("peft", "unclosed", json.dumps(dict(peft_type="LORA", target_modules="((((", rank_pattern={"(": 1})))

put("model_dir", "both", json.dumps(dict(
    metadata=dict(total_size=8), weight_map=dict(a="x.safetensors", b="y.safetensors"))))
put("model_dir", "one", json.dumps(dict(weight_map=dict(a="x.safetensors"))))
put("model_dir", "wrong_size", json.dumps(dict(
    metadata=dict(total_size=1e9), weight_map=dict(b="y.safetensors"))))
put("model_dir", "swapped", json.dumps(dict(weight_map=dict(b="x.safetensors"))))
put("model_dir", "outside", json.dumps(dict(weight_map=dict(a="../x.safetensors"))))
put("model_dir", "absent", json.dumps(dict(weight_map=dict(a="z.safetensors"))))
put("model_dir", "saved", (GOLDEN / "model" / "model.safetensors.index.json").read_bytes())

adapter = json.dumps(dict(peft_type="LORA", r=2, target_modules=["q", "v"])).encode() + b"\0"
for name, header in dict(
        pair={"base_model.model.q.lora_A.weight": entry("F32", [2, 3], 0, 24),
              "base_model.model.q.lora_B.weight": entry("F32", [5, 2], 24, 64)},
        ranks={"base_model.model.q.lora_A.weight": entry("F32", [2, 8], 0, 64),
               "base_model.model.q.lora_B.weight": entry("F32", [0, 2], 64, 64)},
        alone={"base_model.model.v.lora_A.weight": entry("F32", [2, 8], 0, 64)},
        names={"base_model.model..lora_A.weight": entry("F16", [2, 8], 0, 32),
               "base_model.model.lora_B.weight": entry("F16", [8, 2], 32, 64)}).items():
    put("peft", "weights_" + name, adapter + tensors(header, bytes(64)))

def module(weights, activations="none", **more):
    return dict(weights=weights, activations=activations, **more)


sound = dict(x=module("qint4"), y=module("qint8"))
for name, table in dict(
        sound=sound, empty={}, list=[], int2=dict(sound, x=module("qint2")), none=dict(sound, x=module("none")),
        activations=dict(sound, y=module("qint8", "qint8")), more=dict(sound, y=module("qint8", scale=1)),
        other=dict(sound, w=module("qint4")), plain=dict(sound, z=module("qfloat8_e4m3fn")),
        number=dict(sound, y=module(8)), deep=dict(x=dict(weights=dict(weights="qint4")))).items():
    put("packed_map", name, json.dumps(table))
put("packed_map", "cut", json.dumps(sound)[:-3])
for i, formats in enumerate((
        {"x.weight": "qint4/64/bf16/hqq"}, {"x.weight": "qint4/64/f32"}, {"z.weight": "e4m3/row/quant_scale"},
        {"z.weight": "e4m3/row/dequant_scale", "y.weight": "qint8/row/f32"}, {"w.weight": "bf16"}, {"x.weight": 4},
        {"z.weight": "e4m3"}, {"x.weight": "/" * 60}, {"x.weight": "qint4/9223372036854775808/bf16"}, [])):
    put("packed_map", f"formats{i}", json.dumps(sound) + "\0" + json.dumps(formats))
put("packed_map", "formats_bytes", json.dumps(sound) + "\0\"\\\x01")
for name in ("kohya_blocks", "comfyui", "lora_transformer", "xlabs"):
    put("adapter", name, (HERE / "adapter" / f"{name}.safetensors").read_bytes())
stem = "lora_unet_double_blocks_0_img_attn_qkv"
for name, header in dict(
        dora={stem + ".lora_down.weight": entry("F16", [1, 2], 0, 4), stem + ".lora_up.weight": entry("F16", [6, 1], 4, 16),
              stem + ".dora_scale": entry("F16", [6, 1], 16, 28), stem + ".alpha": entry("F16", [], 28, 30)},
        swapped={"lora_unet_final_layer_adaLN_modulation_1.lora_down.weight": entry("BF16", [1, 2], 0, 4),
                 "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight": entry("BF16", [2, 1], 4, 8),
                 "lora_te1_x.alpha": entry("F32", [], 8, 12)},
        part={"transformer.transformer_blocks.0.attn.to_k.lora_A.weight": entry("F32", [1, 1], 0, 4),
              "transformer.transformer_blocks.0.attn.to_k.lora_B.weight": entry("F32", [1, 1], 4, 8),
              "__metadata__": dict(lora_adapter_metadata=json.dumps({
                  "transformer.peft_type": "LORA", "transformer.r": 1, "transformer.target_modules": "all-linear"}))},
        mixed={"diffusion_model.img_in.lora_A.weight": entry("F32", [1, 1], 0, 4),
               "transformer.x_embedder.lora_B.weight": entry("F32", [1, 1], 4, 8)}).items():
    end = max(e["data_offsets"][1] for e in header.values() if "data_offsets" in e)
    put("adapter", name, tensors(header, b"\0\x3c" * (end // 2)))
put("adapter", "gguf", gguf(
    [("general.type", 8, gguf_string("adapter")), ("general.architecture", 8, gguf_string("llama")),
     ("adapter.type", 8, gguf_string("lora")), ("adapter.lora.alpha", 6, b"\0\0\0\x40")],
    [("blk.0.attn_q.weight.lora_a", [2, 1], 0, 0), ("blk.0.attn_q.weight.lora_b", [1, 4], 0, 32)], bytes(64)))

TOKENIZERS = HERE / "tokenizers"
TEXT = "\0Hello  world's 12345\n\n x<s>e\u0301 \u4e2d\U0001f600 the letter"
for path in sorted(TOKENIZERS.glob("*.json")):
    # A prefix of the vocabulary with the merges it closes, and the added tokens moved behind it.
    t = json.loads(path.read_text())
    model, kept = t["model"], 300
    names = {token: i for token, i in model["vocab"].items() if i < kept}
    model["vocab"] = names
    model["merges"] = [m for m in model["merges"] if m[0] in names and m[1] in names and "".join(m) in names]
    renamed = {}
    for i, token in enumerate(a for a in t["added_tokens"] if a["content"] not in names):
        renamed[token["id"]] = token["id"] = kept + i
    for step in [t["post_processor"]] + ((t["post_processor"] or {}).get("processors") or []):
        for entry in ((step or {}).get("special_tokens") or {}).values():
            entry["ids"] = [renamed.get(i, i) for i in entry["ids"]]
    put("tokenizer", path.stem, json.dumps(t, ensure_ascii=False, separators=(",", ":")) + TEXT)

VECTORS = HERE / "vectors"
for i, suffix in enumerate(("fvecs", "bvecs", "ivecs", "fbin", "u8bin", "i8bin", "ibin", "npy")):
    for path in sorted(VECTORS.glob(f"*.{suffix}")):
        put("vector_file", path.stem + "_" + suffix, bytes([i]) + path.read_bytes())
    for j, n in enumerate((0, 2**31 - 1, 2**32 - 1)):
        put("vector_file", f"extent{j}_{suffix}", bytes([i]) + u32(n) + u32(2) + bytes(8))
for path in sorted(VECTORS.glob("codes_*.h5")):
    put("codes_file", path.stem, path.read_bytes())

for path in sorted((HERE / "caches").rglob("*.npz")):
    put("npz", path.stem, path.read_bytes())

for path in sorted((HERE / "images").glob("*/*")):
    if path.suffix.lower() == ".png":
        put("png", path.parent.name + "_" + path.stem, path.read_bytes())

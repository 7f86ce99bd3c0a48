#!/usr/bin/env python3
"""Makes tests/golden/format/: what transformers and peft write, and what they decide.

    python tests/golden/make_format.py [--check FOLDER]     FOLDER: write there instead, to compare

model/       a tiny Qwen3 with random bf16 weights, saved in shards by transformers
adapter/     a LoRA adapter for it, saved by peft
tensors.txt  name, dtype, shape and SHA-256 of every tensor of both
configs.json config.json variants and what transformers makes of them
matches.json LoRA options and module paths, and what peft decides for each
versions.txt what made these files
"""
import copy
import hashlib
import json
import pathlib
import shutil
import sys

import numpy
import peft
import safetensors
import torch
import transformers
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HERE = pathlib.Path(__file__).resolve().parent / "format"
OUT = HERE


def make_model():
    torch.manual_seed(1)
    config = transformers.Qwen3Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=48, max_position_embeddings=64, rope_theta=1e6, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=[2, 3], rms_norm_eps=1e-6, dtype="bfloat16")
    model = transformers.Qwen3ForCausalLM(config).to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(OUT / "model", max_shard_size="6KB")
    for name in ("generation_config.json",):
        (OUT / "model" / name).unlink(missing_ok=True)
    return model


def make_adapter(model):
    config = peft.LoraConfig(
        r=4, lora_alpha=6, lora_dropout=0.05, target_modules="all-linear", exclude_modules=["down_proj"],
        rank_pattern={"k_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 3.5}, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.peft_config["default"].base_model_name_or_path = "tiny"
    tuned.save_pretrained(OUT / "adapter")
    (OUT / "adapter" / "README.md").unlink(missing_ok=True)
    # peft writes this set in an order that changes from run to run.
    path = OUT / "adapter" / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["target_modules"].sort()
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def list_tensors():
    rows = []
    for path in sorted(OUT.glob("*/*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            digest = hashlib.sha256(data[8 + length + begin:8 + length + end]).hexdigest()
            shape = "x".join(map(str, entry["shape"]))
            rows.append(f"{path.parent.name} {name} {entry['dtype']} {shape} {digest}\n")
    (OUT / "tensors.txt").write_text("".join(sorted(rows)))


BASE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=8, vocab_size=100,
            hidden_act="silu")
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192)
VARIANTS = [
    dict(model_type="llama"),
    dict(model_type="llama", num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True),
    dict(model_type="llama", num_key_value_heads=None, attention_bias=True, mlp_bias=True),
    dict(model_type="llama", head_dim=24, bos_token_id=None, eos_token_id=[7, 8, 9]),
    dict(model_type="llama", head_dim=128, rope_theta=5e5, rope_scaling=LLAMA3, max_position_embeddings=131072),
    dict(model_type="llama", rope_scaling=dict(type="linear", factor=4.0)),
    dict(model_type="llama", rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=20000.0)),
    dict(model_type="llama", head_dim=64, rope_parameters=dict(LLAMA3, rope_theta=5e5, factor=32.0)),
    dict(model_type="mistral"),
    dict(model_type="mistral", num_key_value_heads=8, sliding_window=None),
    dict(model_type="mistral", num_key_value_heads=4, sliding_window=128, head_dim=16, rope_theta=1e6),
    dict(model_type="qwen2", num_key_value_heads=2),
    dict(model_type="qwen2", num_key_value_heads=None, use_sliding_window=True, max_window_layers=2),
    dict(model_type="qwen2", num_key_value_heads=8, use_sliding_window=True, sliding_window=32, max_window_layers=0),
    dict(model_type="qwen2", num_key_value_heads=8, use_sliding_window=True, sliding_window=None),
    dict(model_type="qwen2", num_key_value_heads=8, use_sliding_window=False, sliding_window=64, max_window_layers=0),
    dict(model_type="qwen3", num_key_value_heads=4),
    dict(model_type="qwen3", num_key_value_heads=4, head_dim=32, attention_bias=True, rope_theta=1e6),
    dict(model_type="qwen3", num_key_value_heads=4, use_sliding_window=True, sliding_window=16,
         layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"]),
]


def decide(values):
    values = copy.deepcopy(values)  # the class adds to nested values
    config = CONFIG_MAPPING[values["model_type"]](**{k: v for k, v in values.items() if k != "model_type"})
    model = transformers.AutoModelForCausalLM.from_config(config)
    names = set(model.state_dict())
    attention = model.model.layers[0].self_attn
    layer = "model.layers.0."
    windows = []
    for i, block in enumerate(model.model.layers):
        if values["model_type"] == "mistral":
            windows.append(config.sliding_window or 0)
        elif values["model_type"] == "llama":
            windows.append(0)
        else:
            windows.append(block.self_attn.sliding_window or 0 if hasattr(block.self_attn, "sliding_window") else 0)
    eos = config.eos_token_id
    return dict(
        kv_heads=config.num_key_value_heads, head_dim=attention.head_dim, rms_norm_eps=config.rms_norm_eps,
        tied=bool(config.tie_word_embeddings), windows=windows, qk_norm=layer + "self_attn.q_norm.weight" in names,
        biases=[layer + f"self_attn.{p}_proj.bias" in names for p in "qkvo"],
        mlp_bias=layer + "mlp.gate_proj.bias" in names,
        bos=-1 if config.bos_token_id is None else config.bos_token_id,
        eos=[] if eos is None else eos if isinstance(eos, list) else [eos],
        inv_freq=[float(f"{x:.9g}") for x in model.model.rotary_emb.inv_freq])


PATHS = [f"model.layers.{n}.{m}" for n in (0, 1, 10) for m in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj")] + ["lm_head", "q_proj", "model.layers.1.experts.0.q_proj", "model.xq_proj", "layers.1.q_proj",
                         "model.h.1.mlp.q_proj", "model.layers.1.self_attn.q_proj.extra"]
OPTIONS = [
    dict(target_modules=["q_proj", "v_proj"]),
    dict(target_modules=["self_attn.q_proj", "model.layers.10.mlp.up_proj", "proj"]),
    dict(target_modules=r".*\.(q|k)_proj"),
    dict(target_modules=r"model\.layers\.\d\..*gate_proj"),
    dict(target_modules="q_proj"),
    dict(target_modules=["q_proj", "up_proj"], exclude_modules=["self_attn.q_proj"]),
    dict(target_modules=["q_proj", "up_proj"], exclude_modules=r"model\.layers\.1\..*"),
    dict(target_modules=["q_proj", "model.layers.0.mlp.up_proj"], layers_to_transform=[1, 10]),
    dict(target_modules=["q_proj"], layers_to_transform=1),
    dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers"),
    dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=["blocks", "h"]),
    dict(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern=["layers", "experts"]),
    dict(target_modules=r".*_proj", r=8, lora_alpha=16,
         rank_pattern={"q_proj": 2, r"layers\.1\..*": 4, "self_attn.v_proj": 32},
         alpha_pattern={r".*down_proj": 1, "layers.10.mlp.up_proj": 2.5}),
    dict(target_modules=["k_proj"], use_rslora=True, r=16, lora_alpha=8, rank_pattern={"^model.layers.0.self_attn.k_proj": 4}),
]


def decide_match(options):
    config = peft.LoraConfig(**options)
    rows = {}
    for path in PATHS:
        is_target = bool(check_target_module_exists(config, path))
        r = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), path), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), path), config.lora_alpha)
        scale = alpha / (r ** 0.5 if config.use_rslora else r)
        if is_target:
            rows[path] = [r, alpha, scale]
    return rows


def main():
    global OUT
    if "--check" in sys.argv:
        OUT = pathlib.Path(sys.argv[sys.argv.index("--check") + 1])
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    make_adapter(make_model())
    list_tensors()
    cases = []
    for variant in VARIANTS:
        values = dict(BASE, **variant)
        cases.append(dict(config=values, expected=decide(values)))
    (OUT / "configs.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    cases = [dict(config=dict(o, peft_type="LORA"), targets=decide_match(o)) for o in OPTIONS]
    (OUT / "matches.json").write_text("{\"paths\": " + json.dumps(PATHS) + ",\n\"cases\": [\n" + ",\n".join(
        json.dumps(c) for c in cases) + "\n]}\n")
    (OUT / "versions.txt").write_text("".join(
        f"{m.__name__} {m.__version__}\n" for m in (numpy, peft, safetensors, torch, transformers)))


main()

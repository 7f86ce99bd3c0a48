#!/usr/bin/env python3
"""Loads what Tessera writes in transformers and peft; not part of CI (it needs both).

    python tools/check_exports.py BUILD_DIR

Runs BUILD_DIR/tests/format.test_exports with TESS_EXPORT_DIR and checks, for every family: the
config means the same model, every weight arrives, none is missing, rotary frequencies and windows
agree; the adapter loads, its scales and weights are the ones written, and it changes the logits by
what its formula says.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import peft
import safetensors.torch
import torch
import transformers


def values(name, shape):
    n = 1
    for extent in shape:
        n *= extent
    start = sum(name.encode())
    return torch.tensor([((start + i * 37) % 101 - 50) / 512 for i in range(n)]).reshape(shape)


def require(ok, what):
    if not ok:
        sys.exit(f"check_exports: {what}")


def check_model(path):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, dtype=torch.float32)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        require(not info[key], f"{path}: {key} {info[key]}")
    for name, parameter in model.named_parameters():
        expected = values(name, parameter.shape)
        require(torch.equal(parameter.data, expected), f"{path}: {name} differs")
    return model


def check_config(path, model):
    stated = json.loads((path / "config.json").read_text())
    config = model.config
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "bos_token_id",
                "tie_word_embeddings", "max_position_embeddings", "eos_token_id"):
        found = getattr(config, key)
        require(found == stated[key], f"{path}: {key}: {found} for {stated[key]}")
    rope = config.rope_parameters
    require(rope["rope_theta"] == stated["rope_theta"], f"{path}: rope_theta")
    kind = (stated["rope_scaling"] or {}).get("rope_type", "default")
    require(rope["rope_type"] == kind, f"{path}: rope_type {rope['rope_type']} for {kind}")
    inv = model.model.rotary_emb.inv_freq
    exponents = torch.arange(0, stated["head_dim"], 2).double() / stated["head_dim"]
    base = stated["rope_theta"] ** -exponents
    if kind == "linear":
        base /= stated["rope_scaling"]["factor"]
    if kind != "llama3":
        require(torch.allclose(inv.double(), base, rtol=1e-6, atol=0), f"{path}: inv_freq")
    else:
        is_plain = torch.allclose(inv.double(), base, rtol=1e-3, atol=0)
        require(not is_plain, f"{path}: llama3 scaling is not in force")
    if stated["model_type"] != "llama":
        found = config.sliding_window
        require(found == stated["sliding_window"], f"{path}: sliding_window {found}")
    if "layer_types" in stated:
        require(config.layer_types == stated["layer_types"], f"{path}: layer_types")


def check_adapter(path, model):
    tokens = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        before = model(tokens).logits
    stated = json.loads((path / "adapter" / "adapter_config.json").read_text())
    weights = safetensors.torch.load_file(path / "adapter" / "adapter_model.safetensors")
    written = {n.removeprefix("base_model.model.").rpartition(".lora_")[0] for n in weights}
    tuned = peft.PeftModel.from_pretrained(model, path / "adapter")
    adapted = {n.removeprefix("base_model.model."): m for n, m in tuned.named_modules()
               if isinstance(m, peft.tuners.lora.Linear)}
    differing = sorted(set(adapted) ^ written)
    require(not differing, f"{path}: peft adapts {differing} differently")
    for name, layer in adapted.items():
        a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
        for part, weight in (("A", a), ("B", b)):
            full = f"base_model.model.{name}.lora_{part}.weight"
            require(torch.equal(weight, values(full, weight.shape)), f"{path}: {full} differs")
        rank = a.shape[0]
        is_other = stated["alpha_pattern"] and name.endswith("layers.1.mlp.up_proj")
        alpha = 1.5 if is_other else stated["lora_alpha"]
        scale = alpha / (rank ** 0.5 if stated["use_rslora"] else rank)
        found = layer.scaling["default"]
        require(abs(found - scale) < 1e-12, f"{path}: {name}: scale {found} for {scale}")
    with torch.no_grad():
        after = tuned(tokens).logits
        for layer in adapted.values():
            delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            layer.base_layer.weight += layer.scaling["default"] * delta
        with tuned.disable_adapter():
            folded = tuned(tokens).logits
    require(not torch.equal(before, after), f"{path}: the adapter changes nothing")
    is_same = torch.allclose(after, folded, rtol=1e-4, atol=1e-5)
    require(is_same, f"{path}: the adapter is not W + s B A")
    return len(adapted)


def main():
    build = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([build / "tests" / "format.test_exports"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       env=dict(os.environ, TESS_EXPORT_DIR=folder))
        for family in ("llama", "mistral", "qwen2", "qwen3"):
            path = pathlib.Path(folder) / family
            model = check_model(path)
            check_config(path, model)
            print(f"{family}: loads, {check_adapter(path, model)} adapted modules")
    print(f"transformers {transformers.__version__}, peft {peft.__version__}")


main()

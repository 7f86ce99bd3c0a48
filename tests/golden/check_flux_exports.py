#!/usr/bin/env python3
"""Exports of FLUX.1 adapters, loaded by the programs they are for.

    TESSERA_BIN=build/release/bin/tessera python3 tests/golden/check_flux_exports.py [tiny] [wide] [keys]

tiny: a run of the program on a small transformer; diffusers loads the model and the export in diffusers' dialect, and one
Euler step from the same noise gives the latents that `tessera sample` writes. wide: one double and one single block of
FLUX.1's own width (546 million weights by hash, 1.1 GB on disk, 6 GB of memory), every linear layer of them adapted with
rank 2; the kohya export goes through diffusers' converter and gives the same velocities as the adapter it was made from and
as `tessera sample` over it. keys: exports of an adapter of the full transformer against a table of every key and shape, and
kohya and back with equal products.

Ran with diffusers 0.42.1, peft 0.21.2, torch 2.15.0.
"""
import json
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import make_caches as caches
import make_flux as flux
import make_flux_run as run
import numpy as np
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors.numpy import load_file, save_file

TESSERA = os.environ.get("TESSERA_BIN", "tessera")
# Bytes behind the headers of the wide exports: what the repository keeps of them.
DIGESTS = dict.fromkeys(("kohya", "comfyui"), "442bfcb0e0516d0c5be6fb0f8deffd3ecab0bcd4f811bb35e566b0e45a883f6d")


def tessera(*args):
    done = subprocess.run([TESSERA, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, f"tessera {' '.join(map(str, args))}: {done.stderr}"
    return done.stdout


def tensors_digest(path):
    blob = Path(path).read_bytes()
    return sha256(blob[8 + int.from_bytes(blob[:8], "little"):]).hexdigest()


def one_step(model, text, pooled, seed, height, width):
    """x - v(x, 1): an Euler step from sigma 1 to 0. Channels 16."""
    x = run.start(seed, (16, height, width))
    dtype = next(model.parameters()).dtype
    ids = torch.tensor([[0.0, r, c] for r in range(height // 2) for c in range(width // 2)])
    with torch.no_grad():
        v = model(hidden_states=torch.tensor(run.pack(x))[None].to(dtype), encoder_hidden_states=torch.tensor(text)[None].to(dtype),
                  pooled_projections=torch.tensor(pooled)[None].to(dtype), timestep=torch.tensor([1.0], dtype=dtype),
                  guidance=torch.tensor([3.5], dtype=dtype), img_ids=ids, txt_ids=torch.zeros(len(text), 3), return_dict=False)[0]
    return x - run.unpack(v[0].double().numpy(), 16, height, width)


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def report(what, value, bound):
    print(f"{what}: {value:.3g} (at most {bound:g})")
    assert value <= bound, what


def load(folder, dtype):
    model = flux.FluxTransformer2DModel.from_pretrained(folder, torch_dtype=dtype)
    model.time_text_embed.time_proj.forward = lambda t: run.sinusoid(t).to(dtype)
    return model


# ---- tiny ----

def tiny(work):
    config = dict(flux.CONFIG, in_channels=64, num_layers=1, num_single_layers=1, joint_attention_dim=8,
                  pooled_projection_dim=4, _class_name="FluxTransformer2DModel")
    (work / "config").mkdir()
    (work / "config" / "config.json").write_text(json.dumps(config))
    tessera("cache", Path(__file__).parent / "caches" / "tensors", "-o", work / "c.h5", "--text-dtype", "f32")
    common = f"data: {{path: {work}/c.h5}}\ncompute: {{dtype: f32, memory_limit: 1GiB}}\n"
    (work / "whole.yaml").write_text(
        f"model: {{path: {work}/config, init: random}}\n{common}train: {{mode: full, steps: 1, learning_rate: 0.0}}\n"
        f"output: {{dir: {work}/whole, checkpoint_every: 0}}\n")
    tessera("train", work / "whole.yaml")
    text = caches.text(1)
    for targets in ("kohya", "all+ffs"):
        (work / "run.yaml").write_text(
            f"model: {{path: {work}/whole/export}}\nbase: {{format: keep}}\n{common}"
            f"lora: {{rank: 4, alpha: 12, targets: {targets}}}\n"
            f"train: {{steps: 30, micro_batches: 2, learning_rate: 1.0e-2, warmup_steps: 0}}\n"
            f"output: {{dir: {work}/{targets}, checkpoint_every: 0}}\n")
        tessera("train", work / "run.yaml")
        ours = {}
        for name, args in (("adapter", []), ("base", ["--checkpoint", "none"])):
            tessera("sample", work / "run.yaml", "--size", "48x32", "--steps", 1, "--seed", 9, "-p", "a cat, \u00e9", *args,
                    "-o", work / f"{name}.safetensors")
            ours[name] = load_file(work / f"{name}.safetensors")["latents"][0]
        model = load(work / "whole" / "export", torch.float32)
        report(f"tiny {targets}, base alone", distance(ours["base"], one_step(model, text["t5_out"], text["l_pooled"], 9, 4, 6)), 1e-5)
        model.load_lora_adapter(work / targets / "export", weight_name="pytorch_lora_weights.safetensors",
                                prefix="transformer", adapter_name="a")
        model.set_adapters("a", 1.0)
        theirs = one_step(model, text["t5_out"], text["l_pooled"], 9, 4, 6)
        report(f"tiny {targets}, with the export", distance(ours["adapter"], theirs), 1e-5)
        assert distance(ours["adapter"], ours["base"]) > 1e-2, "the adapter does nothing"


# ---- wide ----

WIDE = dict(flux.CONFIG, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=24,
            joint_attention_dim=4096, pooled_projection_dim=768, axes_dims_rope=(16, 56, 56))


def adapter(model_config, rank):
    """Every linear layer of the blocks, in diffusers' dialect."""
    with torch.device("meta"):
        model = flux.FluxTransformer2DModel(**model_config)
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "transformer_blocks." in name:
            for part, shape in (("lora_A", (rank, module.in_features)), ("lora_B", (module.out_features, rank))):
                key = f"{name}.{part}.weight"
                out[f"transformer.{key}"] = flux.weight(key, shape).float().numpy()
    return out


def wide(work):
    folder = work / "wide"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(WIDE, _class_name="FluxTransformer2DModel")))
    model = flux.FluxTransformer2DModel(**WIDE).to(torch.bfloat16)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(flux.weight(name, tuple(p.shape)).to(torch.bfloat16))
    model.save_pretrained(folder)
    del model
    text, pooled = flux.hashed("cache.text.1", (8, 4096), 1.0).float().numpy(), flux.hashed("cache.pooled.1", (768,), 1.0).float().numpy()
    save_file({"a.latent": flux.hashed("cache.latent.0", (16, 4, 4), 1.0).float().numpy(), "t.t5": text, "t.pooled": pooled},
              work / "w.safetensors", {"space": "model", "a.text": "t", "t.caption": "x", "t.length": "8"})
    tessera("cache", work / "w.safetensors", "-o", work / "w.h5", "--text-dtype", "f32")
    original = adapter(WIDE, 2)
    save_file(original, work / "wide.safetensors")
    for format in ("kohya", "comfyui"):
        tessera("export", work / "wide.safetensors", "--format", format, "-o", work / f"wide.{format}")
        digest = tensors_digest(work / f"wide.{format}" / f"{format}.safetensors")
        print(f"wide {format}: sha256 {digest}")
        assert DIGESTS[format] == digest, f"{format}: expected {DIGESTS[format]}"
    (work / "wide.yaml").write_text(
        f"model: {{path: {folder}}}\nbase: {{format: keep}}\ndata: {{path: {work}/w.h5}}\n"
        f"compute: {{dtype: f32, memory_limit: 12GiB}}\noutput: {{dir: {work}/none}}\n")
    tessera("sample", work / "wide.yaml", "--size", "32x32", "--steps", 1, "--seed", 9, "-p", "x", "--adapter",
            work / "wide.kohya", "-o", work / "wide.latents.safetensors")
    ours = load_file(work / "wide.latents.safetensors")["latents"][0]
    model = load(folder, torch.float32)
    kohya = {k: torch.tensor(v) for k, v in load_file(work / "wide.kohya" / "kohya.safetensors").items()}
    outputs = {}
    for name, state in (("original", {k: torch.tensor(v) for k, v in original.items()}),
                        ("kohya", _convert_kohya_flux_lora_to_diffusers(kohya))):
        model.load_lora_adapter(state, prefix="transformer", adapter_name=name)
        model.set_adapters(name, 1.0)
        outputs[name] = one_step(model, text, pooled, 9, 4, 4)
        model.delete_adapters(name)
    plain = one_step(model, text, pooled, 9, 4, 4)
    assert distance(outputs["original"], plain) > 1e-2, "the adapter does nothing"
    report("wide, kohya through diffusers' converter", distance(outputs["kohya"], outputs["original"]), 1e-5)
    report("wide, tessera over the kohya file", distance(ours, outputs["original"]), 1e-5)


# ---- keys ----

FULL = dict(WIDE, num_layers=19, num_single_layers=38)
H = 3072
DOUBLE = {"mod.lin": (6 * H, H), "attn.qkv": (3 * H, H), "attn.proj": (H, H), "mlp.0": (4 * H, H), "mlp.2": (H, 4 * H)}
SINGLE = {"linear1": (7 * H, H), "linear2": (H, 5 * H), "modulation.lin": (3 * H, H)}


def sites():
    """Every matrix of the blocks under Black Forest Labs' names (flux src/flux/model.py)."""
    out = {f"double_blocks.{i}.{s}_{k}": v for i in range(19) for s in ("img", "txt") for k, v in DOUBLE.items()}
    return out | {f"single_blocks.{i}.{k}": v for i in range(38) for k, v in SINGLE.items()}


def products(path):
    """alpha / rank B A of every site of a file in kohya's or ComfyUI's dialect, row 0 of each thousand."""
    state, out = load_file(path), {}
    for key in state:
        if key.endswith(".lora_down.weight"):
            stem = key[:-len(".lora_down.weight")]
            a, b = state[key].astype(np.float64), state[f"{stem}.lora_up.weight"][::997].astype(np.float64)
            out[stem] = state[f"{stem}.alpha"] / len(a) * b @ a
    return out


def keys(work):
    save_file(adapter(FULL, 1), work / "full.safetensors")
    dialects = {"kohya": lambda s: "lora_unet_" + s.replace(".", "_"), "comfyui": lambda s: f"diffusion_model.{s}"}
    for format, key in dialects.items():
        tessera("export", work / "full.safetensors", "--format", format, "-o", work / f"full.{format}")
        file = work / f"full.{format}" / f"{format}.safetensors"
        found = {k: v.shape for k, v in load_file(file).items()}
        expected = {}
        for site, (rows, cols) in sites().items():
            rank = 3 if site.endswith("qkv") else 4 if site.endswith("linear1") else 1
            expected |= {f"{key(site)}.lora_down.weight": (rank, cols), f"{key(site)}.lora_up.weight": (rows, rank),
                         f"{key(site)}.alpha": ()}
        wrong = [k for k in expected if found.get(k) not in (expected[k], (1,) if expected[k] == () else None)]
        assert not wrong and len(found) == len(expected), f"{format}: {wrong[:5]}, {sorted(set(found) - set(expected))[:5]}"
        tessera("export", file, "--format", "diffusers", "-o", work / f"full.{format}.back")
        tessera("export", work / f"full.{format}.back" / "pytorch_lora_weights.safetensors", "--format", format, "-o",
                work / f"full.{format}.again")
        first, again = products(file), products(work / f"full.{format}.again" / f"{format}.safetensors")
        assert all(np.array_equal(first[k], again[k]) for k in first), f"{format} and back: other products"
        print(f"keys {format}: {len(found)} keys and shapes as expected; equal products after diffusers and back")


if __name__ == "__main__":
    for name in sys.argv[1:] or ("tiny", "keys", "wide"):
        with tempfile.TemporaryDirectory() as folder:
            {"tiny": tiny, "wide": wide, "keys": keys}[name](Path(folder))

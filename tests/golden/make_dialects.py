#!/usr/bin/env python3
"""Makes tests/golden/adapter/: adapter files that peers write, and what peers make of ours.

    python tests/golden/make_dialects.py PROGRAM [--check FOLDER]     FOLDER: write there instead

NAME.safetensors, NAME/  written by diffusers or peft, or put together from the keys of other trainers and read by
                         diffusers' own conversion
NAME.probe.safetensors   for every module delta W x in f64 as the peer computes it, x[j] = ((37 j) mod 101 - 50) / 64,
                         and the magnitudes of DoRA (NAME.m)
transcript.txt           versions; every file that PROGRAM wrote, the peer that read it, the largest error found and
                         the bound: alpha other than r, rslora, DoRA, fused and split

A term of delta W is s b a. Where `n` of its factors were rounded to a dtype of unit u (half a unit in the last place:
2^-24, 2^-11, 2^-8), it differs by at most (1 + u)^n - 1 of its magnitude; sums in f32 and f64 of a peer add its own.
Made again, files of diffusers may differ in the order of their metadata, which safetensors leaves open.
ComfyUI and llama.cpp are not on PyPI: their rules are repeated here from formats.md 10.2 and llama-adapter.cpp: scale is
alpha / rank, and 1 where alpha is absent or 0.
"""
import argparse
import json
import logging
import pathlib
import shutil
import subprocess
import tempfile

import diffusers
import gguf
import numpy
import peft
import safetensors
import torch
import transformers
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent / "adapter"
FLUX = dict(patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True,
            axes_dims_rope=[2, 2, 4])
TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.add_k_proj", "ff.net.2", "proj_mlp", "proj_out",
           "norm_out.linear", "norm1.linear", "x_embedder"]
UNIT = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
LINES = []


def say(text):
    print(text)
    LINES.append(text + "\n")


def probe(in_features):
    return torch.tensor([((37 * j) % 101 - 50) / 64 for j in range(in_features)], dtype=torch.float64)


def fill(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        elif "lora_magnitude" in name:
            parameter.data = parameter.data * (1 + 0.2 * torch.rand(parameter.shape, generator=generator))


def layers(model):
    return {name.removeprefix("base_model.model."): layer for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)}


def write_probes(path, products, magnitudes):
    tensors = {name: y.contiguous() for name, y in products.items()}
    tensors |= {name + ".m": m.double().contiguous() for name, m in magnitudes.items()}
    save_file(tensors, path)


def peer_probes(model):
    """delta W x of every adapted layer, by peft's scaling and matrices in f64."""
    products, magnitudes = {}, {}
    for name, layer in layers(model).items():
        a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        products[name] = (layer.scaling["default"] * (b @ (a @ probe(a.shape[1])))).detach()
        if "default" in layer.lora_magnitude_vector:
            magnitudes[name] = layer.lora_magnitude_vector["default"].weight.detach()
    return products, magnitudes


# ---- files of peers ----

def flux_model():
    torch.manual_seed(3)
    return FluxTransformer2DModel(**FLUX).eval()


def make_flux(out, name, seed, **options):
    model = flux_model()
    model.add_adapter(LoraConfig(target_modules=TARGETS, **options))
    fill(model, seed)
    folder = pathlib.Path(tempfile.mkdtemp())
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)
    if name == "flux_bare":
        model.save_lora_adapter(folder)
    else:
        FluxPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(model),
                                       transformer_lora_adapter_metadata=config.to_dict())
    shutil.copy(folder / "pytorch_lora_weights.safetensors", out / f"{name}.safetensors")
    shutil.rmtree(folder)
    write_probes(out / f"{name}.probe.safetensors", *peer_probes(model))
    return model


def make_by_keys(out, name, tensors):
    """A file under another trainer's keys; what it means is what diffusers makes of it."""
    save_file(tensors, out / f"{name}.safetensors")
    converted = FluxLoraLoaderMixin.lora_state_dict({k: v.clone().double() for k, v in tensors.items()})
    products = {}
    for key, a in converted.items():
        if ".lora_A." in key:
            b = converted[key.replace(".lora_A.", ".lora_B.")]
            products[key.removesuffix(".lora_A.weight").removeprefix("transformer.")] = (
                b.double() @ (a.double() @ probe(a.shape[1])))
    write_probes(out / f"{name}.probe.safetensors", products, {})


def random_pairs(spec, down, up, alpha=None, seed=0):
    """spec: stem -> (out, in, rank). alpha: None, or a number for a tensor .alpha."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for stem, (rows, columns, rank) in spec.items():
        tensors[stem + down] = (torch.randn(rank, columns, generator=generator) * 0.1).to(torch.bfloat16)
        tensors[stem + up] = (torch.randn(rows, rank, generator=generator) * 0.1).to(torch.bfloat16)
        if alpha is not None:
            tensors[stem + ".alpha"] = torch.tensor(alpha, dtype=torch.bfloat16)
    return tensors


def make_foreign(out):
    h = 16
    fused = {"double_blocks_0_img_attn_qkv": (3 * h, h, 4), "double_blocks_0_txt_attn_proj": (h, h, 4),
             "double_blocks_18_img_mlp_2": (h, 4 * h, 4), "single_blocks_37_linear2": (h, 5 * h, 4)}
    kohya = random_pairs({f"lora_unet_{k}": v for k, v in fused.items()}, ".lora_down.weight", ".lora_up.weight", 1.0, 5)
    make_by_keys(out, "kohya", kohya)
    diagonal = {k: v.clone() for k, v in random_pairs({"lora_unet_double_blocks_3_txt_attn_qkv": (3 * h, h, 6)},
                                                      ".lora_down.weight", ".lora_up.weight", 3.0, 6).items()}
    up = diagonal["lora_unet_double_blocks_3_txt_attn_qkv.lora_up.weight"]
    for i in range(3):
        for j in range(3):
            if i != j:
                up[i * h:(i + 1) * h, 2 * j:2 * j + 2] = 0
    make_by_keys(out, "kohya_blocks", diagonal)
    dots = {"diffusion_model.double_blocks.2.img_attn.qkv": (3 * h, h, 4),
            "diffusion_model.single_blocks.1.linear2": (h, 5 * h, 4)}
    make_by_keys(out, "comfyui", random_pairs(dots, ".lora_down.weight", ".lora_up.weight", 6.0, 7))
    flat = {"lora_transformer_transformer_blocks_0_attn_to_q": (h, h, 4),
            "lora_transformer_single_transformer_blocks_9_attn_to_v": (h, h, 4),
            "lora_transformer_transformer_blocks_2_attn_to_out_0": (h, h, 4)}
    make_by_keys(out, "lora_transformer", random_pairs(flat, ".lora_down.weight", ".lora_up.weight", 2.0, 8))
    xlabs = {"double_blocks.0.processor.qkv_lora1": (3 * h, h, 4), "double_blocks.0.processor.proj_lora2": (h, h, 4),
             "single_blocks.4.processor.qkv_lora": (3 * h, h, 4)}
    make_by_keys(out, "xlabs", random_pairs(xlabs, ".down.weight", ".up.weight", None, 9))


def llama():
    torch.manual_seed(4)
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, vocab_size=48, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(config).eval()


def make_llama(folder, seed, **options):
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj", "k_proj", "down_proj"], task_type="CAUSAL_LM",
                                               **options))
    fill(model, seed)
    model.save_pretrained(folder)
    return model


# ---- what peers make of ours ----

def convert(program, source, form, folder, dtype=None, base=None):
    shutil.rmtree(folder, ignore_errors=True)
    command = [program, "export", source, "--format", form, "-o", folder]
    command += ["--dtype", dtype] if dtype else []
    command += ["--base", base] if base else []
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return next(folder.glob("*.safetensors"), folder / "adapter.gguf")


def compare(what, want, found, dtype, roundings, slack=0.0):
    """want, found: name -> (s, B, A) in f64; the error of every element against its bound."""
    assert set(want) == set(found), (what, set(want) ^ set(found))
    worst = 0.0
    for name, (s, b, a) in want.items():
        s2, b2, a2 = found[name]
        bound = ((1 + UNIT[dtype])**roundings * (1 + 2.0**-24)**2 - 1 + slack + 1e-13) * (abs(s) * b.abs() @ a.abs())
        error = (s * (b @ a) - s2 * (b2 @ a2)).abs()
        assert bool((error <= bound).all()), (what, name, float((error / bound).max()))
        worst = max(worst, float((error / bound.clamp(min=1e-300)).max()))
    say(f"{what}: {len(want)} modules, largest error {worst:.3f} of the bound for {roundings} rounding(s) to {dtype}")


def terms(model):
    return {name: (layer.scaling["default"], layer.lora_B["default"].weight.detach().double(),
                   layer.lora_A["default"].weight.detach().double()) for name, layer in layers(model).items()}


def terms_of(state, scale=1.0):
    return {k.removesuffix(".lora_A.weight").removeprefix("transformer."):
            (scale, state[k.replace(".lora_A.", ".lora_B.")].double(), a.double())
            for k, a in state.items() if ".lora_A." in k}


def inputs():
    generator = torch.Generator().manual_seed(11)
    def normal(*shape):
        return torch.randn(*shape, generator=generator)
    ids = torch.zeros(4, 3)
    ids[:, 1] = torch.arange(4)
    return dict(hidden_states=normal(1, 4, 8), encoder_hidden_states=normal(1, 3, 16), pooled_projections=normal(1, 16),
                timestep=torch.tensor([0.75]), guidance=torch.tensor([3.5]), img_ids=ids, txt_ids=torch.zeros(3, 3))


def check_diffusers(program, work, name, model):
    """Injected by diffusers (peft) into a fresh model: the same output as the one that was trained."""
    path = convert(program, HERE / f"{name}.safetensors", "diffusers", work / name, "f32")
    fresh = flux_model()
    with torch.no_grad():
        base = fresh(**inputs()).sample
    state, metadata = FluxLoraLoaderMixin.lora_state_dict(path.parent, weight_name=path.name, return_lora_metadata=True)
    assert not metadata, metadata
    fresh.load_lora_adapter(state, prefix="transformer", adapter_name="default")
    with torch.no_grad():
        want, found = model(**inputs()).sample, fresh(**inputs()).sample
    error, effect = float((want - found).abs().max()), float((want - base).abs().max())
    # f32 on both sides; layers of width 80 at most, a dozen of them in a row: a few hundred units of 2^-24.
    assert error <= 512 * 2.0**-24 * max(1.0, float(want.abs().max())) < effect / 20, (name, error, effect)
    say(f"diffusers load_lora_adapter of {name} as diffusers f32: outputs differ by {error:.1e}, the adapter changes them "
        f"by {effect:.1e}")


def check_full_size(program, work):
    """Widths of FLUX.1, which diffusers' conversion has built in; rank 2, a few modules, alpha other than r."""
    h = 3072
    split = {"transformer_blocks.0.attn.to_q": (h, h, 2), "transformer_blocks.0.attn.to_k": (h, h, 2),
             "transformer_blocks.0.attn.to_v": (h, h, 2), "transformer_blocks.18.ff_context.net.2": (h, 4 * h, 2),
             "single_transformer_blocks.37.attn.to_q": (h, h, 2), "single_transformer_blocks.37.attn.to_k": (h, h, 2),
             "single_transformer_blocks.37.attn.to_v": (h, h, 2), "single_transformer_blocks.37.proj_mlp": (4 * h, h, 2),
             "single_transformer_blocks.37.proj_out": (h, 5 * h, 2)}
    tensors = random_pairs({"transformer." + k: v for k, v in split.items()}, ".lora_A.weight", ".lora_B.weight", None, 12)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 5, "target_modules": sorted(split)}
    source = work / "full.safetensors"
    save_file(tensors, source, {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})})
    want = terms_of(tensors, 2.5)
    for form in ("kohya", "comfyui"):
        state = load_file(convert(program, source, form, work / "full"))
        # In f64, so that what diffusers folds itself is not rounded; split again, it finds the zero blocks.
        state = FluxLoraLoaderMixin.lora_state_dict({k: v.double() for k, v in state.items()})
        compare(f"diffusers lora_state_dict of full width split adapters as {form} bf16", want, terms_of(state), "bf16", 0)
    state = load_file(convert(program, source, "diffusers", work / "full"))
    compare("full width split adapters as diffusers bf16", want, terms_of(state), "bf16", 1)
    fused = random_pairs({"lora_unet_single_blocks_2_linear1": (7 * h, h, 2),
                          "lora_unet_double_blocks_2_txt_attn_qkv": (3 * h, h, 2)}, ".lora_down.weight", ".lora_up.weight",
                         3.0, 13)
    save_file(fused, source)
    want = terms_of(FluxLoraLoaderMixin.lora_state_dict({k: v.double() for k, v in fused.items()}))
    state = load_file(convert(program, source, "diffusers", work / "full"))
    compare("full width fused kohya adapters as diffusers bf16", want, terms_of(state), "bf16", 1)
    for form in ("kohya", "comfyui"):
        again = load_file(convert(program, work / "full" / "pytorch_lora_weights.safetensors", form, work / "again"))
        found = terms_of(FluxLoraLoaderMixin.lora_state_dict({k: v.double() for k, v in again.items()}))
        compare(f"the same through diffusers to {form}, read by diffusers", terms_of(state), found, "bf16", 0)


def check_comfyui(program, work, name, model):
    """ComfyUI's own rules: up, down and alpha under the weight's name, (alpha or rank) / rank, rows of fused weights."""
    state = load_file(convert(program, HERE / f"{name}.safetensors", "comfyui", work / name, "f32"))
    found = {}
    for key, down in state.items():
        if key.endswith(".lora_down.weight"):
            stem = key.removesuffix(".lora_down.weight")
            up, alpha = state[stem + ".lora_up.weight"], state.get(stem + ".alpha")
            scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
            found[stem.removeprefix("diffusion_model.")] = scale * (up.double() @ down.double())
    delta = {k: s * (b @ a) for k, (s, b, a) in terms(model).items()}
    single, double = "single_transformer_blocks.0.", "transformer_blocks.0."
    zero = torch.zeros_like(delta[double + "attn.add_k_proj"])
    parts = {"double_blocks.0.img_attn.qkv": [delta[double + f"attn.to_{i}"] for i in "qkv"],
             "double_blocks.0.txt_attn.qkv": [zero, delta[double + "attn.add_k_proj"], zero],
             "double_blocks.0.img_mlp.2": [delta[double + "ff.net.2"]],
             "double_blocks.0.img_mod.lin": [delta[double + "norm1.linear"]],
             "single_blocks.0.linear1": [delta[single + f"attn.to_{i}"] for i in "qkv"] + [delta[single + "proj_mlp"]],
             "single_blocks.0.linear2": [delta[single + "proj_out"]], "img_in": [delta["x_embedder"]],
             "final_layer.linear": [delta["proj_out"]],
             "final_layer.adaLN_modulation.1": list(reversed(delta["norm_out.linear"].chunk(2)))}
    assert set(parts) == set(found), set(parts) ^ set(found)
    worst = 0.0
    for stem, pieces in parts.items():
        whole = torch.cat(pieces, 0)
        worst = max(worst, float((found[stem] - whole).abs().max() / whole.abs().max()))
    # alpha in f32, and scales that differ inside of one matrix folded into B: two roundings, rank 4 terms.
    assert worst <= 8 * 2.0**-24, worst
    say(f"ComfyUI's rules on {name} as comfyui f32: {len(parts)} weights, largest error {worst:.1e} of the largest element")


def permute(weight, heads):
    """llama.cpp's LlamaModel.permute: rotary pairs become neighbours."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def check_gguf(program, work, what, options, dtype):
    model = make_llama(work / "peft", 21, **options)
    base = work / "base"
    llama().save_pretrained(base)
    path = convert(program, work / "peft", "gguf", work / "gguf", dtype, base)
    reader = gguf.GGUFReader(path)
    field = {name: part.contents() for name, part in reader.fields.items()}
    assert field["general.type"] == "adapter" and field["adapter.type"] == "lora" and field["general.architecture"] == "llama"
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    values = {}
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values[tensor.name] = torch.from_numpy(numpy.array(data)).double()
    want, found = {}, {}
    for name, (s, b, a) in terms(model).items():
        stem = names.get_name(name) + ".weight"
        heads = 4 if name.endswith("q_proj") else 2 if name.endswith("k_proj") else 0
        want[stem] = (s, permute(b, heads) if heads else b, a)
        left, right = values.pop(stem + ".lora_b"), values.pop(stem + ".lora_a")
        alpha = field["adapter.lora.alpha"]
        found[stem] = (alpha / right.shape[0] if alpha else 1.0, left, right)
    assert not values, values.keys()
    compare(f"gguf reader, llama.cpp's rules, of peft {what} as gguf {dtype}", want, found, dtype, 2)
    back = work / "back"
    convert(program, path, "peft", back, None, base)
    again = PeftModel.from_pretrained(llama(), back)
    compare(f"peft from_pretrained of peft {what} through gguf {dtype}", terms(model), terms(again), dtype, 2)


def main():
    global HERE
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--check")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    HERE = pathlib.Path(options.check) if options.check else HERE
    HERE.mkdir(parents=True, exist_ok=True)
    for module in (diffusers, gguf, numpy, peft, safetensors, torch, transformers):
        version = getattr(module, "__version__", None) or __import__("importlib.metadata").metadata.version(module.__name__)
        say(f"{module.__name__} {version}")
    pattern = dict(rank_pattern={"proj_out": 2}, alpha_pattern={"attn.to_k": 3.5})
    models = {"flux": make_flux(HERE, "flux", 1, r=4, lora_alpha=6, **pattern),
              "flux_rslora": make_flux(HERE, "flux_rslora", 2, r=3, lora_alpha=5, use_rslora=True),
              "flux_dora": make_flux(HERE, "flux_dora", 3, r=4, lora_alpha=6, use_dora=True),
              "flux_bare": make_flux(HERE, "flux_bare", 4, r=4, lora_alpha=8)}
    make_foreign(HERE)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        for name, model in models.items():
            check_diffusers(options.program, work, name, model)
            if name != "flux_dora":
                check_comfyui(options.program, work, name, model)
        check_full_size(options.program, work)
        for dtype in ("f32", "bf16", "f16"):
            check_gguf(options.program, work, "alpha 6, r 4", dict(r=4, lora_alpha=6), dtype)
        check_gguf(options.program, work, "rslora", dict(r=3, lora_alpha=5, use_rslora=True), "bf16")
        check_gguf(options.program, work, "patterns",
                   dict(r=4, lora_alpha=6, rank_pattern={"k_proj": 2}, alpha_pattern={"layers.1.mlp.down_proj": 3.5}), "bf16")
    (HERE / "transcript.txt").write_text("".join(LINES))


if __name__ == "__main__":
    main()

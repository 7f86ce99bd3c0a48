#!/usr/bin/env python3
"""Golden values of the FLUX.1 transformer: what diffusers' FluxTransformer2DModel + peft compute in float64.

    python3 tests/golden/make_flux.py OUTDIR        (normally tests/golden/flux)

The model is the tiny one of tests/support/flux_case.h; weights, adapters and inputs follow its rule (a hash of names), so
the file holds none of them. diffusers makes the sinusoids of time and guidance in float32 whatever the dtype: they are in
the file, as `time.<k>` and `guidance.<k>` of sample k. Everything else is float64; results are stored as float32.

Header: the library versions and the hyperparameters. Tensors: `velocity.plain` [2, 16, 16] of samples 0 and 1 without
adapters; with the adapters `velocity` likewise, `grad1.<name>` of the loss of sample 0 and `grad2.<name>` of the mean over
samples 0 and 1; `losses` f64: plain of both samples, then with adapters; `curve` f64: losses of 20 AdamW steps, step k on
sample k alone.
"""
import sys
from pathlib import Path

import diffusers
import make_llama as llama
import numpy as np
import peft
import torch
from diffusers import FluxTransformer2DModel

CONFIG = dict(patch_size=1, in_channels=16, out_channels=None, num_layers=2, num_single_layers=2, attention_head_dim=16,
              num_attention_heads=4, joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True,
              axes_dims_rope=(4, 6, 6))
DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"
TARGETS = [f"{DOUBLE}.0.attn.to_q", f"{DOUBLE}.0.attn.add_k_proj", f"{DOUBLE}.1.attn.to_out.0", f"{DOUBLE}.0.attn.to_add_out",
           f"{DOUBLE}.0.ff.net.0.proj", f"{DOUBLE}.1.ff_context.net.2", f"{DOUBLE}.1.norm1.linear",
           f"{DOUBLE}.0.norm1_context.linear", f"{SINGLE}.0.attn.to_v", f"{SINGLE}.1.proj_mlp", f"{SINGLE}.0.proj_out",
           f"{SINGLE}.1.norm.linear", "norm_out.linear", "proj_out", "x_embedder", "context_embedder",
           "time_text_embed.timestep_embedder.linear_2", "time_text_embed.text_embedder.linear_1"]
RANK, ALPHA = 2, 4
STEPS, RATE, DECAY = 20, 1e-3, 0.01
HEIGHT, WIDTH, TEXT = 4, 4, 8


def hashed(name, shape, scale, off=0.0):
    numel = int(np.prod(shape))
    h = 0xcbf29ce484222325
    for c in name.encode():
        h = ((h ^ c) * 0x100000001b3) % 2**64
    z = np.arange(numel, dtype=np.uint64) + np.uint64(h) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    u = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    value = (off + scale * (2.0 * u - 1.0)).astype(np.float32).astype(np.float64)
    return torch.tensor(value.reshape(shape))


def weight(name, shape):
    if name.endswith(".lora_B.weight"):
        return hashed(name, shape, 0.1)
    if len(shape) == 2:
        return hashed(name, shape, np.sqrt(3.0 / shape[1]))
    return hashed(name, shape, 0.1, 1.0 if name.endswith(".weight") else 0.0)


def public_name(name):
    return name.replace(".base_layer.", ".").replace(".default.", ".")


def build(with_lora):
    model = FluxTransformer2DModel(**CONFIG).double()
    if with_lora:
        model.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=ALPHA,
                                          target_modules="|".join(t.replace(".", r"\.") for t in TARGETS)))
        model = model.double()
        adapted = [n for n, _ in model.named_parameters() if ".lora_A." in n]
        assert len(adapted) == len(TARGETS), adapted
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weight(public_name(name), tuple(p.shape)))
    return model


def sample(k):
    """Sample k as tests/support/flux_case.c has it: packed in float64, then rounded to float32."""
    name = (lambda n: n) if k == 0 else (lambda n: f"{n}.{k}")
    sigma, guidance = ((0.75, 3.5), (0.25, 1.0))[k % 2]
    x0, noise = (hashed(name(n), (4, 2 * HEIGHT, 2 * WIDTH), 1.0) for n in ("input.latent", "input.noise"))

    def pack(z):
        z = z.reshape(4, HEIGHT, 2, WIDTH, 2).permute(1, 3, 0, 2, 4).reshape(HEIGHT * WIDTH, 16)
        return z.float().double()
    return dict(latent=pack((1.0 - sigma) * x0 + sigma * noise), target=pack(noise - x0),
                text=hashed(name("input.prompt"), (TEXT, 32), 1.0), pooled=hashed(name("input.pooled"), (32,), 1.0),
                sigma=sigma, guidance=guidance)


def run(model, numbers):
    s = [sample(k) for k in numbers]
    ids = torch.tensor([[0.0, r, c] for r in range(HEIGHT) for c in range(WIDTH)], dtype=torch.float64)
    stack = lambda key: torch.stack([x[key] for x in s])
    scalar = lambda key: torch.tensor([x[key] for x in s], dtype=torch.float64)
    out = model(hidden_states=stack("latent"), encoder_hidden_states=stack("text"), pooled_projections=stack("pooled"),
                timestep=scalar("sigma"), guidance=scalar("guidance"), img_ids=ids,
                txt_ids=torch.zeros(TEXT, 3, dtype=torch.float64), return_dict=False)[0]
    return out, (out - stack("target")).square().mean(dim=(1, 2))


def sinusoids(model):
    """What diffusers' time_proj gives, in float32."""
    tensors = {}
    for k in (0, 1):
        s = sample(k)
        for name, value in (("time", s["sigma"]), ("guidance", s["guidance"])):
            e = model.time_text_embed.time_proj(torch.tensor([1000.0 * value], dtype=torch.float64))
            assert e.dtype == torch.float32
            tensors[f"{name}.{k}"] = e[0].numpy()
    return tensors


def gradients(model, numbers, prefix):
    model.zero_grad()
    loss = run(model, numbers)[1].mean()
    loss.backward()
    return {prefix + public_name(n): p.grad.numpy().astype(np.float32)
            for n, p in model.named_parameters() if p.requires_grad}


def curve():
    model = build(True)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    losses = []
    for k in range(STEPS):
        optimizer.zero_grad()
        loss = run(model, [k])[1].mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses, dtype=np.float64)


def main(outdir):
    plain, adapted = build(False), build(True)
    with torch.no_grad():
        out, loss = run(plain, [0, 1])
        lora_out, lora_loss = run(adapted, [0, 1])
    tensors = sinusoids(plain)
    tensors["velocity.plain"] = out.numpy().astype(np.float32)
    tensors["velocity"] = lora_out.numpy().astype(np.float32)
    tensors["losses"] = torch.cat([loss, lora_loss]).numpy()
    tensors |= gradients(adapted, [0], "grad1.") | gradients(adapted, [0, 1], "grad2.")
    tensors["curve"] = curve()
    header = dict(diffusers=diffusers.__version__, peft=peft.__version__, torch=torch.__version__.split("+")[0],
                  rank=RANK, alpha=ALPHA, lr=RATE, decay=DECAY)
    outdir.mkdir(parents=True, exist_ok=True)
    llama.write(outdir / "tiny.golden", header, tensors)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

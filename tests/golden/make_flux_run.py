#!/usr/bin/env python3
"""A whole FLUX.1 run as diffusers, peft and torch make it: 20 steps of AdamW over a cache, with Tessera's draws.

    python3 tests/golden/make_flux_run.py OUTDIR        (normally tests/golden/flux)

The model is make_flux.py's with weights rounded to bfloat16; latents, texts and the adapters' start follow its hash of
names (`cache.latent.<i>`, `cache.text.<c>`, `cache.pooled.<c>`), so the file holds none of them. Noise, sigma, dropped
captions and the order of samples are those of docs/objective.md and docs/data.md, written here a second time from their
definitions with Python's integers (make_objective.py). Everything is float64 but what a run rounds: latents, noise, their
mix and the sinusoids, which are made in float64 and rounded to float32 (diffusers' own are float32 throughout, 1e-4 off).

run.golden: versions and what the run file says. Tensors: `losses` f64 [20] of the steps, and every adapter after them under
diffusers' name, f32.

sample.golden: latents f32 [4, H, W] that the trained adapter gives by diffusers' FlowMatchEulerDiscreteScheduler from the noise
of `tessera sample`, `static` and `dynamic` by the kind of shift; header: heights, widths, steps, seed, static shift, caption.
"""
import sys
from pathlib import Path

import diffusers
import make_flux as flux
import make_llama as llama
import make_objective as draws
import numpy as np
import peft
import torch

SEED, BATCH, MICRO_BATCHES, STEPS = 7, 2, 3, 20
RANK, RATE, DECAY = 2, 1e-3, 0.01
# a list of them is an entry of lora.targets: ends of paths, so without the last layer's "proj_out"
LEFT_OUT = ("proj_out", "attn.to_add_out", "norm1_context.linear", "norm.linear", "text_embedder.linear_1")
TARGETS = [t for t in flux.TARGETS if t == "single_transformer_blocks.0.proj_out" or not t.endswith(LEFT_OUT)]
BUCKETS = [(4, 10, 3), (8, 8, 5)]  # height, width, samples, in the order of a cache
CAPTIONS, TEXT = 3, 8
OBJECTIVE = dict(timesteps="sigmoid", sigmoid_scale=1.2, shift="static", shift_factor=1.7, guidance=3.5, caption_dropout=0.3,
                 weighting="cosmap")
SHUFFLE, LATENT = 3, 12


def permuted(numel, i, layer, index):
    """Entry i of a permutation: six Feistel rounds of Philox words over 2 * half bits, walked until it is below numel."""
    half = 1
    while 1 << 2 * half < numel:
        half += 1
    mask, x = (1 << half) - 1, i
    while True:
        left, right = x >> half, x & mask
        for turn in range(6):
            counter = right | turn << 60
            w = draws.philox([counter & draws.MASK, counter >> 32, index, SHUFFLE << 24 | layer], [SEED & draws.MASK, SEED >> 32])
            left, right = right, left ^ ((w[0] << 32 | w[1]) & mask)
        x = left << half | right
        if x < numel:
            return x


def order():
    """(bucket, samples of the cache) of micro-batch 0, 1, ...: docs/data.md."""
    epoch = 0
    while True:
        given = [(e * n // BATCH, (e + 1) * n // BATCH) for e in [epoch] for _, _, n in BUCKETS]
        added = [(b, k) for b, (first, end) in enumerate(given) for k in range(first, end)]
        for at in range(len(added)):
            b, k = added[permuted(len(added), at, 0, epoch)]
            n, first = BUCKETS[b][2], sum(bucket[2] for bucket in BUCKETS[:b])
            yield b, [first + permuted(n, v % n, 1 + b, v // n) for v in range(k * BATCH, (k + 1) * BATCH)]
        epoch += 1


def f32(x):
    return x.astype(np.float32).astype(np.float64)


def pack(z):
    c, h, w = z.shape
    return z.reshape(c, h // 2, 2, w // 2, 2).transpose(1, 3, 0, 2, 4).reshape(h * w // 4, 4 * c)


def sample(number, idx, bucket):
    """Sample `number` of the run, which is `idx` of the cache."""
    height, width, _ = BUCKETS[bucket]
    sigma = draws.draw_sigma(OBJECTIVE, SEED, number, height * width // 4)
    shape = (4, height, width)
    latent = flux.hashed(f"cache.latent.{idx}", shape, 1.0).numpy()
    noise = f32(np.array([draws.normal(SEED, draws.NOISE, number, i) for i in range(latent.size)]).reshape(shape))
    dropped = draws.uniform(SEED, draws.CAPTION, number) < OBJECTIVE["caption_dropout"]
    caption = 0 if dropped else 1 + idx % 2
    return dict(latent=pack(f32((1.0 - sigma) * latent + sigma * noise)), target=pack(f32(noise - latent)),
                weight=draws.weight(OBJECTIVE, sigma), sigma=sigma,
                text=flux.hashed(f"cache.text.{caption}", (TEXT, 32), 1.0).numpy(),
                pooled=flux.hashed(f"cache.pooled.{caption}", (32,), 1.0).numpy())


def sinusoid(values):
    angles = values.double()[:, None] * torch.exp(-np.log(10000.0) * torch.arange(128, dtype=torch.float64) / 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1).float().double()


def build():
    model = flux.FluxTransformer2DModel(**flux.CONFIG).double()
    pattern = "|".join(t.replace(".", r"\.") for t in TARGETS)
    model.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=pattern))
    model = model.double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = flux.weight(flux.public_name(name), tuple(p.shape))
            p.copy_(value if p.requires_grad else value.to(torch.bfloat16).double())
    model.time_text_embed.time_proj.forward = sinusoid
    return model


def loss_of(model, bucket, samples):
    height, width, _ = BUCKETS[bucket]
    stack = lambda key: torch.tensor(np.stack([s[key] for s in samples]))  # noqa: E731
    ids = torch.tensor([[0.0, r, c] for r in range(height // 2) for c in range(width // 2)], dtype=torch.float64)
    out = model(hidden_states=stack("latent"), encoder_hidden_states=stack("text"), pooled_projections=stack("pooled"),
                timestep=stack("sigma"), guidance=torch.full((BATCH,), OBJECTIVE["guidance"], dtype=torch.float64),
                img_ids=ids, txt_ids=torch.zeros(TEXT, 3, dtype=torch.float64), return_dict=False)[0]
    return ((out - stack("target")).square().mean(dim=(1, 2)) * stack("weight")).sum()


def start(seed, shape):
    """Noise of image 0 of `tessera sample`."""
    return f32(np.array([draws.normal(seed, LATENT, 0, i) for i in range(int(np.prod(shape)))]).reshape(shape))


def unpack(x, channels, height, width):
    return x.reshape(height // 2, width // 2, channels, 2, 2).transpose(2, 0, 3, 1, 4).reshape(channels, height, width)


def euler(model, kind, height, width, steps):
    """As diffusers' FluxPipeline calls its scheduler."""
    channels, tokens = flux.CONFIG["in_channels"] // 4, height * width // 4
    config = dict(shift=OBJECTIVE["shift_factor"]) if kind == "static" else dict(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    slope = (1.15 - 0.5) / (4096 - 256)
    mu = dict(mu=tokens * slope + 0.5 - slope * 256) if kind == "dynamic" else {}
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **mu)
    x = torch.tensor(pack(start(SEED, (channels, height, width))))[None]
    ids = torch.tensor([[0.0, r, c] for r in range(height // 2) for c in range(width // 2)], dtype=torch.float64)
    for t in scheduler.timesteps:
        with torch.no_grad():
            v = model(hidden_states=x.double(), encoder_hidden_states=flux.hashed("cache.text.1", (TEXT, 32), 1.0)[None],
                      pooled_projections=flux.hashed("cache.pooled.1", (32,), 1.0)[None], timestep=t.double()[None] / 1000,
                      guidance=torch.tensor([OBJECTIVE["guidance"]], dtype=torch.float64), img_ids=ids,
                      txt_ids=torch.zeros(TEXT, 3, dtype=torch.float64), return_dict=False)[0]
        x = scheduler.step(v, t, x, return_dict=False)[0]
    return unpack(x[0].double().numpy(), channels, height, width).astype(np.float32)


def main(outdir):
    model, batches = build(), order()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    losses, number = [], 0
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(MICRO_BATCHES):
            bucket, indices = next(batches)
            samples = [sample(number + i, idx, bucket) for i, idx in enumerate(indices)]
            number += BATCH
            loss = loss_of(model, bucket, samples) / (BATCH * MICRO_BATCHES)
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    tensors = {"losses": np.array(losses)}
    tensors |= {flux.public_name(n): p.detach().numpy().astype(np.float32)
                for n, p in model.named_parameters() if p.requires_grad}
    header = dict(diffusers=diffusers.__version__, peft=peft.__version__, torch=torch.__version__.split("+")[0], seed=SEED,
                  rank=RANK, lr=RATE, decay=DECAY, steps=STEPS,
                  objective=", ".join(f"{k}: {v}" for k, v in OBJECTIVE.items()))
    llama.write(outdir / "run.golden", header, tensors)
    sizes = dict(static=(8, 8, 5), dynamic=(4, 10, 3))
    llama.write(outdir / "sample.golden", dict(diffusers=diffusers.__version__, torch=header["torch"], seed=SEED, caption="one",
                                               guidance=OBJECTIVE["guidance"], shift=OBJECTIVE["shift_factor"])
                | {f"{k}_{name}": v for k, size in sizes.items() for name, v in zip(("height", "width", "steps"), size)},
                {kind: euler(model, kind, *size) for kind, size in sizes.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

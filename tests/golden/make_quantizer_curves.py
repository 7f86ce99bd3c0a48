#!/usr/bin/env python3
"""Loss curves of quantized autoencoders as PyTorch and the peer's quantizers train them.

    python make_quantizer_curves.py TESSERA OUTDIR        (normally tests/golden/quantizers)

OUTDIR/curves.golden holds the vectors (`data.vectors`, [48, 6] f32), flags (`data.mask`, [48] f32: 1, or 0 of vectors
that are masked in cases named masked-), images (`data.images`, [8, 12, 8] f32 in [0, 1]), whose 48 positions of 4 x 4
pixels the flags are of in cases named images-, and for each case the keys of section quantizer
(header CASE.quantizer) and the losses of 12 steps (`CASE.loss`, f64). Every step takes all vectors, so that their order
does not matter; the optimizer is AdamW. Start weights are those of the program, from a run with a learning rate of 0.

| case | quantizer |
|---|---|
| ema, ema-levels, heads, shared, cosine | VectorQuantize with moving averages; levels and the one estimator around the
  stack by autograd here (ResidualVQ adds up an estimator of each level: its gradient is LEVELS times as large) |
| simvq, fsq, lfq, lfq-groups | SimVQ, FSQ, LFQ with one and with two codebooks |
| masked-ema, masked-levels | VectorQuantize with its argument mask; the reconstruction's mean is over the vectors that
  are kept |
| masked-heads, masked-cosine, masked-lfq | those quantizers of the vectors that are kept alone: with a mask the peer
  (1.32.0) ends with an error where it has heads, compares codes of length 1 with vectors of any length, and its LFQ
  averages no probabilities |
| images-* | the same behind convolutions, with masked positions: the argument
  mask of VectorQuantize, or the positions that are kept alone; its output of the others is 0, and so are their pixels
  for the encoder; the reconstruction's mean is over the pixels of the positions that are kept |
| random-projection | RandomProjectionQuantizer with the projection and codes that the program drew; a decoder learns |
| bsq, bsq-gamma0 | by its formula, in f64: the entropies of two groups of bits, with those of vectors over all bits |
| residual-fsq, stack-of-one | ResidualFSQ's codes, one estimator behind the soft clamp by autograd here |
| orthogonal, orthogonal-heads | learned codes with the two weights of this program by autograd here, and the peer's
  orthogonal loss |
| latent | by its formula: the peer's (1.32.0) values get no gradient, because its output is z + (q - z).detach(); both of
  its losses then act on z, with opposite signs |

The closest of all assignments, `CASE.margin`, is how much nearer the nearest code was than the second, over all steps
(scalars: how far from where they are rounded to another level).

Made with torch 2.15.0, vector-quantize-pytorch 1.32.0.
"""
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import vector_quantize_pytorch as vqp

N, D, HIDDEN, STEPS, LR = 48, 6, 10, 12, 0.02
HEIGHT, WIDTH, CELL = 12, 8, 4
IMAGES = N * CELL * CELL // (HEIGHT * WIDTH)
RUN = """model: {{family: {family}}}
data: {{path: {file}}}
train: {{steps: 1, micro_batch: 8, micro_batches: 1, learning_rate: 0.0, schedule: constant, warmup_steps: 0,
        clip_norm: 0.0, seed: 5, eval_every: 0}}
quantizer: {{{quantizer}, {body}}}
compute: {{dtype: f32, memory_limit: 1GiB}}
output: {{dir: {dir}, checkpoint_every: 0}}
"""


def read_safetensors(path):
    data = Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, t in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        lo, hi = t["data_offsets"]
        array = np.frombuffer(data[8 + size + lo:8 + size + hi], np.float32).reshape(t["shape"])
        out[name] = torch.tensor(array.copy())
    return out


def start_weights(program, file, quantizer):
    of_images = os.path.isdir(file)
    body = "downsample: 2, channels: 4, residual_blocks: 1, residual_channels: 3" if of_images else "encoder: [10]"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run.yaml")
        run.write_text(RUN.format(family="vqvae" if of_images else "rqvae", file=file, quantizer=quantizer, body=body,
                                  dir=f"{folder}/out"))
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        subprocess.run([program, "train", run], check=True, env=environment, capture_output=True)
        return read_safetensors(f"{folder}/out/export/model.safetensors")


class Model:
    """Encoder and decoder; `quantize(z)` gives the output with its gradient, the loss, and a margin."""

    def __init__(self, w, quantize, learned=(), mask=None):
        self.mask = mask
        self.w = {k: v.clone().requires_grad_() for k, v in w.items() if not k.startswith("quantizer")}
        self.quantize = quantize
        self.margin = float("inf")
        self.optimizer = torch.optim.AdamW(list(self.w.values()) + list(learned), lr=LR, weight_decay=0.0)

    def layers(self, name, x):
        x = F.relu(F.linear(x, self.w[f"{name}.0.weight"], self.w[f"{name}.0.bias"]))
        return F.linear(x, self.w[f"{name}.1.weight"], self.w[f"{name}.1.bias"])

    def step(self, x):
        z = self.layers("encoder", x) if "encoder.1.weight" in self.w else x
        q, loss, margin = self.quantize(z)
        self.margin = min(self.margin, float(margin))
        if self.mask is not None and len(q) == len(x):
            q = q[self.mask]
        x = x if self.mask is None else x[self.mask]
        loss = loss + F.mse_loss(self.layers("decoder", q), x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class ImageModel(Model):
    """The same of images [IMAGES, 1, HEIGHT, WIDTH]: positions are vectors."""

    def convolution(self, name, x, k, stride=1):
        w = self.w[f"{name}.weight"]
        w = w.reshape(len(w), k, k, -1).permute(0, 3, 1, 2)
        return F.conv2d(x, w, self.w[f"{name}.bias"], stride=stride, padding=(k - 1) // 2)

    def transposed(self, name, x):
        w = self.w[f"{name}.weight"]
        w = w.reshape(4, 4, -1, w.shape[1]).permute(3, 2, 0, 1)
        return F.conv_transpose2d(x, w, self.w[f"{name}.bias"], stride=2, padding=1)

    def block(self, name, x):
        return x + self.convolution(f"{name}.1", F.relu(self.convolution(f"{name}.0", F.relu(x), 3)), 1)

    def encode(self, x):
        x = self.convolution("encoder.0", x, 4, stride=2)
        x = self.convolution("encoder.1", F.relu(x), 4, stride=2)
        return self.convolution("encoder.3", F.relu(self.block("encoder.2", x)), 1)

    def decode(self, z):
        x = self.block("decoder.1", self.convolution("decoder.0", z, 1))
        return self.transposed("decoder.3", F.relu(self.transposed("decoder.2", F.relu(x))))

    def step(self, x):
        grid = self.mask.reshape(IMAGES, 1, HEIGHT // CELL, WIDTH // CELL)
        pixels = grid.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
        x = torch.where(pixels, 2 * x - 1, 0.0)
        z = self.encode(x)
        shape = z.permute(0, 2, 3, 1).shape
        q, loss, margin = self.quantize(z.permute(0, 2, 3, 1).reshape(N, -1))
        self.margin = min(self.margin, float(margin))
        out = torch.zeros(N, shape[-1])
        out[self.mask] = q if len(q) < N else q[self.mask]
        y = self.decode(out.reshape(shape).permute(0, 3, 1, 2))
        loss = loss + F.mse_loss(y[pixels], x[pixels])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def straight(z, q):
    return z + (q - z).detach()


def apart(z, codes):
    best = torch.cdist(z.detach(), codes).topk(2, dim=-1, largest=False).values
    return (best[:, 1] - best[:, 0]).min()


def averaged(w, levels=1, heads=1, shared=False, cosine=False, mask=None):
    dim = w["quantizer.0.codes"].shape[1]
    layers = []
    for level in range(levels):
        vq = vqp.VectorQuantize(dim=dim * heads, codebook_dim=dim, codebook_size=w["quantizer.0.codes"].shape[0], heads=heads,
                                separate_codebook_per_head=heads > 1 and not shared, decay=0.8, commitment_weight=0.25,
                                use_cosine_sim=cosine, rotation_trick=False).train()
        books = [w[f"quantizer.{level if shared or heads == 1 else h}.codes"] for h in range(1 if shared else heads)]
        codes = torch.stack(books)
        codes = F.normalize(codes, dim=-1) if cosine else codes
        vq._codebook.embed.data.copy_(codes)
        vq._codebook.embed_avg.data.copy_(codes)
        layers.append(vq)

    def quantize(z):
        left, out, loss, margin = z, 0.0, 0.0, float("inf")
        for vq in layers:
            parts = left.detach().reshape(len(z), heads, dim)
            parts = F.normalize(parts, dim=-1) if cosine else parts
            for h in range(heads):
                of_head = parts[:, h] if mask is None else parts[mask, h]
                margin = min(margin, apart(of_head, vq._codebook.embed[0 if shared else h].clone()))
            q, _, part = vq(left[None], mask=None if mask is None else mask[None])
            loss = loss + part.sum()
            if cosine:
                return q[0], loss, margin  # its estimator begins behind the normalization
            out = out + q[0].detach()
            left = left - q[0].detach()
        return straight(z, out), loss, margin

    return quantize, []


def kept(made):
    quantize, learned = made
    return lambda z: quantize(z[MASK]), learned


def sim(w):
    table = w["quantizer.0.table"]
    vq = vqp.SimVQ(dim=table.shape[1], codebook_size=table.shape[0], rotation_trick=True).train()
    vq.frozen_codebook.data.copy_(table)
    vq.code_transform.weight.data.copy_(w["quantizer.0.map"])

    def quantize(z):
        margin = apart(z, vq.codebook.detach())
        q, _, loss = vq(z[None])
        return q[0], loss, margin

    return quantize, [vq.code_transform.weight]


def scalars(_):
    fsq = vqp.FSQ(levels=[8, 5, 5])
    levels = torch.tensor([8.0, 5.0, 5.0])
    half, off = (levels - 1) * 1.001 / 2, torch.tensor([0.5, 0.0, 0.0])

    def quantize(z):
        bounded = torch.tanh(z.detach() + torch.atanh(off / half)) * half - off
        q, _ = fsq(z[None])
        return q[0], 0.0, (0.5 - (bounded - bounded.round()).abs()).min()

    return quantize, []


def scalar_stack(_, numel=3):
    stack = vqp.ResidualFSQ(dim=2, levels=[5, 4], num_quantizers=numel)
    levels = torch.tensor([5.0, 4.0])
    clamp = 1 + 1 / (levels - 1)

    def quantize(z):
        y = clamp * torch.tanh(z / clamp)
        q, index = stack(z[None].detach())
        left, margin = y.detach(), float("inf")
        for level in range(numel):
            scaled = (left / levels**-level).clamp(-1, 1)
            at = (levels - 1) * (scaled + 1) / 2
            margin = min(margin, (0.5 - (at - (at + 0.5).floor()).abs()).abs().min())
            left = left - (2 * (at + 0.5).floor() / (levels - 1) - 1) * levels**-level
        assert torch.allclose(y - left, q[0], atol=1e-6)
        return straight(y, q[0]), 0.0, margin

    return quantize, []


def signs(groups, bits, scale=1.0):
    def make(_):
        lfq = vqp.LFQ(dim=groups * bits, codebook_size=2**bits, num_codebooks=groups, entropy_loss_weight=0.1,
                      diversity_gamma=1.0, commitment_loss_weight=0.25, codebook_scale=scale).train()

        def quantize(z):
            q, _, loss = lfq(z[None], inv_temperature=2.0)
            return q[0], loss, z.detach().abs().min()

        return quantize, []

    return make


def random_projection(w):
    p = w["encoder.0.weight"]
    tables = torch.stack([w[f"quantizer.{h}.table"] for h in range(2)])
    codes = F.normalize(tables, dim=-1)
    peers = []  # one for each codebook: of more the peer projects a second time, with a bias
    for part, own in zip(p.chunk(2), codes):
        peer = vqp.RandomProjectionQuantizer(dim=D, codebook_size=own.shape[0], codebook_dim=own.shape[1])
        peer.rand_projs.data.copy_(part.T)
        peer.vq._codebook.embed.data.copy_(own)
        peers.append(peer)
    norm = torch.nn.LayerNorm(D, elementwise_affine=False)

    def quantize(x):
        index = torch.stack([peer(x[None])[0].reshape(len(x)) for peer in peers], -1)
        z = F.normalize((norm(x) @ p.T).reshape(len(x), 2, -1), dim=-1)
        best = torch.einsum("nhd,hkd->nhk", z, codes).topk(2, dim=-1)
        assert (best.indices[..., 0] == index).all()
        q = torch.cat([codes[h][index[:, h]] for h in range(2)], -1)
        return q, 0.0, (best.values[..., 0] - best.values[..., 1]).min()

    return quantize, []


def binary_spherical(_, gamma0=1.0):
    groups, bits, beta = 2, 3, 2.0
    dim = groups * bits
    codes = torch.tensor([[1.0 if c >> (bits - 1 - j) & 1 else -1.0 for j in range(bits)] for c in range(2**bits)]).double()

    def entropy(p):
        return -(p * p.clamp_min(1e-300).log()).sum(-1)

    def quantize(z):
        u = F.normalize(z, dim=-1)
        q = torch.where(u > 0, 1.0, -1.0).double() / dim**0.5
        commitment = 0.25 * (u - q).square().sum(-1).mean()
        p = (2 * beta * u.reshape(-1, groups, bits) @ codes.T / dim**0.5).softmax(-1)
        of_vectors, of_mean = entropy(p).sum(-1).mean(), entropy(p.mean(0)).sum()
        return straight(u, q), commitment + 0.1 * (gamma0 * of_vectors - of_mean) / beta, u.detach().abs().min()

    return quantize, []


def latent(_):
    levels = [4, 5, 3]
    lists = [torch.linspace(-0.5, 0.5, n) if n % 2 else torch.arange(n) / n - 0.5 for n in levels]
    values = [torch.nn.Parameter(v.clone()) for v in lists]

    def quantize(z):
        q, margin = [], float("inf")
        for j, v in enumerate(values):
            away = (z[:, j, None] - v).abs().detach()
            best = away.topk(2, dim=-1, largest=False)
            margin = min(margin, (best.values[:, 1] - best.values[:, 0]).min())
            q.append(v[best.indices[:, 0]])
        q = torch.stack(q, -1)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return straight(z, q), loss, margin

    return quantize, values


def orthogonal(w, heads=1):
    codes = torch.nn.Parameter(torch.stack([w[f"quantizer.{h}.codes"] for h in range(heads)]))

    def quantize(z):
        parts = z.detach().chunk(heads, -1)
        q = torch.cat([c[torch.cdist(part, c.detach()).argmin(-1)] for part, c in zip(parts, codes)], -1)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        loss = loss + 10.0 * vqp.vector_quantize_pytorch.orthogonal_loss_fn(codes)
        return straight(z, q), loss, min(apart(part, c.detach()) for part, c in zip(parts, codes))

    return quantize, [codes]


MASK = torch.arange(N) % 5 % 3 != 1
EMA = ", update: ema, decay: 0.8, init: random, commitment: 0.25"
CASES = {  # keys of section quantizer; what it starts as, where averages would move codes; peer
    "ema": ("type: vq, codes: 11, code_dim: 4" + EMA, None, averaged),
    "ema-levels": ("type: residual-vq, codes: 7, code_dim: 4, levels: 3" + EMA, None, lambda w: averaged(w, levels=3)),
    "heads": ("type: vq, codes: 7, code_dim: 4, groups: 2" + EMA, None, lambda w: averaged(w, heads=2)),
    "shared": ("type: vq, codes: 7, code_dim: 4, groups: 2, shared_codes: true" + EMA, None,
               lambda w: averaged(w, heads=2, shared=True)),
    "cosine": ("type: cosine, codes: 9, code_dim: 4" + EMA, "type: vq, codes: 9, code_dim: 4, init: random",
               lambda w: averaged(w, cosine=True)),
    "orthogonal": ("type: vq, codes: 7, code_dim: 4, init: random, orthogonal: 10.0", None, orthogonal),
    "orthogonal-heads": ("type: vq, codes: 7, code_dim: 4, groups: 2, init: random, orthogonal: 10.0", None,
                         lambda w: orthogonal(w, heads=2)),
    "simvq": ("type: simvq, codes: 11, code_dim: 4, estimator: rotation", None, sim),
    "fsq": ("type: fsq, axis_levels: [8, 5, 5]", None, scalars),
    "residual-fsq": ("type: residual-fsq, axis_levels: [5, 4], levels: 3", None, scalar_stack),
    "stack-of-one": ("type: residual-fsq, axis_levels: [5, 4]", None, lambda w: scalar_stack(w, numel=1)),
    "lfq": ("type: lfq, code_dim: 5, inverse_temperature: 2.0", None, signs(1, 5)),
    "lfq-groups": ("type: lfq, code_dim: 6, groups: 2, inverse_temperature: 2.0", None, signs(2, 3)),
    "bsq": ("type: bsq, code_dim: 6, groups: 2, inverse_temperature: 2.0", None, binary_spherical),
    "bsq-gamma0": ("type: bsq, code_dim: 6, groups: 2, inverse_temperature: 2.0, confidence: 0.25", None,
                   lambda w: binary_spherical(w, gamma0=0.25)),
    "lfq-scale": ("type: lfq, code_dim: 5, inverse_temperature: 2.0, scale: 0.5", None, signs(1, 5, scale=0.5)),
    "random-projection": ("type: random-projection, codes: 17, code_dim: 6, groups: 2", None, random_projection),
    "masked-ema": ("type: vq, codes: 11, code_dim: 4" + EMA, None, lambda w: averaged(w, mask=MASK)),
    "masked-levels": ("type: residual-vq, codes: 7, code_dim: 4, levels: 3" + EMA, None,
                      lambda w: averaged(w, levels=3, mask=MASK)),
    "masked-heads": ("type: vq, codes: 7, code_dim: 4, groups: 2" + EMA, None, lambda w: kept(averaged(w, heads=2))),
    "masked-cosine": ("type: cosine, codes: 9, code_dim: 4" + EMA, "type: vq, codes: 9, code_dim: 4, init: random",
                      lambda w: kept(averaged(w, cosine=True))),
    "masked-lfq": ("type: lfq, code_dim: 5, inverse_temperature: 2.0", None, lambda w: kept(signs(1, 5)(w))),
    "latent": ("type: latent, axis_levels: [4, 5, 3]", None, latent),
    "images-ema": ("type: vq, codes: 11, code_dim: 4" + EMA, None, lambda w: averaged(w, mask=MASK)),
    "images-levels": ("type: residual-vq, codes: 7, code_dim: 4, levels: 3" + EMA, None,
                      lambda w: averaged(w, levels=3, mask=MASK)),
    "images-lfq": ("type: lfq, code_dim: 5, inverse_temperature: 2.0", None, lambda w: kept(signs(1, 5)(w))),
    "images-fsq": ("type: fsq, axis_levels: [8, 5, 5]", None, lambda w: kept(scalars(w))),
    "images-residual-fsq": ("type: residual-fsq, axis_levels: [5, 4], levels: 3", None, lambda w: kept(scalar_stack(w))),
    "images-latent": ("type: latent, axis_levels: [4, 5, 3]", None, lambda w: kept(latent(w))),
    "images-simvq": ("type: simvq, codes: 11, code_dim: 4, estimator: rotation", None, lambda w: kept(sim(w))),
}


def write(path, keys, tensors):
    names = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
    header, blob = ["tess-golden 1"] + [f"{k} {v}" for k, v in keys.items()], b""
    for name, array in tensors.items():
        blob += b"\0" * (-len(blob) % 8)
        header.append(f"tensor {name} {names[array.dtype]} {array.size} {len(blob)}")
        blob += array.tobytes()
    text = "\n".join(header + ["end"]) + "\n"
    path.write_bytes((text + " " * (-len(text) % 8)).encode() + blob)


def main():
    program, outdir = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(31)
    x = torch.randn(N, D)
    images = torch.rand(IMAGES, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(32))
    keys = {"cases": " ".join(CASES)}
    tensors = {"data.vectors": x.numpy().reshape(-1), "data.mask": MASK.float().numpy(),
               "data.images": images.numpy().reshape(-1)}
    with tempfile.NamedTemporaryFile(suffix=".fbin") as file, tempfile.TemporaryDirectory() as folder:
        for i in range(IMAGES):
            np.save(f"{folder}/{i}.npy", images[i, 0].numpy())
        file.write(struct.pack("<II", N, D) + x.numpy().astype("<f4").tobytes())
        file.flush()
        for name, (quantizer, start, make) in CASES.items():
            of_images = name.startswith("images-")
            w = start_weights(program, folder if of_images else file.name, start or quantizer.replace(EMA, ", init: random"))
            is_double = name.startswith("bsq")
            if is_double:
                w = {k: v.double() for k, v in w.items()}
            quantize, learned = make(w)
            is_masked = of_images or name.startswith("masked-")
            model = (ImageModel if of_images else Model)(w, quantize, learned, MASK if is_masked else None)
            inputs = images if of_images else x.double() if is_double else x
            tensors[f"{name}.loss"] = np.array([model.step(inputs) for _ in range(STEPS)])
            keys[f"{name}.quantizer"] = quantizer
            keys[f"{name}.margin"] = repr(model.margin)
            print(name, model.margin, tensors[f"{name}.loss"][[0, -1]])
    write(outdir / "curves.golden", keys, tensors)


main()

#!/usr/bin/env python3
"""Forward, indices, losses and gradients of the peer's quantizers.

    python make_quantizers.py OUTDIR        (normally tests/golden/quantizers)

OUTDIR/NAME.golden (layout: make_llama.py) holds cases `CASE.TENSOR`, row-major float32 (what the peer has in bfloat16
is widened), indices as int64, scalars as header keys. `x` is the input, `g` the gradient of the output `out`, `d_x`
and `d_codes` gradients of sum(out g) + the losses. Most cases are there with float32 inputs and, as CASE.bf16, with
the same inputs rounded to bfloat16; CASE.f32 is what the peer makes of the rounded numbers in float32. Codes lie so
that the two best distances of every vector are 1e-4 apart or more (0.02 for cosines, which the peer forms in
bfloat16), and numbers 1e-4 or more from where they are rounded to levels.

| file | peer |
|---|---|
| vector | VectorQuantize: Euclidean and cosine, straight-through and rotation, EMA with replaced codes, masks, learnable
  codes, orthogonal regularization, drawn codes, directional reparameterization |
| heads | VectorQuantize with two heads of a codebook each, or of one together |
| residual | ResidualVQ of 4 levels; the variant with one estimator around the stack by autograd here |
| sim, random | SimVQ; RandomProjectionQuantizer |
| scalar | FSQ in both rules, with noise; ResidualFSQ; LatentQuantize |
| binary | LFQ with masks and spherical; `bsq.` is a float64 model of binary spherical quantization with the batch entropy
  over groups of bits, after bsq-vit's transcoder/models/quantizer/bsq.py |

Draws are the peer's own: its uniform numbers (`uniform`) and the vectors that replace codes (`drawn`) are recorded.

Made with torch 2.15.0, vector-quantize-pytorch 1.32.0 (1.31.0 gives the same bytes), einops 0.8.2, einx 0.4.3.
"""
import math
import sys
from pathlib import Path

import numpy as np
import torch
import vector_quantize_pytorch as vqp
import vector_quantize_pytorch.finite_scalar_quantization as fsq_module
import vector_quantize_pytorch.vector_quantize_pytorch as vq_module

N, D, K = 24, 6, 10


def numpy_of(t):
    t = torch.as_tensor(t).detach()
    if t.dtype in (torch.int32, torch.int64, torch.bool):
        return t.to(torch.int64).numpy().copy()
    return (t if t.dtype == torch.float64 else t.to(torch.float32)).numpy().copy()


class File:
    def __init__(self):
        self.keys, self.tensors = {}, {}

    def put(self, case, **values):
        for name, value in values.items():
            array = numpy_of(value)
            if array.ndim == 0:
                self.keys[f"{case}.{name}"] = repr(array.item())
            else:
                self.tensors[f"{case}.{name}"] = array.reshape(-1)

    def write(self, path):
        names = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64", np.dtype(np.int64): "i64"}
        header, blob = ["tess-golden 1"], b""
        header += [f"{k} {v}" for k, v in self.keys.items()]
        for name, array in self.tensors.items():
            blob += b"\0" * (-len(blob) % 8)
            header.append(f"tensor {name} {names[array.dtype]} {array.size} {len(blob)}")
            blob += array.tobytes()
        text = "\n".join(header + ["end"]) + "\n"
        path.write_bytes((text + " " * (-len(text) % 8)).encode() + blob)


def apart(scores, least=1e-4):
    best = scores.topk(2, dim=-1).values
    return bool((best[..., 0] - best[..., 1] > least).all())


def draw(shape, is_apart, scale=1.0):
    """A normal input, of bfloat16 numbers in its second form, whose best two codes are apart in both."""
    while True:
        x = torch.randn(shape) * scale
        if is_apart(x) and is_apart(x.bfloat16().float()):
            return x


def both(f, case, x, run, has_bf16=True):
    """`run(x)` -> tensors, with `out` and the losses to differentiate, for float32 and bfloat16."""
    g = torch.randn(x.shape).bfloat16().float()

    def one(x, g):
        x = x.clone().requires_grad_()
        r = run(x)
        total = (r["out"].float() * g.float()).sum() + r["loss"].float().sum()
        total.backward()
        extra = r.pop("after", dict)()
        return dict(d_x=x.grad, **r, **extra)

    f.put(case, x=x, g=g, **one(x, g))
    if has_bf16:
        rounded = x.bfloat16()
        f.put(case + ".bf16", x=rounded, g=g, **one(rounded, g.bfloat16()))
        f.put(case + ".f32", **one(rounded.float(), g))


# ---- vectors ----


def codebook(cosine=False):
    codes = torch.randn(1, K, D)
    return vq_module.l2norm(codes) if cosine else codes


def score(x, codes, cosine=False):
    x = vq_module.l2norm(x) if cosine else x
    return x @ codes[0].T if cosine else -torch.cdist(x, codes[0])


def make_vq(codes, **kwargs):
    vq = vqp.VectorQuantize(dim=D, codebook_size=K, **kwargs)
    vq._codebook.embed.data.copy_(codes)
    vq._codebook.embed_avg.data.copy_(codes)
    return vq.train()


def record_draws(vq, draws):
    sample = vq._codebook.replace_sample_fn

    def recording(samples, numel):
        out = sample(samples, numel)
        draws.append(out[0].clone())
        return out

    vq._codebook.replace_sample_fn = recording


def vector_case(f, name, cosine=False, mask=None, learnable=False, **kwargs):
    codes = codebook(cosine)
    x = draw((1, N, D), lambda x: apart(score(x[0], codes, cosine), 0.02 if cosine else 1e-4))

    def run(x):
        vq = make_vq(codes, use_cosine_sim=cosine, learnable_codebook=learnable, ema_update=not learnable, **kwargs)
        draws = []
        record_draws(vq, draws)
        out, index, loss = vq(x, mask=mask)
        book = vq._codebook

        def after():
            if learnable:
                return dict(d_codes=book.embed.grad[0])
            state = dict(embed=book.embed[0], embed_avg=book.embed_avg[0], cluster_size=book.cluster_size[0])
            return {**state, **({"drawn": draws[0]} if draws else {})}

        return dict(out=out, index=index, loss=loss, after=after)

    f.put(name, codes=codes[0], **({} if mask is None else {"mask": mask}))
    both(f, name, x, run)


def drawn_case(f, name):
    """The gumbel numbers are of `uniform`; scores with them are apart."""
    codes = codebook()
    uniform = torch.rand(1, N, K).clamp(1e-3, 1 - 1e-3)
    gumbel = -torch.log(-torch.log(uniform))
    x = draw((1, N, D), lambda x: apart(score(x[0], codes) / 0.5 + gumbel[0]))
    keep = vq_module.gumbel_noise
    vq_module.gumbel_noise = lambda t: gumbel
    vq = make_vq(codes, stochastic_sample_codes=True, sample_codebook_temp=0.5)
    _, index, _ = vq(x)
    vq_module.gumbel_noise = keep
    f.put(name, codes=codes[0], x=x, uniform=uniform, index=index)


def directed_case(f, name):
    """DiVeQ: `noise` is the peer's; replaced codes do not touch the gradients."""
    codes, noise = codebook(), torch.randn(1, N, D)
    x = draw((1, N, D), lambda x: apart(score(x[0], codes)))
    randn_like = torch.randn_like

    def run(x):
        vq = make_vq(codes, directional_reparam=True, threshold_ema_dead_code=1)
        vq_module.torch.randn_like = lambda t: noise.to(t.dtype)
        out, index, loss = vq(x)
        vq_module.torch.randn_like = randn_like
        return dict(out=out, index=index, loss=loss, after=lambda: dict(d_codes=vq._codebook.embed.grad[0]))

    f.put(name, codes=codes[0], noise=noise)
    both(f, name, x, run, False)


def heads_case(f, name, separate):
    """Two heads of D columns each, of a codebook each or of one."""
    codes = torch.randn(2 if separate else 1, K, D)

    def is_apart(x):
        return all(apart(-torch.cdist(x[0, :, h * D:(h + 1) * D], codes[h % len(codes)])) for h in range(2))

    x = draw((1, N, 2 * D), is_apart)

    def run(x):
        vq = vqp.VectorQuantize(dim=2 * D, codebook_dim=D, codebook_size=K, heads=2, separate_codebook_per_head=separate)
        vq._codebook.embed.data.copy_(codes)
        out, index, loss = vq.train()(x)
        return dict(out=out, index=index, loss=loss)

    f.put(name, codes=codes)
    both(f, name, x, run)


def heads(f):
    heads_case(f, "separate", True)
    heads_case(f, "shared", False)


def vectors(f):
    mask = torch.arange(N).reshape(1, N) % 4 != 1
    vector_case(f, "straight", rotation_trick=False, commitment_weight=0.5)
    vector_case(f, "rotation", rotation_trick=True, threshold_ema_dead_code=2)
    vector_case(f, "masked", rotation_trick=True, mask=mask)
    vector_case(f, "cosine", cosine=True, rotation_trick=True, threshold_ema_dead_code=1.1, decay=0.9)
    vector_case(f, "learnable", learnable=True, rotation_trick=False, commitment_weight=0.25)
    vector_case(f, "orthogonal", learnable=True, rotation_trick=True, orthogonal_reg_weight=10.0)
    drawn_case(f, "drawn")
    directed_case(f, "directed")


def residual_case(f, name, levels=4, single=False, has_bf16=False, **kwargs):
    books = [torch.randn(1, K, D) * 0.6**i for i in range(levels)]

    def is_apart(x):
        r, good = x[0], True
        for codes in books:
            s = score(r, codes)
            good = good and bool(apart(s))
            r = r - codes[0][s.argmax(-1)]
        return good

    x = draw((1, N, D), is_apart)

    def run(x):
        rvq = vqp.ResidualVQ(dim=D, codebook_size=K, num_quantizers=levels, **kwargs).train()
        for layer, codes in zip(rvq.layers, books):
            layer._codebook.embed.data.copy_(codes)
        out, index, loss = rvq(x)
        if single:
            out = x + (out - x).detach()
        return dict(out=out, index=index, loss=loss)

    f.put(name, codes=torch.stack([b[0] for b in books]))
    both(f, name, x, run, has_bf16)


def residuals(f):
    residual_case(f, "summed", rotation_trick=False)
    residual_case(f, "summed_rotation", rotation_trick=True, has_bf16=True)
    residual_case(f, "undetached", rotation_trick=False, quant_grad_frac=1.0)
    residual_case(f, "undetached_rotation", rotation_trick=True, quant_grad_frac=1.0)
    residual_case(f, "single", single=True, has_bf16=True, rotation_trick=False, route_gradients_to_input=False)


def sim(f):
    frozen, weight = torch.randn(K, 5) * 5**-0.5, torch.randn(D, 5)
    x = draw((1, N, D), lambda x: apart(-torch.cdist(x[0], frozen @ weight.T)))

    def run(x):
        vq = vqp.SimVQ(dim=D, codebook_size=K, frozen_codebook_dim=5, rotation_trick=True).to(x.dtype)
        vq.frozen_codebook.copy_(frozen)
        vq.code_transform.weight.data.copy_(weight)
        out, index, loss = vq(x)
        return dict(out=out, index=index, loss=loss, after=lambda: dict(d_weight=vq.code_transform.weight.grad))

    f.put("sim", frozen=frozen, weight=weight)
    both(f, "sim", x, run, False)  # torch.cdist has no bfloat16


def random_projection(f):
    # One codebook: with more, the peer puts a second projection, with a bias, before them.
    rpq = vqp.RandomProjectionQuantizer(dim=D, codebook_size=K, codebook_dim=4)
    codes = rpq.vq._codebook.embed

    def is_apart(x):
        y = torch.einsum("bnd,hde->bnhe", rpq.norm(x), rpq.rand_projs)
        return apart(torch.einsum("bnhe,hke->bnhk", vq_module.l2norm(y), codes))

    x = draw((1, N, D), is_apart)
    f.put("random", x=x, projection=rpq.rand_projs, codes=codes, index=rpq(x))


# ---- scalars ----


def scalar_case(f, name, make, dim, is_apart=lambda x: True):
    x = draw((1, N, dim), is_apart)

    def run(x):
        out, index = make()(x)
        return dict(out=out, index=index, loss=torch.zeros(()))

    both(f, name, x, run)


def level_is_apart(fsq, x):
    """No number lies where the peer rounds: its float32 may round another way than ours."""
    z = fsq.project_in(x)
    levels = fsq._levels
    if fsq.preserve_symmetry:
        b = (levels - 1) * (z.tanh() + 1) / 2 + 0.5
        return bool(((b - b.round()).abs() > 1e-4).all())
    half, off = (levels - 1) * 1.001 / 2, torch.where(levels % 2 == 0, 0.5, 0.0)
    b = (z + (off / half).atanh()).tanh() * half - off
    return bool((((b - 0.5) - (b - 0.5).round()).abs() > 1e-4).all())


def noise_case(f, name):
    fsq = vqp.FSQ(levels=[5, 4, 3], preserve_symmetry=True, noise_dropout=0.5).train()
    x = draw((1, N, 3), lambda x: level_is_apart(fsq, x))
    decide, offset = torch.rand(1, N, 1, 3), torch.rand(1, N, 1, 3)
    bernoulli, rand_like = torch.Tensor.bernoulli_, torch.rand_like
    torch.Tensor.bernoulli_ = lambda t: t.copy_((decide < t).to(t.dtype))
    fsq_module.torch.rand_like = lambda t: offset
    out, index = fsq(x)
    torch.Tensor.bernoulli_, fsq_module.torch.rand_like = bernoulli, rand_like
    f.put(name, x=x, uniform=torch.stack([decide, offset], dim=-1), out=out, index=index)


def residual_levels(f, name):
    rfsq = vqp.ResidualFSQ(levels=[5, 4, 3], num_quantizers=3)

    def is_apart(x):
        clamp, good = rfsq.soft_clamp_input_value, True
        r = (x / clamp).tanh() * clamp
        for layer, scale in zip(rfsq.layers, rfsq.scales):
            b = (layer._levels - 1) * ((r / scale).clamp(-1, 1) + 1) / 2 + 0.5
            good = good and bool(((b - b.round()).abs() > 1e-4).all())
            good = good and bool((((r / scale).abs() - 1).abs() > 1e-4).all())
            r = r - layer(r / scale)[0] * scale
        return good

    scalar_case(f, name, lambda: rfsq, 3, is_apart)


def latent(f, name):
    levels = [4, 5, 3]
    values = [torch.sort(torch.randn(n) * 0.4).values for n in levels]

    def is_apart(x):
        z = x[0].T
        return all(apart(-(z[j][:, None] - v).abs()) for j, v in enumerate(values))

    x = draw((N, 3, 1), lambda x: is_apart(x.reshape(1, N, 3)), 0.5)

    def run(x):
        lq = vqp.LatentQuantize(levels=levels, dim=3, commitment_loss_weight=0.1, quantization_loss_weight=0.3)
        for p, v in zip(lq.values_per_latent, values):
            p.data.copy_(v)
        lq.train()
        out, index, loss = lq(x)
        return dict(out=out, index=index, loss=loss)

    f.put(name, values=torch.cat(values))
    both(f, name, x, run)
    fresh = vqp.LatentQuantize(levels=levels, dim=3)
    while True:
        x = torch.rand(N, 3, 1) - 0.5
        fresh_values = [v.detach() for v in fresh.values_per_latent]
        if all(apart(-(x[:, j] - v).abs()) for j, v in enumerate(fresh_values)):
            break
    f.put(name + ".fresh", x=x, values=torch.cat(fresh_values), index=fresh(x)[1])


def scalars(f):
    fsq = vqp.FSQ(levels=[8, 5, 5, 5])
    scalar_case(f, "upper", lambda: fsq, 4, lambda x: level_is_apart(fsq, x))
    even = vqp.FSQ(levels=[7, 2, 4], preserve_symmetry=True)
    scalar_case(f, "symmetric", lambda: even, 3, lambda x: level_is_apart(even, x))
    noise_case(f, "noise")
    residual_levels(f, "residual")
    latent(f, "latent")


# ---- bits ----


def bits_case(f, name, dim, mask=None, inv_temperature=1.0, **kwargs):
    x = draw((1, N, dim), lambda x: bool((x.abs() > 1e-3).all()))

    def run(x):
        lfq = vqp.LFQ(dim=dim, codebook_size=2**dim, **kwargs).train()
        (out, index, loss), parts = lfq(x, inv_temperature=inv_temperature, return_loss_breakdown=True, mask=mask)
        return dict(out=out, index=index, loss=loss, per_sample=parts.per_sample_entropy,
                    batch=parts.batch_entropy, commitment=parts.commitment)

    both(f, name, x, run)
    if mask is not None:  # with a mask the peer averages no probabilities; the kept vectors alone are right
        f.put(name, mask=mask)
        mask, kept = None, x[:, mask[0]]
        both(f, name + ".kept", kept, run, False)


def bsq(f, name):
    """Binary spherical quantization in float64: 6 bits in two groups of 3, analytic per-sample entropy."""
    dim, group, beta, inv_temperature, zeta, gamma0, gamma = 6, 3, 0.25, 1.5, 0.5, 1.0, 0.75
    x = torch.randn(N, dim, dtype=torch.float32).double().requires_grad_()
    g = torch.randn(N, dim, dtype=torch.float32).double()
    z = x / x.norm(dim=-1, keepdim=True)
    q = torch.where(z > 0, 1.0, -1.0).double() / math.sqrt(dim)
    out = z + (q - z).detach()
    commitment = beta * ((q.detach() - z) ** 2).sum(-1).mean()
    p = torch.sigmoid(4 * inv_temperature * z / math.sqrt(dim))
    per_sample = -(p * p.log() + (1 - p) * (1 - p).log()).sum(-1).mean()
    batch = 0.0
    bits = torch.tensor([[(c >> (group - 1 - j)) & 1 for j in range(group)] for c in range(2**group)])
    for first in range(0, dim, group):
        part = p[:, None, first:first + group]
        codes = torch.where(bits[None] == 1, part, 1 - part).prod(-1).mean(0)
        batch = batch - (codes * codes.log()).sum()
    entropy = zeta * (gamma0 * per_sample - gamma * batch) / inv_temperature
    ((out * g).sum() + commitment + entropy).backward()
    weights = 2 ** torch.arange(dim - 1, -1, -1)
    f.put(name, x=x.float(), g=g.float(), out=q.float(), index=((z > 0).long() * weights).sum(-1), d_x=x.grad,
          per_sample=per_sample, batch=batch, commitment=commitment, entropy=entropy)


def binaries(f):
    mask = torch.arange(N).reshape(1, N) % 4 != 1
    bits_case(f, "plain", 5, commitment_loss_weight=0.25, diversity_gamma=0.7)
    bits_case(f, "masked", 4, mask=mask, commitment_loss_weight=0.25)
    bits_case(f, "spherical", 5, spherical=True, codebook_scale=0.5, inv_temperature=3.0)
    bits_case(f, "hot", 3, inv_temperature=100.0)
    bsq(f, "bsq")


def main():
    outdir = Path(sys.argv[1])
    outdir.mkdir(parents=True, exist_ok=True)
    makers = {"vector": vectors, "heads": heads, "residual": residuals, "sim": sim, "random": random_projection, "scalar": scalars,
              "binary": binaries}
    for name, make in makers.items():
        torch.manual_seed(17)
        f = File()
        make(f)
        f.write(outdir / f"{name}.golden")


main()

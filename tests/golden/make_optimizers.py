#!/usr/bin/env python3
"""Steps of the peers' optimizers on four odd-sized tensors.

    python make_optimizers.py OUTDIR        (normally tests/golden/optimizers)

OUTDIR/NAME.golden (layout: make_llama.py) holds hyperparameters in the header and, for steps 1 to 3, what the peer
made of every tensor and of its state: `STEP.TENSOR.ROLE`, roles as in Tessera's checkpoints, `0.TENSOR.master` where
it starts. gradients.golden holds `STEP.TENSOR`, the same for all. A peer computes in float64 from float32 numbers:
after every step its weights and state are rounded to float32, stored, and the next step begins there, so that a test
may begin any step at the stored numbers of the step before. Clipping is off; the vector has no weight decay.

| file | peer |
|---|---|
| adamw, muon | torch.optim.AdamW; torch.optim.Muon with its bfloat16 replaced by float64, AdamW for the vector |
| adamw-8bit | bitsandbytes' pure PyTorch update (backends/triton/kernels_optim.py), in float32 as it is. Its native CPU
  library uses a table of 65,536 entries; the pure one lowers by weight decay before the step and the CUDA kernel
  after it, so it runs here without decay and the decay follows. It takes the lower of two equally near codes, gives
  a zero block absmax 1, and does not mend signs of codes as the CUDA kernel does |
| lion | bitsandbytes' default backend, in float32 as it is |
| adamw-schedule-free | schedulefree.AdamWScheduleFree; its y is set so that x is a float32 number |
| prodigy | prodigyopt.Prodigy |
| adafactor, adafactor-momentum | transformers.Adafactor without and with beta1 |
| ema | torch.optim.swa_utils.get_ema_avg_fn, of the weights of adamw |

schedules.golden holds 40 multipliers of each of transformers' get_*_schedule.

Made with torch 2.15.0, bitsandbytes 0.50.2, schedulefree 1.4.1, prodigyopt 1.1.2, transformers 5.24.0.
"""
import math
import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import prodigyopt
import schedulefree
import torch
import torch.optim._muon as muon_module
import transformers
from bitsandbytes.backends.default import ops as bnb_default
from bitsandbytes.backends.triton import kernels_optim as bnb_triton
from torch.optim.swa_utils import get_ema_avg_fn

SHAPES = {"tall": (19, 13), "vector": (70,), "wide": (9, 41)}
STEPS = 3
LR, BETA1, BETA2, EPS, DECAY = 0.0078125, 0.875, 0.96875, 2.0**-20, 0.25
torch.compiler.set_stance("force_eager")


def write(path, keys, tensors):
    names = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64", np.dtype(np.uint8): "u8"}
    header, blob = ["tess-golden 1"], b""
    header += [f"{k} {v}" for k, v in keys.items()]
    for name, array in tensors.items():
        array = np.ascontiguousarray(array)
        blob += b"\0" * (-len(blob) % 8)
        header.append(f"tensor {name} {names[array.dtype]} {array.size} {len(blob)}")
        blob += array.tobytes()
    text = "\n".join(header + ["end"]) + "\n"
    path.write_bytes((text + " " * (-len(text) % 8)).encode() + blob)


def draw():
    rng = np.random.default_rng(11)
    start = {n: (rng.standard_normal(s) * 0.2).astype(np.float32) for n, s in SHAPES.items()}
    base = {n: rng.standard_normal(s) * np.exp(rng.standard_normal(s)) for n, s in SHAPES.items()}
    grads = []  # of one direction for the most part, so that Prodigy's estimate grows
    for _ in range(STEPS):
        grads.append({n: (0.03 * (base[n] + 0.4 * rng.standard_normal(s))).astype(np.float32)
                      for n, s in SHAPES.items()})
    grads[1]["tall"][3] = 0  # a row and a column without gradient
    grads[1]["tall"][:, 5] = 0
    return start, grads


def decay_of(name):
    return 0.0 if name == "vector" else DECAY


def f32(x):
    return torch.as_tensor(x).detach().to(torch.float32).numpy().copy()


class Recorder:
    def __init__(self, start):
        self.tensors = {f"0.{n}.master": w for n, w in start.items()}
        self.keys = {"learning_rate": LR, "beta1": BETA1, "beta2": BETA2, "eps": EPS, "weight_decay": DECAY}

    def store(self, step, name, role, value):
        """The float32 numbers that are stored, as the peer goes on with them."""
        rounded = f32(value)
        self.tensors[f"{step}.{name}.{role}"] = rounded.reshape(-1)
        return torch.as_tensor(rounded, dtype=torch.as_tensor(value).dtype)


def parameters(start):
    return {n: torch.nn.Parameter(torch.tensor(w, dtype=torch.float64)) for n, w in start.items()}


def groups(params, names=SHAPES):
    return [{"params": [params[n]], "weight_decay": decay_of(n)} for n in names]


def run_torch(start, grads, make, roles, after_step=None, names=SHAPES):
    """An optimizer of torch's form: `roles` maps its state's names to ours."""
    out, params = Recorder(start), parameters(start)
    optimizer = make(params)
    for step in range(1, STEPS + 1):
        for n, p in params.items():
            p.grad = torch.tensor(grads[step - 1][n], dtype=torch.float64)
        optimizer.step()
        with torch.no_grad():
            for n, p in params.items():
                p.copy_(out.store(step, n, "master", p))
                for theirs, ours in roles.items():
                    if theirs in optimizer.state[p]:
                        optimizer.state[p][theirs].copy_(out.store(step, n, ours, optimizer.state[p][theirs]))
        if after_step:
            after_step(out, step, optimizer)
    return out


def adamw(start, grads):
    make = lambda p: torch.optim.AdamW(groups(p), lr=LR, betas=(BETA1, BETA2), eps=EPS, foreach=False)
    return run_torch(start, grads, make, {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"})


def ema(start, grads):
    """The average of AdamW's weights, which are stored as its start."""
    source, out = adamw(start, grads), Recorder(start)
    out.keys["ema_decay"] = 0.9375
    average = {n: torch.tensor(w, dtype=torch.float64).reshape(-1) for n, w in start.items()}
    out.tensors.update({k: v for k, v in source.tensors.items()})
    for step in range(1, STEPS + 1):
        for n in SHAPES:
            weights = torch.tensor(source.tensors[f"{step}.{n}.master"], dtype=torch.float64)
            average[n] = out.store(step, n, "ema", get_ema_avg_fn(0.9375)(average[n], weights, step))
    return out


def lion(start, grads):
    out = Recorder(start)
    params = {n: torch.tensor(w) for n, w in start.items()}
    moments = {n: torch.zeros_like(p) for n, p in params.items()}
    for step in range(1, STEPS + 1):
        for n, p in params.items():
            g = torch.tensor(grads[step - 1][n])
            c = (BETA1 * moments[n].double() + (1 - BETA1) * g.double()).abs()
            assert ((c > 1e-8) | (c == 0)).all(), "a sign is left to rounding: draw others"
            bnb_default._optimizer_update_32bit(g, p, moments[n], None, None, 0.0, 0.0, BETA1, BETA2, 0.0, 0.0, EPS,
                                                decay_of(n), step, LR, 1.0, bnb_default.name2optimizer_id["lion"])
            out.store(step, n, "master", p)
            out.store(step, n, "exp_avg", moments[n])
    return out


def adamw_8bit(start, grads):
    out = Recorder(start)
    maps = [bnb.create_dynamic_map(signed=s) for s in (True, False)]
    params = {n: torch.tensor(w).reshape(-1) for n, w in start.items()}
    blocks = {n: math.ceil(p.numel() / 256) for n, p in params.items()}
    state = {n: [torch.zeros(p.numel(), dtype=torch.uint8) for _ in range(2)] +
                [torch.zeros(blocks[n]) for _ in range(2)] for n, p in params.items()}
    roles = ("exp_avg", "exp_avg_sq", "exp_avg_absmax", "exp_avg_sq_absmax")
    for step in range(1, STEPS + 1):
        for n, p in params.items():
            s1, s2, a1, a2 = state[n]
            g = torch.tensor(grads[step - 1][n]).reshape(-1)
            bnb_triton.optimizer_update_8bit_blockwise_pytorch(
                p, g, s1, s2, BETA1, BETA2, 0.0, 0.0, EPS, step, LR, maps[0], maps[1], a1, a2, 0.0, 1.0, False,
                optimizer_name="adam")
            p.mul_(1.0 - LR * decay_of(n))
            out.store(step, n, "master", p)
            for role, value in zip(roles, state[n]):
                out.tensors[f"{step}.{n}.{role}"] = value.numpy().copy()
    return out


def schedule_free(start, grads):
    out, params = Recorder(start), parameters(start)
    optimizer = schedulefree.AdamWScheduleFree(groups(params), lr=LR, betas=(BETA1, BETA2), eps=EPS, foreach=False)
    optimizer.train()
    for step in range(1, STEPS + 1):
        for n, p in params.items():
            p.grad = torch.tensor(grads[step - 1][n], dtype=torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = LR * (1.0 if step > 1 else 0.5)  # a warm-up, for the weights of the average
        optimizer.step()
        with torch.no_grad():
            for n, p in params.items():
                state = optimizer.state[p]
                x = p.lerp(state["z"], 1 - 1 / BETA1)
                state["z"].copy_(out.store(step, n, "z", state["z"]))
                state["exp_avg_sq"].copy_(out.store(step, n, "exp_avg_sq", state["exp_avg_sq"]))
                x = out.store(step, n, "master", x)
                p.copy_(BETA1 * x + (1 - BETA1) * state["z"])
        out.keys[f"rate.{step}"] = optimizer.param_groups[0]["lr"]
        out.keys[f"{step}.rate_max"] = repr(optimizer.param_groups[0]["lr_max"])
        out.keys[f"{step}.weight_sum"] = repr(optimizer.param_groups[0]["weight_sum"])
    return out


def prodigy(start, grads):
    names = ("d", "d_max", "d_numerator")

    def make(params):
        return prodigyopt.Prodigy(groups(params), lr=1.0, betas=(BETA1, BETA2), eps=EPS, decouple=True,
                                  use_bias_correction=True, safeguard_warmup=True, d0=1e-4, d_coef=2.0)

    def after(out, step, optimizer):
        for n in names:
            out.keys[f"{step}.{n}"] = repr(float(optimizer.param_groups[0][n]))

    roles = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "s": "s", "p0": "start"}

    out = run_torch(start, grads, make, roles, after)
    out.keys.update(learning_rate=1.0, d0=1e-4, d_coef=2.0)
    return out


def adafactor(start, grads, beta1=None):
    def make(params):
        return transformers.Adafactor(groups(params), lr=LR, eps=(1e-30, 1e-3), clip_threshold=1.0, decay_rate=-0.8,
                                      beta1=beta1, scale_parameter=False, relative_step=False, warmup_init=False)

    roles = {"exp_avg_sq_row": "row", "exp_avg_sq_col": "col", "exp_avg_sq": "exp_avg_sq",
             "exp_avg": "exp_avg"}
    out = run_torch(start, grads, make, roles)
    for step in range(1, STEPS + 1):
        for n, shape in SHAPES.items():
            keys = [f"{step}.{n}.{r}" for r in ("row", "col", "exp_avg_sq")]
            out.tensors[f"{step}.{n}.exp_avg_sq"] = np.concatenate([out.tensors.pop(k) for k in keys
                                                                     if k in out.tensors])
    return out


class Float64Torch:
    """The module torch, whose bfloat16 is float64."""
    bfloat16 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def muon(start, grads):
    muon_module.torch = Float64Torch()
    matrices = {n: w for n, w in start.items() if w.ndim == 2}
    vectors = {n: w for n, w in start.items() if w.ndim == 1}
    make = lambda p: torch.optim.Muon(groups(p, matrices), lr=LR, momentum=0.9375, nesterov=True,
                                      adjust_lr_fn="match_rms_adamw")
    out = run_torch(matrices, grads, make, {"momentum_buffer": "exp_avg"})
    make = lambda p: torch.optim.AdamW(groups(p, vectors), lr=LR, betas=(BETA1, BETA2), eps=EPS, foreach=False)
    rest = run_torch(vectors, grads, make, {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"})
    out.tensors.update(rest.tensors)
    out.keys["momentum"] = 0.9375
    return out


def schedules(path):
    steps, warmup = 40, 5
    made = {
        "constant": lambda o: transformers.get_constant_schedule_with_warmup(o, warmup),
        "linear": lambda o: transformers.get_linear_schedule_with_warmup(o, warmup, steps),
        "cosine": lambda o: transformers.get_cosine_schedule_with_warmup(o, warmup, steps),
        "cosine-restarts": lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(
            o, warmup, steps, num_cycles=3),
        "cosine-least": lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(
            o, warmup, steps, min_lr_rate=0.25),
        "polynomial": lambda o: transformers.get_polynomial_decay_schedule_with_warmup(
            o, warmup, steps, lr_end=0.25, power=2.5),
        "wsd-cosine": lambda o: transformers.get_wsd_schedule(o, warmup, 8, num_training_steps=steps,
                                                              min_lr_ratio=0.25, decay_type="cosine"),
        "wsd-linear": lambda o: transformers.get_wsd_schedule(o, warmup, 8, num_training_steps=steps,
                                                              min_lr_ratio=0.0, decay_type="linear"),
        "wsd-1-sqrt": lambda o: transformers.get_wsd_schedule(o, warmup, 8, num_training_steps=steps,
                                                              min_lr_ratio=0.25, decay_type="1-sqrt"),
    }
    tensors = {}
    for name, make in made.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule, rates = make(optimizer), []
        for _ in range(steps):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        tensors[name] = np.array(rates)
    write(path, {"steps": steps, "warmup": warmup}, tensors)


def main():
    outdir = Path(sys.argv[1])
    outdir.mkdir(parents=True, exist_ok=True)
    start, grads = draw()
    flat = {f"{i + 1}.{n}": g.reshape(-1) for i, step in enumerate(grads) for n, g in step.items()}
    write(outdir / "gradients.golden", {}, flat)
    makers = {"adamw": adamw, "adamw-8bit": adamw_8bit, "lion": lion, "adamw-schedule-free": schedule_free,
              "prodigy": prodigy, "adafactor": adafactor, "muon": muon, "ema": ema,
              "adafactor-momentum": lambda s, g: adafactor(s, g, BETA1)}
    for name, make in makers.items():
        out = make(start, grads)
        write(outdir / f"{name}.golden", out.keys, {k: v.reshape(-1) for k, v in out.tensors.items()})
    schedules(outdir / "schedules.golden")


main()

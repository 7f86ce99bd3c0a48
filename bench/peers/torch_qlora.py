"""QLoRA steps with PyTorch, transformers and peft: the peer of bench/qlora_pairs.py and of `tessera bench step`.

    python bench/peers/torch_qlora.py --shape 135m --threads 2 [--base nf4|bnb] [--dtype bf16|f32]
    torchrun --nproc-per-node 2 bench/peers/torch_qlora.py --shape 135m --threads 1
    python bench/peers/torch_qlora.py --shape 135m --threads 1 --base bnb --dtype f32 --profile 3
    python bench/peers/torch_qlora.py --device cuda --shape 8b --length 4096 --repeats 20 [--base nf4|triton|bnb]
        [--compile] [--checkpointing] [--micro-batch 2] [--micro-batches 4]

Random weights, made on the device; every linear but the head is NF4 with double quantization and carries LoRA of rank
16. `bnb` is bitsandbytes' own Linear4bit; `nf4` dequantizes the same codes with one table lookup and one
multiplication and then uses torch's matrix product, `triton` does so in one kernel. With --repeats prints one JSON line
as `tessera bench step` does (bench/report reads both): on CUDA everything in bf16, fused AdamW, times by events.
Without it prints a JSON line per step: {"t": end, "step_s": seconds, "tokens": tokens}.
With --profile N prints instead the shares of the operator time of N steps: matrix products, attention, making weights
from NF4 codes, and the largest of the rest. --compile compiles the decoder layers, and the dequantization of `nf4`.
"""
import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time

import peft
import torch
import torch.distributed as dist
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

SHAPES = {
    "tiny": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=128, vocab_size=256),
    "135m": dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                 intermediate_size=1536, vocab_size=49152),
    "1.1b": dict(hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
                 intermediate_size=5632, vocab_size=32000),
    "8b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
               intermediate_size=14336, vocab_size=128256),
}
RANK, BLOCK = 16, 64
NF4 = torch.tensor([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                    0.7229568362236023, 1.0])
# Two codes a byte: one lookup gives both values.
PAIRS = torch.stack([NF4.repeat_interleave(16), NF4.repeat(16)], dim=1)


def dequantize(codes, absmax, levels, pairs):
    """[numel / BLOCK, BLOCK] of the dtype of `pairs`."""
    scale = (levels[absmax.int()] * 0.02 + 0.05).to(pairs.dtype)
    return pairs[codes.int()].view(-1, BLOCK) * scale[:, None]


if triton is not None:
    @triton.jit
    def triton_kernel(codes, absmax, levels, pairs, out, numel, BYTES: tl.constexpr):
        at = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
        inside = at * 2 < numel
        byte = tl.load(codes + at, mask=inside, other=0).to(tl.int32)
        level = tl.load(absmax + at // 32, mask=inside, other=0).to(tl.int32)
        scale = tl.load(levels + level) * 0.02 + 0.05
        high = tl.load(pairs + 2 * byte).to(tl.float32) * scale
        low = tl.load(pairs + 2 * byte + 1).to(tl.float32) * scale
        to = tl.program_id(0) * BYTES * 2 + tl.arange(0, BYTES * 2)
        tl.store(out + to, tl.interleave(high, low).to(out.dtype.element_ty), mask=to < numel)


def triton_dequantize(codes, absmax, levels, pairs):
    """The same in one kernel, with one rounding: a program makes 2048 values."""
    numel = codes.numel() * 2
    out = torch.empty(numel, dtype=pairs.dtype, device=codes.device)
    triton_kernel[(triton.cdiv(numel, 2048),)](codes, absmax, levels, pairs, out, numel, BYTES=1024)
    return out


class Product(torch.autograd.Function):
    """y = x W^T with W made from NF4 codes in forward and again in backward."""

    @staticmethod
    def forward(ctx, x, codes, absmax, levels, pairs, layer):
        ctx.save_for_backward(codes, absmax, levels, pairs)
        ctx.layer = layer
        return torch.nn.functional.linear(x, layer.expand(codes, absmax, levels, pairs).view(layer.shape_now))

    @staticmethod
    def backward(ctx, dy):
        weight = ctx.layer.expand(*ctx.saved_tensors).view(ctx.layer.shape_now)
        return dy @ weight, None, None, None, None, None


class Nf4Linear(torch.nn.Linear):
    """Random codes and absmax of the shape of an NF4 weight; peft sees an ordinary Linear."""

    def __init__(self, inside, outside, dtype, device, expand):
        super().__init__(inside, outside, bias=False, device="meta")
        numel = inside * outside
        self.shape_now = (outside, inside)
        self.codes = torch.randint(0, 256, (numel // 2,), dtype=torch.uint8, device=device)
        self.absmax = torch.randint(0, 256, (numel // BLOCK,), dtype=torch.uint8, device=device)
        self.levels = torch.linspace(-1, 1, 256, device=device)
        self.pairs = PAIRS.to(device, dtype)
        self.expand = expand
        self.weight = torch.nn.Parameter(torch.empty(outside, inside, device="meta", dtype=dtype),
                                         requires_grad=False)

    def forward(self, x):
        return Product.apply(x, self.codes, self.absmax, self.levels, self.pairs, self)


def bnb_linear(inside, outside, dtype, device, _):
    import bitsandbytes as bnb
    layer = bnb.nn.Linear4bit(inside, outside, bias=False, compute_dtype=dtype, compress_statistics=True,
                              quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(torch.randn(outside, inside, dtype=torch.bfloat16, device="cpu") * 0.02,
                                     requires_grad=False, quant_type="nf4", compress_statistics=True)
    return layer.to(device)


def expansion(args):
    if args.base == "triton":
        return triton_dequantize
    return torch.compile(dequantize) if args.compile else dequantize


def build(args):
    config = LlamaConfig(**SHAPES[args.shape], max_position_embeddings=max(2048, args.length),
                         attn_implementation=args.attention, tie_word_embeddings=False, rms_norm_eps=1e-5,
                         use_cache=False)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    make, expand = bnb_linear if args.base == "bnb" else Nf4Linear, expansion(args)
    for name, module in list(model.named_modules()):
        for child, inner in list(module.named_children()):
            if isinstance(inner, torch.nn.Linear) and child != "lm_head":
                setattr(module, child, make(inner.in_features, inner.out_features, args.dtype, args.device, expand))
    for module in model.modules():
        for key, p in list(module._parameters.items()):
            if p is not None and p.is_meta and not isinstance(module, Nf4Linear):
                value = torch.randn(p.shape, device=args.device) * 0.02 if p.dim() > 1 else torch.ones(
                    p.shape, device=args.device)
                module._parameters[key] = torch.nn.Parameter(value.to(args.dtype), requires_grad=False)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config).to(args.device)
    lora = LoraConfig(r=RANK, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", bias="none")
    model = get_peft_model(model, lora, low_cpu_mem_usage=False)
    materialize(model, args)
    if args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if args.compile:
        for layer in model.get_base_model().model.layers:
            layer.compile()
    return model.train()


def materialize(model, args):
    """peft puts adapters where the base weight lies; the codes have none, so neither have they. On a GPU they are in
    the dtype of the products: nothing is cast in a step."""
    dtype = args.dtype if args.device == "cuda" else torch.float32
    for module in model.modules():
        for key, p in list(module._parameters.items()):
            if p is not None and p.requires_grad:
                value = torch.randn(p.shape, device=args.device) * 0.01
                module._parameters[key] = torch.nn.Parameter(value.to(dtype))


# Operators by their own time, without what they call.
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul",
                 "mkldnn::_linear_pointwise", "aten::mkldnn_linear"),
    "attention": ("aten::_scaled_dot_product", "aten::scaled_dot_product"),
    "dequantize": ("bitsandbytes::", "MatMul4Bit", "Product"),
}


def shares(profile, steps, seconds):
    """Share of the self time of all operators, by kind; `other` names the five largest of the rest."""
    total = sum(e.self_cpu_time_total for e in profile.key_averages())
    found, rest = dict.fromkeys(KINDS, 0), {}
    for e in profile.key_averages():
        kind = next((k for k, names in KINDS.items()
                     if any(e.key == n or (k != "products" and e.key.startswith(n)) for n in names)), None)
        if kind is None:
            rest[e.key] = e.self_cpu_time_total
        else:
            found[kind] += e.self_cpu_time_total
    largest = sorted(rest, key=rest.get, reverse=True)[:5]
    return {"bench": "torch_qlora profile", "steps": steps, "step_s": round(seconds / steps, 4),
            "operators_s": round(total / 1e6 / steps, 4),
            "share": {k: round(v / total, 4) for k, v in found.items()},
            "other": {k: round(rest[k] / total, 4) for k in largest}}


def model_flop(args):
    """Of a step, as bench/README.md counts them: of frozen weights no gradient, nothing twice."""
    c = SHAPES[args.shape]
    d, ff, heads, kv = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"], c["num_key_value_heads"]
    kv_dim = d // heads * kv
    linear = [(d, d), (d, kv_dim), (d, kv_dim), (d, d), (d, ff), (d, ff), (ff, d)]
    layer = sum(4 * k * n + 6 * RANK * (k + n) for k, n in linear) + 3 * 2 * d * (args.length + 1)
    tokens = args.length * args.micro_batch * args.micro_batches
    return tokens * (c["num_hidden_layers"] * layer + 4 * d * c["vocab_size"])


def measure(args, step):
    """Seconds of the repeats, after a warm-up, and the most memory that was held."""
    is_cuda, seconds = args.device == "cuda", []
    for _ in range(args.warmup):
        step()
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(args.repeats):
        start = torch.cuda.Event(enable_timing=True) if is_cuda else time.monotonic()
        if not is_cuda:
            step()
            seconds.append(time.monotonic() - start)
            continue
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return sorted(seconds), torch.cuda.max_memory_allocated() if is_cuda else 0


def line(args, step):
    start = time.monotonic()
    step()  # what is compiled is compiled here
    first_s = time.monotonic() - start
    seconds, peak = measure(args, step)
    last, median = len(seconds) - 1, statistics.median(seconds)
    items = args.length * args.micro_batch * args.micro_batches
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    ways = [args.base, args.attention] + ["compiled"] * args.compile + ["recomputed"] * args.checkpointing
    return {"bench": "step", "run": f"{versions.split(',')[0]} {args.shape}", "family": "llama",
            "format": "+".join(ways), "length": args.length, "micro_batch": args.micro_batch,
            "micro_batches": args.micro_batches, "ranks": 1, "step_s": median, "step_p10_s": seconds[last // 10],
            "step_p90_s": seconds[last - last // 10], "unit": "tokens", "items": items,
            "items_per_s": items / median, "planned_bytes": 0,
            "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "device_peak_bytes": peak,
            "model_flop": model_flop(args), "model_gflop_per_s": 1e-9 * model_flop(args) / median,
            "first_step_s": first_s, "warmup": args.warmup, "repeats": args.repeats, "machine": platform.machine(),
            "load_average": os.getloadavg()[0], "kernels": device, "version": versions,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": " ".join(sys.argv), "world": 1}


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", choices=["nf4", "triton", "bnb"], default="nf4")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16", help="of activations and products")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--micro-batch", type=int, default=1, help="sequences")
    parser.add_argument("--micro-batches", type=int, default=1, help="per process and step")
    parser.add_argument("--checkpointing", action="store_true", help="recompute the layers' forward")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=1000000)
    parser.add_argument("--repeats", type=int, default=0, help="measure so many steps and print one line")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--profile", type=int, default=0, help="steps to look at, after one that is not")
    args = parser.parse_args()
    args.dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    return args


def main():
    args = parse()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    is_cuda, world = args.device == "cuda", int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    model = build(args)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True if is_cuda else None)
    vocab = SHAPES[args.shape]["vocab_size"]

    def step():
        for _ in range(args.micro_batches):
            tokens = torch.randint(0, vocab, (args.micro_batch, args.length), device=args.device)
            is_mixed = not is_cuda and args.dtype == torch.bfloat16
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=is_mixed):
                loss = model(input_ids=tokens, labels=tokens).loss
            (loss / (args.micro_batches * world)).backward()
        if world > 1:
            for p in trained:
                dist.all_reduce(p.grad)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    if args.repeats > 0:
        print(json.dumps(line(args, step)), flush=True)
        return
    if args.profile > 0:
        step()
        start = time.monotonic()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(args.profile):
                step()
        print(json.dumps(shares(profile, args.profile, time.monotonic() - start)))
        return
    for _ in range(args.steps):
        start = time.monotonic()
        step()
        end = time.monotonic()
        if world == 1 or dist.get_rank() == 0:
            print(json.dumps({"t": end, "step_s": end - start,
                              "tokens": args.length * args.micro_batch * args.micro_batches * world}), flush=True)


if __name__ == "__main__":
    main()

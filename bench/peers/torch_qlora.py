"""QLoRA steps with PyTorch, transformers and peft on the CPU: the peer of bench/qlora_pairs.py.

    python bench/peers/torch_qlora.py --shape 135m --threads 2 [--base nf4|bnb] [--dtype bf16|f32]
    torchrun --nproc-per-node 2 bench/peers/torch_qlora.py --shape 135m --threads 1
    python bench/peers/torch_qlora.py --shape 135m --threads 1 --base bnb --dtype f32 --profile 3

Random weights; every linear but the head is NF4 with double quantization and carries LoRA of rank 16.
`bnb` is bitsandbytes' own Linear4bit; `nf4` dequantizes the same codes with one table lookup and one multiplication
and then uses torch's matrix product. Prints one JSON line per step: {"t": end, "step_s": seconds, "tokens": tokens}.
With --profile N prints instead the shares of the operator time of N steps: matrix products, attention, making weights
from NF4 codes, and the largest of the rest.
"""
import argparse
import json
import os
import time

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "135m": dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                 intermediate_size=1536, vocab_size=49152),
    "1.1b": dict(hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
                 intermediate_size=5632, vocab_size=32000),
}
NF4 = torch.tensor([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                    0.7229568362236023, 1.0])
# Two codes a byte: one lookup gives both values.
PAIRS = torch.stack([NF4.repeat_interleave(16), NF4.repeat(16)], dim=1)


class Dequantize(torch.autograd.Function):
    """y = x W^T with W made from NF4 codes in forward and again in backward."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return torch.nn.functional.linear(x, layer.weight_now())

    @staticmethod
    def backward(ctx, dy):
        return dy @ ctx.layer.weight_now(), None


class Nf4Linear(torch.nn.Linear):
    """Random codes and absmax of the shape of an NF4 weight; peft sees an ordinary Linear."""

    def __init__(self, inside, outside, dtype):
        super().__init__(inside, outside, bias=False, device="meta")
        numel = inside * outside
        self.shape_now = (outside, inside)
        self.codes = torch.randint(0, 256, (numel // 2,), dtype=torch.uint8)
        self.absmax = torch.randint(0, 256, (numel // 64,), dtype=torch.uint8)
        self.map = torch.linspace(-1, 1, 256)
        self.offset = 0.05
        self.dtype_now, self.pairs = dtype, PAIRS.to(dtype)
        self.weight = torch.nn.Parameter(torch.empty(outside, inside, device="meta", dtype=dtype),
                                         requires_grad=False)

    def weight_now(self):
        scale = (self.map[self.absmax.int()] * 0.02 + self.offset).to(self.dtype_now)
        values = self.pairs[self.codes.int()].view(-1, 64) * scale[:, None]
        return values.view(self.shape_now)

    def forward(self, x):
        return Dequantize.apply(x, self)


def bnb_linear(inside, outside, dtype):
    import bitsandbytes as bnb
    layer = bnb.nn.Linear4bit(inside, outside, bias=False, compute_dtype=dtype, compress_statistics=True,
                              quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(torch.randn(outside, inside, dtype=torch.bfloat16) * 0.02, requires_grad=False,
                                     quant_type="nf4", compress_statistics=True)
    return layer.to("cpu")


def build(args):
    config = LlamaConfig(**SHAPES[args.shape], max_position_embeddings=2048, attn_implementation=args.attention,
                         tie_word_embeddings=False, rms_norm_eps=1e-5, use_cache=False)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    make = bnb_linear if args.base == "bnb" else Nf4Linear
    for name, module in list(model.named_modules()):
        for child, inner in list(module.named_children()):
            if isinstance(inner, torch.nn.Linear) and child != "lm_head":
                setattr(module, child, make(inner.in_features, inner.out_features, args.dtype))
    for module in model.modules():
        for key, p in list(module._parameters.items()):
            if p is not None and p.is_meta and not isinstance(module, Nf4Linear):
                value = torch.ones(p.shape) if p.dim() == 1 else torch.randn(p.shape) * 0.02
                module._parameters[key] = torch.nn.Parameter(value.to(args.dtype), requires_grad=False)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", bias="none")
    return get_peft_model(model, lora, low_cpu_mem_usage=False)


def materialize(model):
    """peft puts adapters where the base weight lies; the codes have none, so neither have they."""
    for module in model.modules():
        for key, p in list(module._parameters.items()):
            if p is not None and p.is_meta and p.requires_grad:
                module._parameters[key] = torch.nn.Parameter(torch.randn(p.shape) * 0.01)


# Operators by their own time, without what they call.
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul",
                 "mkldnn::_linear_pointwise", "aten::mkldnn_linear"),
    "attention": ("aten::_scaled_dot_product", "aten::scaled_dot_product"),
    "dequantize": ("bitsandbytes::", "MatMul4Bit", "Dequantize"),
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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", choices=["nf4", "bnb"], default="nf4")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16", help="of activations and products")
    parser.add_argument("--steps", type=int, default=1000000)
    parser.add_argument("--micro-batches", type=int, default=1, help="per process and step")
    parser.add_argument("--profile", type=int, default=0, help="steps to look at, after one that is not")
    args = parser.parse_args()
    args.dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    model = build(args)
    materialize(model)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    vocab = SHAPES[args.shape]["vocab_size"]

    def step():
        for _ in range(args.micro_batches):
            tokens = torch.randint(0, vocab, (1, 512))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens).loss
            (loss / (args.micro_batches * world)).backward()
        if world > 1:
            for p in trained:
                dist.all_reduce(p.grad)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

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
            print(json.dumps({"t": end, "step_s": end - start, "tokens": 512 * args.micro_batches * world}), flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Make nf4.txt: what bitsandbytes' pure PyTorch backend quantizes a few tensors to.

    python make_nf4.py > nf4.txt

Element i of a tensor is ((i * 7919 + seed) mod 2003 - 1001) / 1024, where `spread` is 1 times
2^-((i / 32 * 5) mod 7); the C test builds the same f32 values. The last case lists its values:
every threshold and its two neighbours under an absmax of 1. f32 are written as hex bits.
Needs bitsandbytes (made with 0.50.2) and torch; no GPU.
"""
import sys
import types

# Without the CPU library's own kernels, the pure PyTorch ones serve CPU tensors too.
for name in ("bitsandbytes.backends.cpu", "bitsandbytes.backends.cpu.ops"):
    sys.modules[name] = types.ModuleType(name)

import bitsandbytes
import torch
from bitsandbytes.functional import create_dynamic_map

CASES = [  # name, elements, block, seed, spread, double
    ("plain64", 512, 64, 13, 0, 0),
    ("spread64", 1024, 64, 29, 1, 0),
    ("tail64", 231, 64, 5, 0, 0),
    ("block256", 768, 256, 101, 1, 0),
    ("double64", 64 * 300, 64, 71, 1, 1),
]
THRESHOLDS = """bf591cd9 bf1c5270 beeb8480 beadea76 be703cec be0d38bc bd3a7871 3d22faff 3df64863
    3e5067e0 3e9582d4 3ec753f9 3f006d03 3f248daf 3f5c89d9""".split()


def values(numel, seed, spread):
    i = torch.arange(numel, dtype=torch.int64)
    x = (((i * 7919 + seed) % 2003) - 1001).to(torch.float32) / 1024
    return x * torch.pow(2.0, -((i // 32 * 5) % 7).to(torch.float32)) if spread else x


def ties():
    bits = [int(t, 16) + d for t in THRESHOLDS for d in (-1, 0, 1)]
    signed = [b - (1 << 32) if b >= 1 << 31 else b for b in bits]
    return torch.cat([torch.ones(1), torch.tensor(signed, dtype=torch.int32).view(torch.float32)])


def hex_bits(x):
    return " ".join("%08x" % (v & 0xFFFFFFFF) for v in x.reshape(-1).view(torch.int32).tolist())


def hex_bytes(x):
    return bytes(x.reshape(-1).tolist()).hex()


def quantize(x, block):
    return torch.ops.bitsandbytes.quantize_4bit(x, block, "nf4", torch.uint8)


def main():
    print("# made by make_nf4.py with bitsandbytes", bitsandbytes.__version__)
    for name, numel, block, seed, spread, double in CASES:
        codes, absmax = quantize(values(numel, seed, spread), block)
        print("case", name, numel, block, seed, spread, double)
        if not double:
            print("absmax", hex_bits(absmax))
            print("codes", hex_bytes(codes))
            continue
        offset = absmax.mean()
        nested_codes, nested = torch.ops.bitsandbytes.quantize_blockwise(
            absmax - offset, create_dynamic_map().to(torch.float32), 256)
        print("offset", hex_bits(offset))
        print("nested_absmax", hex_bits(nested))
        print("nested_codes", hex_bytes(nested_codes))
    x = ties()
    codes, absmax = quantize(x, 64)
    print("case ties", x.numel(), 64, -1, 0, 0)
    print("values", hex_bits(x))
    print("absmax", hex_bits(absmax))
    print("codes", hex_bytes(codes))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Make gguf_blocks.txt: random valid blocks of every GGUF type, and what they decode to.

    python make_gguf_blocks.py > gguf_blocks.txt

Lines: "type NAME", then per block its bytes in hex and the CRC-32 of its f32 values as the gguf
package dequantizes them; "encode NAME crc-of-the-values crc-of-the-blocks": 64 blocks of Gaussian
values as the package quantizes them. The values are made by the same integer rule in the C test.
Needs gguf (made with 0.19.0) and numpy.
"""
import sys
import zlib

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

Q = gguf.GGMLQuantizationType
# Offsets of fp16 scales in a block.
TYPES = {
    Q.Q8_0: (0,), Q.Q4_0: (0,), Q.Q4_1: (0, 2), Q.Q5_0: (0,), Q.Q5_1: (0, 2),
    Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,),
}
# Zero, minus zero, the smallest and largest subnormal, the largest number, and ordinary ones.
SPECIAL = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x3C00, 0x2808]


def blocks_of(qtype, rng):
    _, nbytes = gguf.GGML_QUANT_SIZES[qtype]
    raw = rng.integers(0, 256, (16, nbytes), dtype=np.uint8)
    for i in range(16):
        for k, at in enumerate(TYPES[qtype]):
            half = SPECIAL[(i + 3 * k) % 8] if i < 8 else int(rng.integers(0, 0x7C00)) | (
                0x8000 if rng.integers(0, 2) else 0)
            raw[i, at], raw[i, at + 1] = half & 255, half >> 8
    return raw


def test_values(numel, seed):
    i = np.arange(numel, dtype=np.int64)
    x = (((i * 7919 + seed) % 2003) - 1001).astype(np.float32) / np.float32(1024)
    return x * np.exp2(-((i // 32 * 5) % 7).astype(np.float32))


def main():
    rng = np.random.default_rng(20)
    print("# made by make_gguf_blocks.py with gguf", "0.19.0")
    for qtype in TYPES:
        print("type", qtype.name.lower())
        for block in blocks_of(qtype, rng):
            with np.errstate(over="ignore"):
                y = dequantize(block.reshape(1, -1), qtype).astype(np.float32)
            print(block.tobytes().hex(), "%08x" % zlib.crc32(y.tobytes()))
    for qtype in (Q.Q8_0, Q.Q4_0, Q.F16):
        x = test_values(64 * 32, 29).reshape(1, -1)
        made = x.astype(np.float16) if qtype == Q.F16 else quantize(x, qtype)
        print("encode", qtype.name.lower(), "%08x" % zlib.crc32(x.tobytes()),
              "%08x" % zlib.crc32(made.tobytes()))


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Values per second of the peers' CPU decoders at the formats of bench_dequantize, one JSON line each.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python dequantize.py [--threads N] [--repeats N] [--rows N] [--cols N]

optimum-quanto's dequantize() of unoptimized weights (bf16), PyTorch's casts and products for fp8, bitsandbytes'
dequantize_4bit, and the gguf package's numpy code. On a busy machine compare gb_per_cpu_s, and alternate the programs.
"""
import argparse
import json
import time

import numpy as np
import torch


def peers(rows, cols):
    torch.manual_seed(0)
    w = (torch.randn(rows, cols) * 0.05).to(torch.bfloat16)
    from optimum.quanto import (AbsmaxOptimizer, MaxOptimizer, qfloat8, qint2, qint4, qint8, quantize_weight)
    for name, qtype in (("qint8/row/bf16", qint8), ("qfloat8/row/bf16", qfloat8)):
        q = quantize_weight(w, qtype, 0, AbsmaxOptimizer()(w, qtype, 0), optimized=False)
        yield "quanto", name, q.dequantize
    for name, qtype, x in (("qint4/128/bf16", qint4, w), ("qint2/128/bf16", qint2, w),
                           ("qint4/128/f32", qint4, w.float())):
        scale, shift = MaxOptimizer()(x, qtype, 0, 128)
        q = quantize_weight(x, qtype, 0, scale, shift, 128, optimized=False)
        yield "quanto", name, q.dequantize
    for name, dtype in (("e4m3/raw", torch.float8_e4m3fn), ("e5m2/raw", torch.float8_e5m2)):
        code = w.to(dtype)
        yield "torch", name, lambda code=code: code.to(torch.bfloat16)
        yield "torch", name, lambda code=code: code.to(torch.float32)
    scale = torch.full((rows, 1), 0.01, dtype=torch.bfloat16)
    code = w.to(torch.float8_e4m3fn)
    yield "torch", "e4m3/row/dequant_scale", lambda: code.to(torch.bfloat16) * scale
    import bitsandbytes.functional as F
    for nested in (False, True):
        packed, state = F.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=nested)
        yield "bitsandbytes", "nf4/64" + "/double" * nested, lambda p=packed, s=state: F.dequantize_4bit(p, s)
    import gguf
    for name in ("Q8_0", "Q4_0"):
        kind = getattr(gguf.GGMLQuantizationType, name)
        packed = gguf.quants.quantize(w.float().numpy(), kind)
        yield "gguf", name.lower(), lambda p=packed, k=kind: gguf.quants.dequantize(p, k)


def main():
    parser = argparse.ArgumentParser()
    for name, value in (("threads", 1), ("repeats", 20), ("rows", 4096), ("cols", 4096)):
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    for peer, name, run in peers(o.rows, o.cols):
        out = run()
        dtype = str(out.dtype).replace("torch.", "").replace("bfloat16", "bf16").replace("float32", "f32")
        size = out.element_size() if isinstance(out, torch.Tensor) else out.itemsize
        wall, cpu = [], []
        for _ in range(o.repeats):
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            cpu.append(time.process_time() - start_cpu)
            wall.append(time.perf_counter() - start)
        nbytes = 1e-9 * size * o.rows * o.cols
        print(json.dumps({"bench": "dequantize", "peer": peer, "format": name, "to": dtype, "rows": o.rows,
                          "cols": o.cols, "threads": o.threads, "repeats": o.repeats,
                          "gb_per_s": round(nbytes / float(np.median(wall)), 2),
                          "gb_per_cpu_s": round(nbytes / float(np.median(cpu)), 2)}), flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""PyTorch's matrix products at the shapes of bench_gemm, one JSON line each.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python torch_gemm.py [--threads N] [--repeats N]
        [--shape KIND:M:N:K:FORMAT:DTYPE]...

FORMAT is ignored: the weight is a plain tensor of DTYPE, so dequantization is not part of the time.
On a busy machine compare gflops_per_cpu_s (of all threads), and alternate the two programs.
"""
import argparse
import json
import time

import torch

DEFAULT = ["nt:512:5632:2048:bf16:bf16", "nt:512:2048:5632:bf16:bf16", "nn:512:2048:5632:bf16:bf16",
           "tn:5632:2048:512:bf16:bf16", "nt:512:5632:2048:f32:f32", "nt:512:1536:576:bf16:bf16",
           "nt:512:576:576:bf16:bf16", "nn:512:576:1536:bf16:bf16", "nt:512:16:2048:bf16:bf16",
           "tn:5632:16:512:bf16:bf16", "tn:16:2048:512:bf16:bf16"]


def product(text):
    kind, m, n, k, _, dtype = text.split(":")
    m, n, k = int(m), int(n), int(k)
    dt = torch.float32 if dtype == "f32" else torch.bfloat16
    if kind == "nt":
        a, b = torch.randn(m, k).to(dt), torch.randn(n, k).to(dt)
        return (lambda: torch.nn.functional.linear(a, b)), 2e-9 * m * n * k
    b = torch.randn(k, n).to(dt)
    if kind == "nn":
        a = torch.randn(m, k).to(dt)
        return (lambda: a @ b), 2e-9 * m * n * k
    a = torch.randn(k, m).to(dt)
    return (lambda: a.t() @ b), 2e-9 * m * n * k


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--shape", action="append")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for text in options.shape or DEFAULT:
        run, flop = product(text)
        run()
        wall, cpu = [], []
        for _ in range(options.repeats):
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            cpu.append(time.process_time() - start_cpu)
            wall.append(time.perf_counter() - start)
        wall.sort()
        cpu.sort()
        middle = (len(wall) - 1) // 2
        print(json.dumps({"bench": "torch_gemm", "torch": torch.__version__, "shape": text, "threads": options.threads,
                          "repeats": options.repeats, "gflops": round(flop / wall[middle], 1),
                          "gflops_best": round(flop / wall[0], 1),
                          "gflops_per_cpu_s": round(flop / cpu[middle], 1)}), flush=True)


if __name__ == "__main__":
    main()

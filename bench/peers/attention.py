#!/usr/bin/env python3
"""Attention of PyTorch beside bench_attention, alternating: one JSON line per shape with the ratio.

    bench/peers/attention.py BENCH_ATTENTION [--pairs N] [--path NAME] [--dtype bf16|f32]

BENCH_ATTENTION is the built bench_attention. Each pair runs ours, then torch's scaled_dot_product_attention
(causal, grouped queries, one thread) forward and backward; CPU time of both, median ratio. The
environment must not slow the peer down: OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are removed.
"""
import argparse
import json
import os
import statistics
import subprocess
import time

for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)
import torch  # noqa: E402  (after the environment is clean)
import torch.nn.functional as F  # noqa: E402

SHAPES = {"512:512:9:3:64:causal": (9, 3), "512:512:32:4:64:causal": (32, 4)}


def ours(args):
    seconds = {}
    command = [args.bench_attention, "--repeats", "9", "--dtype", args.dtype]
    if args.path:
        command += ["--path", args.path]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    for line in result.stdout.splitlines():
        row = json.loads(line)
        seconds.setdefault(row["shape"], {})[row["op"]] = row["cpu_median_s"]
        path = row["path"]
    return seconds, path


def peer(heads, kv_heads, dtype, repeats=9):
    q = torch.randn(1, heads, 512, 64, dtype=dtype, requires_grad=True)
    k = torch.randn(1, kv_heads, 512, 64, dtype=dtype, requires_grad=True)
    v = torch.randn(1, kv_heads, 512, 64, dtype=dtype, requires_grad=True)
    grad = torch.randn(1, heads, 512, 64, dtype=dtype)
    forward, backward = [], []
    for _ in range(repeats + 1):
        start = time.process_time()
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
        middle = time.process_time()
        out.backward(grad)
        forward.append(middle - start)
        backward.append(time.process_time() - middle)
    return statistics.median(forward[1:]), statistics.median(backward[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench_attention")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--path")
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    ratios = {shape: {"forward": [], "backward": [], "both": []} for shape in SHAPES}
    for _ in range(args.pairs):
        seconds, path = ours(args)
        for shape, (heads, kv_heads) in SHAPES.items():
            forward, backward = peer(heads, kv_heads, dtype)
            mine_f = seconds[shape]["attention_forward"]
            mine_b = seconds[shape]["attention_backward"]
            ratios[shape]["forward"].append(forward / mine_f)
            ratios[shape]["backward"].append(backward / mine_b)
            ratios[shape]["both"].append((forward + backward) / (mine_f + mine_b))
    for shape, ratio in ratios.items():
        row = {"bench": "attention_peer", "peer": "torch " + torch.__version__, "shape": shape,
               "dtype": args.dtype, "path": path, "threads": 1, "pairs": args.pairs}
        for what, values in ratio.items():
            row["peer_over_ours_" + what] = round(statistics.median(values), 3)
        print(json.dumps(row))


if __name__ == "__main__":
    main()

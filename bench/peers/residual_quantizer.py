#!/usr/bin/env python3
"""Errors of faiss's residual quantizer and k-means on the same vectors, a JSON line for each.

    bench/peers/residual_quantizer.py TRAIN.bvecs HELD_OUT.bvecs [--levels 8] [--bits 8] [--beam 5]
                                      [--kmeans 256] [--seeds 3] [--threads 1] [--mode MODE...]

Held-out error: mean over vectors of the squared distance to what they are decoded to. Every line
has the error of each seed and their median; stderr shows seeds as they come. The residual quantizer is
measured as faiss sets it up (mode default: progressive dimensions, 10 iterations, at most 256 points
a centroid), and with 25 iterations over all points by either way of training (progressive, plain).
kmeans: 25 iterations over all points. tests/golden/descriptors/faiss.jsonl is what this printed for
the files beside it.
"""
import argparse
import json
import os
import pathlib
import statistics
import sys
import time

for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)
import faiss  # noqa: E402  (after the environment is clean)
import numpy as np  # noqa: E402

ALL_POINTS = 1 << 30


def read_bvecs(path):
    raw = np.fromfile(path, np.uint8)
    dim = int(raw[:4].view(np.int32)[0])
    records = raw.reshape(-1, 4 + dim)
    assert (records[:, :4].copy().view(np.int32) == dim).all()
    return records[:, 4:].astype(np.float32)


def error(x, y):
    return float(((x.astype(np.float64) - y) ** 2).sum(1).mean())


def residual(args, train, held_out, seed, **more):
    quantizer = faiss.ResidualQuantizer(train.shape[1], args.levels, args.bits)
    quantizer.max_beam_size = args.beam
    quantizer.cp.seed = seed
    for key, value in more.items():
        setattr(quantizer if key == "train_type" else quantizer.cp, key, value)
    quantizer.train(train)
    return quantizer.decode(quantizer.compute_codes(held_out))


def kmeans(args, train, held_out, seed):
    clusters = faiss.Kmeans(train.shape[1], args.kmeans, niter=25, seed=seed, max_points_per_centroid=ALL_POINTS)
    clusters.train(train)
    _, row = clusters.index.search(held_out, 1)
    return clusters.centroids[row[:, 0]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=pathlib.Path)
    parser.add_argument("held_out", type=pathlib.Path)
    for name, value in dict(levels=8, bits=8, beam=5, kmeans=256, seeds=3, threads=1).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--mode", nargs="+", choices=("default", "progressive", "plain", "kmeans"))
    args = parser.parse_args()
    faiss.omp_set_num_threads(args.threads)
    train, held_out = read_bvecs(args.train), read_bvecs(args.held_out)
    about = dict(faiss=faiss.__version__, numpy=np.__version__, train=len(train), held_out=len(held_out),
                 dim=train.shape[1], threads=args.threads)
    print(json.dumps(dict(what="mean of the training vectors", **about,
                          error=error(held_out, train.astype(np.float64).mean(0)))), flush=True)
    stack = dict(levels=args.levels, bits=args.bits, beam=args.beam)
    full = dict(niter=25, max_points_per_centroid=ALL_POINTS)
    modes = dict(default=("residual default", stack, residual, {}),
                 progressive=("residual progressive", stack, residual, full),
                 plain=("residual plain", stack, residual,
                        dict(full, train_type=faiss.ResidualQuantizer.Train_default)),
                 kmeans=("kmeans", dict(codes=args.kmeans), kmeans, {}))
    for mode in args.mode or modes:
        what, shape, run, more = modes[mode]
        errors, start = [], time.perf_counter()
        for seed in range(1, args.seeds + 1):
            errors.append(error(held_out, run(args, train, held_out, seed, **more)))
            print(f"{what} seed {seed}: {errors[-1]}", file=sys.stderr, flush=True)
        seconds = (time.perf_counter() - start) / args.seeds
        print(json.dumps(dict(what=what, **shape, **about, errors=errors, median=statistics.median(errors),
                              seconds=round(seconds, 1))), flush=True)


if __name__ == "__main__":
    main()

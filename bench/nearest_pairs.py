"""Assignment and k-means iterations beside faiss, in turns on the same cores.

    python bench/nearest_pairs.py --program build/release/bench/bench_nearest [--threads 1] [--rounds 5]
        [--codes 256,4096,65536] [--dims 64,128,256] [--operations 2e11]

Vectors are clusters of as many centers as there are codes, codes lie near the centers. As many vectors as give
`operations` multiply-adds an assignment (at least 4096 and two per code, at most 200,000). Prints a JSON line per
shape: vectors/s of both sides (medians), and the median of the ratios of the rounds; with one thread time is the CPU's.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)
import faiss
import numpy as np


clock = time.process_time


class Ours:
    def __init__(self, program, folder, x, codes, threads):
        x.tofile(folder / "x.f32")
        codes.tofile(folder / "c.f32")
        command = [program, folder / "x.f32", folder / "c.f32", str(x.shape[1]), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        second, error = self.process.stdout.readline().split()
        return float(second), float(error)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def faiss_assign(x, codes):
    start = clock()
    distance, _ = faiss.knn(x, codes, 1)
    return clock() - start, float(distance.astype(np.float64).sum())


def faiss_iterate(x, codes):
    """One iteration of faiss's Clustering, with its own index."""
    n, d = x.shape
    clustering = faiss.Clustering(d, len(codes))
    clustering.niter, clustering.max_points_per_centroid, clustering.verbose = 1, n, False
    clustering.min_points_per_centroid = 1
    faiss.copy_array_to_vector(codes.ravel(), clustering.centroids)
    index = faiss.IndexFlatL2(d)
    start = clock()
    clustering.train(x, index)
    second = clock() - start
    return second, float(clustering.iteration_stats.at(0).obj)


def measure(args, d, k):
    n = int(min(max(args.operations / (k * d), 4096, 2 * k), 200000))
    rng = np.random.default_rng(d * k)
    centers = rng.normal(size=(k, d)).astype(np.float32) * 2
    x = (centers[rng.integers(0, k, n)] + rng.normal(size=(n, d))).astype(np.float32)
    codes = (centers + 0.5 * rng.normal(size=(k, d))).astype(np.float32)
    result = {"bench": "nearest", "n": n, "codes": k, "dim": d, "threads": args.threads, "faiss": faiss.__version__}
    with tempfile.TemporaryDirectory() as name:
        for what, peer in (("assign", faiss_assign), ("iterate", faiss_iterate)):
            ours = Ours(args.program, pathlib.Path(name), x, codes, args.threads)
            ours.ask("assign"), faiss_assign(x[:4096], codes)
            pairs = []
            for _ in range(args.rounds):
                mine = ours.ask(what)
                if what == "iterate":
                    ours.close()
                    ours = Ours(args.program, pathlib.Path(name), x, codes, args.threads)
                theirs = peer(x, codes)
                assert abs(mine[1] - theirs[1]) <= 1e-3 * abs(theirs[1]) + 1e-6 * n * d, (mine, theirs)
                pairs.append((mine[0], theirs[0]))
            ours.close()
            result[what] = {"vectors_per_s": round(n / statistics.median(p[0] for p in pairs)),
                            "faiss_vectors_per_s": round(n / statistics.median(p[1] for p in pairs)),
                            "ratio": round(statistics.median(p[1] / p[0] for p in pairs), 3)}
    print(json.dumps(result), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codes", default="256,4096,65536")
    parser.add_argument("--dims", default="64,128,256")
    parser.add_argument("--operations", type=float, default=2e11)
    args = parser.parse_args()
    faiss.omp_set_num_threads(args.threads)
    if args.threads > 1:
        global clock
        clock = time.perf_counter
    for k in map(int, args.codes.split(",")):
        for d in map(int, args.dims.split(",")):
            measure(args, d, k)


if __name__ == "__main__":
    main()

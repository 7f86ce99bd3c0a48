"""Steps of an RQ-VAE beside PyTorch + vector-quantize-pytorch, in turns on the same cores, and both loss curves.

    python bench/rqvae_pairs.py --tessera build/release/bin/tessera --data train.bvecs [--rounds 5] [--steps 60]
        [--dtype f32|bf16] [--threads 2] [--ranks 1]

Encoder 512-256-128 to 32 dimensions and back, ReLU, 3 levels of 256 learnable codes, straight-through, commitment
0.25, AdamW, 1,024 vectors a step. Each round runs `steps` steps of both sides; the first 10 of each are left out.
Prints a JSON line: vectors/s of both sides (medians over rounds of the median step), the median ratio, and the losses
of the last round.
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
import numpy as np
import torch
from torch import nn
from vector_quantize_pytorch import ResidualVQ

HIDDEN, CODE_DIM, LEVELS, CODES, BATCH, SKIPPED = (512, 256, 128), 32, 3, 256, 1024, 10


def read(path):
    raw = np.fromfile(path, np.uint8)
    dim = int(raw[:4].view(np.int32)[0])
    return raw.reshape(-1, 4 + dim)[:, 4:].astype(np.float32)


def perceptron(sizes):
    layers = []
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Peer:
    def __init__(self, x, dtype):
        torch.manual_seed(0)
        sizes = (x.shape[1], *HIDDEN, CODE_DIM)
        self.encoder, self.decoder = perceptron(sizes), perceptron(sizes[::-1])
        self.quantizer = ResidualVQ(dim=CODE_DIM, num_quantizers=LEVELS, codebook_size=CODES, kmeans_init=True,
                                    learnable_codebook=True, ema_update=False, rotation_trick=False,
                                    commitment_weight=0.25)
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters(), *self.quantizer.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.0)
        self.x, self.dtype = torch.from_numpy(x), dtype

    def step(self, idx):
        x = self.x[idx]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bf16"):
            quantized, _, losses = self.quantizer(self.encoder(x))
            error = nn.functional.mse_loss(self.decoder(quantized).float(), x)
            loss = error + losses.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def run(self, steps):
        seconds, losses = [], []
        rng = np.random.default_rng(0)
        for _ in range(steps):
            idx = torch.from_numpy(rng.integers(0, len(self.x), BATCH))
            start = time.perf_counter()
            losses.append(self.step(idx))
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[SKIPPED:]), losses


def ours(args, folder):
    text = (f"model: {{family: rqvae}}\ndata: {{path: {args.data.resolve()}}}\n"
            f"train: {{steps: {args.steps}, micro_batch: {BATCH // args.ranks}, micro_batches: {args.ranks}, "
            "learning_rate: 1.0e-3, schedule: constant, warmup_steps: 0, eval_every: 0, clip_norm: 0}\n"
            f"quantizer: {{codes: {CODES}, levels: {LEVELS}, code_dim: {CODE_DIM}, encoder: [512, 256, 128]}}\n"
            f"compute: {{dtype: {args.dtype}, threads: {args.threads // args.ranks}}}\n"
            f"output: {{dir: {folder}/run, checkpoint_every: 0}}\n")
    (folder / "run.yaml").write_text(text)
    command = [args.tessera.resolve(), "train", folder / "run.yaml"]
    if args.ranks > 1:
        command = ["mpirun", "--oversubscribe", "-n", str(args.ranks), *command]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["step_s"] for row in rows[SKIPPED:]), [row["loss"] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    for name, value in dict(rounds=5, steps=60, threads=2, ranks=1).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = read(args.data)
    pairs, curves = [], None
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            mine = ours(args, pathlib.Path(name))
        theirs = Peer(x, args.dtype).run(args.steps)
        pairs.append((mine[0], theirs[0]))
        curves = {"loss": mine[1][::10] + mine[1][-1:], "peer_loss": theirs[1][::10] + theirs[1][-1:]}
    print(json.dumps({"bench": "rqvae", "dtype": args.dtype, "threads": args.threads, "ranks": args.ranks,
                      "batch": BATCH, "torch": torch.__version__,
                      "vectors_per_s": round(BATCH / statistics.median(p[0] for p in pairs)),
                      "peer_vectors_per_s": round(BATCH / statistics.median(p[1] for p in pairs)),
                      "ratio": round(statistics.median(p[1] / p[0] for p in pairs), 3), **curves}))


if __name__ == "__main__":
    main()

"""One double and one single block of FLUX.1 at full width: training steps beside PyTorch + diffusers + peft, in turns.

    python bench/flux_blocks.py --tessera build/release/bin/tessera
        [--resolution 512] [--rounds 3] [--threads 2] [--dtype f32|bf16] [--base f32] [--rank 16]

Hidden 3072, random weights, LoRA on q, k, v and the attention's outputs (`mmdit`), 512 text tokens, batch 1, AdamW.
With --dtype f32 both sides keep the base in f32; else the peer's is bf16 and Tessera's is --base. Each round runs three
steps of both sides, the first of which is left out. Prints a JSON line: seconds per step (medians), the median
ratio, and GFLOP/s by the count of model operations (forward and the gradient of inputs; adapters left out).
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
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from safetensors.numpy import save_file

WIDTH, TEXT, STEPS = 3072, 512, 3
CONFIG = {"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "num_layers": 1,
          "num_single_layers": 1, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
          "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": [16, 56, 56]}
RUN = """
model: {{family: flux, path: {folder}/model, init: random}}
base: {{format: {base}}}
lora: {{rank: {rank}, alpha: {rank}, targets: mmdit}}
data: {{path: {folder}/cache.h5}}
train: {{steps: {steps}, micro_batch: 1, micro_batches: 1, learning_rate: 1.0e-4}}
compute: {{dtype: {dtype}, threads: {threads}, device: cpu, activation_checkpointing: off}}
output: {{dir: {folder}/run, checkpoint_every: 0, resume: never, export: none}}
"""


def write_inputs(folder, side):
    rng = np.random.default_rng(0)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a.latent": rng.standard_normal((16, side // 8, side // 8), np.float32),
               "a.t5": rng.standard_normal((TEXT, 4096), np.float32),
               "a.pooled": rng.standard_normal(768, np.float32)}, folder / "in.safetensors",
              {"space": "model", "a.caption": "a"})


def ours(args, folder):
    run = folder / "run.yaml"
    run.write_text(RUN.format(folder=folder, base=args.base, rank=args.rank, steps=STEPS, dtype=args.dtype,
                              threads=args.threads))
    subprocess.run([args.tessera, "train", run], check=True, capture_output=True)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["step_s"] for row in rows[-STEPS + 1:])


class Peer:
    def __init__(self, args):
        torch.manual_seed(0)
        torch.set_num_threads(args.threads)
        self.dtype = torch.float32 if args.dtype == "f32" else torch.bfloat16
        config = {key: value for key, value in CONFIG.items() if not key.startswith("_")}
        self.model = FluxTransformer2DModel(**config).to(self.dtype)
        self.model.requires_grad_(False)
        self.model.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank,
                                          target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        side = args.resolution // 16
        self.inputs = {"hidden_states": torch.randn(1, side * side, 64, dtype=self.dtype),
                       "encoder_hidden_states": torch.randn(1, TEXT, 4096, dtype=self.dtype),
                       "pooled_projections": torch.randn(1, 768, dtype=self.dtype),
                       "timestep": torch.tensor([0.5], dtype=self.dtype),
                       "guidance": torch.tensor([1.0], dtype=torch.float32),
                       "txt_ids": torch.zeros(TEXT, 3)}
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        self.inputs["img_ids"] = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
        self.target = torch.randn(1, side * side, 64)

    def step(self):
        start = time.perf_counter()
        out = self.model(**self.inputs, return_dict=False)[0]
        torch.nn.functional.mse_loss(out.float(), self.target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    def run(self):
        return statistics.median([self.step() for _ in range(STEPS)][1:])


def operations(side):
    """Model operations of a step: 12 H^2 multiply-adds a token and block, and 2 S^2 H of attention, forward and dX."""
    tokens = (side // 16) ** 2 + TEXT
    linear = 2 * 12 * WIDTH ** 2 * tokens
    attention = 2 * 2 * tokens ** 2 * WIDTH
    return 2 * (2 * linear + 3 * attention)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tessera", required=True)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--base", default="f32")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alone", action="store_true", help="without the peer")
    args = parser.parse_args()
    args.tessera = str(pathlib.Path(args.tessera).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_inputs(folder, args.resolution)
        subprocess.run([args.tessera, "cache", folder / "in.safetensors", "-o", folder / "cache.h5"], check=True,
                       capture_output=True)
        peer = None if args.alone else Peer(args)
        mine, theirs = [], []
        for _ in range(args.rounds):
            mine.append(ours(args, folder))
            theirs.append(peer.run() if peer else float("nan"))
    seconds = statistics.median(mine)
    print(json.dumps({"bench": "flux_blocks", "resolution": args.resolution, "dtype": args.dtype, "base": args.base,
                      "rank": args.rank, "threads": args.threads, "torch": torch.__version__,
                      "step_s": round(seconds, 3), "peer_step_s": round(statistics.median(theirs), 3),
                      "ratio": round(statistics.median(b / a for a, b in zip(mine, theirs)), 3),
                      "gflop_per_s": round(operations(args.resolution) / seconds / 1e9, 1)}))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Write docs/scaling.md: weak and strong scaling as the simulation predicts it.

    bench/scaling.py PROGRAM [--check]

Every row is one `tessera plan`, run from the top of the checkout. With --check nothing is written and a page that
differs is an error. A model is one entry of MODELS.
"""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)

# name, run file, what a micro-batch is, micro-batches per rank (weak), micro-batches in all (strong), more arguments
MODELS = (
    ("Llama-3 8B, QLoRA nf4", "llama-8b.yaml", "4,096 tokens", 8, 1024, ()),
    ("Llama-3 70B, QLoRA nf4, base in every node", "llama-70b.yaml", "4,096 tokens", 8, 1024,
     ("shard.gather_group=node",)),
    ("Llama-3 70B, QLoRA nf4, base over all ranks", "llama-70b.yaml", "4,096 tokens", 8, 1024,
     ("shard.gather_group=world",)),
    ("FLUX.1 12B, LoRA of rank 16 over nf4, 1024 px, base in every node", "flux-12b.yaml", "1 image", 8, 1024,
     ()),
    ("RQ-VAE with 2^20 codes", "vq-1m.yaml", "8,192 vectors", 8, 1024, ()),
)

HEAD = """# Scaling, predicted

**Every number in the tables is a prediction**, of the simulation that `tessera plan --device` runs
([profiles](profiles.md)): the operations of the real schedule, with closed forms of what they cost, on a described
device and network. None was measured. Rates are the published ones of `share/devices/h100-80g.json` and
`share/networks/infiniband-8x400g.json` (NVLink inside a node of 8, one 400 Gb/s adapter per GPU across nodes). The page
is written by `bench/scaling.py build/release/bin/tessera`; a row's command is the one above its table with the row's
numbers. How well such predictions meet measured steps on a machine that is there: `bench/results`.

*Weak*: the same work per rank. *Strong*: the same step on more ranks; efficiency is against 8 ranks. *Exposed* is how
long kernels wait for communication: of rank 0, and the most of rank 0, the last rank with work in the last round, and
the last rank, which may own nothing and then waits for what others compute.

## What limits
- The exact sum: an owner adds one piece per micro-batch of the whole step and unit, all of a round and unit in one
  kernel, which the simulation counts as a launch and its bytes. Not counted: at many ranks pieces are so short that
  the kernel waits for memory, once every 8 pieces. At 1 us a time, 1,024 ranks and 8 micro-batches each, that is
  {stall_ms:.0f} ms of an 8B's step of {step_ms:.0f} ms. `shard.reduction: library` has none of it.
- Gathers of the base are hidden everywhere above, also over all ranks: 4,096 tokens of products cover them.
- Codes: slabs of 2^20 x 64 in f32 are gathered and their gradients sent whole, over the network from 16 ranks on.

## Beside published figures
- Llama-3 8B, LoRA, tokens/s per H100. Published: 17.8k in bf16, 24.1k in fp8 (NVIDIA, performance summary of NeMo,
  LoRA). Predicted: {anchor:.1f}k, with an nf4 base, whose weights are decoded twice a micro-batch.
- Model FLOPs per token at 4,096 tokens, 4 per frozen weight, 6 per trained one, and attention. Known: 33.5 GFLOP for
  8B, 295.4 for 70B. Counted by the stages: {flops8:.1f} and {flops70:.1f}.
- FLUX.1 at 1024 px, batch 1, seconds of an image on an H100. Predicted: {flux:.2f} over nf4. Published: 2 steps/s
  in bf16 at a resolution that is not stated (SimpleTuner PR #1033); 15 s a step of 256 images on 32 H100, full rank
  (its DISTRIBUTED.md).
- Bus bandwidth inside a node: 360 GB/s of NCCL on 8 H100 from 256 MiB on; the description's curve ends there.

Predictions leave out: variance between devices, contention of links, the file system, evaluation and checkpoints.
"""


def plan(program, run, more, ranks, batches):
    words = [program, "plan", f"bench/scaling/{run}", f"train.micro_batches={batches}", *more, "--ranks", str(ranks),
             "--device", "h100-80g", "--json"]
    out = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    return json.loads(out.stdout) if out.returncode == 0 else out.stderr.strip()


def per_s(p):
    units = ("tokens_per_s", "vectors_per_s", "images_per_s")
    return next(p["predicted"][unit] for unit in units if unit in p["predicted"])


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.2f}"


def table(program, model, is_weak):
    name, run, item, each, all_of, more = model
    unit = item.split()[1].rstrip("s") + "s"
    batches = f"$(({each} * RANKS))" if is_weak else str(all_of)
    words = " ".join(("RANKS=8; tessera plan", f"bench/scaling/{run}", f"train.micro_batches={batches}", *more,
                      "--ranks $RANKS --device h100-80g"))
    out = [f"\n### {name}: {'weak' if is_weak else 'strong'}", f"{item} a micro-batch.\n", f"    {words}\n",
           f"| ranks | micro-batches | gather group | memory GiB | step s | exposed ms, rank 0 | most | {unit}/s "
           f"| {unit}/s a rank | model FLOPs of peak | efficiency |", "|" + "---|" * 11]
    first = None
    for ranks in RANKS:
        count = each * ranks if is_weak else all_of
        p = plan(program, run, more, ranks, count)
        if isinstance(p, str):
            out.append(f"| {ranks} | {count} | refused: {p} |" + " |" * 8)
            continue
        rate = per_s(p) / ranks
        first = first or rate
        q = p["predicted"]
        out.append(f"| {ranks} | {count} | {p['choices']['gather_group']} | {p['memory_bytes']['total'] / 2**30:.1f} "
                   f"| {q['step_s']:.3f} | {1e3 * q['ranks'][0]['exposed_comm_s']:.2f} "
                   f"| {1e3 * q['exposed_comm_s']:.2f} | {number(per_s(p))} | {number(rate)} "
                   f"| {100 * q['model_flops_utilization']:.1f} % | {100 * rate / first:.1f} % |")
    return out


def gflop_per_token(program, run):
    p = plan(program, run, ("shard.gather_group=world",), 8, 8)
    return p["predicted"]["model_flops_of_rank_0"] / 4096 / 1e9


def page(program):
    eight = plan(program, "llama-8b.yaml", (), 8, 64)
    many = plan(program, "llama-8b.yaml", (), 1024, 8192)
    learning = sum(unit["trainable_elements"] > 0 for unit in many["units"])
    stall_ms = 1e-3 * learning * many["choices"]["rounds"] * 1024 / 8
    flux = 8 / per_s(plan(program, "flux-12b.yaml", (), 8, 64))
    lines = [HEAD.format(stall_ms=stall_ms, step_ms=1e3 * many["predicted"]["step_s"],
                         flux=flux, anchor=per_s(eight) / 8e3,
                         flops8=gflop_per_token(program, "llama-8b.yaml"),
                         flops70=gflop_per_token(program, "llama-70b.yaml"))]
    for model in MODELS:
        if model[1].startswith("vq"):
            lines.append("\nThe CUDA kernels of the RQ-VAE have not run on a GPU yet: its rows say what the device's "
                         "rates allow, with a search in f32 without tensor cores.")
        for is_weak in (True, False):
            lines += table(program, model, is_weak)
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("program", type=lambda p: str(pathlib.Path(p).resolve()))
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    path, text = ROOT / "docs/scaling.md", page(args.program)
    if args.check:
        sys.exit(0 if path.read_text(encoding="utf-8") == text else f"{path} differs; run bench/scaling.py")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

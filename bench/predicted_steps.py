#!/usr/bin/env python3
"""Predicted against measured seconds of a step on one rank, for runs over examples/base.

    bench/predicted_steps.py PROGRAM DEVICE.json WORK_FOLDER [--repeats N] [--only NAME]

DEVICE.json comes from `tessera bench device` on this machine; its shapes are none of the runs'. All predictions are
written to WORK_FOLDER/predictions.jsonl before the first run starts, then every run is measured, in turns: seconds of
the CPU that the process takes for 4 steps more, over 4, median of the repeats, and the median of step_s that the run
itself notes (wall time, which other jobs on the machine lengthen). Prints a table.
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
FEW, MANY = 2, 6

RUNS = {
    "bf16, 2 x 256": ["base.format=bf16", "train.micro_batch=2", "data.sequence_length=256"],
    "nf4, 2 x 256": ["base.format=nf4", "train.micro_batch=2", "data.sequence_length=256"],
    "int8, 2 x 256": ["base.format=int8", "train.micro_batch=2", "data.sequence_length=256"],
    "nf4, 1 x 128": ["base.format=nf4", "train.micro_batch=1", "data.sequence_length=128"],
    "nf4, 8 x 128": ["base.format=nf4", "train.micro_batch=8", "data.sequence_length=128"],
    "nf4, 1 x 1024": ["base.format=nf4", "train.micro_batch=1", "data.sequence_length=1024"],
    "nf4, 2 x 256, recomputed": ["base.format=nf4", "train.micro_batch=2", "data.sequence_length=256",
                                 "compute.activation_checkpointing=on"],
    "all weights, bf16, 2 x 256": ["train.micro_batch=2", "data.sequence_length=256"],
}


def command(program, work, options, verb, *more):
    trains_all = not any(o.startswith("base.") for o in options)
    file = "examples/base.yaml" if trains_all else "examples/quickstart.yaml"
    run = [program, verb, str(ROOT / file), f"model.path={ROOT / 'examples/base'}",
           f"data.path={work / 'train.h5'}", f"data.eval_path={work / 'held-out.h5'}",
           f"output.dir={work / 'run'}", "output.checkpoint_every=0", "train.eval_every=0", "train.micro_batches=4",
           "train.warmup_steps=0",
           "compute.threads=1", *options, *more]
    return run


def make_data(program, work):
    for part, name in (("train", "train.h5"), ("eval", "held-out.h5")):
        text = work / f"{part}.jsonl"
        if (work / name).exists():
            continue
        with open(text, "wb") as out:
            subprocess.run(["xz", "-dkc", str(ROOT / f"examples/corpus/kjv.{part}.jsonl.xz")], stdout=out, check=True)
        subprocess.run([program, "tokenize", str(ROOT / "examples/base"), str(text), "--eos", "<|end_of_text|>", "-o",
                        str(work / name)], check=True)


def predict(program, device, work, options):
    out = subprocess.run(command(program, work, options, "plan", "--ranks", "1", "--device", device, "--json"),
                         capture_output=True, text=True, check=True)
    return json.loads(out.stdout)["predicted"]["step_s"]


def measure(program, work, options, steps):
    """CPU seconds of a whole run, and its steps' wall times."""
    subprocess.run(["rm", "-rf", str(work / "run")], check=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command(program, work, options, "train", f"train.steps={steps}"), capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [json.loads(line) for line in open(work / "run/metrics.jsonl")]
    wall = [line["step_s"] for line in lines if "step_s" in line]
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("device")
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    runs = {name: o for name, o in RUNS.items() if args.only in (None, name)}
    make_data(args.program, args.work)
    predicted = {name: predict(args.program, args.device, args.work, o) for name, o in runs.items()}
    with open(args.work / "predictions.jsonl", "w", encoding="ascii") as out:
        for name, s in predicted.items():
            out.write(json.dumps({"run": name, "step_s": s}) + "\n")
    cpu, wall = {name: [] for name in runs}, {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, options in runs.items():
            few, _ = measure(args.program, args.work, options, FEW)
            many, steps = measure(args.program, args.work, options, MANY)
            cpu[name].append((many - few) / (MANY - FEW))
            wall[name] += steps
    print("| run | predicted s | measured s of the CPU | off by | measured s of the clock |\n|---|---|---|---|---|")
    for name in runs:
        s = statistics.median(cpu[name])
        print(f"| {name} | {predicted[name]:.4f} | {s:.4f} | {100 * (predicted[name] / s - 1):+.1f} % "
              f"| {statistics.median(wall[name]):.4f} |")


if __name__ == "__main__":
    main()

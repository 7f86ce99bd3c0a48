#!/usr/bin/env python3
"""Predicted against measured seconds of k-means passes and of a short job on one rank, over drawn vectors.

    bench/predicted_passes.py PROGRAM DEVICE.json WORK_FOLDER [--repeats N]

DEVICE.json comes from `tessera bench device` on this machine. Predictions are made before the first run starts; then
every job is measured, in turns, with 4 and with 14 passes a level: seconds of the CPU for 10 passes of each level more,
over 10, and those of the whole process with 4 passes; medians of the repeats. Prints a table.
"""
import argparse
import array
import json
import pathlib
import random
import resource
import statistics
import struct
import subprocess

VECTORS, DIM = 65536, 64
FEW, MANY = 4, 14

JOBS = {
    "1024 codes, k-means++": ["quantizer.codes=1024"],
    "256 codes, k-means++": ["quantizer.codes=256"],
    "1024 codes, sampled": ["quantizer.codes=1024", "quantizer.init=sample"],
    "2 levels of 1024, beam 4, k-means++": ["quantizer.codes=1024", "quantizer.levels=2", "quantizer.beam=4"],
}


def make_files(work):
    rng = random.Random(1)
    with open(work / "vectors.fvecs", "wb") as out:
        for _ in range(VECTORS):
            out.write(struct.pack("<i", DIM) + array.array("f", (rng.gauss(0, 1) for _ in range(DIM))).tobytes())
    (work / "kmeans.yaml").write_text(
        f"model: {{family: kmeans}}\ndata: {{path: '{work / 'vectors.fvecs'}'}}\nquantizer: {{codes: 256}}\n"
        f"output: {{dir: '{work / 'run'}', checkpoint_every: 0}}\n", encoding="ascii")


def predict(program, device, work, options):
    """Seconds of one pass of every level, and of the job with FEW passes."""
    out = subprocess.run([program, "plan", str(work / "kmeans.yaml"), *options, f"quantizer.passes={FEW}", "--device",
                          device, "--network", "ethernet-10g", "--json"], capture_output=True, text=True, check=True)
    p = json.loads(out.stdout)["predicted"]["replicated"]
    return sum(level["pass"]["total_s"] for level in p["levels"]), p["job"]["total_s"]


def measure(program, work, options, passes):
    subprocess.run(["rm", "-rf", str(work / "run")], check=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([program, "train", str(work / "kmeans.yaml"), *options, f"quantizer.passes={passes}"],
                   capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def row(name, predicted, measured):
    return f"{name} | {predicted:.4f} | {measured:.4f} | {100 * (predicted / measured - 1):+.1f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("program")
    parser.add_argument("device")
    parser.add_argument("work", type=lambda p: pathlib.Path(p).resolve())
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    make_files(args.work)
    predicted = {name: predict(args.program, args.device, args.work, o) for name, o in JOBS.items()}
    passes, jobs = {name: [] for name in JOBS}, {name: [] for name in JOBS}
    for _ in range(args.repeats):
        for name, options in JOBS.items():
            few = measure(args.program, args.work, options, FEW)
            jobs[name].append(few)
            passes[name].append((measure(args.program, args.work, options, MANY) - few) / (MANY - FEW))
    print("| job | | predicted s | measured s of the CPU | off by |\n|---|---|---|---|---|")
    for name, (pass_s, job_s) in predicted.items():
        print(f"| {name} | {row('a pass of every level', pass_s, statistics.median(passes[name]))} |")
        print(f"| | {row(f'whole job, {FEW} passes', job_s, statistics.median(jobs[name]))} |")


if __name__ == "__main__":
    main()

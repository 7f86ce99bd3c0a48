"""A LoRA step over each form of one base: tokens per second and memory, in alternating windows on the same cores.

    python bench/format_steps.py --tessera build/release/bin/tessera --shape 135m --rounds 5 [--formats nf4,int4,...]

One program per form is started once; then they are continued and stopped in turn, so that all meet the same machine.
Prints a JSON line per form: tokens/s of each window, its median, the median of the ratios to bf16 in the same round,
what the plan counts for base, and the most memory that the rank with the most has taken.
"""
import argparse
import json
import os
import pathlib
import platform
import signal
import statistics
import sys
import tempfile
import time

from formats import FORMATS
from qlora_pairs import SHAPES, rows, start_tessera, tell, window


def start(args, folder, name):
    inner = folder / name
    inner.mkdir()
    base = ", ".join(f"{key}: {value}" for key, value in FORMATS[name].items())
    own = argparse.Namespace(**dict(vars(args), base=base, reduction="exact"))
    process, path, _ = start_tessera(own, inner)
    while len(rows(path)) < 2:
        if process.poll() is not None:
            sys.exit(f"{name} ended with {process.returncode}: {(inner / 'tessera.log').read_text()[-2000:]}")
        time.sleep(0.2)
    tell(process, signal.SIGSTOP)
    plan = json.loads((inner / "run" / "plan.json").read_text())
    return process, path, plan


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", type=pathlib.Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a window")
    parser.add_argument("--steps", type=int, default=2, help="least steps in a window")
    parser.add_argument("--ours", default="2x1", help="ranks x threads")
    parser.add_argument("--micro-batches", type=int, default=1, help="per rank and step")
    args = parser.parse_args()
    args.ours = tuple(int(x) for x in args.ours.split("x"))
    with tempfile.TemporaryDirectory() as name:
        running = {}
        try:
            for form in args.formats.split(","):
                running[form] = start(args, pathlib.Path(name), form)
            figures = {form: [] for form in running}
            for _ in range(args.rounds):
                for form, (process, path, _) in running.items():
                    figures[form].append(window(process, path, args.seconds, args.steps))
            peaks = {form: max(r["mem_host_peak"] for r in rows(path)) for form, (_, path, _) in running.items()}
        finally:
            for process, _, _ in running.values():
                tell(process, signal.SIGCONT)
                tell(process, signal.SIGKILL)
    for form, found in figures.items():
        row = {"bench": "format_steps", "format": form, "shape": args.shape, "ranks": "%dx%d" % args.ours,
               "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
               "tokens_per_s": [round(x, 1) for x in found], "median": round(statistics.median(found), 1),
               "base_nbytes": running[form][2]["memory_bytes"]["base"], "mem_host_peak": peaks[form]}
        if "bf16" in figures:
            row["to_bf16"] = round(statistics.median(a / b for a, b in zip(found, figures["bf16"])), 3)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

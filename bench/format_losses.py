"""Held-out loss after a LoRA run over each form of one base, and of one adapter over every form.

  python bench/format_losses.py --tessera build/release/bin/tessera --scratch DIR [--formats nf4,fp4,...]
         [--seeds 0,1,2] [--steps 200] [--ranks 1] [--out results.jsonl] [--plot losses.png]

Base: examples/base (bf16). Text: examples/corpus/kjv, which it has not seen. Every run has the same
settings but for base.format and train.seed. A JSON line each:

  {"kind": "trained", format, seed, before, after}    loss without an adapter, and with the trained one
  {"kind": "moved", format, from, loss}               the first seed's adapter of `from` over `format`

Then a table: mean over the seeds, and the spread between the largest and the least. The table is void
unless the adapter over bf16 improves the loss by 5 % at least. `--only-table FILE` prints it again.
"""

import argparse
import json
import pathlib
import platform
import subprocess
import sys

from formats import FORMATS
from qlora_pairs import environment

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Bench:
    def __init__(self, args):
        self.args = args
        self.scratch = pathlib.Path(args.scratch).resolve()
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.tessera = str(pathlib.Path(args.tessera).resolve())
        self.common = [
            f"model.path={ROOT}/examples/base", f"data.path={self.scratch}/train.h5",
            f"data.eval_path={self.scratch}/held-out.h5", f"train.steps={args.steps}", "train.micro_batches=2",
            "train.eval_every=0", "output.checkpoint_every=0",
        ]

    def run(self, command, ranks=1):
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        done = subprocess.run([*launcher, self.tessera, *command], env=environment(), capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout

    def tokens(self):
        for part, name in (("train", "train"), ("eval", "held-out")):
            text = self.scratch / f"{part}.jsonl"
            with open(text, "wb") as out:
                subprocess.run(["xz", "-dkc", f"{ROOT}/examples/corpus/kjv.{part}.jsonl.xz"], stdout=out, check=True)
            self.run(["tokenize", f"{ROOT}/examples/base", str(text), "--eos", "<|end_of_text|>", "-o",
                      str(self.scratch / f"{name}.h5")])

    def settings(self, name, seed):
        base = [f"base.{key}={value}" for key, value in FORMATS[name].items()]
        return [f"{ROOT}/examples/quickstart.yaml", *self.common, *base, f"train.seed={seed}",
                f"output.dir={self.scratch}/{name}.{seed}"]

    def trained(self, name, seed):
        subprocess.run(["rm", "-rf", f"{self.scratch}/{name}.{seed}"], check=True)
        self.run(["train", *self.settings(name, seed)], self.args.ranks)
        rows = [json.loads(line) for line in open(f"{self.scratch}/{name}.{seed}/eval.jsonl")]
        before, after = rows[0]["eval_loss"], rows[-1]["eval_loss"]
        return {"kind": "trained", "format": name, "seed": seed, "before": before, "after": after}

    def moved(self, name, source, seed):
        text = self.run(["eval", *self.settings(name, seed), "--json", "--adapter",
                         f"{self.scratch}/{source}.{seed}/export"])
        return {"kind": "moved", "format": name, "from": source, "loss": json.loads(text)["loss"]}


def table(rows):
    trained = [r for r in rows if r["kind"] == "trained"]
    by_format = {}
    for r in trained:
        by_format.setdefault(r["format"], []).append(r)
    sources = sorted({r["from"] for r in rows if r["kind"] == "moved"}, key=list(FORMATS).index)
    lines = ["| base | before | after, mean of seeds | spread | " + "".join(f"adapter of {s} | " for s in sources),
             "|---|---|---|---|" + "---|" * len(sources)]
    summary = []
    for name, runs in by_format.items():
        after = [r["after"] for r in runs]
        mean = sum(after) / len(after)
        moved = {r["from"]: r["loss"] for r in rows if r["kind"] == "moved" and r["format"] == name}
        lines.append(f"| {name} | {runs[0]['before']:.4f} | {mean:.4f} | {max(after) - min(after):.4f} | "
                     + "".join(f"{moved[s]:.4f} | " if s in moved else "| " for s in sources))
        summary.append((name, runs[0]["before"], mean, min(after), max(after)))
    bf16 = next((s for s in summary if s[0] == "bf16"), None)
    is_void = bf16 is None or bf16[2] > 0.95 * bf16[1]
    lines.append("")
    lines.append("void: the adapter over bf16 does not improve the loss by 5 %" if is_void else
                 f"over bf16 the adapter takes the loss from {bf16[1]:.4f} to {bf16[2]:.4f}")
    return "\n".join(lines), summary


def plot(summary, path):
    data = "\n".join(f'"{n}" {mean} {low} {high} {before}' for n, before, mean, low, high in summary)
    kind = "svg" if path.endswith(".svg") else "png"
    script = f"""set terminal {kind} size 1000,520
set output '{path}'
set ylabel 'held-out loss, nats per token'
set style fill solid 0.4
set boxwidth 0.6
set xtics rotate by -40 noenhanced
set xrange [-0.5:{len(summary) - 0.5}]
set rmargin 6
set yrange [*:*]
set grid ytics
plot '-' using 0:2:3:4:xtic(1) with yerrorbars pt 7 title 'after the run: mean and range of the seeds'
{data}
e
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera")
    parser.add_argument("--scratch")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--move", default="bf16,nf4", help="adapters that are laid over every form")
    parser.add_argument("--out")
    parser.add_argument("--plot")
    parser.add_argument("--only-table")
    args = parser.parse_args()
    if args.only_table:
        rows = [json.loads(line) for line in open(args.only_table)]
    else:
        bench = Bench(args)
        names, seeds = args.formats.split(","), [int(s) for s in args.seeds.split(",")]
        sink = open(args.out, "w") if args.out else sys.stdout
        head = {"kind": "machine", "machine": platform.processor() or platform.machine(), "steps": args.steps,
                "ranks": args.ranks, "command": " ".join(sys.argv[1:])}
        rows = [head]
        print(json.dumps(head), file=sink, flush=True)
        bench.tokens()
        for seed in seeds:
            for name in names:
                rows.append(bench.trained(name, seed))
                print(json.dumps(rows[-1]), file=sink, flush=True)
        for source in [s for s in args.move.split(",") if s in names]:
            for name in names:
                rows.append(bench.moved(name, source, seeds[0]))
                print(json.dumps(rows[-1]), file=sink, flush=True)
    text, summary = table(rows)
    print(text)
    if args.plot:
        plot(summary, args.plot)


if __name__ == "__main__":
    main()

"""How far the latents that an adapter gives over each form of the base are from those over its own form.

  python bench/flux_formats.py RUN.yaml ADAPTER --prompt TEXT [--prompt TEXT ...] [--tessera PATH] [--own FORMAT]
         [--formats nf4,int4,...] [--seeds 4] [--steps 20] [--size 512x512] [--ranks 1] [--out results.jsonl]
         [KEY=VALUE ...]

A format is a word of base.format, with what else it takes: nf4, int4:base.rule=hqq. RUN.yaml names a FLUX.1 model of 16
bits and a cache that holds the prompts. Latents are sampled with the same seeds over every form, with the adapter and
without one. A row: relative distance ||x - own|| / ||own|| of the latents with the adapter, the largest of them, and
the same of the base alone. An adapter learns the quantization error of the base it was trained over (`--own`, by
default what the adapter's file says), so that over another form it can be further off than the base alone is.
Needs numpy and safetensors.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy as np
from qlora_pairs import environment
from safetensors.numpy import load_file


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("adapter")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--tessera", default="tessera")
    parser.add_argument("--formats", default="bf16,int8,e4m3,q8_0,nf4,int4,int2")
    parser.add_argument("--own")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--out")
    return parser.parse_intermixed_args()


def settings(name):
    form, *keys = name.split(":")
    return [f"base.format={form}", *keys]


def run(args, *command):
    launcher = ["mpirun", "-n", str(args.ranks)] if args.ranks > 1 else []
    done = subprocess.run([*launcher, args.tessera, *command], env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def own_format(args):
    """base.quant of the adapter's metadata: its first word is a word of base.format."""
    found = json.loads(run(args, "inspect", args.adapter, "--json")).get("metadata", {}).get("base.quant")
    if found is None:
        raise SystemExit(f"'{args.adapter}' does not say what it was trained over; name it with --own")
    return found.split("/")[0]


def latents(args, folder, name, how):
    """[seeds * prompts, 16, h, w] over one form of the base."""
    parts = []
    for seed in range(args.seeds):
        out = folder / f"{name}.{seed}.{len(parts)}.safetensors"
        prompts = [word for text in args.prompt for word in ("--prompt", text)]
        run(args, "sample", args.run, *args.keys, *settings(name), f"output.dir={folder}/none", *prompts, *how,
            "--seed", str(seed), "--steps", str(args.steps), "--size", args.size, "-o", str(out))
        parts.append(load_file(out)["latents"].astype(np.float64))
        out.unlink()
    return np.concatenate(parts)


def distances(x, reference):
    axes = tuple(range(1, x.ndim))
    return np.sqrt(((x - reference) ** 2).sum(axes) / (reference ** 2).sum(axes))


def main():
    args = arguments()
    args.own = args.own or own_format(args)
    kinds = {"adapter": ["--adapter", args.adapter], "alone": ["--checkpoint", "none"]}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        own = {kind: latents(args, folder, args.own, how) for kind, how in kinds.items()}
        moved = distances(own["adapter"], own["alone"]).mean()
        for form in args.formats.split(","):
            found = {kind: distances(latents(args, folder, form, how), own[kind]) for kind, how in kinds.items()}
            rows.append({"format": form, "own": args.own, "adapter": found["adapter"].mean(),
                         "adapter_most": found["adapter"].max(), "alone": found["alone"].mean()})
    print(f"over {args.own} the adapter moves latents by {moved:.3g}")
    print(f"{'base':<22} {'adapter':>10} {'most':>10} {'base alone':>12}")
    for row in rows:
        print(f"{row['format']:<22} {row['adapter']:>10.3g} {row['adapter_most']:>10.3g} {row['alone']:>12.3g}")
    if args.out:
        with open(args.out, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()

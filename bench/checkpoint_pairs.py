"""What a checkpoint costs: the stall of the step loop, and the write rate beside `dd` on the same file system.

    python bench/checkpoint_pairs.py --tessera build/release/bin/tessera --shape 135m --pairs 5 --dir /data/scratch

A full-parameter run (f32 masters and both moments: 14 bytes a parameter with the bf16 copy) saves every few steps.
After each save the run is stopped (SIGSTOP), `dd bs=16M conv=fsync` writes a file of the same size beside it, and the
run goes on, so that both meet the same disk. Prints one JSON line. The write rate is bytes over the time from the
first write to the end of the fsync of the slower rank; hashing comes before it and is told apart.
"""
import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from qlora_pairs import SHAPES, ROOT, environment, rows, tell

LINE = re.compile(r"checkpoint step=(\d+) .*bytes=(\d+) snapshot_s=([\d.]+) hash_s=([\d.]+) write_s=([\d.]+) "
                  r"fsync_s=([\d.]+) commit_s=([\d.]+)")


def start(args, folder):
    config = dict(SHAPES[args.shape], model_type="llama", architectures=["LlamaForCausalLM"], rms_norm_eps=1e-5,
                  rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=True, torch_dtype="bfloat16",
                  max_position_embeddings=2048, bos_token_id=0, eos_token_id=1)
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    corpus = folder / "text.jsonl"
    corpus.write_bytes(subprocess.run(["xz", "-dkc", ROOT / "examples/corpus/kjv.train.jsonl.xz"], check=True,
                                      stdout=subprocess.PIPE).stdout)
    subprocess.run([args.tessera, "tokenize", ROOT / "examples/base", corpus, "-o", folder / "train.h5"], check=True,
                   stdout=subprocess.DEVNULL)
    ranks, threads = args.ours
    (folder / "run.yaml").write_text(f"""
model: {{path: {model}, init: random}}
base: {{format: keep}}
train: {{mode: full, steps: 1000000, micro_batch: 1, micro_batches: {ranks}, eval_every: 0}}
data: {{path: {folder}/train.h5, sequence_length: {args.sequence}}}
compute: {{threads: {threads}}}
output: {{dir: {folder}/run, checkpoint_every: {args.every}, when_busy: skip, keep: 2,
         export: none}}
""")
    command = ["mpirun", "--oversubscribe", "-n", str(ranks), str(args.tessera), "train", str(folder / "run.yaml")]
    log = open(folder / "tessera.log", "w")
    return subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)


def await_save(process, folder, seen):
    """The lines of all saves, once there are more than `seen`."""
    while True:
        found = [tuple(float(x) for x in m.groups()) for m in LINE.finditer((folder / "tessera.log").read_text())]
        if len(found) > seen:
            return found
        if process.poll() is not None:
            sys.exit(f"the run ended with {process.returncode}: " + (folder / "tessera.log").read_text()[-2000:])
        time.sleep(0.05)


def run_dd(folder, nbytes):
    """Seconds of dd for at least as many bytes, as bytes a second."""
    blocks = -(-nbytes // (16 << 20))
    path = folder / "dd.bin"
    begin = time.monotonic()
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=16M", f"count={blocks}", "conv=fsync"], check=True,
                   stderr=subprocess.DEVNULL)
    rate = blocks * (16 << 20) / (time.monotonic() - begin)
    path.unlink()
    os.sync()
    return rate


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tessera", type=pathlib.Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--every", type=int, default=4,
                        help="steps between saves; one that is due too early is skipped")
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--ours", default="1x1", help="ranks x threads")
    parser.add_argument("--dir", help="on the file system in question")
    args = parser.parse_args()
    args.ours = tuple(int(x) for x in args.ours.split("x"))
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = pathlib.Path(name)
        process = start(args, folder)
        saves, dd = [], []
        try:
            seen = len(await_save(process, folder, 0))  # the first one warms up
            for _ in range(args.pairs):
                # one that was in flight at the last stop has the time of dd in it
                seen = len(await_save(process, folder, seen))
                saves.append(await_save(process, folder, seen)[-1])
                tell(process, signal.SIGSTOP)
                seen = len(await_save(process, folder, seen))
                dd.append(run_dd(folder, int(saves[-1][1])))
                tell(process, signal.SIGCONT)
            step_s = statistics.median(r["step_s"] for r in rows(folder / "run" / "metrics.jsonl")[1:])
        finally:
            tell(process, signal.SIGCONT)
            tell(process, signal.SIGKILL)
    rates = [s[1] / (s[4] + s[5]) for s in saves]
    ratios = [a / b for a, b in zip(rates, dd)]
    print(json.dumps({
        "bench": "checkpoint_pairs", "shape": args.shape, "ours": "%dx%d" % args.ours, "bytes": int(saves[0][1]),
        "step_s": round(step_s, 3), "snapshot_s": [s[2] for s in saves], "hash_s": [s[3] for s in saves],
        "write_s": [s[4] for s in saves], "fsync_s": [s[5] for s in saves], "commit_s": [s[6] for s in saves],
        "mb_per_s": [round(r / 1e6) for r in rates], "dd_mb_per_s": [round(r / 1e6) for r in dd],
        "ratio": [round(r, 3) for r in ratios], "median_ratio": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    main()

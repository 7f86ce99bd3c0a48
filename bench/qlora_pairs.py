"""Tokens per second of a QLoRA step, Tessera beside PyTorch + peft, in alternating windows on the same cores.

    python bench/qlora_pairs.py --tessera build/release/bin/tessera --shape 135m --pairs 10

Both programs are started once and then stopped and continued in turn (SIGSTOP, SIGCONT), so that they meet the
same machine; a step that was cut by a switch is not counted. Prints one JSON line: the median of each program in
each window, the ratio per pair, and the median ratio. Random weights, batch 1 x 512 tokens, NF4 double-quantized,
rank 16, bf16.
"""
import argparse
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
SHAPES = {
    "135m": dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                 intermediate_size=1536, vocab_size=49152, head_dim=64),
    "1.1b": dict(hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
                 intermediate_size=5632, vocab_size=32000, head_dim=64),
}


def environment():
    env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_pml="ob1",
               OMPI_MCA_btl="vader,self", OMPI_MCA_hwloc_base_binding_policy="none",
               OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_btl_vader_single_copy_mechanism="none",
               TESSERA_DEADLINE_S="100000")  # a stopped program is not late
    return env


def start_library(args, folder):
    """Tessera itself with the library reduction: what exactness costs."""
    inner = folder / "library"
    inner.mkdir()
    return start_tessera(argparse.Namespace(**dict(vars(args), reduction="library")), inner)


def start_tessera(args, folder):
    config = dict(SHAPES[args.shape], model_type="llama", architectures=["LlamaForCausalLM"], rms_norm_eps=1e-5,
                  rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False, torch_dtype="bfloat16",
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
base: {{{getattr(args, "base", "format: nf4, block_size: 64, double_quant: true")}}}
lora: {{rank: 16, alpha: 32, targets: all-linear}}
data: {{path: {folder}/train.h5, sequence_length: 512}}
train: {{steps: 1000000, micro_batch: 1, micro_batches: {ranks * args.micro_batches}, eval_every: 0}}
shard: {{reduction: {args.reduction}}}
compute: {{threads: {threads}}}
output: {{dir: {folder}/run, checkpoint_every: 0, export: none}}
""")
    command = ["mpirun", "--oversubscribe", "-n", str(ranks), str(args.tessera), "train", str(folder / "run.yaml")]
    log = open(folder / "tessera.log", "w")
    process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)
    return process, folder / "run" / "metrics.jsonl", command


def start_peer(args, folder):
    processes, threads = args.peer
    command = [args.python]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += [str(HERE / "peers" / "torch_qlora.py"), "--shape", args.shape, "--threads", str(threads), "--base",
                args.peer_base, "--dtype", args.peer_dtype, "--micro-batches", str(args.micro_batches)]
    out = folder / "peer.jsonl"
    process = subprocess.Popen(command, env=dict(environment(), OMP_NUM_THREADS=str(threads)), stdout=open(out, "w"),
                               stderr=open(folder / "peer.log", "w"), start_new_session=True)
    return process, out, command


def tree(pid):
    """The process and everything below it."""
    found, todo = [], [pid]
    while todo:
        p = todo.pop()
        found.append(p)
        try:
            for task in pathlib.Path(f"/proc/{p}/task").iterdir():
                todo += [int(c) for c in (task / "children").read_text().split()]
        except OSError:
            pass
    return found


def tell(process, number):
    for pid in tree(process.pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def rows(path):
    try:
        lines = path.read_text().split("\n")
    except OSError:
        return []
    return [json.loads(line) for line in lines[:-1] if line]


def window(process, path, seconds, least):
    """Run for a while; the steps that began and ended inside."""
    tell(process, signal.SIGCONT)
    before = len(rows(path))
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(rows(path)) < before + 1 + least:
        if process.poll() is not None:
            sys.exit(f"{process.args} ended with {process.returncode}")
        time.sleep(0.05)
    tell(process, signal.SIGSTOP)
    inside = rows(path)[before + 1:]
    return statistics.median(r["tokens"] / r["step_s"] for r in inside)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tessera", type=pathlib.Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a window")
    parser.add_argument("--steps", type=int, default=2, help="least steps in a window")
    parser.add_argument("--ours", default="1x2", help="ranks x threads")
    parser.add_argument("--peer", default="1x2", help="processes x threads")
    parser.add_argument("--peer-base", choices=["nf4", "bnb", "library"], default="nf4",
                        help="library: Tessera with reduction: library instead of PyTorch")
    parser.add_argument("--peer-dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--micro-batches", type=int, default=1, help="per rank and step")
    parser.add_argument("--reduction", choices=["exact", "library"], default="exact")
    parser.add_argument("--only", choices=["tessera", "peer"])
    args = parser.parse_args()
    args.ours = tuple(int(x) for x in args.ours.split("x"))
    args.peer = tuple(int(x) for x in args.peer.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        starts = {"tessera": start_tessera, "peer": start_library if args.peer_base == "library" else start_peer}
        running = {}
        for who in starts if args.only is None else [args.only]:
            running[who] = starts[who](args, folder)
            process, path, _ = running[who]
            while len(rows(path)) < 2:
                if process.poll() is not None:
                    sys.exit(f"{who} ended with {process.returncode}: "
                             + "".join(p.read_text()[-2000:] for p in folder.glob("*.log")))
                time.sleep(0.2)
            tell(process, signal.SIGSTOP)
        try:
            figures = {who: [] for who in running}
            for _ in range(args.pairs):
                for who, (process, path, _) in running.items():
                    figures[who].append(window(process, path, args.seconds, args.steps))
        finally:
            for process, _, _ in running.values():
                tell(process, signal.SIGCONT)
                tell(process, signal.SIGKILL)
    result = {"bench": "qlora_pairs", "shape": args.shape, "machine": platform.processor() or platform.machine(),
              "cores": os.cpu_count(), "ours": "%dx%d" % args.ours, "peer": "%dx%d" % args.peer,
              "peer_base": args.peer_base, "peer_dtype": args.peer_dtype, "micro_batches": args.micro_batches,
              "reduction": args.reduction,
              "tokens_per_s": {who: [round(x, 1) for x in f] for who, f in figures.items()},
              "median": {who: round(statistics.median(f), 1) for who, f in figures.items()}}
    if args.only is None:
        ratios = [a / b for a, b in zip(figures["tessera"], figures["peer"])]
        result["ratio"] = [round(r, 3) for r in ratios]
        result["median_ratio"] = round(statistics.median(ratios), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Share of the time of a Tessera QLoRA step that is spent in matrix products, by `perf record`.

    python bench/product_share.py --tessera build/release/bin/tessera --shape 135m

One rank with one thread, as in bench/qlora_pairs.py; the peer's share comes from
`bench/peers/torch_qlora.py --profile`. Samples are told apart by function: the inner products of kernels/cpu/gemm*,
what feeds and empties them (packing, NF4 to f32, writing), attention, the rest. Prints one JSON line.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from qlora_pairs import SHAPES, rows, start_tessera, tell, tree
import signal

KINDS = (
    ("inner_products", r"(f32|pair)_\d+x\d+|micro_\d+(x\d+)?"),
    ("packing", r"(tess_\w+_)?(pack_(across|along)|lut16_rows|write(_rows)?)|(\w+_)?decode(_rows)?|"
                r"tess_\w+_add_scaled|scaled_int8|worker_run|pack_(body|panel|block)|multiply_(body|term|panel)|"
                r"write_panel|tess_cpu_gemm"),
    ("attention", r"tile_any|forward|backward|forward_part|backward_part|sum_group|store_panel|pack_straight|"
                  r"pack_transposed"),
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tessera", type=pathlib.Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    args.ours, args.micro_batches, args.reduction = (1, 1), 1, "exact"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        process, path, _ = start_tessera(args, folder)
        try:
            while len(rows(path)) < 2:
                if process.poll() is not None:
                    sys.exit((folder / "tessera.log").read_text()[-2000:])
                time.sleep(0.2)
            pid = next(p for p in tree(process.pid)
                       if pathlib.Path(f"/proc/{p}/comm").read_text().strip() == args.tessera.name[:15])
            data = folder / "perf.data"
            subprocess.run(["perf", "record", "-F", "499", "-p", str(pid), "-o", data, "--", "sleep",
                            str(args.seconds)], check=True, stderr=subprocess.DEVNULL)
        finally:
            tell(process, signal.SIGKILL)
        report = subprocess.run(["perf", "report", "--stdio", "--no-children", "-F", "sample,sym", "-i", data],
                                check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    found, rest = {kind: 0 for kind, _ in KINDS}, {}
    for samples, symbol in re.findall(r"^\s*(\d+)\s+\[\.\] (\S+)|^\s*\d+\s+\[k\]", report, re.M):
        if not samples:
            continue
        symbol = symbol.split(".")[0]
        kind = next((k for k, pattern in KINDS if re.fullmatch(pattern, symbol)), None)
        if kind is None:
            rest[symbol] = rest.get(symbol, 0) + int(samples)
        else:
            found[kind] += int(samples)
    kernel = sum(int(n) for n in re.findall(r"^\s*(\d+)\s+\[k\]", report, re.M))
    total = sum(found.values()) + sum(rest.values()) + kernel
    largest = sorted(rest, key=rest.get, reverse=True)[:5]
    print(json.dumps({"bench": "product_share", "shape": args.shape, "samples": total,
                      "share": {k: round(v / total, 4) for k, v in found.items()},
                      "kernel": round(kernel / total, 4),
                      "other": {k: round(rest[k] / total, 4) for k in largest}}))


if __name__ == "__main__":
    main()

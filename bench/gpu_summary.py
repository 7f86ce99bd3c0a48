#!/usr/bin/env python3
"""What bench/gpu.sh measured, beside its goals: Markdown on standard output.

    bench/gpu_summary.py OUT

A goal is met, missed, or not measured: lines that are not there, and parts that ended with an error, say nothing.
Needs nothing but Python's standard library.
"""
import csv
import json
import pathlib
import sys

COPY_SHARE, PRODUCT_TFLOPS, TOKENS, PEER_RATIO = 0.85, 600.0, 16000.0, 1.5
ATTENTION_TFLOPS = {"attention_forward": 500.0, "attention_backward": 400.0}
SEARCH_SHARE, DETERMINISTIC, REDUCTION, IMAGE_STEP_S = 0.2, 1.10, 0.01, 0.45
NORMS = ("rmsnorm_forward", "rmsnorm_add", "rmsnorm_backward", "cross_entropy")


def read(folder):
    """Lines of every part; what is no JSON is left to the logs."""
    parts = {}
    for path in sorted(folder.glob("*.jsonl")):
        parts[path.stem] = []
        for raw in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                parts[path.stem].append(json.loads(raw))
            except ValueError:
                continue
    return parts


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]) + "\n"


def one(parts, name, what="step"):
    return next((x for x in parts.get(name, []) if x.get("bench") == what), None)


def peers(parts):
    return [x for name, lines in parts.items() if name.startswith("peer") for x in lines if "items_per_s" in x]


# ---- goals: (name, wanted, found as text, met), met None: not measured ----

def least(name, wanted, values, form="{:.3g}"):
    """Every value at least `wanted`; values: {what: number}."""
    text = f">= {form.format(wanted)}"
    if not values:
        return name, text, "-", None
    low = min(values, key=values.get)
    more = f", least of {len(values)}: {low}" if len(values) > 1 else ""
    return name, text, form.format(values[low]) + more, values[low] >= wanted


def most(name, wanted, value, form="{:.3g}"):
    if value is None:
        return name, f"<= {form.format(wanted)}", "-", None
    return name, f"<= {form.format(wanted)}", form.format(value), value <= wanted


def reduction_s(step):
    """What sums of gradients take of the compute lane."""
    return sum(s["s"] for s in step.get("spans", []) if s["lane"] == "compute" and
               s["name"].split()[0] in ("fold", "sum", "clear") or s["name"] == "wait reduce")


def goals(parts):
    step, library = one(parts, "step"), one(parts, "step-library")
    best = max((x["items_per_s"] for x in peers(parts)), default=None)
    shares = {x["op"]: x["share"] for x in parts.get("ops", []) if "share" in x}
    products = {x["shape"]: x["gflops"] / 1e3 for x in parts.get("gemm", [])
                if x["m"] >= 8192 and min(x["n"], x["k"]) >= 1024 and x["shape"].split(":")[4] == "bf16"}
    decoded = {f"{x['format']} to {x['to']}": x["share"] for x in parts.get("dequantize", [])}
    out = [least("tokens/s of the 8B step, no recomputation", TOKENS,
                 {step["run"]: step["items_per_s"]} if step else {}, "{:.0f}"),
           least("over the best peer", PEER_RATIO, {"": step["items_per_s"] / best} if step and best else {}),
           least("dequantize, share of copy", COPY_SHARE, decoded),
           least("norms and loss, share of copy", COPY_SHARE, {k: shares[k] for k in NORMS if k in shares}),
           least("products at M = 8192, TFLOP/s", PRODUCT_TFLOPS, products, "{:.0f}"),
           most("step with deterministic attention over the library's default", DETERMINISTIC,
                step["step_s"] / library["step_s"] if step and library else None),
           most("exact reduction beyond the library's, of a step", REDUCTION,
                (reduction_s(step) - reduction_s(library)) / step["step_s"]
                if step and library and "spans" in step and "spans" in library else None)]
    save = one(parts, "checkpoint", "checkpoint")
    jitter = step["step_p90_s"] - step["step_p10_s"] if step else None
    if save and step:
        out.append(("checkpoint stall under a step's jitter, s", f"<= {jitter:.3g}", f"{save['stall_s']:.3g}",
                    save["stall_s"] <= jitter))
    else:
        out.append(("checkpoint stall under a step's jitter, s", "-", "-", None))
    for op, wanted in ATTENTION_TFLOPS.items():
        out.append(least(f"{op.replace('_', ' ')}, causal 4k, TFLOP/s", wanted,
                         {x["shape"]: x["tflop_per_s"] for x in parts.get("attention", []) if x["op"] == op and
                          x["way"] == "library" and x["shape"].endswith("causal")}, "{:.0f}"))
    flux = one(parts, "flux")
    out.append(most("step of FLUX.1 at 1024 pixels, no recomputation, s", IMAGE_STEP_S,
                    flux["step_s"] if flux and flux["length"] == 1024 else None))
    out.append(least("search of 65536 codes of 256, share of a product", SEARCH_SHARE,
                     {"": x["share"] for x in parts.get("nearest", []) if x["codes"] == 65536}))
    differing = [x["differing"] for name in ("dequantize", "nearest") for x in parts.get(name, [])]
    out.append(("elements that differ from the CPU's", "0", str(sum(differing)) if differing else "-",
                sum(differing) == 0 if differing else None))
    return out


# ---- tables ----

def show_steps(parts):
    rows = []
    for name, lines in parts.items():
        for x in (x for x in lines if x.get("bench") == "step"):
            use = x.get("model_flops_utilization")
            rows.append([name, x["run"], x["format"], f"{x['items_per_s']:.0f}", f"{x['step_s']:.4f}",
                         f"{x['step_p10_s']:.4f} to {x['step_p90_s']:.4f}", f"{x['model_gflop_per_s'] / 1e3:.1f}",
                         "" if use is None else f"{100 * use:.1f}",
                         f"{100 * x['hardware_flops_utilization']:.1f}" if use is not None else "",
                         f"{x['planned_bytes'] / 2**30:.2f}", f"{x['device_peak_bytes'] / 2**30:.2f}",
                         f"{x['setup_s']:.1f}" if "setup_s" in x else ""])
    head = ["part", "run", "format", "items/s", "step s", "10 to 90 %", "model TFLOP/s", "MFU %", "HFU %",
            "planned GiB", "peak GiB", "setup s"]
    note = ("MFU counts what the mathematics asks for once: 4 N a token of frozen weights, not 6 N; HFU what the "
            "device executes.\n")
    return "## Steps\n\n" + table(head, rows) + "\n" + note if rows else ""


def measured(parts):
    """Bytes per second of a copy and FLOPs per second of the best product here; None: not measured."""
    copies = [1e9 * x["gb_per_s"] for x in parts.get("ops", []) if x["op"] == "copy"]
    products = [1e9 * x["gflops"] for x in parts.get("gemm", [])]
    return (max(copies), max(products)) if copies and products else None


def show_classes(parts):
    text, rates = "", measured(parts)

    def own(c):
        if rates is None:
            return ["", ""]
        least_s = max(c["bytes"] / rates[0], c["flop"] / rates[1])
        return [f"{1e3 * least_s:.3f}", f"{least_s / c['s']:.2f}" if c["s"] else ""]

    for name in ("step", "step-library", "step-decoded", "step-recomputed", "layer", "flux"):
        x = one(parts, name)
        if x is None or "classes" not in x:
            continue
        rows = [[c["class"], f"{1e3 * c['s']:.3f}", c["calls"], f"{c['flop'] / c['s'] / 1e12:.1f}" if c["s"] else "",
                 f"{c['bytes'] / c['s'] / 1e9:.0f}" if c["s"] else "", f"{1e3 * c.get('roofline_s', 0):.3f}",
                 f"{c.get('share', 0):.2f}", *own(c)] for c in x["classes"]]
        rows += [[what, f"{1e3 * x[what + '_s']:.3f}"] + [""] * 7 for what in ("gaps", "rest")]
        rows += [[f"{s['lane']}: {s['name']}", f"{1e3 * s['s']:.3f}", s["calls"], "",
                  f"{s['bytes'] / s['s'] / 1e9:.0f}" if s["s"] else "", *[""] * 4] for s in x["spans"]
                 if s["lane"] in ("gather", "reduce", "publish", "copy") or
                 (s["lane"] == "compute" and s["name"].split()[0] in ("forward", "backward") and name == "layer")]
        text += f"### {name}: a step of {1e3 * x['traced_step_s']:.1f} ms, kernel by kernel\n\n" + table(
            ["class", "ms", "calls", "TFLOP/s", "GB/s", "roofline ms", "share", "by copy and product here", "share"],
            rows) + "\n"
    return text


def show_own(parts):
    """What a run with the own attention kernels pays beside the library's."""
    seconds = {}
    for x in parts.get("attention", []):
        seconds.setdefault(x["shape"], {}).setdefault(x["way"], {})[x["op"]] = x["median_s"]
    rows = []
    for shape, ways in seconds.items():
        if all(len(ways.get(way, ())) == 2 for way in ("library", "deterministic", "own")):
            both = {way: sum(times.values()) for way, times in ways.items()}
            rows.append([shape] + [f"{both[way] / both['library']:.2f}" for way in ("deterministic", "own")])
    head = ["attention, forward and backward, over the library's default", "deterministic", "own"]
    return table(head, rows) + "\n" if rows else ""


def show_ops(parts):
    text = ""
    forms = {
        "ops": (["op", "shape", "us", "GB/s", "share of copy"],
                lambda x: [x["op"], x["shape"], f"{1e6 * x['median_s']:.1f}", x["gb_per_s"], x.get("share", "")]),
        "gemm": (["product", "us", "TFLOP/s", "GB/s"],
                 lambda x: [x["shape"], f"{1e6 * x['median_s']:.1f}", f"{x['gflops'] / 1e3:.1f}", x["gb_per_s"]]),
        "attention": (["op", "shape", "way", "us", "TFLOP/s"],
                      lambda x: [x["op"], x["shape"], x["way"], f"{1e6 * x['median_s']:.1f}", x["tflop_per_s"]]),
        "dequantize": (["format", "result", "us", "share of copy", "differing"],
                       lambda x: [x["format"], x["to"], x["us"], x["share"], x["differing"]]),
        "nearest": (["vectors", "codes", "dim", "us", "TFLOP/s", "share", "differing"],
                    lambda x: [x[k] for k in ("vectors", "codes", "dim", "us", "tflop_per_s", "share", "differing")])}
    for name, (head, row) in forms.items():
        if parts.get(name):
            text += f"### {name}\n\n" + table(head, [row(x) for x in parts[name]]) + "\n"
        text += show_own(parts) if name == "attention" else ""
    return text


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: gpu_summary.py OUT")
    folder = pathlib.Path(sys.argv[1])
    parts = read(folder)
    words = {True: "met", False: "**MISSED**", None: "not measured"}
    machine = (folder / "machine.txt").read_text(errors="replace").strip()
    print(f"# Measured on one device\n\n```\n{machine}\n```\n")
    print("## Goals\n\n" + table(["goal", "wanted", "found", ""], [[*g[:3], words[g[3]]] for g in goals(parts)]))
    print(show_steps(parts))
    print(show_classes(parts) + show_ops(parts))
    with open(folder / "commands.tsv", encoding="utf-8") as f:
        rows = list(csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
    print("## Commands\n\n" + table(rows[0], [[*r[:3], f"`{r[3]}`"] for r in rows[1:]]))


if __name__ == "__main__":
    main()

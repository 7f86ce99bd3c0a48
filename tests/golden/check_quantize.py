#!/usr/bin/env python3
"""Peers read what `tessera quantize` and `tessera merge` write.

    python check_quantize.py TESSERA > tests/golden/quantize/transcript.txt

Runs the program on the models of tests/golden/bnb and loads its output in the peer it is for: transformers
with bitsandbytes on a CPU (its pure-PyTorch decoder: its native one is wrong where in-features are no multiple
of the block, so weights are decoded as one row), and compares values and logits. Exits 1 at the first
difference. Needs torch, transformers, bitsandbytes, safetensors.
"""
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parent
PLAIN = GOLDEN / "bnb" / "plain"
TOKENS = torch.arange(24).reshape(1, 24) * 5 % 61


def require(condition, what):
    if not condition:
        sys.exit(f"DIFFERS: {what}")


def tessera(program, *words):
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    require(done.returncode == 0, f"{words}: {done.stderr}")
    return json.loads(done.stdout)


def same_tensors(ours, theirs, what):
    """The same names, dtypes, shapes and bytes; texts of quant states as JSON."""
    a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    require(a.keys() == b.keys(), f"{what}: names {sorted(a.keys() ^ b.keys())}")
    for name, x in a.items():
        y = b[name]
        if "quant_state" in name:
            require(json.loads(bytes(x.tolist())) == json.loads(bytes(y.tolist())), f"{what}: {name}")
            continue
        require(x.dtype == y.dtype and x.shape == y.shape, f"{what}: {name} {x.dtype} {x.shape}")
        if "map" in name:  # bitsandbytes' FP4 table has zero where its kernels have minus zero
            require(torch.equal(x, y), f"{what}: {name}")
        else:
            require(torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8)),
                    f"{what}: {name}")
    return len(a)


def decoded(parameter):
    """Value of a 4-bit parameter, decoded as one row."""
    state = parameter.quant_state
    absmax = state.absmax
    if state.nested:
        absmax = F.dequantize_blockwise(absmax, state.state2) + state.offset
    n = state.shape.numel()
    flat = F.QuantState(absmax=absmax.float(), shape=torch.Size([1, n]), code=state.code,
                        blocksize=state.blocksize, quant_type=state.quant_type, dtype=torch.float32)
    packed = parameter.data.contiguous().view(torch.uint8).reshape(-1, 1)
    return F.dequantize_4bit(packed, flat).reshape(state.shape)


def check_bnb4(program, work):
    for name, words in {"nf4": ["--double-quant", "no"], **{
            f"double_{label}": ["--quant-storage", label] for label in ("uint8", "bfloat16", "float16", "float32")
    }}.items():
        out = work / name
        report = tessera(program, "quantize", PLAIN, "-o", out, "--json", *words)
        numel = same_tensors(out, GOLDEN / "bnb" / name, name)
        with safe_open(out / "model.safetensors", "pt") as f:
            about = f.metadata()
        require(about["base.identity"] == report["base.identity"], f"{name}: base.identity")
        print(f"{name}: {numel} tensors equal bitsandbytes' own, base.quant {about['base.quant']}, "
              f"base.identity {about['base.identity'][:16]}")


def load(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)


def check_load(program, work):
    """transformers loads what was written, and each weight has the value that tessera decodes."""
    cases = {"nf4 64 double": ["--format", "nf4"],
             "fp4 128 double, bf16 storage": ["--format", "fp4", "--block-size", "128", "--quant-storage", "bf16"],
             "nf4 32 and fp4, one layer bf16": ["--format", "nf4", "--block-size", "32", "--double-quant", "no",
                                                "--override", r".*\.up_proj\.weight=fp4",
                                                "--override", r".*\.k_proj\.weight=bf16"],
             "nf4 in files of 8 kB": ["--max-shard-size", "8000"]}
    for what, words in cases.items():
        out, wide = work / "out", work / "wide"
        tessera(program, "quantize", PLAIN, "-o", out, "--json", *words)
        tessera(program, "quantize", out, "-o", wide, "--format", "f32", "--json")
        packed, plain = load(out), load_file(wide / "model.safetensors")
        kinds = {}
        for name, module in packed.named_modules():
            if name == "lm_head" or not isinstance(module, torch.nn.Linear):
                continue
            is_packed = isinstance(module, bnb.nn.Linear4bit)
            value = decoded(module.weight) if is_packed else module.weight.data.float()
            require(torch.equal(value, plain[f"{name}.weight"].float()), f"{what}: {name}")
            kind = module.weight.quant_state.quant_type if is_packed else "bf16"
            kinds[kind] = kinds.get(kind, 0) + 1
        logits = packed(TOKENS).logits
        require(torch.isfinite(logits).all(), f"{what}: logits")
        files = len(list(out.glob("*.safetensors")))
        print(f"{what}: transformers loads {files} file(s), {kinds}, every value equal")
        shutil.rmtree(out)
        shutil.rmtree(wide)


def main(program):
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"bitsandbytes {bnb.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        check_bnb4(program, work)
        check_load(program, work)


if __name__ == "__main__":
    main(sys.argv[1])

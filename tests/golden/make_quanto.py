#!/usr/bin/env python3
"""What optimum-quanto and PyTorch's fp8 casts make of some weights, and a tiny Llama that they have packed.

    python make_quanto.py OUTDIR        (normally tests/golden/quanto)

OUTDIR/weights.bin holds the f32 weights of SHAPES one after the other. OUTDIR/vectors.txt has a line
"CODEC SHAPE CODES CONSTANTS DECODED" for each codec and shape, CRC-32 of the packed codes, of scale and shift, and of
the decoded values in f32; codes.txt the CRC-32 of the 256 values of each fp8 type.

OUTDIR/NAME is a model directory, the weights those of tests/golden/bnb/plain: qint8, qint4, qint2, qfloat8 (bf16
scales) and half (f16 weights; qint4, qfloat8_e5m2, qint8 and qint2 in turn) with quanto's map, fp8_raw (a plain cast),
fp8_tensor (scale_weight, as ComfyUI keeps it) and fp8_row (weight_scale, as vLLM and compressed-tensors keep it).
OUTDIR/values.txt lists "NAME TENSOR CRC-32" of the decoded f32 bytes.

quanto is asked for unoptimized weights: its TinyGemm layout loses bits of the shift. Casts to fp8 follow an explicit
clamp, because PyTorch saturates from 2.12 on only. Where quanto divides zeros by a scale of zero it has NaN; there are
no such rows here. Needs torch and optimum-quanto (made with 2.15 and 0.2.7), safetensors, numpy.
"""
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from optimum.quanto import (AbsmaxOptimizer, MaxOptimizer, freeze, qfloat8, qfloat8_e5m2, qint2, qint4, qint8,
                            quantization_map, quantize, quantize_weight)
from safetensors.torch import load_file, save_file

SHAPES = [(5, 256), (3, 192), (7, 160), (4, 200), (9, 48), (3, 33)]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
FP8 = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}
HERE = Path(__file__).resolve().parent


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def crc(*tensors):
    return f"{zlib.crc32(b''.join(raw(t) for t in tensors)):08x}"


def group_of(columns):
    """nn/qmodule.py"""
    size = 128
    if columns > size:
        while columns % size != 0 and size > 32:
            size -= 32
    return size if columns % size == 0 else columns


def vectors(out):
    torch.manual_seed(7)
    weights = [torch.randn(shape) * 0.05 for shape in SHAPES]
    weights[1][1, 5:40] *= 40  # far from centred, and an outlier
    weights[2][3] += 0.3
    (out / "weights.bin").write_bytes(b"".join(raw(w) for w in weights))
    lines = []
    for w in weights:
        shape = f"{w.shape[0]}x{w.shape[1]}"
        for dt, dtype in DTYPES.items():
            x = w.to(dtype)
            for name, qtype in (("qint8", qint8), ("qfloat8", qfloat8), ("qfloat8_e5m2", qfloat8_e5m2)):
                q = quantize_weight(x, qtype, 0, AbsmaxOptimizer()(x, qtype, 0), optimized=False)
                lines.append(f"{name}/row/{dt} {shape} {crc(q._data)} {crc(q._scale)} {crc(q.dequantize().float())}")
            for name, qtype in (("qint4", qint4), ("qint2", qint2)):
                group = group_of(w.shape[1])
                scale, shift = MaxOptimizer()(x, qtype, 0, group)
                q = quantize_weight(x, qtype, 0, scale, shift, group, optimized=False)
                lines.append(f"{name}/{group}/{dt} {shape} {crc(q._data._data)} {crc(q._scale, q._shift)} "
                             f"{crc(q.dequantize().float())}")
        for name, (dtype, most) in FP8.items():
            for scaling, amax in (("tensor", w.abs().max()), ("row", w.abs().amax(1, keepdim=True))):
                scale = amax / most
                code = (w / scale).clamp(-most, most).to(dtype)
                lines.append(f"{name}/{scaling}/dequant_scale {shape} {crc(code)} {crc(scale)} {crc(code.float() * scale)}")
                scale = (most / torch.clamp(amax.double(), min=1e-12)).float()
                code = (w * scale).clamp(-most, most).to(dtype)
                lines.append(f"{name}/{scaling}/quant_scale {shape} {crc(code)} {crc(scale)} "
                             f"{crc(code.float() * (1 / scale))}")
            code = w.clamp(-most, most).to(dtype)
            lines.append(f"{name}/raw {shape} {crc(code)} 00000000 {crc(code.float())}")
    (out / "vectors.txt").write_text("\n".join(lines) + "\n")
    every = torch.arange(256).to(torch.uint8)
    (out / "codes.txt").write_text("".join(
        f"{name} {zlib.crc32(np.where(np.isnan(v), np.float32(0), v).tobytes()):08x}\n"
        for name, v in ((name, every.view(dtype).float().numpy()) for name, (dtype, _) in FP8.items())))


def module_of(linear):
    """Linears at their dotted names."""
    root = torch.nn.Module()
    for path, weight in linear.items():
        at = root
        *folders, last = path.split(".")
        for name in folders:
            if not hasattr(at, name):
                at.add_module(name, torch.nn.Module())
            at = getattr(at, name)
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        layer.weight.data.copy_(weight)
        at.add_module(last, layer)
    return root


def models(out):
    config = json.loads((HERE / "bnb/plain/config.json").read_text())
    tensors = load_file(HERE / "bnb/plain/model.safetensors")
    linear = {k[:-len(".weight")]: v for k, v in tensors.items() if "_proj" in k}
    rest = {k: v for k, v in tensors.items() if "_proj" not in k}
    lines = []

    def save(name, packed, dtype="bfloat16", metadata=None, quant_map=None):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(dict(config, torch_dtype=dtype), indent=2) + "\n")
        other = {k: v.to(getattr(torch, dtype)) for k, v in rest.items()}
        save_file({k: v.contiguous() for k, v in {**other, **packed}.items()}, folder / "model.safetensors",
                  {"format": "pt", **(metadata or {})})
        if quant_map is not None:
            (folder / quant_map[0]).write_text(json.dumps(quant_map[1], indent=2) + "\n")

    def value(name, path, decoded):
        lines.append(f"{name} {path}.weight {crc(decoded.float())}")

    def save_quanto(name, types, dtype="bfloat16", map_name="quantization_map.json"):
        root = module_of({k: v.to(getattr(torch, dtype)) for k, v in linear.items()})
        for path, qtype in zip(linear, types * len(linear)):
            quantize(root, weights=qtype, include=path)
        freeze(root)
        for path in linear:
            weight = root.get_submodule(path).weight
            value(name, path, weight.dequantize())
        save(name, root.state_dict(), dtype, quant_map=(map_name, quantization_map(root)))

    save_quanto("qint8", [qint8])
    save_quanto("qint4", [qint4], map_name="quanto_qmap.json")
    save_quanto("qint2", [qint2])
    save_quanto("qfloat8", [qfloat8])
    save_quanto("half", [qint4, qfloat8_e5m2, qint8, qint2], dtype="float16")
    packed = {f"{k}.weight": v.float().clamp(-448, 448).to(torch.float8_e4m3fn) for k, v in linear.items()}
    for k in linear:
        value("fp8_raw", k, packed[f"{k}.weight"])
    save("fp8_raw", packed)
    packed = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for k, v in linear.items():
        scale = v.float().abs().max() / 448
        code = (v.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        packed.update({f"{k}.weight": code, f"{k}.scale_weight": scale})
        value("fp8_tensor", k, code.float() * scale)
    save("fp8_tensor", packed)
    packed = {}
    for i, (k, v) in enumerate(linear.items()):
        dtype, most = list(FP8.values())[i % 2]
        scale = (v.float().abs().amax(1, keepdim=True) / most).to([torch.float32, torch.bfloat16][i % 3 == 2])
        code = (v.float() / scale.float()).clamp(-most, most).to(dtype)
        packed.update({f"{k}.weight": code, f"{k}.weight_scale": scale})
        value("fp8_row", k, code.float() * scale.float())
    save("fp8_row", packed)
    (out / "values.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    vectors(folder)
    models(folder)

#!/usr/bin/env python3
"""One tiny Llama whose linear weights bitsandbytes has packed in several ways.

    python make_bnb.py OUTDIR        (normally tests/golden/bnb)

OUTDIR/NAME is a model directory: `plain` in bf16, and the same weights as nf4 (single), double_STORAGE
(nf4, nested absmax, the four quant_storage labels of the same bytes), mixed (nf4 and fp4, all other block
sizes) and int8. OUTDIR/values.txt lists "NAME TENSOR CRC-32" of the decoded f32 bytes.

Codes and constants come from bitsandbytes' layers, made on a CPU. The decoded values are computed here by the
formulas of bitsandbytes' dequantizer in numpy f32, and compared with its dequantize_4bit: its table of FP4 has
zero for code 8, its CUDA kernel and these values have minus zero. Its native CPU library finds the absmax of a
row by the row's number of blocks and is wrong where in-features are no multiple of the block, so the comparison
decodes the flat tensor as one row. Its int8 path multiplies by f32(1/127); these values divide by 127, so the
comparison allows 2 units in the last place. Needs torch and bitsandbytes (made with 2.15 and 0.50.2), safetensors.
"""
import json
import sys
import zlib
from pathlib import Path

import bitsandbytes as bnb
import bitsandbytes.functional as F
import numpy as np
import torch
from safetensors.torch import save_file

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 48, "intermediate_size": 80,
          "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
          "vocab_size": 61, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
          "hidden_act": "silu", "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1,
          "torch_dtype": "bfloat16"}
SHAPES = {"self_attn.q_proj": (48, 48), "self_attn.k_proj": (16, 48), "self_attn.v_proj": (16, 48),
          "self_attn.o_proj": (48, 48), "mlp.gate_proj": (80, 48), "mlp.up_proj": (80, 48), "mlp.down_proj": (48, 80)}
# type, block, nested: q, k, v, o, gate, up, down
MIXED = [("nf4", 32, False), ("fp4", 128, True), ("nf4", 4096, False), ("fp4", 256, False), ("nf4", 512, True),
         ("fp4", 32, True), ("nf4", 1024, False)]
STORAGE = {"uint8": torch.uint8, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def plain_weights():
    torch.manual_seed(20)
    def draw(*shape):
        return (torch.randn(*shape) * 0.15).to(torch.bfloat16)
    weights = {"model.embed_tokens.weight": draw(61, 48), "model.norm.weight": 1 + draw(48)}
    for name in ("input_layernorm", "post_attention_layernorm"):
        weights[f"model.layers.0.{name}.weight"] = 1 + draw(48)
    linear = {f"model.layers.0.{name}": draw(*shape) for name, shape in SHAPES.items()}
    return weights, linear


def pack4(weight, kind, block, nested, storage):
    layer = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, quant_type=kind,
                              compress_statistics=nested, quant_storage=storage)
    layer.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type=kind, blocksize=block,
                                     compress_statistics=nested, quant_storage=storage)
    layer = layer.to("cpu")
    return layer.state_dict(), layer.weight


def decode4(state, parameter, kind, block):
    """f32(table[code] * absmax), absmax = f32(f32(map[q] * nested) + offset)"""
    key = f"weight.quant_state.bitsandbytes__{kind}"
    about = json.loads(bytes(state[key].tolist()))
    table = state["weight.quant_map"].numpy().copy()
    if kind == "fp4":
        assert table[8] == 0
        table[8] = -0.0
    packed = state["weight"].contiguous().view(torch.uint8).numpy().reshape(-1)
    n = about["shape"][0] * about["shape"][1]
    code = np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:n]
    absmax = state["weight.absmax"].numpy()
    if "nested_offset" in about:
        nested = state["weight.nested_absmax"].numpy()[np.arange(absmax.size) // 256]
        absmax = state["weight.nested_quant_map"].numpy()[absmax] * nested + np.float32(about["nested_offset"])
    value = table[code] * absmax[np.arange(n) // block]
    assert value.dtype == np.float32
    flat = F.QuantState(absmax=torch.from_numpy(absmax.copy()), shape=torch.Size([1, n]),
                        code=state["weight.quant_map"], blocksize=block, quant_type=kind, dtype=torch.float32)
    peer = F.dequantize_4bit(torch.from_numpy(packed.copy()).reshape(-1, 1), flat).numpy().reshape(-1)
    assert (peer == value).all(), (kind, block, np.abs(peer - value).max())
    return value


def pack8(weight):
    layer = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weight.to(torch.float16), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    state = layer.state_dict()
    code, scb = state["weight"].numpy(), state["SCB"].numpy()
    value = code.astype(np.float32) * scb[:, None] / np.float32(127)
    peer = F.int8_vectorwise_dequant(state["weight"], state["SCB"]).numpy()
    assert value.dtype == np.float32 and (np.abs(peer - value) <= 2 * np.spacing(np.abs(value))).all()
    return state, value


def main(out):
    rest, linear = plain_weights()
    lines = []

    def save(name, tensors, about):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        config = dict(CONFIG, quantization_config=dict(about, quant_method="bitsandbytes")) if about else CONFIG
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({k: v.contiguous() for k, v in {**rest, **tensors}.items()}, folder / "model.safetensors",
                  {"format": "pt"})

    def save4(name, choices, storage):
        tensors = {}
        for (path, weight), (kind, block, nested) in zip(linear.items(), choices):
            state, parameter = pack4(weight, kind, block, nested, STORAGE[storage])
            lines.append(f"{name} {path}.weight {zlib.crc32(decode4(state, parameter, kind, block).tobytes()):08x}")
            tensors.update({f"{path}.{key}": value for key, value in state.items()})
        save(name, tensors, {"load_in_4bit": True, "bnb_4bit_quant_type": choices[0][0],
                             "bnb_4bit_use_double_quant": choices[0][2], "bnb_4bit_quant_storage": storage})

    save("plain", {f"{k}.weight": v for k, v in linear.items()}, None)
    save4("nf4", [("nf4", 64, False)] * 7, "uint8")
    for storage in STORAGE:
        save4(f"double_{storage}", [("nf4", 64, True)] * 7, storage)
    save4("mixed", MIXED, "uint8")
    tensors = {}
    for path, weight in linear.items():
        state, value = pack8(weight)
        lines.append(f"int8 {path}.weight {zlib.crc32(value.tobytes()):08x}")
        tensors.update({f"{path}.{key}": v for key, v in state.items()})
    save("int8", tensors, {"load_in_8bit": True})
    (out / "values.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

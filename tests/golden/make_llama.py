#!/usr/bin/env python3
"""Golden values of the Llama family: what transformers + peft compute in float64.

    python3 tests/golden/make_llama.py OUTDIR        (normally tests/golden/llama)

Every case is one file CASE.golden: a text header (`key value` lines, `tensor NAME DTYPE NUMEL OFFSET` lines, `end`),
then the tensors, little-endian. Weights are not stored: both sides draw them from Philox4x32-10 (see `weight`), as
values of 8 significant bits, so they are exact in bf16 and f32. Gradients are stored in f32, everything else in f64.

The model runs in float64 with attention by scaled_dot_product_attention; two places of transformers that go through
float32 whatever the model's dtype are replaced by the same formula in float64 (RMSNorm). The rotary tables are left
alone: transformers computes angles in float32, and that is the definition of the model.
"""
import math
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

SEED = 0x5EED0123456789AB
PURPOSE_DROPOUT, PURPOSE_TEST = 2, 5
MICRO_BATCHES, SEQUENCES = 4, 2
STEPS, LR, CLIP, DECAY = 20, 5e-3, 1.0, 0.01
LORA_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# ---- random numbers, the same as src/core/rng.h --------------------------------------------------------------------
def philox(numel, purpose, layer, index):
    quads = np.arange((numel + 3) // 4, dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    c0, c1 = quads & mask, quads >> np.uint64(32)
    c2 = np.full_like(quads, index & 0xFFFFFFFF)
    c3 = np.full_like(quads, (purpose << 24 | (layer & 0xFFFFFF)) & 0xFFFFFFFF)
    k0, k1 = SEED & 0xFFFFFFFF, SEED >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = ((p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & mask,
                          (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & mask)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).reshape(-1)[:numel].astype(np.uint32)


def fnv1a(text):
    h = 0x811C9DC5
    for byte in text.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h


def weight(name, shape):
    """Odd multiples of 2^-8 in (-1, 1), times a power of two; norms and magnitudes are 1 + j/128, |j| <= 32."""
    numel = int(np.prod(shape))
    byte = (philox(numel, PURPOSE_TEST, fnv1a(name) & 0xFFFFFF, 0) >> 24).astype(np.float64)
    if name.endswith(("norm.weight", ".lora_magnitude_vector")):
        value = 1.0 + (np.floor(byte / 4) - 32) / 128
    else:
        value = (2 * byte - 255) / 256 * (0.125 if name.endswith(".bias") else 0.25)
    return value.reshape(shape).astype(np.float32)


# ---- batches ---------------------------------------------------------------------------------------------------------
def batches(case):
    """Packed documents: block-diagonal attention, restarted positions, no label across documents, masked prompts."""
    rows = SEQUENCES * case["sequence"]
    out = []
    for m in range(MICRO_BATCHES):
        draw = philox(4 * rows, PURPOSE_TEST, 0xBA7C4, m).astype(np.int64)
        tokens = (draw[:rows] % case["vocab"]).astype(np.int32)
        doc_start, positions, labels = (np.zeros(rows, np.int32) for _ in range(3))
        row = document = 0
        while row < rows:
            sequence_end = (row // case["sequence"] + 1) * case["sequence"]
            length = 3 + int(draw[rows + document] % 14)
            end = sequence_end if case.get("one_document") else min(row + length, sequence_end)
            # Micro-batch 0 keeps every prompt, the others mask a growing part: unequal numbers of loss tokens.
            prompt = 0 if m == 0 else (end - row) * m // 4 + (2 if document % 2 else 0)
            for i in range(row, end):
                doc_start[i], positions[i] = row, i - row
                labels[i] = tokens[i + 1] if i + 1 < end and i - row + 1 >= prompt else -1
            row, document = end, document + 1
        if m == 1:
            labels[:rows * 3 // 4] = -1  # a whole chunk of the loss head without labels
        out.append({"tokens": tokens, "labels": labels, "positions": positions, "doc_start": doc_start})
    return out


def mask_of(batch, case, window, dtype):
    """Additive [B, 1, S, S] mask, and the same rule that kernels/attention.h states."""
    s = case["sequence"]
    rows = np.arange(SEQUENCES * s)
    first = batch["doc_start"].copy()
    if window:
        first = np.maximum(first, rows - window + 1)
    sees = (rows[None, :] <= rows[:, None]) & (rows[None, :] >= first[:, None])
    mask = np.where(sees, 0.0, -np.inf)
    blocks = [mask[b * s:(b + 1) * s, b * s:(b + 1) * s] for b in range(SEQUENCES)]
    return torch.tensor(np.stack(blocks)[:, None], dtype=dtype)


# ---- models ----------------------------------------------------------------------------------------------------------
COMMON = dict(num_hidden_layers=2, rms_norm_eps=1e-5, hidden_act="silu", attention_dropout=0.0, use_cache=False,
              max_position_embeddings=512, pad_token_id=None, bos_token_id=1, eos_token_id=2)


def rope(theta, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


CASES = {
    "llama_untied": dict(cls=(LlamaConfig, LlamaForCausalLM), vocab=96, sequence=24, rank=4, alpha=8, lora_head=True,
                         config=dict(hidden_size=32, intermediate_size=48, num_attention_heads=4,
                                     num_key_value_heads=4, tie_word_embeddings=False, rope_parameters=rope(1e4))),
    "llama3_tied": dict(cls=(LlamaConfig, LlamaForCausalLM), vocab=89, sequence=23, rank=4, alpha=6, lora_head=False,
                        config=dict(hidden_size=64, intermediate_size=40, num_attention_heads=4,
                                    num_key_value_heads=2, tie_word_embeddings=True,
                                    rope_parameters=rope(1e4, rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                                         high_freq_factor=4.0,
                                                         original_max_position_embeddings=256))),
    "llama_linear_bias": dict(cls=(LlamaConfig, LlamaForCausalLM), vocab=96, sequence=24, rank=3, alpha=3,
                              lora_head=False,
                              config=dict(hidden_size=32, intermediate_size=44, num_attention_heads=2,
                                          num_key_value_heads=1, attention_bias=True, mlp_bias=True,
                                          tie_word_embeddings=False,
                                          rope_parameters=rope(1e4, rope_type="linear", factor=2.5))),
    "llama_yarn": dict(cls=(LlamaConfig, LlamaForCausalLM), vocab=89, sequence=23, rank=4, alpha=8, lora_head=False,
                       config=dict(hidden_size=32, intermediate_size=40, num_attention_heads=2, num_key_value_heads=1,
                                   tie_word_embeddings=False,
                                   rope_parameters=rope(1e4, rope_type="yarn", factor=4.0, beta_fast=16.0,
                                                        beta_slow=1.0, original_max_position_embeddings=64))),
    "mistral": dict(cls=(MistralConfig, MistralForCausalLM), vocab=80, sequence=24, rank=4, alpha=8, lora_head=False,
                    window=5, one_document=False,
                    config=dict(hidden_size=48, intermediate_size=40, num_attention_heads=6, num_key_value_heads=2,
                                head_dim=8, sliding_window=5, tie_word_embeddings=False, rope_parameters=rope(1e4))),
    "qwen2": dict(cls=(Qwen2Config, Qwen2ForCausalLM), vocab=96, sequence=24, rank=4, alpha=8, lora_head=True,
                  window=4, sliding=[False, True], dropout=0.25,
                  config=dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
                              tie_word_embeddings=True, use_sliding_window=True, sliding_window=4,
                              max_window_layers=1, rope_parameters=rope(1e6))),
    "qwen3": dict(cls=(Qwen3Config, Qwen3ForCausalLM), vocab=96, sequence=24, rank=5, alpha=10, lora_head=False,
                  one_document=True,
                  config=dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
                              head_dim=16, tie_word_embeddings=False, rope_parameters=rope(1e6))),
    "qwen2_full": dict(cls=(Qwen2Config, Qwen2ForCausalLM), vocab=64, sequence=24, rank=0, alpha=0,
                       config=dict(hidden_size=32, intermediate_size=40, num_attention_heads=4,
                                   num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=rope(1e4))),
    "qwen3_full": dict(cls=(Qwen3Config, Qwen3ForCausalLM), vocab=64, sequence=24, rank=0, alpha=0,
                       config=dict(hidden_size=24, intermediate_size=32, num_attention_heads=3,
                                   num_key_value_heads=1, head_dim=10, attention_bias=True,
                                   tie_word_embeddings=False, rope_parameters=rope(1e4))),
    "llama_nf4": dict(cls=(LlamaConfig, LlamaForCausalLM), vocab=96, sequence=24, rank=4, alpha=8, lora_head=False,
                      nf4=True,
                      config=dict(hidden_size=32, intermediate_size=44, num_attention_heads=4, num_key_value_heads=2,
                                  tie_word_embeddings=False, rope_parameters=rope(1e4))),
}


def rms_forward(self, x):
    wide = x if x.dtype == torch.float64 else x.float()
    n = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * n.to(x.dtype)


# Table and thresholds of bitsandbytes as f32 bit patterns.
NF4_TABLE = np.array([0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F, 0xBDBA7871, 0,
                      0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A, 0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3,
                      0x3F800000], np.uint32).view(np.float32)
NF4_THRESHOLD = np.array([0xBF591CD9, 0xBF1C5270, 0xBEEB8480, 0xBEADEA76, 0xBE703CEC, 0xBE0D38BC, 0xBD3A7871,
                          0x3D22FAFF, 0x3DF64863, 0x3E5067E0, 0x3E9582D4, 0x3EC753F9, 0x3F006D03, 0x3F248DAF,
                          0x3F5C89D9], np.uint32).view(np.float32)


def through_nf4(w, block=64):
    flat = w.reshape(-1).astype(np.float32)
    out = np.empty_like(flat)
    for lo in range(0, flat.size, block):
        x = flat[lo:lo + block]
        absmax = np.abs(x).max()
        u = x * (np.float32(1) / absmax)
        out[lo:lo + block] = NF4_TABLE[(u[:, None] > NF4_THRESHOLD[None]).sum(1)] * absmax
    return out.reshape(w.shape)


class PhiloxDropout(torch.nn.Module):
    """The mask of kernels/elementwise.h instead of torch's generator; off in eval mode as nn.Dropout is."""
    micro_batch = 0

    def __init__(self, p, adapter):
        super().__init__()
        self.p, self.adapter = p, adapter

    def forward(self, x):
        if not self.training:
            return x
        word = philox(x.numel(), PURPOSE_DROPOUT, self.adapter, PhiloxDropout.micro_batch)
        keep = torch.tensor(word >= np.uint32(int(self.p * 2**32))).reshape(x.shape)
        return torch.where(keep, x / (1 - self.p), torch.zeros_like(x))


def adapter_order(name, tied):
    """Registration order of the C side: a tied head stands in the first unit, else in the last."""
    if "lm_head" in name:
        return (-1,) if tied else (1 << 20,)
    return (int(name.split("layers.")[1].split(".")[0]), LORA_ALL.index(name.split(".")[-1]))


def build(case):
    config_cls, model_cls = case["cls"]
    config = config_cls(**COMMON, vocab_size=case["vocab"], **case["config"])
    config._attn_implementation = "sdpa"
    model = model_cls(config).double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            type(module).forward = rms_forward
    tied = config.tie_word_embeddings
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = weight(name, tuple(p.shape))
            if case.get("nf4") and name.endswith("_proj.weight"):
                value = through_nf4(value)
            p.copy_(torch.tensor(value, dtype=torch.float64))
    if case["rank"] == 0:
        return config, model, model
    targets = LORA_ALL + (["lm_head"] if case["lora_head"] else [])
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=case["rank"], lora_alpha=case["alpha"], lora_dropout=0.0,
                                                         target_modules=targets)).double()
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if p.requires_grad:
                p.copy_(torch.tensor(weight(public_name(name), tuple(p.shape)), dtype=torch.float64))
    layers = {n: m for n, m in wrapped.named_modules() if hasattr(m, "lora_dropout")}
    for number, name in enumerate(sorted(layers, key=lambda n: adapter_order(n, tied))):
        if case.get("dropout"):
            layers[name].lora_dropout["default"] = PhiloxDropout(case["dropout"], number)
    return config, wrapped, model


def public_name(name):
    return name.replace("base_model.model.", "").replace(".default.", ".").replace(".base_layer.", ".")


def logits_of(model, config, case, batch):
    s = case["sequence"]
    shape = (SEQUENCES, s)
    dtype = next(model.parameters()).dtype
    full, slid = mask_of(batch, case, 0, dtype), mask_of(batch, case, case.get("window", 0), dtype)
    sliding = case.get("sliding", [bool(case.get("window"))] * 2)
    mask = {"full_attention": full, "sliding_attention": slid} if config.model_type in ("qwen2", "qwen3") else (
        slid if all(sliding) else full)
    ids = torch.tensor(batch["tokens"].reshape(shape), dtype=torch.long)
    positions = torch.tensor(batch["positions"].reshape(shape), dtype=torch.long)
    return model(input_ids=ids, position_ids=positions, attention_mask=mask).logits.reshape(-1, case["vocab"])


def check_mask(model, config, case):
    """One document, no explicit mask: transformers' own masking must agree with ours."""
    whole = dict(case, one_document=True)
    batch = batches(whole)[0]
    with torch.no_grad():
        ours = logits_of(model, config, whole, batch)
        ids = torch.tensor(batch["tokens"].reshape(SEQUENCES, -1), dtype=torch.long)
        theirs = model(input_ids=ids).logits.reshape(-1, case["vocab"])
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-11), (ours - theirs).abs().max()


def loss_of(model, config, case, micro_batches, numbers):
    total = sum(int((b["labels"] >= 0).sum()) for b in micro_batches)
    sums = []
    for batch, number in zip(micro_batches, numbers):
        PhiloxDropout.micro_batch = number
        labels = torch.tensor(batch["labels"], dtype=torch.long)
        logits = logits_of(model, config, case, batch)
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        sums.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum"))
    return sum(sums) / total, sums


def peer_bf16(case, data, exact):
    """How far transformers + peft themselves are from float64 when they compute in bf16: worst gradient tensor."""
    config, model, _ = build(case)
    model = model.bfloat16().train()
    loss_of(model, config, case, data[:2], [0, 1])[0].backward()
    worst = 0.0
    for n, p in model.named_parameters():
        if p.requires_grad:
            ref = exact["grad." + public_name(n)].astype(np.float64)
            worst = max(worst, float(np.linalg.norm(p.grad.double().numpy() - ref) / np.linalg.norm(ref)))
    return worst


# ---- files -----------------------------------------------------------------------------------------------------------
def write(path, keys, tensors):
    header, blob = ["tess-golden 1"], b""
    header += [f"{k} {v}" for k, v in keys.items()]
    for name, array in tensors.items():
        dtype = {"float64": "f64", "float32": "f32", "int32": "i32", "uint8": "u8"}[str(array.dtype)]
        blob += b"\0" * (-len(blob) % 8)
        header.append(f"tensor {name} {dtype} {array.size} {len(blob)}")
        blob += np.ascontiguousarray(array).tobytes()
    text = "\n".join(header + ["end"]) + "\n"
    path.write_bytes((text + " " * (-len(text) % 8)).encode() + blob)


def config_keys(config, case):
    r = config.rope_parameters
    sliding = case.get("sliding", [bool(case.get("window"))] * 2)
    bias = lambda m: int(m.bias is not None)  # noqa: E731
    yarn = {} if r["rope_type"] != "yarn" else {
        "rope_attention": 0.1 * math.log(r["factor"]) + 1.0, "rope_fast": r["beta_fast"], "rope_slow": r["beta_slow"]}
    model = case["cls"][1](config)
    at, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    return {
        "model_type": config.model_type, "hidden": config.hidden_size, "intermediate": config.intermediate_size,
        "layers": config.num_hidden_layers, "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads, "head_dim": at.head_dim, "vocab": config.vocab_size,
        "rms_eps": config.rms_norm_eps, "rope_type": r["rope_type"], "rope_theta": r["rope_theta"],
        "rope_factor": r.get("factor", 1.0), "rope_low": r.get("low_freq_factor", 0),
        "rope_high": r.get("high_freq_factor", 0), "rope_original": r.get("original_max_position_embeddings", 0),
        **yarn,
        "tied": int(config.tie_word_embeddings), "q_bias": bias(at.q_proj), "k_bias": bias(at.k_proj),
        "v_bias": bias(at.v_proj), "o_bias": bias(at.o_proj), "mlp_bias": bias(mlp.down_proj),
        "qk_norm": int(hasattr(at, "q_norm")), "window": case.get("window", 0),
        "sliding0": int(sliding[0]), "sliding1": int(sliding[1]),
    }


def run(name, case, outdir, more=None):
    torch.manual_seed(0)
    config, model, base = build(case)
    model.eval()
    check_mask(model, config, case)
    data = batches(case)
    tensors = {}
    for key in ("tokens", "labels", "positions", "doc_start"):
        tensors["batch." + key] = np.stack([b[key] for b in data])
    rows = SEQUENCES * case["sequence"]
    picked = [1, rows // 2 - 1, rows - 2]
    with torch.no_grad():
        tensors["logits"] = logits_of(model, config, case, data[0])[picked].numpy()
        tensors["eval_loss_sums"] = np.array([float(loss_of(model, config, case, [b], [0])[1][0]) for b in data])
    tensors["logits_rows"] = np.array(picked, np.int32)
    # Gradients of the first step: micro-batches 0 and 1.
    model.train()
    loss, sums = loss_of(model, config, case, data[:2], [0, 1])
    loss.backward()
    tensors["loss_sums"] = np.array([float(s.detach()) for s in sums])
    trainable = {public_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    for n, p in trainable.items():
        tensors["grad." + n] = p.grad.numpy().astype(np.float32)
    peer = peer_bf16(case, data, tensors)
    # Loss curve: step k takes micro-batches 2k, 2k+1 (mod 4) under the numbers 2k, 2k+1.
    model.zero_grad()
    decayed = [p for p in trainable.values() if p.dim() > 1]
    plain = [p for p in trainable.values() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}],
                                  lr=LR, betas=(0.9, 0.999), eps=1e-8)
    curve, norms = [], []
    for step in range(STEPS):
        numbers = [2 * step, 2 * step + 1]
        loss, _ = loss_of(model, config, case, [data[k % MICRO_BATCHES] for k in numbers], numbers)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(trainable.values()), CLIP)))
        optimizer.step()
        curve.append(float(loss.detach()))
    tensors["curve"], tensors["norms"] = np.array(curve), np.array(norms)
    config.architectures = [case["cls"][1].__name__]
    tensors["config.json"] = np.frombuffer(config.to_json_string(use_diff=True).encode(), np.uint8)
    tensors.update(more or {})
    keys = config_keys(config, case)
    keys.update(sequence=case["sequence"], sequences=SEQUENCES, micro_batches=MICRO_BATCHES, lora_rank=case["rank"],
                lora_alpha=case["alpha"], lora_head=int(case.get("lora_head", False)), full=int(case["rank"] == 0),
                nf4=int(case.get("nf4", False)), dropout=case.get("dropout", 0.0), seed=SEED, lr=LR, clip=CLIP,
                decay=DECAY, bf16_peer=peer, torch=torch.__version__.split("+")[0], transformers=transformers.__version__,
                peft=peft.__version__, numpy=np.__version__)
    write(outdir / f"{name}.golden", keys, tensors)
    size = (outdir / f"{name}.golden").stat().st_size
    print(f"{name}: {size} bytes, loss {curve[0]:.4f} -> {curve[-2]:.4f}/{curve[-1]:.4f}, norms {norms[0]:.2f}..{norms[-1]:.2f}, "
          f"bf16 peer {peer:.2e}")


if __name__ == "__main__":
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for case_name, case_value in CASES.items():
        run(case_name, case_value, target)

#!/usr/bin/env python3
"""Tiny models as GGUF files, and what transformers computes with their dequantized weights.

    python make_gguf.py OUTDIR        (normally tests/golden/gguf)

Weights are Gaussian; q and k of architecture llama are permuted as llama.cpp's converter does it
(convert_hf_to_gguf.py, LlamaModel.permute). NAME.gguf has tensors of many types; types that the
gguf package cannot quantize to get random valid blocks. NAME.txt lists the dequantized tensors in
the order and under the names of Hugging Face (CRC-32 of their f32 bytes), and the mean loss over
four documents of 32 tokens in float64.
Needs gguf (made with 0.19.0), torch and transformers (made with 5.23); no GPU.
"""
import sys
import zlib
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from transformers import (LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)

Q = gguf.GGMLQuantizationType
F32, F16, BF16 = Q.F32, Q.F16, Q.BF16
VOCAB = 61

SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, vocab_size=VOCAB, rms_norm_eps=1e-5,
             max_position_embeddings=512, bos_token_id=0, eos_token_id=1)
WIDE = dict(SMALL, hidden_size=256, intermediate_size=256, num_hidden_layers=1)

# Types of a layer's matrices: q, k, v, o, gate, up, down; then the embedding and the head.
CASES = {
    "llama": (LlamaConfig(**SMALL, rope_parameters={"rope_type": "default", "rope_theta": 5e5}), LlamaForCausalLM,
              [[Q.Q8_0, Q.Q4_0, Q.Q5_0, Q.Q5_1, Q.Q4_1, Q.Q8_0, Q.Q8_0],
               [F16, Q.Q8_0, BF16, Q.Q8_0, F32, Q.Q4_0, Q.Q5_0]], Q.Q8_0, Q.Q8_0),
    "llama_k": (LlamaConfig(**WIDE), LlamaForCausalLM,
                [[Q.Q4_K, Q.Q5_K, Q.Q3_K, Q.Q8_0, Q.Q4_K, Q.Q2_K, Q.Q6_K]], Q.Q4_K, Q.Q6_K),
    "qwen2": (Qwen2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}, tie_word_embeddings=True),
              Qwen2ForCausalLM, [[Q.Q8_0] * 7, [Q.Q4_0] * 7], F16, None),
    "qwen3": (Qwen3Config(**dict(SMALL, num_hidden_layers=1, head_dim=32), tie_word_embeddings=True),
              Qwen3ForCausalLM, [[Q.Q8_0] * 7], Q.Q8_0, None),
}
PARTS = [("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
         ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
         ("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
         ("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm")]
SCALES = {Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,)}
# Scales that give weights of about 0.05.
SCALE_OF = {Q.Q2_K: 0.004, Q.Q3_K: 0.001, Q.Q4_K: 0.0002, Q.Q5_K: 0.0001, Q.Q6_K: 0.00004}


def permute(w, heads):
    """llama.cpp convert_hf_to_gguf.py, LlamaModel.permute"""
    return (w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def unpermute(w, heads):
    return (w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def random_blocks(shape, qtype, rng):
    numel, nbytes = gguf.GGML_QUANT_SIZES[qtype]
    raw = rng.integers(0, 256, (int(np.prod(shape)) // numel, nbytes), dtype=np.uint8)
    for at in SCALES[qtype]:
        d = (rng.uniform(0.5, 1.0, len(raw)) * SCALE_OF[qtype]).astype(np.float16)
        raw[:, at:at + 2] = d.view(np.uint8).reshape(-1, 2)
    return raw.reshape(shape[0], -1)


def store(w, qtype, rng):
    """What the file holds, and its values in f32."""
    if qtype == F32:
        return w, w
    if qtype == F16:
        return w.astype(np.float16), w.astype(np.float16).astype(np.float32)
    raw = random_blocks(w.shape, qtype, rng) if qtype in SCALES else quantize(w, qtype)
    return raw, dequantize(raw, qtype).reshape(w.shape).astype(np.float32)


def names_of(config):
    out = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for n in range(config.num_hidden_layers):
        out.update({f"model.layers.{n}.{hf}": f"blk.{n}.{g}" for hf, g in PARTS})
    return out


def type_of(g, w, types, embedding, head):
    if w.ndim == 1:
        return F32
    if g.startswith(("token_embd", "output.")):
        return embedding if g.startswith("token_embd") else head
    _, n, part = g.split(".")[:3]
    return types[int(n)][[p[1] for p in PARTS].index(part)]


def documents():
    out = np.zeros((4, 32), dtype=np.int64)
    for d in range(4):
        out[d, 0] = 5 * d + 2
        for i in range(1, 32):
            out[d, i] = (out[d, i - 1] * 7 + 3 + (i % 5 == 0) * d) % VOCAB
    return torch.tensor(out)


def add_config(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_token_list([f"<{i}>" for i in range(VOCAB)])
    writer.add_bool("tessera.test", True)


def make(name, out):
    config, cls, types, embedding, head = CASES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    torch.manual_seed(1)
    model = cls(config).double().eval()
    state = model.state_dict()
    arch = name.split("_")[0]
    writer = gguf.GGUFWriter(out / f"{name}.gguf", arch)
    add_config(writer, config)
    names = names_of(config)
    lines = []
    for full, tensor in state.items():
        module, suffix = full.rsplit(".", 1)
        if full == "lm_head.weight" and config.tie_word_embeddings:
            continue
        g = f"{names[module]}.{suffix}"
        w = rng.normal(0, 0.08, tuple(tensor.shape)).astype(np.float32)
        if "norm" in full:
            w = (1 + w).astype(np.float32)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(names[module].split(".")[-1])
        turned = arch == "llama" and heads is not None
        qtype = type_of(g, w, types, embedding, head)
        raw, value = store(permute(w, heads) if turned else w, qtype, rng)
        writer.add_tensor(g, raw, raw_dtype=None if qtype in (F32, F16) else qtype)
        value = unpermute(value, heads) if turned else value
        state[full] = torch.tensor(value).double()
        lines.append(f"tensor {full} {qtype.name.lower()} {zlib.crc32(np.ascontiguousarray(value).tobytes()):08x}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(state)
    model.tie_weights()
    tokens = documents()
    with torch.no_grad():
        logits = model(tokens).logits.double()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))
    lines.append(f"loss {loss.item():.9f}")
    (out / f"{name}.txt").write_text("\n".join(["# made by make_gguf.py with gguf 0.19.0"] + lines) + "\n")


if __name__ == "__main__":
    for case in CASES:
        make(case, Path(sys.argv[1]))

#!/usr/bin/env python3
"""Golden values of LoRA variants on the Llama family: what transformers + peft compute in float64.

    python3 tests/golden/make_lora.py OUTDIR        (normally tests/golden/lora)

Files, weights, batches and the float64 patches are those of make_llama.py; a case has the options of peft's LoraConfig,
and its file the adapter_config.json that peft writes. Magnitudes of DoRA are drawn as norm weights are.
"""
import json
import sys
import tempfile
from pathlib import Path

import make_llama as llama
import numpy as np
import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

ALL = llama.LORA_ALL
SMALL = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
             tie_word_embeddings=False, rope_parameters=llama.rope(1e4))
BIASED = dict(SMALL, attention_bias=True, mlp_bias=True)
COMMON = dict(cls=(LlamaConfig, LlamaForCausalLM), vocab=96, sequence=24, rank=4, alpha=8, lora_head=False)

CASES = {
    "patterns": dict(COMMON, config=SMALL,
                     lora=dict(use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"],
                               rank_pattern={"down_proj": 6, "layers.1.self_attn.q_proj": 2},
                               alpha_pattern={"v_proj": 3.5, "lm_head": 2})),
    "layers": dict(COMMON, config=SMALL,
                   lora=dict(target_modules=["q_proj", "k_proj", "gate_proj", "model.layers.0.mlp.up_proj"],
                             layers_to_transform=[1], layers_pattern=["layers"])),
    "saved": dict(COMMON, config=BIASED,
                  lora=dict(target_modules=["q_proj", "o_proj", "up_proj"],
                            modules_to_save=["norm", "v_proj", "embed_tokens", "lm_head", "1.mlp.down_proj"])),
    "dora": dict(COMMON, config=SMALL, lora=dict(use_dora=True, target_modules=ALL + ["lm_head"])),
    "dora_bias": dict(COMMON, config=BIASED, lora=dict(use_dora=True, use_rslora=True, target_modules=ALL)),
    "dora_dropout": dict(COMMON, config=BIASED, dropout=0.25, lora=dict(use_dora=True, target_modules=ALL)),
    "dora_nf4": dict(cls=(Qwen3Config, Qwen3ForCausalLM), vocab=96, sequence=24, rank=5, alpha=10, lora_head=False,
                     nf4=True, config=dict(SMALL, head_dim=16),
                     lora=dict(use_dora=True, target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
                               modules_to_save=["post_attention_layernorm", "o_proj"])),
}


def public_name(name):
    name = name.replace("base_model.model.", "").replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
    return name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector").replace(".default.", ".")


def build(case):
    config_cls, model_cls = case["cls"]
    config = config_cls(**llama.COMMON, vocab_size=case["vocab"], **case["config"])
    config._attn_implementation = "sdpa"
    model = model_cls(config).double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            type(module).forward = llama.rms_forward
    saved = case["lora"].get("modules_to_save", [])
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = llama.weight(name, tuple(p.shape))
            is_saved = any(name.rpartition(".")[0].endswith(s) for s in saved)
            if case.get("nf4") and name.endswith("_proj.weight") and not is_saved:
                value = llama.through_nf4(value)
            p.copy_(torch.tensor(value, dtype=torch.float64))
    lora = peft.LoraConfig(r=case["rank"], lora_alpha=case["alpha"], lora_dropout=0.0, task_type="CAUSAL_LM",
                           **case["lora"])
    wrapped = peft.get_peft_model(model, lora, autocast_adapter_dtype=False).double()
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if p.requires_grad:
                p.copy_(torch.tensor(llama.weight(public_name(name), tuple(p.shape)), dtype=torch.float64))
    layers = {n: m for n, m in wrapped.named_modules() if hasattr(m, "lora_dropout")}
    for number, name in enumerate(sorted(layers, key=lambda n: llama.adapter_order(n, False))):
        if case.get("dropout"):
            layers[name].lora_dropout["default"] = llama.PhiloxDropout(case["dropout"], number)
    return config, wrapped, model


def config_text(wrapped):
    """adapter_config.json as peft writes it, without what differs from run to run."""
    with tempfile.TemporaryDirectory() as folder:
        wrapped.peft_config["default"].save_pretrained(folder)
        value = json.loads((Path(folder) / "adapter_config.json").read_text())
    for key in ("target_modules", "modules_to_save"):
        value[key] = sorted(value[key]) if value[key] else value[key]
    return json.dumps(value, sort_keys=True)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    llama.build, llama.public_name = build, public_name
    for case_name, case_value in CASES.items():
        torch.manual_seed(0)
        text = config_text(build(case_value)[1])
        llama.run(case_name, case_value, target,
                  {"adapter_config.json": np.frombuffer(text.encode(), np.uint8)})

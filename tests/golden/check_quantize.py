#!/usr/bin/env python3
"""Peers read what `tessera quantize` and `tessera merge` write.

    python check_quantize.py TESSERA > tests/golden/quantize_transcript.txt

Runs the program on tests/golden/bnb/plain and examples/base and loads its output in the peer it is for:
- transformers with bitsandbytes on a CPU (weights are decoded as one row: the native decoder is wrong where
  in-features are no multiple of the block);
- optimum-quanto's QuantizedModelForCausalLM;
- the gguf package, and llama.cpp through llama-cpp-python (left out, and said so, where it is not installed):
  ids of texts, logits of f32 weights beside those of transformers;
- peft, which merges the same adapter.
Exits 1 at the first difference. Needs torch, transformers, bitsandbytes, optimum-quanto, gguf, peft, safetensors.
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
import gguf
import numpy as np
import peft
import torch
import transformers
from optimum import quanto
from safetensors import safe_open
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parent
PLAIN = GOLDEN / "bnb" / "plain"
BASE = GOLDEN.parent.parent / "examples" / "base"
TEXTS = ["In the beginning God created the heaven and the earth.", "It's 2024-01-31, 12345 + 678 = ?",
         "  two  spaces,\ttabs\n\n\nand lines ", "na\u00efve caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 don't WON'T"]
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


def check_int8(program, work):
    out, wide = work / "int8", work / "int8-wide"
    tessera(program, "quantize", PLAIN, "-o", out, "--format", "int8", "--json")
    tessera(program, "quantize", out, "-o", wide, "--format", "f32", "--json")
    packed, plain = load(out), load_file(wide / "model.safetensors")
    numel = 0
    for name, module in packed.named_modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            value = module.weight.data.float() * module.weight.SCB[:, None] / 127
            require(torch.equal(value, plain[f"{name}.weight"]), f"int8: {name}")
            numel += 1
    require(numel == 7, f"int8: {numel} layers")
    print(f"int8: transformers loads {numel} Linear8bitLt, every value equal")


def check_quanto(program, work):
    for kind in ("qint8", "qint4", "qint2", "qfloat8", "qfloat8_e5m2"):
        out, wide = work / kind, work / f"{kind}-wide"
        tessera(program, "quantize", PLAIN, "-o", out, "--format", kind, "--json")
        tessera(program, "quantize", out, "-o", wide, "--format", "f32", "--json")
        model = quanto.QuantizedModelForCausalLM.from_pretrained(out)
        plain = load_file(wide / "model.safetensors")
        numel = 0
        for name, module in model._wrapped.named_modules():
            if isinstance(module, quanto.QLinear):
                value = module.weight.dequantize().float()
                require(torch.equal(value, plain[f"{name}.weight"]), f"{kind}: {name}")
                numel += 1
        require(numel == 7, f"{kind}: {numel} layers")
        print(f"{kind}: optimum-quanto loads {numel} QLinear, every value equal")


def hf_order(config, name, value):
    """Rows of q and k of architecture llama back in Hugging Face order."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    kind = name.split(".")[2] if name.startswith("blk.") else ""
    if kind not in heads:
        return value
    d = value.shape[0] // heads[kind]
    return value.reshape(heads[kind], d // 2, 2, -1).swapaxes(1, 2).reshape(value.shape)


def check_gguf(program, work):
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 5)
    config = transformers.AutoConfig.from_pretrained(BASE)
    source = load_file(BASE / "model.safetensors")
    for kind in ("q8_0", "q4_0", "f16", "bf16", "f32"):
        out = work / f"{kind}.gguf"
        report = tessera(program, "quantize", BASE, "-o", out, "--format", kind, "--json")
        reader = gguf.GGUFReader(out)
        error = {t["name"]: t["relative_rms"] for t in report["tensors"]}
        names = {mapping.get_name(n[:-7]): n for n in source}
        for t in reader.tensors:
            name = names[t.name.removesuffix(".weight")]
            value = hf_order(config, t.name, gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64))
            want = source[name].double().numpy()
            found = np.sqrt(((value - want) ** 2).sum() / (want ** 2).sum())
            require(abs(found - error[name]) < 1e-9, f"{kind}: {name}: {found} for {error[name]}")
        print(f"{kind}: gguf reads {len(reader.tensors)} tensors, each as far from its source as reported")


def logits_of(path, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model(torch.tensor([ids])).logits[0].detach().numpy()


def check_llama_cpp(program, work):
    try:
        import llama_cpp
    except ImportError:
        print("llama.cpp: skipped, llama-cpp-python is not installed")
        return
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(BASE / "tokenizer.json"))
    open_ = {"verbose": False, "logits_all": True, "n_ctx": 128, "type_k": 0, "type_v": 0, "flash_attn": False}
    # the embedding too: for bf16 weights llama.cpp rounds activations to bf16
    tessera(program, "quantize", BASE, "-o", work / "all.gguf", "--format", "f32", "--override", ".*=f32", "--json")
    llm = llama_cpp.Llama(str(work / "all.gguf"), **open_)
    for text in TEXTS:
        ids, want = llm.tokenize(text.encode(), add_bos=True), tokenizer.encode(text)
        require(ids == want, f"llama.cpp: ids of {text!r}: {ids} for {want}")
    print(f"llama.cpp {llama_cpp.__version__}: ids of {len(TEXTS)} texts equal tokenizers'")
    ids = tokenizer.encode(TEXTS[0])
    llm.eval(ids)
    want = logits_of(BASE, ids)
    apart = np.abs(llm.scores[:len(ids)] - want).max() / np.abs(want).max()
    # f32 sums of at most 704 terms in another order, 5 layers of 7 products: 35 * sqrt(704) * 2^-24
    require(apart < 6e-5, f"llama.cpp: logits differ by {apart}")
    print(f"llama.cpp: logits of f32 weights within {apart:.0e} of the largest of transformers")


def make_adapter(work, is_dora):
    """Scales by every rule; with DoRA magnitudes that moved, and a norm that was trained whole."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    options = peft.LoraConfig(r=8, lora_alpha=12, target_modules=["q_proj", "k_proj", "down_proj"], use_rslora=True,
                              rank_pattern={"down_proj": 4}, alpha_pattern={"k_proj": 5}, use_dora=is_dora,
                              modules_to_save=["model.norm"] if is_dora else None)
    adapted = peft.get_peft_model(model, options)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
        if "magnitude" in name or "modules_to_save" in name:
            parameter.data.mul_(1 + 0.1 * torch.rand_like(parameter))
    shutil.rmtree(work / "adapter", ignore_errors=True)
    adapted.save_pretrained(work / "adapter")
    return adapted


def llama_logits(path, ids, lora=None):
    import llama_cpp
    llm = llama_cpp.Llama(str(path), lora_path=lora, verbose=False, logits_all=True, n_ctx=128, type_k=0, type_v=0,
                          flash_attn=False)
    llm.eval(ids)
    return np.array(llm.scores[:len(ids)])


def check_llama_cpp_adapter(program, work):
    """A GGUF base with a GGUF adapter in llama.cpp, beside peft over the same weights."""
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        print("llama.cpp: adapters skipped, llama-cpp-python is not installed")
        return
    ids = transformers.PreTrainedTokenizerFast(tokenizer_file=str(BASE / "tokenizer.json")).encode(TEXTS[0])
    adapted = make_adapter(work, False)
    with torch.no_grad():
        want = adapted(torch.tensor([ids])).logits[0].numpy()
    alone = logits_of(BASE, ids)
    size, shift = np.abs(want).max(), np.abs(want - alone).max()
    done = subprocess.run([program, "export", work / "adapter", "--format", "gguf", "--base", BASE, "--dtype", "f32",
                           "-o", work / "lora"], capture_output=True, text=True)
    require(done.returncode == 0, f"export: {done.stderr}")
    lora = str(work / "lora" / "adapter.gguf")
    apart = np.abs(llama_logits(work / "all.gguf", ids, lora) - want).max()
    require(shift > 0.05 * size, f"the adapter moves logits by {shift / size} of the largest only")
    # as for the base alone; A and B add two products to each of seven
    require(apart < 1.2e-4 * size, f"llama.cpp: logits with the adapter differ by {apart / size}")
    print(f"llama.cpp: f32 base with the GGUF adapter within {apart / size:.0e} of the largest of peft, which the "
          f"adapter moves by {shift / size:.1e}")
    tessera(program, "quantize", BASE, "-o", work / "eight.gguf", "--format", "q8_0", "--json")
    moved = llama_logits(work / "eight.gguf", ids, lora) - llama_logits(work / "eight.gguf", ids)
    # llama.cpp multiplies Q8_0 by activations in 8 bits, with and without the adapter: what it moves must agree
    apart = np.abs(moved - (want - alone)).max() / shift
    require(apart < 0.2, f"llama.cpp: over q8_0 the adapter moves logits otherwise, by {apart} of the most")
    print(f"llama.cpp: over the q8_0 base it moves them alike within {apart:.0e} of the most")


def check_merge(program, work, is_dora):
    adapted = make_adapter(work, is_dora)
    what, out = "DoRA and a norm" if is_dora else "LoRA", work / f"merged-{is_dora}"
    report = tessera(program, "merge", BASE, work / "adapter", "-o", out, "--dtype", "f32", "--json")
    merged = adapted.merge_and_unload()
    ours = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    worst = 0.0
    for (name, a), (_, b) in zip(ours.named_parameters(), merged.named_parameters()):
        scale = b.detach().abs().max().item()
        apart = (a - b).abs().max().item() / scale
        # 8 products, a scale and a sum, each rounded to f32; with DoRA a norm (in f32 there: 704 terms) and a factor
        require(apart <= (19 + (30 if is_dora else 0)) * 2 ** -24, f"merge: {name}: {apart}")
        worst = max(worst, apart)
    print(f"merge of {what}: {len(report['layers'])} tensors within {worst:.0e} of peft's merge_and_unload in f32")


def check_merge_into(program, work):
    tessera(program, "merge", BASE, work / "adapter", "-o", work / "merged-nf4", "--into", "nf4", "--json")
    require(torch.isfinite(load(work / "merged-nf4")(TOKENS).logits).all(), "merge into nf4")
    print("merge: transformers loads the model merged into nf4")


def main(program):
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, bitsandbytes {bnb.__version__}, "
          f"optimum-quanto {quanto.__version__}, peft {peft.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        check_bnb4(program, work)
        check_load(program, work)
        check_int8(program, work)
        check_quanto(program, work)
        check_gguf(program, work)
        check_llama_cpp(program, work)
        check_llama_cpp_adapter(program, work)
        check_merge(program, work, False)
        check_merge(program, work, True)
        check_merge_into(program, work)


if __name__ == "__main__":
    main(sys.argv[1])

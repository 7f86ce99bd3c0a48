#!/usr/bin/env python3
"""Adapters that Tessera trains, in peft, and adapters that peft makes, in Tessera; not part of CI (it needs peft).

    python tools/check_adapters.py TESSERA        > tests/golden/lora/exchange.txt

A small Llama with untied head and biases is trained for a few steps with every kind of adapter, on the CPU in f32. What
is exported is loaded by peft and must give the loss that `tessera eval` gives; what peft makes must give that loss in
`tessera eval --adapter`. Starts from the weights are compared with numpy's SVD. Losses are means in f32 over the same
windows: 1e-5, relative, is the bound of tests/model/test_llama_parity.c.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEQUENCE, BOUND = 64, 1e-5
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "plain": [],
    "rslora and patterns": ["lora.rslora=true", "lora.targets=[q_proj, v_proj, down_proj]", "lora.layers=[1]",
                            "lora.rank_pattern={v_proj: 2, '.*': 3}", "lora.alpha_pattern={q_proj: 1.5}"],
    "dora": ["lora.dora=true"],
    "dora with dropout": ["lora.dora=true", "lora.dropout=0.2"],
    "modules_to_save": ["lora.modules_to_save=[norm, lm_head, embed_tokens, v_proj]"],
}
PEFT_KINDS = {
    "dora": dict(use_dora=True, target_modules=ALL + ["lm_head"]),
    "modules_to_save": dict(target_modules=["q_proj", "up_proj"], modules_to_save=["layernorm", "lm_head", "k_proj"]),
    "rslora and patterns": dict(use_rslora=True, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2},
                                alpha_pattern={"q_proj": 3.5}, layers_to_transform=[0]),
}


def require(ok, what):
    if not ok:
        sys.exit(f"check_adapters: {what}")


class Job:
    def __init__(self, tessera, folder):
        self.tessera, self.folder = tessera, pathlib.Path(folder)
        self.model, self.tokens = self.folder / "model", self.folder / "tokens.h5"

    def run(self, *words):
        done = subprocess.run([self.tessera, *map(str, words)], capture_output=True, text=True)
        require(done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}")
        return done.stdout

    def make_model(self):
        torch.manual_seed(1)
        text = (ROOT / "LICENSE").read_text()
        (self.folder / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
        self.run("tokenize", "--no-bos", ROOT / "examples/base", self.folder / "text.jsonl", "-o", self.tokens)
        tokenizer = Tokenizer.from_file(str(ROOT / "examples/base/tokenizer.json"))
        self.ids = tokenizer.encode(text, add_special_tokens=False).ids
        config = transformers.LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, attention_bias=True, tie_word_embeddings=False,
            initializer_range=0.15)
        transformers.LlamaForCausalLM(config).save_pretrained(self.model)

    def keys(self, name, *more):
        (self.folder / "run.yaml").write_text(
            f"model: {{path: {self.model}}}\nbase: {{format: keep}}\nlora: {{rank: 4, alpha: 8}}\n"
            f"data: {{path: {self.tokens}, eval_path: {self.tokens}, sequence_length: {SEQUENCE}}}\n"
            "train: {steps: 6, micro_batches: 2, learning_rate: 1.0e-2, warmup_steps: 0, eval_every: 0}\n"
            f"compute: {{device: cpu, dtype: f32}}\noutput: {{dir: {self.folder / name}, checkpoint_every: 0}}\n")
        return [self.folder / "run.yaml", *more]

    def train(self, name, *more):
        self.run("train", *self.keys(name, *more))
        return self.folder / name / "export"

    def loss(self, name, *more):
        return json.loads(self.run("eval", "--json", *self.keys(name, *more)))["loss"]

    def base(self):
        return transformers.LlamaForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()

    def peer_loss(self, model):
        """Mean over all windows of the one document; the label of a window's last token is the next one's first."""
        rows = (len(self.ids) - 1) // SEQUENCE
        ids = torch.tensor(self.ids[:rows * SEQUENCE + 1])
        with torch.no_grad():
            logits = model(ids[:-1].reshape(rows, SEQUENCE)).logits.double()
        return float(torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[1:]))


def compare(what, ours, theirs):
    print(f"{what}: {ours:.9f} here, {theirs:.9f} in peft")
    require(abs(ours - theirs) <= BOUND * theirs, f"{what}: losses differ")


def check_exports(job):
    compare("no adapter", job.loss("none", "--checkpoint", "none"), job.peer_loss(job.base()))
    for name, keys in KINDS.items():
        folder = name.replace(" ", "-")
        export = job.train(folder, *keys)
        tuned = peft.PeftModel.from_pretrained(job.base(), export).eval()
        compare(f"exported, {name}", job.loss(folder, *keys), job.peer_loss(tuned))


def check_imports(job):
    for name, options in PEFT_KINDS.items():
        torch.manual_seed(2)
        tuned = peft.get_peft_model(job.base(), peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        folder = job.folder / ("peft-" + name.replace(" ", "-"))
        tuned.save_pretrained(folder)
        compare(f"made by peft, {name}", job.loss("import", "--adapter", folder), job.peer_loss(tuned.eval()))


def weight(job, name):
    return load_file(job.model / "model.safetensors")[name + ".weight"].double().numpy()


def through_nf4(w):
    sys.path.insert(0, str(ROOT / "tests/golden"))
    import make_llama
    return make_llama.through_nf4(w.astype(np.float32)).astype(np.float64)


POWER = 30


def optimum(w, rank):
    """The nearest matrix of this rank, how far it is, and how far ours may be (note in tests/shard/test_low_rank.c)."""
    u, s, v = np.linalg.svd(w, full_matrices=False)
    rest = (s[rank:] ** 2).sum()
    width = rank + 8
    miss = 8 * np.sqrt(w.shape[1] * width) * (s[width] / s[:rank]) ** (2 * POWER + 1)
    excess = (s[:rank] ** 2 * miss ** 2).sum()
    return (u[:, :rank] * s[:rank]) @ v[:rank], np.sqrt(rest), np.sqrt(rest + excess) + 2**-23 * np.linalg.norm(w)


def trained(export, name):
    tensors = load_file(export / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"].double().numpy() for x in "AB")
    return 2.0 * b @ a  # alpha / rank


def check_starts(job):
    name = "model.layers.0.mlp.up_proj"
    w = weight(job, name)
    still = ["train.learning_rate=0", f"lora.power_iterations={POWER}"]
    export = job.train("pissa", "lora.init=pissa", *still)
    _, rest, bound = optimum(w, 4)
    got = np.linalg.norm(w - trained(export, name))
    print(f"pissa: what is left of {name}: {got:.9f}, optimum {rest:.9f}, bound {bound:.9f}")
    require(got <= bound, "pissa is not the optimum")
    export = job.train("loftq", "lora.init=loftq", "lora.init_iterations=3", "base.format=nf4",
                       "base.double_quant=false", *still)
    fit = np.zeros_like(w)
    for _ in range(3):
        stored = through_nf4(w - fit)
        fit, _, bound = optimum(w - stored, 4)
    ours, theirs = (np.linalg.norm(w - stored - x) for x in (trained(export, name), fit))
    print(f"loftq: what is lost of {name}: {ours:.9f}, with numpy's SVD {theirs:.9f}, "
          f"bound {bound:.9f}, nf4 alone {np.linalg.norm(w - through_nf4(w)):.9f}")
    require(ours <= bound, "loftq is not the optimum")


def check_difference(job):
    keys = ["lora.init=pissa", "lora.rank_pattern={down_proj: 3}"]
    job.train("pissa-trained", *keys)
    difference = job.folder / "difference"
    job.run("export", job.folder / "pissa-trained", "--difference", "-o", difference)
    tuned = peft.PeftModel.from_pretrained(job.base(), difference).eval()
    compare("pissa, difference on the original weights", job.loss("pissa-trained", *keys), job.peer_loss(tuned))


def main():
    with tempfile.TemporaryDirectory() as folder:
        job = Job(sys.argv[1], folder)
        job.make_model()
        check_exports(job)
        check_imports(job)
        check_starts(job)
        check_difference(job)
    print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, "
          f"peft {peft.__version__}, numpy {np.__version__}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""tools/make_flux_cache.py end to end, with tiny random encoders.

    python check_make_cache.py TESSERA        prints "ok"; exit status 1 at the first difference

Makes a pipeline (AutoencoderKL, CLIP, T5, tokenizers) and images of three aspect ratios in a temporary folder, encodes
them, converts with `tessera cache`, and compares every latent, text and mask of the cache, read with h5py, with the
encoders' own results. Versions it ran with: torch 2.15, diffusers 0.42.1, transformers 5.24, h5py 3.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_flux_cache.py"
CAPTIONS = {"a": "a cat on a mat", "b": "a cat on a mat", "below/c": "", "d": None}
SIZES = {"a": (100, 60), "b": (64, 64), "below/c": (50, 120), "d": (130, 70)}


def make_pipeline(out):
    torch.manual_seed(1)
    AutoencoderKL(in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 4,
                  up_block_types=["UpDecoderBlock2D"] * 4, block_out_channels=[8, 8, 8, 8], layers_per_block=1,
                  latent_channels=16, norm_num_groups=4, shift_factor=0.1159, scaling_factor=0.3611,
                  use_quant_conv=False, use_post_quant_conv=False).save_pretrained(out / "vae")
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz "))
    (out / "tokenizer").mkdir()
    vocabulary = {t: i for i, t in enumerate([*letters, *(c + "</w>" for c in letters), "<|startoftext|>",
                                              "<|endoftext|>"])}
    (out / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (out / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (out / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer",
                                                                        "model_max_length": 77}))
    CLIPTextModel(CLIPTextConfig(vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48,
                                 num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77,
                                 eos_token_id=vocabulary["<|endoftext|>"])).save_pretrained(out / "text_encoder")
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "cat": 4, "on": 5, "mat": 6}
    t5 = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    t5.pre_tokenizer = pre_tokenizers.Whitespace()
    t5.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=t5, pad_token="<pad>", eos_token="</s>",
                            unk_token="<unk>").save_pretrained(out / "tokenizer_2")
    T5EncoderModel(T5Config(vocab_size=8, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
                            feed_forward_proj="gated-gelu")).save_pretrained(out / "text_encoder_2")


def make_images(out, masks):
    rng = np.random.default_rng(3)
    masks.mkdir()
    for name, (width, height) in SIZES.items():
        path = out / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        if CAPTIONS[name] is not None:
            path.with_suffix(".txt").write_text(CAPTIONS[name])
    half = np.zeros((60, 100), np.uint8)
    half[:, 50:] = 255
    Image.fromarray(half).save(masks / "a.png")


def strings(file, name):
    bytes_ = file[name][:].tobytes()
    at = file[f"{name}_at"][:]
    return [bytes_[int(a):int(b) - 1].decode() for a, b in zip(at[:-1], at[1:])]


def check(what, found, expected):
    if not np.array_equal(found, expected):
        sys.exit(f"{what}: differs by {np.abs(np.asarray(found, float) - expected).max()}")


def main(tessera):
    sys.path.insert(0, str(TOOL.parent))
    import make_flux_cache as tool
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_pipeline(root / "model")
        make_images(root / "images", root / "masks")
        sys.argv = ["x", str(root / "images"), str(root / "out"), "--model", str(root / "model"), "--resolution", "64",
                    "--bucket-step", "16", "--text-length", "12", "--masks", str(root / "masks"), "--dtype", "float32",
                    "--device", "cpu"]
        tool.main()
        tool.main()  # everything is there already
        printed = subprocess.run([tessera, "cache", root / "out", "-o", root / "cache.h5", "--text-dtype", "f32",
                                  "--json"], check=True, capture_output=True, text=True).stdout
        subprocess.run([tessera, "verify", root / "cache.h5"], check=True, stdout=subprocess.DEVNULL)
        summary = json.loads(printed)
        check("samples, captions, empty, masks", [summary[k] for k in ("samples", "captions", "has_empty", "has_masks")],
              [4, 2, True, True])
        encoders = tool.Encoders(tool.parse_arguments())
        with h5py.File(root / "cache.h5") as file:
            captions = strings(file, "caption")
            check("captions", captions, ["", "a cat on a mat"])
            for k, caption in enumerate(captions):
                states, pooled, length = encoders.text(caption)
                check("t5", file["text"][k], states.numpy().ravel())
                check("pooled", file["pooled"][k], pooled.numpy())
                check("length", file["text_length"][k], length)
            rows = [(bucket, row) for bucket in sorted((n for n in file if n.startswith("latent_")),
                                                       key=lambda n: [int(x) for x in n[7:].split("x")])
                    for row in range(len(file[bucket]))]
            for number, name in enumerate(strings(file, "name")):
                source = root / "images" / (name.replace("-", "/") + ".png")
                image = Image.open(source)
                size = tool.bucket_of(image.width, image.height, 64, 16)
                fitted, crop = tool.fit(image.convert("RGB"), size)
                bucket, row = rows[number]
                check(f"{name} bucket", bucket, f"latent_{size[1] // 8}x{size[0] // 8}")
                check(name, file[bucket][row], encoders.latent(fitted, name).numpy().ravel())
                sample = file["sample"][number]
                check(f"{name} sample", sample[:], [captions.index(CAPTIONS[name.replace("-", "/")] or ""),
                                                    image.height, image.width, *crop])
                mask = file[bucket.replace("latent", "mask")][row]
                if (mask.mean() < 0.9) != (name == "a"):
                    sys.exit(f"{name}: mean of the mask is {mask.mean()}")
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])

#!/usr/bin/env python3
"""Encode a folder of images with captions for `tessera cache`, with the encoders of a FLUX.1 pipeline.

    python make_flux_cache.py IMAGES OUT --model PIPELINE [--resolution 1024] [--text-length 512] ...
    tessera cache OUT -o cache.h5

IMAGES is searched with all below it. NAME.txt (or NAME.caption) beside NAME.png, .jpg, .jpeg, .webp or .bmp is the
caption; an image without one has the empty caption. With --masks, MASKS/NAME.png is the loss mask: white counts,
black does not. PIPELINE is a diffusers directory with vae, text_encoder, text_encoder_2 and their tokenizers.

An image is resized to cover the size of its bucket and cut in the middle. Buckets are sizes of a multiple of
--bucket-step pixels whose area is at most resolution^2; the one with the nearest aspect ratio is taken. T5 and CLIP
get no attention mask, as in the model's own pipeline. Files of OUT that are there are kept: a run that was stopped
goes on; a file whose image, caption, mask or settings have changed is made again. Layout of the files: docs/data.md.
Needs torch, diffusers, transformers, safetensors and Pillow.
"""
import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CLIP_LENGTH = 77


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="diffusers directory of FLUX.1")
    parser.add_argument("--resolution", type=int, default=1024, help="side of a square image in pixels")
    parser.add_argument("--bucket-step", type=int, default=64, help="multiple of 16 (default 64)")
    parser.add_argument("--text-length", type=int, default=512, help="tokens of T5: dev 512, schnell 256")
    parser.add_argument("--masks", type=Path, help="folder of loss masks")
    parser.add_argument("--posterior", choices=("sample", "mean"), default="sample")
    parser.add_argument("--seed", type=int, default=0, help="of sampled latents")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the encoders")
    arguments = parser.parse_args()
    if arguments.bucket_step % 16 != 0 or arguments.bucket_step < 16:
        parser.error("--bucket-step is a multiple of 16")
    return arguments


def bucket_of(width, height, resolution, step):
    """Width and height of the nearest aspect ratio, then of the largest area."""
    most = resolution * resolution
    sizes = [(w, min(most // w // step * step, 4 * resolution)) for w in range(step, 4 * resolution + 1, step)]
    ratio = np.log(width / height)
    return min((s for s in sizes if s[1] >= step),
               key=lambda s: (round(abs(np.log(s[0] / s[1]) - ratio), 6), -s[0] * s[1]))


def fit(image, size):
    """Resize to cover `size`, cut in the middle; the image and left, top, right, bottom of the cut."""
    scale = max(size[0] / image.width, size[1] / image.height)
    wide = (max(round(image.width * scale), size[0]), max(round(image.height * scale), size[1]))
    left, top = (wide[0] - size[0]) // 2, (wide[1] - size[1]) // 2
    crop = (left, top, left + size[0], top + size[1])
    return image.resize(wide, Image.Resampling.LANCZOS).crop(crop), crop


class Encoders:
    """The encoders of a pipeline; each is loaded when it is needed first."""

    def __init__(self, arguments):
        self.a = arguments
        self.loaded = {}

    def get(self, name, make):
        if name not in self.loaded:
            self.loaded[name] = make(self.a.model / name)
        return self.loaded[name]

    def model(self, name, kind):
        dtype = getattr(torch, self.a.dtype)
        return self.get(name, lambda path: kind.from_pretrained(path, torch_dtype=dtype).to(self.a.device).eval())

    @torch.no_grad()
    def latent(self, image, name):
        vae = self.model("vae", AutoencoderKL)
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        if self.a.posterior == "mean":
            enc = posterior.mode()
        else:
            key = hashlib.sha256(f"{self.a.seed} {name}".encode()).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(key[:8], "little") >> 1)
            noise = torch.randn(posterior.mean.shape, generator=generator, dtype=torch.float32)
            enc = posterior.mean.float() + posterior.std.float() * noise.to(posterior.mean.device)
        return ((enc.float() - vae.config.shift_factor) * vae.config.scaling_factor)[0].cpu().contiguous()

    @torch.no_grad()
    def text(self, caption):
        """T5 states, pooled CLIP vector, tokens that are no padding."""
        clip_tokens = self.get("tokenizer", CLIPTokenizer.from_pretrained)
        t5_tokens = self.get("tokenizer_2", AutoTokenizer.from_pretrained)
        clip, t5 = self.model("text_encoder", CLIPTextModel), self.model("text_encoder_2", T5EncoderModel)
        ids = clip_tokens(caption, padding="max_length", max_length=CLIP_LENGTH, truncation=True,
                          return_tensors="pt").input_ids
        pooled = clip(ids.to(clip.device)).pooler_output[0]
        tokens = t5_tokens(caption, padding="max_length", max_length=self.a.text_length, truncation=True,
                           return_tensors="pt")
        states = t5(tokens.input_ids.to(t5.device))[0][0]
        return states.cpu().contiguous(), pooled.cpu().contiguous(), int(tokens.attention_mask.sum())


def caption_of(path):
    for suffix in (".txt", ".caption"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix).read_text(encoding="utf-8").strip()
    return ""


def text_name(caption):
    return "text-" + hashlib.sha256(caption.encode()).hexdigest()[:16] if caption else "text-empty"


def save(tensors, path, metadata):
    """Under a temporary name until all of it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path.with_suffix(".tmp"), metadata)
    path.with_suffix(".tmp").rename(path)


def is_made(path, made_from):
    """Whether a file of an earlier run is what this one would write."""
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("made_from") == made_from


def digest(*parts):
    """Of settings and of files' contents: what a result depends on."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        sha.update(f"{len(data)} ".encode() + data)
    return sha.hexdigest()


def write_text(encoders, out, caption, origin):
    name = text_name(caption)
    path = out / f"{name}.safetensors"
    made_from = digest(caption, sorted(origin.items()), encoders.a.text_length)
    if is_made(path, made_from):
        return
    states, pooled, length = encoders.text(caption)
    save({f"{name}.t5": states, f"{name}.pooled": pooled}, path,
         {**origin, f"{name}.caption": caption, f"{name}.length": str(length), "made_from": made_from})


def image_name(a, source):
    return source.relative_to(a.images).with_suffix("").as_posix().replace("/", "-")


def write_image(encoders, a, source, origin):
    name = image_name(a, source)
    path = a.out / f"{name}.safetensors"
    mask = a.masks / f"{name}.png" if a.masks else None
    masks = [mask] if mask and mask.is_file() else []
    made_from = digest(source, *masks, caption_of(source), sorted(origin.items()), a.resolution, a.bucket_step, a.seed)
    if is_made(path, made_from):
        return
    image = ImageOps.exif_transpose(Image.open(source))
    size = bucket_of(image.width, image.height, a.resolution, a.bucket_step)
    fitted, crop = fit(image.convert("RGB"), size)
    tensors = {f"{name}.latent": encoders.latent(fitted, name)}
    if masks:
        grey = ImageOps.exif_transpose(Image.open(mask)).convert("L").resize(image.size, Image.Resampling.BOX)
        tensors[f"{name}.mask"] = torch.from_numpy(np.array(fit(grey, size)[0], np.float32) / 255)
    save(tensors, path, {**origin, f"{name}.text": text_name(caption_of(source)),
                         f"{name}.original_size": f"{image.width} {image.height}",
                         f"{name}.crop": " ".join(map(str, crop)), "made_from": made_from})


def main():
    a = parse_arguments()
    sources = sorted(p for p in a.images.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not sources:
        sys.exit(f"'{a.images}' holds no images ({', '.join(SUFFIXES)})")
    names = {}
    for source in sources:
        other = names.setdefault(image_name(a, source), source)
        if other is not source:
            sys.exit(f"'{other}' and '{source}' would be one sample, '{image_name(a, source)}': rename one")
    origin = {"space": "model", "tool": "make_flux_cache", "vae": str(a.model / "vae")[-150:],
              "text_encoders": f"{a.dtype} {str(a.model)[-130:]}", "posterior": a.posterior}
    encoders = Encoders(a)
    captions = sorted({caption_of(p) for p in sources} | {""})
    for number, caption in enumerate(captions, 1):
        write_text(encoders, a.out, caption, origin)
        print(f"text {number} of {len(captions)}", file=sys.stderr)
    for name in ("text_encoder", "text_encoder_2"):
        encoders.loaded.pop(name, None)
    for number, source in enumerate(sources, 1):
        write_image(encoders, a, source, origin)
        print(f"image {number} of {len(sources)}", file=sys.stderr)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Tiny caches of a FLUX.1 data set, as other tools lay them out.

    python make_caches.py OUTDIR        (normally tests/golden/caches)

OUTDIR/kohya: files of sd-scripts, named and keyed as library/strategy_flux.py and strategy_base.py do, written by
numpy.savez and numpy.savez_compressed: `a` at two sizes with an alpha mask, flipped latents beside it, `b` with the
same text, `c` of an older version without sizes in its keys and with an empty caption.
OUTDIR/tensors/all.safetensors: the same samples in the layout of docs/data.md.
Values are value(kind, row, i) below, which tests/train/test_cache.c knows too. Made with numpy 2.4.6, safetensors 0.8.0.
"""
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CHANNELS, TOKENS, TEXT_DIM, POOLED_DIM = 16, 6, 8, 4


def value(kind, row, shape):
    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    return (((kind * 31 + row * 17 + i * 7) % 255 - 127) / np.float32(64)).astype(np.float32).reshape(shape)


def latent(row, height, width):
    return value(3, row, (CHANNELS, height, width))


def mask(height, width):
    """Of the image's pixels: 0 in the left half."""
    out = np.ones((8 * height, 8 * width), np.float32)
    out[:, :4 * width] = 0
    out[:8, 4 * width:] = 0.5
    return out


def text(row):
    return {"l_pooled": value(2, row, (POOLED_DIM,)), "t5_out": value(1, row, (TOKENS, TEXT_DIM))}


def kohya(out):
    (out / "sub").mkdir(parents=True, exist_ok=True)

    def te(path, row, length):
        np.savez(path, txt_ids=np.zeros((TOKENS, 3), np.float32), apply_t5_attn_mask=False,
                 t5_attn_mask=np.array([1] * length + [0] * (TOKENS - length)), **text(row))

    def sizes(key):
        return {f"original_size{key}": np.array((50, 33)), f"crop_ltrb{key}": np.array((1, 2, 49, 31))}

    np.savez(out / "sub" / "a_0050x0033_flux.npz", latents_4x6=latent(0, 4, 6), **sizes("_4x6"),
             latents_flipped_4x6=latent(9, 4, 6), alpha_mask_4x6=mask(4, 6), latents_2x4=latent(1, 2, 4),
             **sizes("_2x4"))
    te(out / "sub" / "a_flux_te.npz", 1, 4)
    (out / "sub" / "a.txt").write_text("a cat, \u00e9\n", encoding="utf-8")
    np.savez_compressed(out / "b_0032x0032_flux.npz", latents_4x4=latent(2, 4, 4), **sizes("_4x4"))
    te(out / "b_flux_te.npz", 1, 4)
    (out / "b.caption").write_text("a cat, \u00e9", encoding="utf-8")
    np.savez(out / "c_flux.npz", latents=latent(3, 4, 6), **sizes(""))
    te(out / "c_flux_te.npz", 0, 1)
    (out / "c.txt").write_text("", encoding="utf-8")


def tensors(out):
    out.mkdir(parents=True, exist_ok=True)
    arrays, metadata = {}, {"space": "model", "tool": "golden", "vae": "tiny", "text_encoders": "tiny",
                            "posterior": "mean"}
    for name, row, caption, length in (("empty", 0, "", 1), ("cat", 1, "a cat, \u00e9", 4)):
        arrays[f"{name}.t5"], arrays[f"{name}.pooled"] = text(row)["t5_out"], text(row)["l_pooled"]
        metadata[f"{name}.caption"], metadata[f"{name}.length"] = caption, str(length)
    for name, row, height, width, of in (("a", 0, 4, 6, "cat"), ("a.small", 1, 2, 4, "cat"), ("b", 2, 4, 4, "cat"),
                                         ("c", 3, 4, 6, "empty")):
        arrays[f"{name}.latent"] = latent(row, height, width)
        metadata[f"{name}.text"] = of
        metadata[f"{name}.original_size"], metadata[f"{name}.crop"] = "50 33", "1 2 49 31"
    arrays["a.mask"] = mask(4, 6)
    save_file(arrays, out / "all.safetensors", metadata)


if __name__ == "__main__":
    kohya(Path(sys.argv[1]) / "kohya")
    tensors(Path(sys.argv[1]) / "tensors")

#!/usr/bin/env python3
"""Makes tests/golden/images/: small images as Pillow and numpy write them, and their values.

    python tests/golden/make_images.py [FOLDER]

gray/ and rgb/ are folders of images of one size; gray.f32 and rgb.f32 hold [N, C, H, W] f32 as
Pillow reads the samples back, divided in f32. interlaced.png is written here (Pillow cannot), by
the passes of the PNG specification, and read back by Pillow. refused/: transparent ones.
"""
import pathlib
import struct
import sys
import zlib

import numpy as np
import PIL
from PIL import Image

OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent / "images"
H, W = 9, 11
rng = np.random.default_rng(7)
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def interlaced(x):
    rows = b""
    for first_x, first_y, step_x, step_y in PASSES:
        for row in x[first_y::step_y, first_x::step_x]:
            rows += b"\0" + row.tobytes() if row.size else b""
    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def values_of(path):
    """[C, H, W] f32"""
    if path.suffix == ".npy":
        x = np.load(path)
        x = x.astype("<f4") / np.float32(255) if x.dtype == np.uint8 else x.astype("<f4")
    else:
        image = Image.open(path)
        if image.mode == "P":
            image = image.convert("RGB")
        if image.mode == "1":
            image = image.convert("L")
        x = np.asarray(image)
        x = x.astype("<f4") / np.float32(255 if x.dtype == np.uint8 else 65535)
    return x[None] if x.ndim == 2 else np.moveaxis(x, 2, 0)


def main():
    for name in ("gray", "rgb", "refused"):
        (OUT / name).mkdir(parents=True, exist_ok=True)
    gray8, rgb8 = rng.integers(0, 256, (H, W), np.uint8), rng.integers(0, 256, (H, W, 3), np.uint8)
    gray16 = rng.integers(0, 65536, (H, W), np.uint16)
    gray, rgb, refused = OUT / "gray", OUT / "rgb", OUT / "refused"
    Image.fromarray(gray8).save(gray / "b8.png")
    Image.fromarray(gray8 > 127).save(gray / "a1.png")
    Image.fromarray(gray16).save(gray / "c16.png")
    np.save(gray / "d.npy", gray8)
    np.save(gray / "e.npy", rng.random((H, W, 1), np.float32))
    (gray / "interlaced.png").write_bytes(interlaced(255 - gray8))
    (gray / "notes.txt").write_text("not an image\n")
    Image.fromarray(rgb8).save(rgb / "a.png")
    Image.fromarray(rgb8).quantize(13).save(rgb / "palette.PNG")
    np.save(rgb / "u8.npy", rgb8)
    np.save(rgb / "f16.npy", rng.random((H, W, 3)).astype("<f2"))
    Image.fromarray(np.dstack([rgb8, gray8])).save(refused / "alpha.png")
    Image.fromarray(rgb8).quantize(4).save(refused / "transparent.png", transparency=1)
    for folder in (gray, rgb):
        names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in (".png", ".npy"))
        x = np.stack([values_of(folder / name) for name in names])
        (OUT / (folder.name + ".f32")).write_bytes(np.ascontiguousarray(x, "<f4").tobytes())
    (OUT / "versions.txt").write_text(f"numpy {np.__version__}\npillow {PIL.__version__}\n")


if __name__ == "__main__":
    main()

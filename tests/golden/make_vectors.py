#!/usr/bin/env python3
"""Makes tests/golden/vectors/: small files of vectors as numpy and h5py write them.

    python tests/golden/make_vectors.py [FOLDER]

NAME holds [N, d] values and NAME.f32 the same as raw f32, rounded by numpy. Refused files are
called refused_*. *vecs and *bin have no library of their own: they are written here by the layout
in faiss contrib/vecs_io.py and big-ann-benchmarks dataset_io.py. codes_*.h5 are codes files by the
layout in docs/vectors.md and src/train/data/codes_file.h, with CODES below. versions.txt: what made them.
"""
import json
import pathlib
import sys

import h5py
import numpy as np
import xxhash
from numpy.lib import format as npy_format

OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent / "vectors"
N, D = 5, 3
CODES = [[(37 * i + 11 * j) % 250 - (i == 2 and j == 1) * 1000 for j in range(2)] for i in range(4)]
MASK = 2**64 - 1
SMALL = np.array([[(7 * i + 3 * j) % 11 - 5 for j in range(D)] for i in range(N)])


def expect(name, x):
    (OUT / (name + ".f32")).write_bytes(np.ascontiguousarray(x.astype("<f4")).tobytes())


def put(name, data, x):
    (OUT / name).write_bytes(data)
    expect(name, x)


def records(x):
    return b"".join(np.int32(len(row)).tobytes() + row.tobytes() for row in x)


def bin_file(x):
    return np.array(x.shape, "<u4").tobytes() + x.tobytes()


def npy(name, x, version):
    with open(OUT / name, "wb") as file:
        npy_format.write_array(file, x, version)


def hdf5(name, datasets, **more):
    with h5py.File(OUT / name, "w", libver="earliest") as file:
        for key, x in datasets.items():
            file.create_dataset(key, data=x, track_times=False, **more)


def mix64(x):
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 & MASK
    x = (x ^ x >> 27) * 0x94d049bb133111eb & MASK
    return x ^ x >> 31


def identity(elements):
    """src/core/digest.h tess_logical_hash, lanes in hex"""
    a = b = 0
    for i, bits in enumerate(elements):
        place = i * 0x9e3779b97f4a7c15 & MASK
        a += mix64(bits ^ mix64(place + 0x243f6a8885a308d3 & MASK))
        b += mix64(bits + mix64(place ^ 0x13198a2e03707344) & MASK)
    return f"{a & MASK:016x}{b & MASK:016x}"


def codes_file(name, dtype, absent):
    """CODES with absent ones (negative) as all ones, or as 0 where none can be absent."""
    path, none = OUT / name, np.iinfo(dtype).max if absent else 0
    codes = np.array([[none if c < 0 else c for c in row] for row in CODES], dtype)
    about = dict(codes=250, levels=2, groups=1, has_absent=absent, bit_order="row", codebooks="golden", source="4x3/0")
    with h5py.File(path, "w", userblock_size=4096, libver=("v110", "v110")) as file:
        for key, value in dict(about, format_version=1).items():
            file.attrs[key] = value
        offset = file.create_dataset("codes", data=codes, track_times=False).id.get_offset()
    data = path.read_bytes()
    rest = data[4096:offset] + data[offset + codes.nbytes:]
    text = json.dumps(dict(about, file_nbytes=len(data), offset=offset, vectors=len(CODES),
                           metadata=xxhash.xxh3_128_hexdigest(rest),
                           payload=identity(codes.reshape(-1).tolist()))).encode()
    block = (b"TESSERA-CODES 1\0" + len(text).to_bytes(4, "little") + text).ljust(4080, b"\0")
    path.write_bytes(block + xxhash.xxh3_128_digest(block) + data[4096:])


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    f32 = (SMALL / 8).astype("<f4")
    # ties at half a unit in the last place, to even on both sides; the largest finite f32 and beyond
    f64 = np.array([[0.1, 1 + 2**-24, 1 + 3 * 2**-24], [-1 - 2**-24, 1e-46, 2**-149], [3e38, 1 / 3, -0.0]], "<f8")
    i32 = np.array([[16777217, 16777219, -16777217], [2**31 - 1, -2**31, 33554434]], "<i4")
    f16 = np.array([[1.5, 2**-24, 65504], [-2**-14, -0.0, 0.333]], "<f2")
    u8 = (SMALL + 250).astype("u1")
    i8 = (SMALL * 25).astype("i1")
    put("a.fvecs", records(f32), f32)
    put("a.bvecs", records(u8), u8)
    put("a.ivecs", records(i32), i32)
    put("a.fbin", bin_file(f32), f32)
    put("a.u8bin", bin_file(u8), u8)
    put("a.i8bin", bin_file(i8), i8)
    put("a.ibin", bin_file(i32), i32)
    put("neighbours.ibin", bin_file(i32) + np.ones(i32.shape, "<f4").tobytes(), i32)
    for name, x, version in (("f32", f32, (1, 0)), ("f64", f64, (2, 0)), ("f16", f16, (3, 0)), ("u8", u8, (1, 0)),
                             ("i8", i8, (1, 0)), ("i32", i32, (1, 0))):
        npy(name + ".npy", x, version)
        expect(name + ".npy", x)
    for name, x in (("refused_fortran.npy", np.asfortranarray(f32)), ("refused_big.npy", f32.astype(">f4")),
                    ("refused_one.npy", f32[0]), ("refused_half.npy", f32.astype("<u2")),
                    ("refused_empty.npy", f32[:0]), ("refused_records.npy", np.zeros((2, 2), [("x", "<f4")]))):
        npy(name, x, (1, 0))
    hdf5("ann.h5", {"train": f32, "test": f32[:2], "neighbors": i32, "distances": f32})
    expect("ann.h5", f32)
    hdf5("only.hdf5", {"x": u8, "flat": np.arange(4, dtype="<f4")})
    expect("only.hdf5", u8)
    hdf5("chunked.h5", {"x": f64}, chunks=(2, 2), compression="gzip", shuffle=True)
    expect("chunked.h5", f64)
    hdf5("half.h5", {"x": f16})
    expect("half.h5", f16)
    with h5py.File(OUT / "links.h5", "w", libver="earliest") as file:
        file["away"] = h5py.ExternalLink("ann.h5", "/train")
        file.create_dataset("external", shape=f32.shape, dtype="<f4", external=[("a.fbin", 8, f32.nbytes)])
        file.create_dataset("big", data=f32.astype(">f4"), track_times=False)
        file.create_dataset("late", shape=(2, 2), dtype="<f4", track_times=False)
        file.create_dataset("wide", data=np.zeros((2, 2), "<i8"), track_times=False)
    codes_file("codes_u8.h5", "<u1", False)
    codes_file("codes_absent.h5", "<u1", True)
    (OUT / "versions.txt").write_text(
        f"numpy {np.__version__}\nh5py {h5py.__version__}\nhdf5 {h5py.version.hdf5_version}\nxxhash {xxhash.VERSION}\n")


if __name__ == "__main__":
    main()

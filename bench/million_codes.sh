#!/bin/bash
# A million codes (K = 2^20, d = 256) on four ranks of 2 GiB each: the replicated plan is refused with its need, the
# row-sharded one runs under a hard limit of the address space, and 1,000 assignments equal brute force.
#
#   bench/million_codes.sh TESSERA PYTHON SCRATCH
#
# PYTHON has numpy and h5py. Vectors are normal; codes start normal; one pass over 4,096 vectors.
set -euo pipefail
tessera="$(realpath "$1")" python="$2"
mkdir -p "$3"
cd "$3"
"$python" - <<'PYTHON'
import numpy as np
rng = np.random.default_rng(7)
np.save("train.npy", rng.normal(size=(4096, 256)).astype(np.float32))
np.save("queries.npy", rng.normal(size=(1000, 256)).astype(np.float32))
PYTHON
cat >run.yaml <<YAML
model: {family: kmeans}
data: {path: train.npy}
quantizer: {codes: 1048576, passes: 1, init: random}
compute: {memory_limit: 2GiB}
output: {dir: million, checkpoint_every: 0}
YAML
echo "replicated:"
"$tessera" plan run.yaml --ranks 4 quantizer.sharding=replicated && exit 1
echo "chosen:"
"$tessera" plan run.yaml --ranks 4
rm -rf million codes.h5
limited() { mpirun --oversubscribe -n 4 bash -c 'ulimit -v 2097152; exec "$@"' limited "$@"; }
time limited "$tessera" train run.yaml
time limited "$tessera" encode million queries.npy -o codes.h5
tail -1 million/metrics.jsonl
"$python" - <<'PYTHON'
import json, struct
import h5py
import numpy as np
with open("million/export/codebooks.safetensors", "rb") as f:
    head = f.read(struct.unpack("<Q", f.read(8))[0])
    codes = np.frombuffer(f.read(), np.float32).reshape(json.loads(head)["codebooks"]["shape"])[0, 0]
queries, found = np.load("queries.npy"), h5py.File("codes.h5")["codes"][:, 0].astype(np.int64)
# Nearest by canonical distance: f64 rounded to f32, the lowest row among equals.
short = [[] for _ in queries]
for first in range(0, len(codes), 65536):
    part = codes[first:first + 65536].astype(np.float64)
    near = (part ** 2).sum(1) - 2 * queries.astype(np.float64) @ part.T
    for q, least in enumerate(near.min(1)):
        short[q] += list(first + np.flatnonzero(near[q] <= least + 1e-3))
row = np.zeros(len(queries), np.int64)
for q, rows in enumerate(short):
    distance = ((queries[q].astype(np.float64) - codes[rows]) ** 2).sum(1).astype(np.float32)
    row[q] = rows[int(distance.argmin())]
print(f"{(row == found).sum()} of {len(queries)} assignments equal brute force")
assert (row == found).all()
PYTHON

#!/usr/bin/env bash
# tokenize, inspect and verify on real files, whole and damaged.
set -u
bin=${TESSERA_BIN:?}
root=${TESS_SOURCE_DIR:?}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

complain() {
    printf 'FAILED: %s\n' "$*"
    failures=$((failures + 1))
}

# good PATTERN ARGS...: exit 0, stdout matches, nothing on stderr.
good() {
    local pattern=$1 status=0
    shift
    "$bin" "$@" >"$work/out" 2>"$work/err" || status=$?
    [[ $status == 0 ]] || complain "tessera $*: exit $status: $(cat "$work/err")"
    grep -Eq -- "$pattern" "$work/out" || complain "tessera $*: '$(head -c 300 "$work/out")' lacks '$pattern'"
}

# bad CODE PATTERN ARGS...: exit code, empty stdout, one line on stderr that matches.
bad() {
    local code=$1 pattern=$2 status=0
    shift 2
    "$bin" "$@" >"$work/out" 2>"$work/err" || status=$?
    [[ $status == "$code" ]] || complain "tessera $*: exit $status, expected $code"
    [[ ! -s $work/out ]] || complain "tessera $*: wrote to stdout"
    [[ $(wc -l <"$work/err") == 1 ]] || complain "tessera $*: $(wc -l <"$work/err") lines on stderr"
    grep -Eq -- "$pattern" "$work/err" || complain "tessera $*: '$(cat "$work/err")' lacks '$pattern'"
}

# byte FILE OFFSET: change one byte.
byte() {
    local old
    old=$(od -An -tu1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059 # the byte is the format
    printf "$(printf '\\x%02x' $((old ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

printf '{"text": "%s"}\n' "In the beginning" "a small file" "of three documents" >"$work/in.jsonl"
data=$work/data.h5
good "wrote $data: [0-9]+ tokens \([0-9]+ in the loss\) in 3 documents" \
    tokenize "$root/examples/base" "$work/in.jsonl" -o "$data"
good '^kind: token file$' inspect "$data"
good '^documents: 3$' inspect "$data"
good '"verified":true' verify "$data" --json
good '"name":"[^"]*in.jsonl"' inspect "$data" --json

# Tokenizing again gives the same bytes; under mpirun one rank writes.
cp "$data" "$work/first.h5"
mpirun -n 2 "$bin" tokenize "$root/examples/base" "$work/in.jsonl" -o "$data" >"$work/out" 2>&1 ||
    complain "tokenize on two ranks: $(cat "$work/out")"
cmp -s "$data" "$work/first.h5" || complain "tokenize is not deterministic"

# Refusals leave no file behind.
bad 74 "open of '$work/nothing.jsonl' failed" \
    tokenize "$root/examples/base" "$work/nothing.jsonl" -o "$work/none.h5"
printf '{"text": "fine"}\n{"text": 3}\n' >"$work/bad.jsonl"
bad 65 "bad.jsonl:2" tokenize "$root/examples/base" "$work/bad.jsonl" -o "$work/none.h5"
bad 64 "choose auto, text" tokenize "$root/examples/base" "$work/in.jsonl" -o "$work/none.h5" -f x
compgen -G "$work/none.h5*" >/dev/null && complain "a refused tokenize left $(ls "$work")"

# A token file cut at 16 points, and one byte changed in each region: refused, and named.
size=$(stat -c %s "$data")
for i in $(seq 0 15); do
    head -c $((size * i / 16)) "$data" >"$work/cut.h5"
    bad 65 "$work/cut.h5" verify "$work/cut.h5"
done
for i in $(seq 0 31); do
    cp "$data" "$work/bit.h5"
    byte "$work/bit.h5" $((size * i / 32 + i))
    bad 65 "$work/bit.h5" verify "$work/bit.h5"
done
bad 65 "in.jsonl" inspect "$work/in.jsonl"

model=$root/tests/golden/format/model
adapter=$root/tests/golden/format/adapter
good '^tensors: [1-9]' inspect "$model"
good '^  (F32|BF16) +\[[0-9, ]*\] +[a-z]' inspect "$model"
sum=$(sha256sum "$adapter/adapter_model.safetensors" | cut -d' ' -f1)
good "^sha256: $sum$" verify "$adapter"
good '"peft_type":"LORA"' inspect "$adapter" --json
good '^dialect: peft$' inspect "$adapter"
good '^  rank 2 +alpha 6 +scale 3 +\[16, 16\] +model.layers.0.self_attn.k_proj$' inspect "$adapter"
good '^not_read: .*give the directory' inspect "$adapter/adapter_model.safetensors"
size=$(stat -c %s "$adapter/adapter_model.safetensors")
for i in $(seq 0 15); do
    head -c $((size * i / 16)) "$adapter/adapter_model.safetensors" >"$work/cut.safetensors"
    bad 65 "$work/cut.safetensors" inspect "$work/cut.safetensors"
done
# Vectors and codes: what is in them, by name of the dataset too; damage is found and named.
vectors=$root/tests/golden/vectors
good '^kind: vectors$' inspect "$vectors/a.bvecs"
good '^dtype: u8$' inspect "$vectors/a.bvecs"
good '"dataset":"train"' inspect "$vectors/ann.h5" --json
good '^dataset: neighbors$' inspect "$vectors/ann.h5:neighbors"
good '^identity: 5x3/[0-9a-f]{32}$' verify "$vectors/ann.h5"
identity=$(grep identity "$work/out")
good "^$identity$" verify "$vectors/a.fvecs"
printf '\1\0\0\0\0\0\300\177' >"$work/nan.fvecs"
good '^vectors: 1$' inspect "$work/nan.fvecs"
bad 65 'nan.fvecs.*element 0 of vector 0 is -?nan' verify "$work/nan.fvecs"
bad 65 'no HDF5 file of vectors' inspect "$vectors/codes_u8.h5:codes"
good '^kind: codes file$' inspect "$vectors/codes_absent.h5"
good '"has_absent":true' verify "$vectors/codes_absent.h5" --json
for i in 0 14 4090 4100 6200; do
    cp "$vectors/codes_u8.h5" "$work/bit.h5"
    byte "$work/bit.h5" "$i"
    bad 65 "$work/bit.h5" verify "$work/bit.h5"
done

# Caches: converted, shown, checked, and their damage found; a refusal leaves the old file.
caches=$root/tests/golden/caches
cache=$work/cache.h5
good "wrote $cache: 4 samples in 3 sizes, 2 captions of 6 tokens, the empty one first, with masks; 1 flipped" \
    cache "$caches/kohya" -o "$cache" --text-length 6
good '^kind: cache$' inspect "$cache"
good '"samples":4' verify "$cache" --json
cp "$cache" "$work/first.h5"
bad 65 'cache of safetensors' cache "$caches/kohya" "$caches/tensors" -o "$cache"
bad 65 '--text-length is 512' cache "$caches/kohya" -o "$cache" --text-length 512
cmp -s "$cache" "$work/first.h5" || complain "a refused conversion changed the file"
good '"captions": 2, "buckets": 3, "has_empty": true' cache "$caches/tensors" -o "$work/other.h5" --json
for i in 0 14 3000 4090 4100 9000 15000; do
    cp "$cache" "$work/bit.h5"
    byte "$work/bit.h5" "$i"
    bad 65 "$work/bit.h5" verify "$work/bit.h5"
done
bad 66 "$work/nowhere" inspect "$work/nowhere"
bad 66 "$work/nowhere" verify "$work/nowhere"

((failures == 0)) && printf 'all passed\n'
exit $((failures > 0))

#!/bin/bash
# The example corpora are what ORIGIN says they are, and our tokenizer makes as many tokens of the
# base corpus as the reference that trained it (examples/base/tokenizer_origin.txt).
set -euo pipefail
source_dir=${TESS_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
tessera=${TESSERA_BIN:-$source_dir/build/bin/tessera}
command -v xz >/dev/null || { echo "skipped: needs xz (package xz-utils)"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

numel=0
while read -r sum name; do
    xz -dc "$source_dir/examples/corpus/$name.xz" >"$work/$name"
    [ "$(sha256sum <"$work/$name" | cut -d' ' -f1)" = "$sum" ] || fail "$name differs from ORIGIN"
    numel=$((numel + 1))
done < <(sed -n 's/^  \([0-9a-f]\{64\}\)  *\(.*\.jsonl\)$/\1 \2/p' "$source_dir/examples/corpus/ORIGIN")
[ "$numel" = 4 ] || fail "ORIGIN lists $numel files, expected 4"

# No document stands in both halves.
for corpus in postgresql kjv; do
    both=$(sort "$work/$corpus.train.jsonl" "$work/$corpus.eval.jsonl" | uniq -d | wc -l)
    [ "$both" = 0 ] || fail "$corpus: $both documents in train and eval"
done

[ -x "$tessera" ] || { echo "skipped: needs $tessera"; exit 77; }
out=$("$tessera" tokenize "$source_dir/examples/base" "$work/postgresql.train.jsonl" \
    -o "$work/data.h5" --no-bos)
want=$(sed -n 's/.* bytes of text, \([0-9]*\) tokens.*/\1/p' \
    "$source_dir/examples/base/tokenizer_origin.txt")
case $out in
*" $want tokens "*) ;;
*) fail "expected $want tokens, found: $out" ;;
esac
echo "4 corpus files as recorded, $want tokens"

#!/bin/bash
# Machine code of kernels that only move memory: no spills, accesses as wide as declared, no bound of
# tools/sass_bound below its goal; and the tool notices each of them.
plugin="${TESS_BUILD_DIR:?set by ctest}/bin/libtessera_cuda.so"
tool="${TESS_SOURCE_DIR:?set by ctest}/tools/sass_bound"
fail() { echo "test_sass_bound: $*" >&2; exit 1; }
skip() { echo "skipped: $*"; exit 77; }
command -v python3 > /dev/null || skip "no python3"
[ -f "$plugin" ] || skip "no CUDA part: $plugin"
out="$(python3 "$tool" --check --kernel '^(add|gate|fold|swiglu|adamw)$' "$plugin")"
rc=$?
[ "$rc" -eq 77 ] && skip "$out"
echo "$out"
[ "$rc" -eq 0 ] || fail "kernels miss what is declared: exit code $rc"
[ "$(grep -c ' bytes ' <<< "$out")" -ge 3 ] || fail "expected kernels that bytes bound"
cd "$(mktemp -d)" || fail "no folder"
trap 'rm -rf "$PWD"' EXIT
sed 's/"11gate_kernelILb1ELb1EE", 6, \[(6, 2)\]/"11gate_kernelILb1ELb1EE", 6, [(6, 2)], width=32/' "$tool" > wide
sed 's/"11gate_kernelILb1ELb1EE", 6, \[(6, 2)\]/"11gate_kernelILb1ELb1EE", 6, [(6, 2)], goal=1.01/' "$tool" > goal
for changed in wide goal; do
    cmp -s "$tool" "$changed" && fail "$changed: the row has moved"
    python3 "$changed" --check --kernel '^gate$' "$plugin" > log && fail "$changed: not noticed"
    grep -Eq 'narrow|below' log || fail "$changed: no word about it"
done
echo "ok"

#!/usr/bin/env bash
# launch/bundle: a folder that runs ranks where Open MPI is hidden. launch/check-gpu: what it makes of
# tests that pass, fail, are skipped, hang or do not fit the time.
# shellcheck source=tests/support/cli_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
build="${TESS_BUILD_DIR:?set by ctest}"

# ---- bundle ----

bash "$source_dir/launch/bundle" -b "$build" bundle.tar.xz > log 2>&1 || fail "bundle: exit code $?"
mkdir elsewhere
tar -C elsewhere -xf bundle.tar.xz || fail "bundle.tar.xz cannot be unpacked"
rm bundle.tar.xz
hidden=()
for folder in "$(dirname "$(realpath "$(ldconfig -p | awk '$1 == "libmpi.so.40" { print $NF; exit }')")")"/openmpi \
    /usr/share/openmpi /etc/openmpi; do
    [ ! -d "$folder" ] || hidden+=("$folder")
done
cat > inside.sh << 'INSIDE'
for folder in "$@"; do
    mount -t tmpfs none "$folder" || exit 70
done
. elsewhere/bundle/env
[ "$(command -v mpirun)" = "$PWD/elsewhere/bundle/ompi/bin/mpirun" ] || exit 71
exec mpirun -n 2 tessera train run.yaml train.steps=2 output.dir=out-bundle
INSIDE
if unshare -m true 2> /dev/null; then
    # What ctest and launch/env have set for this machine's Open MPI would hide what is missing.
    # shellcheck disable=SC2046 # a list of names
    env -u OMPI_MCA_pml -u OMPI_MCA_btl $(sed -n 's/^\(OMPI_[A-Z_a-z]*\)=.*/-u \1/p' <(env)) \
        unshare -m bash inside.sh "${hidden[@]}" > log 2>&1 || fail "a run from the bundle: exit code $?"
    [ "$(wc -l < out-bundle/metrics.jsonl)" -eq 2 ] || fail "a run from the bundle: no metrics of two steps"
else
    echo "not run: a bundle beside hidden libraries (no mount namespace here)"
fi
bash "$source_dir/launch/bundle" -b "$build" elsewhere/bundle > log 2>&1 && fail "bundle: wrote over a folder"
grep -q "is there already" log || fail "bundle: another refusal"

# ---- check-gpu ----

mkdir -p programs/bin programs/tests
ln -s "$tessera" programs/bin/tessera
program() { # NAME LINE...
    printf '#!/bin/sh\n' > "programs/tests/cuda.$1"
    printf '%s\n' "${@:2}" >> "programs/tests/cuda.$1"
    chmod +x "programs/tests/cuda.$1"
}
checked() { # EXPECTED-CODE NAME ARGUMENT...
    local code="$1" name="$2"
    shift 2
    bash "$source_dir/launch/check-gpu" -f -p programs -o tests -t '^cuda\.test_self_' "$@" "$name" > log 2>&1
    rc=$?
    [ "$rc" -eq "$code" ] || fail "check-gpu $name: exit code $rc, expected $code"
}
outcome() { # FOLDER NAME OUTCOME
    grep -q "\"name\":\"cuda.test_self_$2\",\"outcome\":\"$3" "$1/tests.jsonl" ||
        fail "$1: $2 is not '$3' in $(cat "$1/tests.jsonl")"
}

program test_self_pass 'test "$TESSERA_CUDA_PLUGIN" = "$TESS_FAKE_CUDA" && test -x "$TESSERA_BIN"'
program test_self_mpi 'echo "one of $OMPI_COMM_WORLD_SIZE"'
checked 0 all
outcome all pass passed
for n in 1 2 4; do
    outcome all "mpi.n$n" passed
    [ "$(grep -c "one of $n" "all/log/cuda.test_self_mpi.n$n.txt")" -eq "$n" ] || fail "not $n ranks"
done
grep -q "^4 passed, 0 failed, 0 stopped, 0 skipped, 0 left out" all/summary.md || fail "summary: $(cat all/summary.md)"
program test_self_skip 'echo "skipped: needs a reason"; exit 77'
checked 77 skips
outcome skips skip skipped
program test_self_fail 'echo "value 3 is 4"; exit 1'
checked 1 fails
outcome fails fail failed
grep -q "value 3 is 4" fails/log/cuda.test_self_fail.txt || fail "no log of what failed"
rm programs/tests/cuda.test_self_{fail,skip,mpi}
program test_self_hang 'exec sleep 300'
checked 1 hangs -s 12 # a program begins with 5 s or more: 7 s are for all that starts before it
outcome hangs hang "stopped after"
outcome hangs pass passed
checked 77 short -s 1
outcome short pass 'left out'
checked 73 short
echo "all passed"

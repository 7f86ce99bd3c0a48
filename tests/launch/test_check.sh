#!/usr/bin/env bash
# tessera check on one machine: what it prints, and a rank of another build named.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"

"$tessera" check --dir here > out.txt 2> log || fail "one rank: exit code $?"
grep -q "1 rank on 1 node" out.txt && grep -q "nothing is odd" out.txt || fail "one rank: $(cat out.txt)"
[ -z "$(ls -A here)" ] || fail "one rank: something is left in the folder"

# Other work on this machine may make a rank slow, which is then said: nothing else may be odd.
is_fine() {
    [ "$rc" = 0 ] || { [ "$rc" = 65 ] && ! sed -n '/^odd$/,/^tessera: error/p' log |
        grep "^  " | grep -v "reaches its neighbours at"; }
}

launch 3 check run.yaml output.dir=there
is_fine || fail "three ranks: exit code $rc"
grep -q "inside a node  *3 " log || fail "three ranks: no three pairs"
[ -z "$(ls -A there)" ] || fail "three ranks: something is left in the folder"

launch 2 check --json --dir here # two ranks have one pair and nothing to compare it with
[ "$rc" = 0 ] || fail "--json: exit code $rc"
grep -q '"gb_per_s": [0-9.]*' log && grep -q '"sees_output_dir": true' log || fail "--json"

# The same program with a byte behind its end runs alike and is another build.
cp "$tessera" other && printf x >> other
timeout 60 mpirun --oversubscribe -n 2 "$tessera" check --dir here : -n 1 ./other check --dir here \
    > log 2>&1
rc=$?
[ "$rc" = 65 ] || fail "another build: exit code $rc, expected 65"
grep -q "rank 2 on '.*' has tessera .* build .*, most ranks have .*: install the same build" log ||
    fail "another build: not named"
grep -q "error: check: [1-9] odd things\? in this launch, listed above" log ||
    fail "another build: no count"

launch 2 check missing.yaml
[ "$rc" = 74 ] || fail "a missing run file: exit code $rc"
"$tessera" check run.yaml --dir here > out.txt 2> log
[ $? = 64 ] || fail "--dir beside a run file is not refused"
echo "all passed"

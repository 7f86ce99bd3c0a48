#!/bin/bash
# The example that lays one adapter over every form of its base: the row of its own form is what the
# run's checkpoint gives, the base alone is what an evaluation without a checkpoint gives.
# shellcheck source=tests/support/cli_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
export TESSERA_BIN="$tessera"
launch 1 train run.yaml train.steps=6 output.checkpoint_every=0 data.eval_path=train.h5
[ "$rc" -eq 0 ] || fail "the run: exit code $rc"
"$source_dir/examples/format_table.sh" run.yaml out/export data.eval_path=train.h5 output.dir=none -- \
    nf4 int4 int2,base.rule=hqq > table 2> log || fail "the example: exit code $?"
cat table
[ "$(wc -l < table)" -eq 4 ] || fail "expected a head and three rows"
own="$("$tessera" eval run.yaml data.eval_path=train.h5 --json 2> /dev/null |
    sed -n 's/.*"loss": \([^,]*\),.*/\1/p')"
alone="$("$tessera" eval run.yaml data.eval_path=train.h5 --checkpoint none --json 2> /dev/null |
    sed -n 's/.*"loss": \([^,]*\),.*/\1/p')"
read -r name first second _ < <(sed -n 2p table)
[ "$name" = nf4 ] || fail "the first row is of $name"
[ "$first" = "$(printf '%.4f' "$alone")" ] || fail "nf4 alone: $first, expected $alone"
[ "$second" = "$(printf '%.4f' "$own")" ] || fail "nf4 with the adapter: $second, expected $own"
grep -Eq '^int2,base.rule=hqq +[0-9.]+ +[0-9.]+ +\+' table || fail "no row of int2"

#!/usr/bin/env bash
# quantize and merge in which one I/O call fails or kills, for calls all over them: what has the
# name of the output is whole, a failure takes its own leavings along, and the next attempt succeeds.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
stride="${TESS_SWEEP_STRIDE:-7}"
golden="$source_dir/tests/golden/bnb"
cp -r "$source_dir/examples/base" vocabulary
small() { "$tessera" quantize "$golden/plain" -o "$1" --max-shard-size 8000; }
gguf() { "$tessera" quantize vocabulary -o "$1" --format q8_0; }
merge() { "$tessera" merge vocabulary adapter -o "$1"; }

"$tessera" train run.yaml model.path=vocabulary model.init=weights train.steps=2 output.dir=made \
    > log 2>&1 || fail "cannot make an adapter"
mv made/export adapter

# command, output
same() {
    diff -r "whole-$2" "$2" > log 2>&1
}
sweep() {
    local command="$1" out="$2" kind call met rc
    "$command" "$out" > log 2>&1 || fail "$command failed"
    mv "$out" "whole-$out"
    for kind in kill enospc; do
        met=0
        for ((call = 1; ; call += stride)); do
            { TESSERA_FAULT="0:any:$call:$kind" "$command" "$out" > log 2>&1; } 2> /dev/null
            rc=$?
            if [ "$rc" -eq 0 ]; then
                same "$command" "$out" || fail "$command, $kind at call $call: another result"
                rm -rf "$out"
                break # past its last call
            fi
            met=$((met + 1))
            case "$kind:$rc" in
            kill:137) ;;
            enospc:74)
                [ "$(grep -c 'tessera: error:' log)" -eq 1 ] || fail "$kind at call $call: no line"
                # what is left is the whole, when the call was the last one, or nothing
                grep -q "'.*'.* failed:" log || fail "$kind at call $call: no cause in: $(cat log)"
                [ ! -e "$out.tessera-tmp" ] && [ ! -e "$out.tmp" ] ||
                    grep -q 'unlink\|rmdir\|opendir' log || fail "$kind at call $call: left $(ls)"
                ;;
            *) fail "$command, $kind at call $call: exit code $rc" ;;
            esac
            if [ -e "$out" ]; then
                same "$command" "$out" || fail "$command, $kind at call $call: a part has its name"
                rm -r "$out"
            fi
            "$command" "$out" > log 2>&1 || fail "$command after $kind at call $call failed"
            same "$command" "$out" || fail "$command after $kind at call $call: another result"
            rm -r "$out"
            [ ! -e "$out.tessera-tmp" ] && [ ! -e "$out.tmp" ] || fail "left: $(ls)"
        done
        [ "$met" -gt 5 ] || fail "$command: $met faults of $kind were met"
        echo "$command: $met of $kind up to call $call"
    done
}
sweep small out
sweep gguf out.gguf
sweep merge merged

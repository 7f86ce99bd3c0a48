#!/usr/bin/env bash
# The command line as a user meets it: help, usage errors, run file errors, one line each.
set -u
bin=${TESSERA_BIN:?}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

complain() {
    printf 'FAILED: %s\n' "$*"
    failures=$((failures + 1))
}

# expect CODE PATTERN ARGS...: exit code, empty stdout, one line on stderr that matches.
expect() {
    local code=$1 pattern=$2 status=0
    shift 2
    "$bin" "$@" >"$work/out" 2>"$work/err" || status=$?
    [[ $status == "$code" ]] || complain "tessera $*: exit $status, expected $code"
    [[ ! -s $work/out ]] || complain "tessera $*: wrote to stdout"
    [[ $(wc -l <"$work/err") == 1 ]] || complain "tessera $*: $(wc -l <"$work/err") lines on stderr"
    grep -Eq "^tessera: error: .*$pattern" "$work/err" ||
        complain "tessera $*: '$(cat "$work/err")' lacks '$pattern'"
}

commands=$("$bin" --help | sed -n 's/^  \([a-z]*\)  .*/\1/p')
[[ $(wc -w <<<"$commands") -ge 10 ]] || complain "tessera --help lists: $commands"
"$bin" --version | grep -Eqx 'tessera [0-9]+\.[0-9]+\.[0-9]+' || complain "tessera --version"

for command in $commands; do
    for form in "$command --help" "$command -h" "help $command"; do
        # shellcheck disable=SC2086 # two words
        "$bin" $form >"$work/out" 2>"$work/err" || complain "tessera $form: exit $?"
        grep -q "^Usage: tessera $command " "$work/out" || complain "tessera $form: no usage line"
        grep -q -- '--help' "$work/out" || complain "tessera $form: options are not listed"
        [[ ! -s $work/err ]] || complain "tessera $form: wrote to stderr"
        ! grep -q '^ \+$' "$work/out" || complain "tessera $form: a line of blanks (argp's, where a text fills its line)"
    done
    expect 64 "$command: unknown option '--no-such-option'" "$command" --no-such-option
    expect 64 "$command: unknown option '-Z'" "$command" -Z
    expect 64 "$command: no value is taken by option '--verbose=1'" "$command" --verbose=1
    expect 64 "$command: unknown option '--verb'" "$command" --verb
    [[ -f ${TESS_SOURCE_DIR:?}/docs/man/tessera-$command.1 ]] || complain "no man page of $command"
done

[[ $("$bin" help) == "$("$bin" --help)" ]] || complain "help alone does not list the commands"

expect 64 "no command given"
expect 64 "unknown command 'trian'" trian run.yaml
expect 64 "unknown command '--verbose'" --verbose
expect 64 "help: unknown command 'nothing'" help nothing
for command in train plan eval sample; do
    expect 64 "$command: no run file given" "$command"
done
expect 64 "sample: --prompt is missing" sample run.yaml
expect 64 "plan: a value is needed by option '--ranks'" plan run.yaml --ranks
for ranks in 0 -1 1048577 x 2x '' 1e3 99999999999999999999; do
    expect 64 "plan: --ranks: expected an integer from 1 to 1048576, found '$ranks'" \
        plan run.yaml "--ranks=$ranks"
done
for temperature in -0.1 101 nan inf 0x1 '' warm; do
    expect 64 "sample: --temperature: expected a number from 0 to 100, found '$temperature'" \
        sample run.yaml --prompt p "--temperature=$temperature"
done
for seconds in abc -5 0 5m nan inf 1e400; do
    TESSERA_DEADLINE_S=$seconds expect 65 \
        "TESSERA_DEADLINE_S: expected seconds from 0.1 to 100000, found '$seconds'" train run.yaml
    TESSERA_PAUSE_S=$seconds expect 65 \
        "TESSERA_PAUSE_S: expected seconds from 0.1 to 100000, found '$seconds'" train run.yaml
done
expect 64 "inspect: no path given" inspect
expect 64 "verify: no path given" verify
expect 64 "verify: one argument too many: 'b'" verify a b
expect 64 "diff: two paths are needed" diff a
expect 64 "diff: one argument too many: 'c'" diff a b c
expect 64 "export: -o OUT is missing" export a
expect 64 "export: --format: expected peft, gguf, diffusers, kohya, comfyui, hf, safetensors, npy or faiss, found 'onnx'" export a -o b --format onnx
expect 64 "export: --dtype: expected bf16, f32 or f16, found 'f8'" export a -o b --dtype f8
expect 64 "eval: --checkpoint and --adapter: give one of them" eval a --checkpoint b --adapter c
expect 64 "sample: --checkpoint and --adapter: give one of them" sample a --prompt p --checkpoint b --adapter c
expect 64 "tokenize: no tokenizer given" tokenize
expect 64 "tokenize: no input file given" tokenize t.json
expect 64 "tokenize: -o DATA.h5 is missing" tokenize t.json in.txt
expect 64 "cache: no folder or file given" cache
expect 64 "cache: -o CACHE.h5 is missing" cache folder
expect 64 "cache: --text-length is 1 to 65536 tokens" cache folder -o c.h5 --text-length 0
expect 64 "cache: a dtype is bf16 or f32" cache folder -o c.h5 --text-dtype f16

# Options of another family are refused before anything but the run file and the config is read: there is no checkpoint
# here, no weight and no vector.
cat >"$work/text.yaml" <<YAML
model: {path: $TESS_SOURCE_DIR/examples/base, init: random}
data: {path: none.h5, sequence_length: 8}
train: {steps: 1}
output: {dir: $work/none}
YAML
cat >"$work/vectors.yaml" <<YAML
model: {family: kmeans}
data: {path: none.fvecs}
output: {dir: $work/none}
YAML
for option in --steps=3 --size=64x64 --count=2 --cache=c.h5 --guidance=1 --shift=2; do
    expect 65 "sample: .*${option%=*}.* are of diffusion runs, and this is a language model: leave them out" \
        sample "$work/text.yaml" --prompt p "$option"
done
expect 65 "sample: a language model continues one prompt on stdout: leave out -o" \
    sample "$work/text.yaml" --prompt p -o latents.safetensors
expect 65 "sample: the run is over vectors, not text" sample "$work/vectors.yaml" --prompt p

# A full or closed stdout is an error, not silence.
status=0
"$bin" help run-file >/dev/full 2>"$work/err" || status=$?
[[ $status == 74 ]] || complain "help to a full disk: exit $status, expected 74"
grep -q 'stdout: cannot write results' "$work/err" ||
    complain "help to a full disk: $(cat "$work/err")"

# Under mpirun the line comes once, whatever the number of ranks.
status=0
mpirun -n 3 "$bin" train >"$work/out" 2>"$work/err" || status=$?
[[ $(grep -c '^tessera: error:' "$work/err") == 1 ]] ||
    complain "three ranks: $(grep -c '^tessera: error:' "$work/err") error lines"
[[ $status == 64 ]] || complain "three ranks: exit $status, expected 64"

((failures == 0)) && printf 'all passed\n'
exit $((failures > 0))

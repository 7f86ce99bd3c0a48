#!/usr/bin/env bash
# The shell scripts: syntax, arguments, and what they say where they may not install.
set -u
root=${TESS_SOURCE_DIR:?}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

complain() {
    printf 'FAILED: %s\n' "$*"
    failures=$((failures + 1))
}

for script in "$root"/launch/{check,quickstart,common.sh,hosts.sh,on-hosts,slurm.sbatch} \
    "$root/.ci/run"; do
    bash -n "$script" || complain "$script: syntax"
done
for script in check quickstart; do
    [[ -x $root/launch/$script ]] || complain "launch/$script: not executable"
    "$root/launch/$script" --help | grep -q "launch/$script" || complain "launch/$script --help"
    status=0
    "$root/launch/$script" --bogus >"$work/out" 2>"$work/err" || status=$?
    [[ $status == 64 ]] || complain "launch/$script --bogus: exit $status, expected 64"
    grep -q "$script: error: unknown argument '--bogus'" "$work/err" ||
        complain "launch/$script --bogus: $(cat "$work/err")"
done

# A host file is asked for, and read, before anything is started.
expect() { # exit code, text, arguments of on-hosts...
    local code=$1 text=$2
    shift 2
    status=0
    "$root/launch/on-hosts" "$@" >"$work/out" 2>"$work/err" || status=$?
    [[ $status == "$code" ]] || complain "on-hosts $*: exit $status, expected $code"
    grep -qF -- "$text" "$work/err" "$work/out" || complain "on-hosts $*: $(cat "$work/err")"
}
printf '# none\n\n' >"$work/empty"
expect 0 "launch/on-hosts [OPTION...] HOSTFILE -- COMMAND" -h
expect 64 "unknown argument '-z'" -z
expect 64 "-c: expected a number, found 'x'" -c x "$work/empty" -- true
expect 64 "expected HOSTFILE -- COMMAND" "$work/empty"
expect 66 "$work/missing: cannot read this host file" "$work/missing" -- true
expect 65 "$work/empty: names no machine" "$work/empty" -- true

status=0
PATH=/nonexistent /bin/bash "$root/launch/slurm.sbatch" run.yaml >"$work/out" 2>"$work/err" || status=$?
[[ $status == 69 ]] || complain "slurm.sbatch without Slurm: exit $status, expected 69"
grep -qF "submit this script with sbatch" "$work/err" || complain "slurm.sbatch without Slurm: $(cat "$work/err")"

# What the CUDA part lacks is found in Python packages, and put in front of what is set; a build without the part
# changes nothing.
mkdir -p "$work/stand-in" "$work/packages/nvidia/some/lib"
: >"$work/packages/nvidia/some/lib/libtess_absent.so.1"
: >"$work/plugin.so"
printf '#!/bin/sh\necho "libtess_absent.so.1 => not found"\n' >"$work/stand-in/ldd"
printf '#!/bin/sh\necho %s\n' "$work/packages/nvidia/some/lib" >"$work/stand-in/python3"
chmod +x "$work"/stand-in/*
found=$(PATH=$work/stand-in:$PATH LD_LIBRARY_PATH=/before \
    bash -c '. "$1/launch/common.sh" && cuda_environment "$2" && echo "$LD_LIBRARY_PATH"' _ "$root" "$work/plugin.so")
[[ :$found: == *":$work/packages/nvidia/some/lib:"* && $found == *:/before ]] || complain "cuda_environment: '$found'"
found=$(LD_LIBRARY_PATH=/before \
    bash -c '. "$1/launch/common.sh" && cuda_environment "$2" && echo "$LD_LIBRARY_PATH"' _ "$root" "$work/none.so")
[[ $found == /before ]] || complain "cuda_environment without a plugin: '$found'"

# A user who may not install gets the exact line, and 69. Everything the script calls before that
# is a stand-in on PATH.
mkdir "$work/bin"
printf '#!/bin/sh\necho not-installed\n' >"$work/bin/dpkg-query"
printf '#!/bin/sh\necho 1000\n' >"$work/bin/id"
printf '#!/bin/sh\nexit 1\n' >"$work/bin/sudo"
chmod +x "$work"/bin/*
status=0
PATH=$work/bin:$PATH "$root/launch/check" --quick </dev/null >"$work/out" 2>"$work/err" || status=$?
[[ $status == 69 ]] || complain "no rights: exit $status, expected 69"
[[ $(wc -l <"$work/err") == 1 ]] || complain "no rights: $(wc -l <"$work/err") lines"
names=$(grep -v '^#' "$root/launch/packages" | tr '\n' ' ')
grep -qF "apt-get install -y --no-install-recommends $names" "$work/err" ||
    complain "no rights: '$(cat "$work/err")' lacks the line to run"

((failures == 0)) && printf 'all passed\n'
exit $((failures > 0))

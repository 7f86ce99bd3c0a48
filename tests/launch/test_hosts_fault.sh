#!/usr/bin/env bash
# Lost hosts and links among simulated hosts: every rank ends in time with one cause, the run goes
# on with the hosts that are left, and a link that drops for 4 seconds is survived; always the bits
# of one host.
# Runs alone: it measures how soon ranks end.
. "${TESS_SOURCE_DIR:?set by ctest}/launch/hosts.sh"
hosts_enter "$@"
. "$TESS_SOURCE_DIR/tests/support/cli_run.sh"
hosts_up 3 "$work/hosts"

# Open MPI notices a silent peer after 6 + 3 * 1 seconds, which a drop of 4 s does not reach; ranks
# wait 20 s for each other. All ranks must be gone KEEPALIVE_S after a host falls silent, plus what
# Open MPI needs to end a job (ORTE's SIGTERM, 1 s, SIGKILL) and this machine to run it.
export OMPI_MCA_oob_tcp_keepalive_time=6 OMPI_MCA_oob_tcp_keepalive_intvl=1
export OMPI_MCA_oob_tcp_keepalive_probes=3 OMPI_MCA_odls_base_sigkill_timeout=0
export TESSERA_DEADLINE_S=20
keepalive_s=9 spare_s=6
steps=600
run=(run.yaml "train.steps=$steps" output.checkpoint_every=50)

begin() { # output folder, slots...
    local out=$1
    shift
    rm -rf "$out"
    hosts_file "$@" > hostfile
    : > log
    hosts_on "$hosts_first" "$source_dir/launch/on-hosts" ${restarts:+-r "$restarts"} hostfile -- \
        "$tessera" train "${run[@]}" "output.dir=$out" shard.gather_group=node \
        "shard.exchange=${exchange:-direct}" > log 2>&1 &
    job=$!
    await "info checkpoint" 60
}

ranks_left() {
    local i p
    for i in 1 2 3; do
        for p in $(hosts_pids "$i"); do
            [ "$(cat "/proc/$p/comm" 2> /dev/null)" != tessera ] || echo "host$i:$p"
        done
    done
}

# seconds: all ranks must be gone by then, and the job with them
gone_within() {
    local until_ms=$((begun_ms + $1 * 1000))
    while [ -n "$(ranks_left)" ]; do
        [ "$(now_ms)" -lt "$until_ms" ] || fail "$what: still there after $1 s: $(ranks_left)"
        sleep 0.1
    done
    echo "$what: all ranks gone after $(($(now_ms) - begun_ms)) ms"
}

# One cause: the line that names the lost host, and the code of a lost rank or link.
ends_with() { # exit code, text or nothing
    finish
    [ "$rc" = "$1" ] || fail "$what: exit code $rc, expected $1"
    [ -z "${2:-}" ] || grep -q -- "$2" log || fail "$what: no line with '$2'"
}

# slots...: go on with what is left; the same bits as the run on one host
goes_on() {
    local out=$1
    shift
    hosts_file "$@" > hostfile
    hosts_on "$hosts_first" "$source_dir/launch/on-hosts" hostfile -- \
        "$tessera" train "${run[@]}" "output.dir=$out" > log 2>&1 ||
        fail "$what: does not go on"
    same_bits "$out"
}

same_bits() {
    grep -q "resumed" log || fail "$what: started from nothing"
    diff <(bits_of one) <(bits_of "$1") > diff.txt || fail "$what: other bits than one host:
$(head -n 5 diff.txt)"
    echo "$what: the rest goes on with the same bits"
}

"$tessera" train "${run[@]}" output.dir=one > log 2>&1 || fail "one rank"

what="USR1 to the script"
begin usr1 1 1
for p in $(descendants "$job"); do
    if grep -q launch/on-hosts "/proc/$p/cmdline" 2> /dev/null; then
        kill -USR1 "$p"
        break
    fi
done
ends_with 75 "stopped on request after step"
goes_on usr1 2 1

what="a host crashes"
begin crash 2 2
begun_ms=$(now_ms)
hosts_crash 2
gone_within $spare_s
ends_with 86 "$hosts_net.2"
goes_on crash 2

what="a host crashes, pieces by node"
exchange=by-node
begin by-node 2 2
exchange=
begun_ms=$(now_ms)
hosts_crash 2
gone_within $spare_s
ends_with 86 "$hosts_net.2"
goes_on by-node 2

what="a host loses power, the script goes on with the rest"
restarts=1
begin power 1 1 1
restarts=
begun_ms=$(now_ms)
hosts_power_off 3
await "$hosts_net.3 does not answer: going on without it" $((keepalive_s + spare_s + 15))
ends_with 0
same_bits power

what="the host of mpirun loses power"
begin first 1 1
begun_ms=$(now_ms)
hosts_power_off 1
gone_within $((keepalive_s + spare_s))
is_killed=1 finish
hosts_first=2
goes_on first 2
hosts_first=1
hosts_link 1 up

what="a link stays down"
begin link 1 1
begun_ms=$(now_ms)
hosts_link 2 down
gone_within $((TESSERA_DEADLINE_S + 10 + spare_s))
ends_with 86 "$hosts_net.2"
hosts_link 2 up
goes_on link 1 1

what="a link drops for 4 s"
begin drop 2 2
hosts_link 2 down
sleep 4
hosts_link 2 up
ends_with 0
grep -q "does not answer" log && fail "$what: a host was given up"
diff <(bits_of one) <(bits_of drop) > /dev/null || fail "$what: other bits than one host"
echo "$what: survived, same bits"
exit 0

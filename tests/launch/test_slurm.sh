#!/usr/bin/env bash
# launch/slurm.sbatch under Slurm's own daemons on one node: start, USR1 before the limit, requeue on
# 75, then the same run with fewer tasks; the bits of one rank.
# Runs alone: limits of jobs are in seconds.
PATH=$PATH:/usr/sbin:/sbin
for tool in slurmctld slurmd sbatch srun scontrol; do
    command -v "$tool" > /dev/null || { echo "skipped: needs $tool (packages slurmctld slurmd)"; exit 77; }
done
[ "$(id -u)" = 0 ] || { echo "skipped: slurmd needs root"; exit 77; }
# Own namespaces: daemons listen on a loopback of their own and end with the test.
. "${TESS_SOURCE_DIR:?set by ctest}/launch/hosts.sh"
hosts_enter "$@"
. "$TESS_SOURCE_DIR/tests/support/cli_run.sh"
# A name and an address beyond loopback, which Slurm's look-ups ask for.
ip link set lo up
ip link add name cable type veth peer name slurm0
ip address add 10.77.1.1/24 dev slurm0
ip link set cable up
ip link set slurm0 up
hostname slurmnode
printf '127.0.0.1 localhost\n10.77.1.1 slurmnode\n' > hosts
mount --bind hosts /etc/hosts

mkdir state spool
export SLURM_CONF="$work/slurm.conf"
cat > "$SLURM_CONF" << CONF
ClusterName=tessera
SlurmctldHost=slurmnode(10.77.1.1)
SlurmUser=root
AuthType=auth/none
AuthInfo=cred_expire=6
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
SlurmdParameters=config_overrides
SlurmctldParameters=idle_on_node_suspend
KillWait=5
MinJobAge=600
NodeName=slurmnode NodeAddr=10.77.1.1 CPUs=4 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld -D > ctld.out 2>&1 &
slurmd -D > slurmd.out 2>&1 &

wait_for() { # seconds, what, command...
    local until_ms=$(($(now_ms) + $1 * 1000)) what=$2
    shift 2
    until "$@"; do
        if [ "$(now_ms)" -ge "$until_ms" ]; then
            tail -n 15 slurmctld.log slurmd.log job.log 2> /dev/null
            fail "$what"
        fi
        sleep 0.2
    done
}

state_of() { scontrol show job "$1" 2> /dev/null | sed -n "s/.*$2=\([^ ]*\).*/\1/p"; }
is_in() { state_of "$1" JobState | grep -Eq "$2"; }
wait_for 30 "the node does not come up" bash -c 'sinfo -h -o %T 2> /dev/null | grep -qx idle'
srun --mpi=list 2>&1 | grep -q pmix || { echo "skipped: this Slurm has no pmix"; exit 77; }
unset OMPI_MCA_btl OMPI_MCA_pml # as on a cluster: by what MPI finds
export TESSERA="$tessera" OMPI_MCA_pml=ob1

submit() { # tasks, minutes, signal, keys...
    local tasks=$1 minutes=$2 signal=$3
    shift 3
    id=$(sbatch --parsable --nodes=1 --ntasks-per-node="$tasks" --cpus-per-task=1 \
        --time="$minutes" --signal="$signal" --output=job.log \
        "$source_dir/launch/slurm.sbatch" run.yaml "${run[@]}" "$@") || fail "sbatch"
}

steps=100000
run=(output.dir=out output.checkpoint_every=200 "train.steps=$steps")

# USR1 comes SECONDS before a limit of whole minutes, up to a minute early: at once with 59.
submit 2 1 B:USR1@59
wait_for 100 "the job was not queued again" bash -c \
    "[ \"\$(scontrol show job $id | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p')\" = 1 ]"
grep -q "checkpoint step=" job.log || fail "USR1: no save before the end: $(tail -n 5 job.log)"
# The signal would come again at once on every start; the next one is to run on.
scontrol update JobId="$id" TimeLimit=60 || fail "scontrol update"
echo "USR1 before the limit: saved, ended with 75, queued again"

wait_for 60 "the job did not start again" is_in "$id" RUNNING
# Steps of all launches in the order they ran, from what each writes beside its checkpoints.
last_step() { sed -n 's/.*"step": \([0-9]*\),.*/\1/p' out/metrics.jsonl 2> /dev/null | tail -n 1; }
saved=$(sed -n 's/.*checkpoint step=\([0-9]*\) .*/\1/p' job.log | tail -n 1)
is_past() { [ "$(last_step)" -gt "$1" ] 2> /dev/null; }
wait_for 60 "the job did not go on after step $saved" is_past $((saved + 210))
scancel "$id"
wait_for 60 "the job does not end" is_in "$id" "CANCELLED|COMPLETED|FAILED"
echo "requeue: went on after step $saved"

before=$(grep -c "checkpoint step=" job.log)
submit 1 10 B:USR1@59
wait_for 60 "the job with one task did not start" is_in "$id" RUNNING
is_saved() { [ "$(grep -c "checkpoint step=" job.log)" -gt "$before" ]; }
wait_for 90 "the job with one task did not go on" is_saved
scancel "$id"
wait_for 60 "the job does not end" is_in "$id" "CANCELLED|COMPLETED|FAILED"
reached=$(sed -n 's/.*checkpoint step=\([0-9]*\) .*/\1/p' job.log | tail -n 1)
[ "$reached" -gt $((saved + 200)) ] || fail "one task started from nothing: step $reached"

"$tessera" train run.yaml output.dir=one output.checkpoint_every=100000 "train.steps=$steps" \
    > log 2>&1 &
job=$!
is_reached() { grep -q "\"step\": $reached," one/metrics.jsonl 2> /dev/null; }
wait_for 120 "one rank alone does not reach step $reached" is_reached
kill -KILL "$job"
wait "$job" 2> /dev/null
job=
bits() {
    sed -n 's/.*"step": \([0-9]*\),.*"loss_bits": "\([0-9a-f]*\)".*/\1 \2/p' "$1/metrics.jsonl" |
        awk -v last="$reached" '$1 <= last'
}
diff <(bits one) <(bits out) > diff.txt || fail "other bits than one rank: $(head -n 5 diff.txt)"
[ "$(bits out | wc -l)" = "$reached" ] || fail "metrics lack steps"
echo "fewer tasks: went on to step $reached, same bits as one rank"
exit 0

#!/usr/bin/env bash
# Train on several machines with mpirun: edit the three lines below and run this on one of them.
#
# Tessera and the run's folder are expected under the same path on every machine, and ssh between
# them without a password. Save and stop: kill -USR1 PID-OF-MPIRUN (exit code 75; run again to
# go on).
set -euo pipefail
hosts=node1:8,node2:8,node3:8,node4:8      # machine:ranks, one rank per GPU or per core group
tessera=/opt/tessera/bin/tessera
run_file=${1:?usage: mpirun-example.sh RUN.yaml [KEY=VALUE...]}

# A dead link is noticed after 10 + 3 * 5 seconds instead of two hours.
exec mpirun --host "$hosts" \
    --mca oob_tcp_keepalive_time 10 \
    --mca oob_tcp_keepalive_intvl 5 \
    --mca oob_tcp_keepalive_probes 3 \
    --mca hwloc_base_binding_policy none \
    -x PATH -x LD_LIBRARY_PATH \
    "$tessera" train "$run_file" "${@:2}"

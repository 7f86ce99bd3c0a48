# shellcheck shell=bash
# Source me: several simulated hosts on this machine. A host is a set of namespaces (network, host
# name, IPC, mounts) with an interface of its own on a bridge and its own /dev/shm; what runs on it
# is known by its network namespace.
#
#   hosts_enter "$@"        first: run the calling script again in namespaces of its own, so that
#                           nothing it makes can outlive it or meet another run; exits 77 and says
#                           why where that is not allowed
#   hosts_up N FOLDER       make hosts 1..N, 10.77.0.i, on one bridge; FOLDER is for files of theirs,
#                           outside /dev/shm
#   hosts_on I COMMAND...   run a command on a host, in the present folder
#   hosts_file SLOTS...     print a host file, "2 2": two ranks on each of hosts 1 and 2;
#                           `hosts_first=3` begins with host 3
#   hosts_shape I RATE      limit what host I sends (tc tbf), e.g. 200mbit; "none" lifts it
#   hosts_link I up|down    pull the cable of host I, or put it back
#   hosts_bytes I           bytes that host I has sent and received on its interface
#   hosts_crash I           end all its processes; peers see their connections closed
#   hosts_power_off I       pull the cable, then end all: peers see nothing at all
#
# There is no netem in many kernels (hosts_has_delay says so): links have a rate, no latency of
# their own.
hosts_net=10.77.0
hosts_first=1
hosts_user=()
[ "$(id -u)" = 0 ] || hosts_user=(--user --map-root-user)

hosts_skip() {
    echo "skipped: simulated hosts need $1"
    exit 77
}

hosts_enter() {
    [ -z "${TESS_HOSTS_INSIDE:-}" ] || return 0
    local tool
    for tool in unshare nsenter ip mpirun; do
        command -v "$tool" > /dev/null || hosts_skip "$tool"
    done
    local inside=(unshare "${hosts_user[@]}" --mount --net --uts --ipc --pid --fork --kill-child
        --mount-proc)
    "${inside[@]}" true 2> /dev/null || hosts_skip "the right to make namespaces"
    "${inside[@]}" bash -c 'ip link add name hosts type bridge && ip link add name cable type veth' \
        2> /dev/null || hosts_skip "bridges and veth pairs in the kernel"
    TESS_HOSTS_INSIDE=1 exec "${inside[@]}" bash "$0" "$@"
}

hosts_keeper=() # process of each host that keeps its namespaces

hosts_up() {
    local i
    hosts_work="$2"
    mkdir -p "$hosts_work"
    ip link set lo up
    ip link add name hosts type bridge
    ip link set hosts up
    for ((i = 1; i <= $1; i++)); do
        hosts_make "$i"
    done
    cat > "$hosts_work/agent" << 'AGENT'
#!/usr/bin/env bash
# In the place of ssh: HOST COMMAND...
work=$(dirname "$0")
[ -e "$work/down.${1##*.}" ] && exit 255 # no cable
keeper=$(cat "$work/keeper.${1##*.}")
shift
exec nsenter --target "$keeper" --net --uts --ipc --mount --wd="$PWD" bash -c "$*"
AGENT
    chmod +x "$hosts_work/agent"
    hosts_environment
}

hosts_make() {
    local i=$1
    rm -f "$hosts_work/ready.$i"
    unshare --mount --net --uts --ipc bash -c '
        mount -t tmpfs tessera /dev/shm && hostname "host$1" && ip link set lo up && : > "$2" &&
            exec sleep infinity' - "$i" "$hosts_work/ready.$i" > /dev/null 2>&1 &
    hosts_keeper[i]=$!
    until [ -e "$hosts_work/ready.$i" ]; do
        kill -0 "${hosts_keeper[i]}" 2> /dev/null || hosts_skip "a host of their own"
        sleep 0.01
    done
    echo "${hosts_keeper[i]}" > "$hosts_work/keeper.$i"
    ip link add name "cable$i" type veth peer name eth0 netns "${hosts_keeper[i]}"
    ip link set "cable$i" master hosts up
    hosts_on "$i" ip address add "$hosts_net.$i/24" dev eth0
    hosts_on "$i" ip link set eth0 up
}

hosts_on() {
    local i=$1
    shift
    nsenter --target "${hosts_keeper[i]}" --net --uts --ipc --mount --wd="$PWD" "$@"
}

# What makes mpirun on a host reach the others.
hosts_environment() {
    export OMPI_MCA_plm=rsh OMPI_MCA_plm_rsh_agent="$hosts_work/agent" OMPI_MCA_plm_rsh_no_tree_spawn=1
    export OMPI_MCA_orte_keep_fqdn_hostnames=1 OMPI_MCA_pml=ob1 OMPI_MCA_btl=tcp,vader,self
    export OMPI_MCA_btl_tcp_if_include="$hosts_net.0/24" OMPI_MCA_oob_tcp_if_include="$hosts_net.0/24"
}

hosts_file() {
    local i=$hosts_first numel
    for numel in "$@"; do
        [ "$numel" = 0 ] || echo "$hosts_net.$i slots=$numel"
        i=$((i + 1))
    done
}

hosts_shape() {
    local packet=16384
    [ "$2" != none ] || packet=65536
    hosts_on "$1" tc qdisc del dev eth0 root 2> /dev/null
    # A small bucket: what it lets through at once after a pause is no rate. Packets fit into it, or
    # the sender's core would cut them up at the pace of the link.
    hosts_on "$1" ip link set eth0 gso_max_size "$packet" 2> /dev/null
    [ "$2" = none ] && return 0
    hosts_on "$1" tc qdisc add dev eth0 root tbf rate "$2" burst 20kb latency 50ms 2> /dev/null
}
hosts_has_delay() {
    hosts_on "$1" tc qdisc add dev lo root netem delay 1ms 2> /dev/null &&
        hosts_on "$1" tc qdisc del dev lo root
}

hosts_link() {
    ip link set "cable$1" "$2"
    if [ "$2" = down ]; then : > "$hosts_work/down.$1"; else rm -f "$hosts_work/down.$1"; fi
    [ "$2" = down ] || hosts_answer "$1"
}
# A cable that was just put in carries nothing until its neighbours have been asked for again.
hosts_answer() {
    local i tries
    for i in "${!hosts_keeper[@]}"; do
        [ "$i" = "$1" ] || [ -e "$hosts_work/down.$i" ] || ! kill -0 "${hosts_keeper[i]}" 2> /dev/null && continue
        for ((tries = 0; tries < 50; tries++)); do
            # shellcheck disable=SC2016 # for the host's own shell
            [[ $(hosts_on "$i" timeout 1 bash -c '< "/dev/tcp/$1/9"' - "$hosts_net.$1" 2>&1) != *refused* ]] || break
        done
    done
}

hosts_bytes() {
    sed -n 's/^ *eth0: *//p' "/proc/${hosts_keeper[$1]}/net/dev" | awk '{print $9, $1}'
}

# Processes of host I but for the keeper of its namespaces.
hosts_pids() {
    local p mine
    mine=$(readlink "/proc/${hosts_keeper[$1]}/ns/net")
    for p in /proc/[0-9]*; do
        [ "$(readlink "$p/ns/net" 2> /dev/null)" != "$mine" ] || echo "${p#/proc/}"
    done | grep -vx "${hosts_keeper[$1]}"
}

hosts_crash() {
    local pids
    while pids=$(hosts_pids "$1") && [ -n "$pids" ]; do
        # shellcheck disable=SC2086 # a list
        kill -KILL $pids 2> /dev/null
    done
}
hosts_power_off() {
    hosts_link "$1" down
    hosts_crash "$1"
}

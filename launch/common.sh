# shellcheck shell=bash disable=SC2034
# What launch/check and launch/quickstart share; sourced, not run.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")

say() { printf '%s\n' "$*" >&2; }
fail() { # CODE MESSAGE...
    local code=$1
    shift
    say "$(basename "$0"): error: $*"
    exit "$code"
}

# Names in launch/packages and in further lists that are not installed.
missing_packages() { # LIST...
    local name list
    for list in packages "$@"; do
        while read -r name; do
            [[ -z $name || $name == \#* ]] && continue
            [[ $(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null) == installed ]] ||
                printf '%s ' "$name"
        done <"$here/$list"
    done
}

# Install what is missing: as root, or through sudo where it asks for no password or a person can
# type one; else print the line to run and stop.
install_missing() { # LIST...
    command -v dpkg-query >/dev/null || {
        say "no dpkg here: install what launch/packages names by this system's own means"
        return 0
    }
    local missing runner=()
    missing=$(missing_packages "$@")
    [[ -z $missing ]] && return 0
    local line="apt-get install -y --no-install-recommends $missing"
    if [[ $(id -u) != 0 ]]; then
        if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
            runner=(sudo)
        else
            fail 69 "packages are missing and this user cannot install them; as root run: $line"
        fi
    fi
    say "installing: $missing"
    export DEBIAN_FRONTEND=noninteractive
    "${runner[@]}" apt-get update -q >&2 ||
        say "apt-get update failed; trying with the package lists that are here"
    # shellcheck disable=SC2086 # a list of names
    "${runner[@]}" apt-get install -y -q --no-install-recommends $missing >&2 ||
        fail 69 "installing failed; as root run: $line"
}

# A folder this user can write for PURPOSE: in the checkout, or in the user's cache where the
# checkout belongs to someone else.
writable_folder() {
    local inside=$root/$1
    if mkdir -p "$inside" 2>/dev/null && [[ -w $inside ]] &&
        [[ ! -e $inside/CMakeCache.txt || -w $inside/CMakeCache.txt ]]; then
        printf '%s' "$inside"
        return
    fi
    local key
    key=$(printf '%s' "$root" | cksum | cut -d' ' -f1)
    inside=${XDG_CACHE_HOME:-$HOME/.cache}/tessera-$key/$1
    mkdir -p "$inside" || fail 74 "cannot write $root/$1 nor $inside"
    printf '%s' "$inside"
}

# Configure and build PRESET, all of it or the targets named; sets `build` to the build folder.
build_preset() { # PRESET TARGET...
    local preset=$1 targets=()
    shift
    (($# > 0)) && targets=(--target "$@")
    build=$(writable_folder "build/$preset")
    # A cache from another place (a copied checkout) would build that place.
    local cached
    cached=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$build/CMakeCache.txt" 2>/dev/null) ||
        cached=
    [[ -n $cached && $cached != "$root" ]] && rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles"
    say "building $preset in $build"
    (cd "$root" && cmake --preset "$preset" -B "$build") >&2 || fail 70 "configuring failed"
    cmake --build "$build" -j "${jobs:-$(nproc)}" "${targets[@]}" >&2 || fail 70 "building failed"
}

# Open MPI as this project uses it; what the user has set stays.
mpi_environment() {
    if [[ $(id -u) == 0 ]]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe-1}
    export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle-1}
    export OMPI_MCA_pml=${OMPI_MCA_pml-ob1}
    export OMPI_MCA_btl=${OMPI_MCA_btl-vader,tcp,self}
    export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism-none}
    export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy-none}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS-1}
    # mpirun refuses to start without a remote shell, even for one machine.
    if ! command -v ssh >/dev/null && ! command -v rsh >/dev/null; then
        export OMPI_MCA_plm=isolated
    fi
}

# Folders of CUDA's libraries that the loader does not know, as a prefix of LD_LIBRARY_PATH: those of
# the toolkit, else of Python packages. Empty where PLUGIN finds all of its own.
cuda_library_path() { # PLUGIN
    local name folder found='' places=()
    for folder in /usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib \
        /usr/local/nvidia/lib64 /usr/lib/x86_64-linux-gnu; do
        [[ -d $folder ]] && places+=("$folder")
    done
    while read -r folder; do
        [[ -n $folder ]] && places+=("$folder")
    done < <(python3 -c 'import glob, sysconfig
print(*glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/*/lib"), sep="\n")' 2>/dev/null)
    # cuDNN and NCCL are opened by name at run time, so the plugin does not list them.
    for name in $(ldd "$1" 2>/dev/null | awk '/not found/ { print $1 }') libcudnn.so.9 libnccl.so.2; do
        ldconfig -p | grep "^[[:space:]]*$name " >/dev/null && continue # all of it read: pipefail
        for folder in "${places[@]}"; do
            [[ -e $folder/$name ]] || continue
            [[ :$found: == *":$folder:"* ]] || found+=${found:+:}$folder
            break
        done
    done
    printf '%s' "$found"
}

# LD_LIBRARY_PATH with those folders in front; nothing where the plugin is not built.
cuda_environment() { # PLUGIN
    local path
    [[ -e $1 ]] || return 0
    path=$(cuda_library_path "$1")
    [[ -z $path ]] || export LD_LIBRARY_PATH=$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

/**
 * What must be true before MPI starts, and how a launcher shows itself. The only file of this
 * folder that reads the environment.
 *
 * [Note: yielding and binding] With more ranks than cores Open MPI 4.1 spins by default and a
 * message takes milliseconds; its default binding pins small worlds to one core a rank, so that
 * compute threads share it. Both defaults are replaced; whatever the user set stays.
 *
 * [Note: plugins stay] MPI_Finalize of Open MPI 4.1 unloads its plugins while a thread of its own
 * may have a call of theirs ahead: an event that the thread of PMIx has taken in, such as the end
 * of a peer, is handed to another thread. Where much else runs, that one comes late, and the rank
 * dies of SIGSEGV with its work done: 139 in place of the exit code that it has.
 */
#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dist/engine_priv.h"

static bool is_set(const char *name) { return getenv(name) != NULL; }

bool tess_comm_is_launched(void)
{
    static const char *const mark[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"};
    for (int i = 0; i < TESS_NELEM(mark); i++)
        if (is_set(mark[i]))
            return true;
    return false;
}

/* Ranks of this node as the launcher says: MPI does not run yet. */
static int local_numel(void)
{
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    const long numel = local != NULL ? strtol(local, NULL, 10) : 1;
    return numel >= 1 && numel <= 1 << 20 ? (int)numel : 1;
}

static int cores_here(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* mpirun has bound this process by its default policy: take the launcher's own, unbound set. */
static void undo_default_binding(void)
{
    if (is_set("OMPI_MCA_hwloc_base_binding_policy") ||
        is_set("OMPI_MCA_rmaps_rank_file_physical") || is_set("OMPI_MCA_hwloc_base_cpu_list") ||
        !is_set("OMPI_MCA_orte_bound_at_launch"))
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(getppid(), sizeof set, &set) == 0 && CPU_COUNT(&set) > cores_here())
        (void)sched_setaffinity(0, sizeof set, &set);
}

void engine_mpi_prepare(tess_comm_thread thread)
{
    undo_default_binding();
    const int threads = thread == TESS_COMM_THREAD_ON ? 2 : 1;
    if (local_numel() * threads > cores_here())
        (void)setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    (void)setenv("OMPI_MCA_hwloc_base_binding_policy", "none", 0);
    (void)setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
}

typedef struct plugin {
    int skip_numel; /* of those that come first */
    char path[PATH_MAX];
} plugin;

static int find_plugin(struct dl_phdr_info *info, size_t nbytes, void *arg)
{
    plugin *p = arg;
    (void)nbytes;
    if (strstr(info->dlpi_name, "/mca_") == NULL || p->skip_numel-- > 0)
        return 0;
    snprintf(p->path, sizeof p->path, "%s", info->dlpi_name);
    return 1;
}

/* See [Note: plugins stay]. A handle that is never closed keeps each. */
void engine_mpi_keep_plugins(void)
{
    plugin p = {.skip_numel = 0};
    for (int i = 0; dl_iterate_phdr(find_plugin, &p) != 0; p.skip_numel = ++i)
        (void)dlopen(p.path, RTLD_LAZY | RTLD_NOLOAD);
}

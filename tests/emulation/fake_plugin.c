/*
 * A CUDA part without CUDA, opened by the program in place of the real one (TESSERA_CUDA_PLUGIN):
 * devices with memory of their own, the CPU's kernels, collectives over MPI. The environment says
 * what it shows:
 *
 *   FAKE_CUDA_FAULT    abi: of another version; driver: device_numel fails; open: a device that
 *                      another program holds; kernels: none; alloc: no more than 1 MiB
 *                      although more is said to be free; kernel:OP:KIND: as fake_kernels.h;
 *                      and those of fake_products.h and fake_streams.h
 *   FAKE_CUDA_DEVICES  how many (1)
 *   FAKE_CUDA_MODELS   names of the models, by device number, separated by commas
 *   FAKE_CUDA_SLICES   1: they are slices of one
 *   FAKE_CUDA_MEMORY   bytes of a device (64 GiB)
 *   FAKE_CUDA_NCCL     none: no collectives; none:R: only on rank R; else as collectives_mpi.h
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/host_priv.h"
#include "tests/emulation/collectives_mpi.h"
#include "tests/emulation/fake_kernels.h"
#include "tests/emulation/fake_products.h"
#include "tests/emulation/fake_streams.h"
#include "tests/support/plain_device.h"

static const char *setting(const char *name, const char *otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? text : otherwise;
}

static bool has_fault(const char *name)
{
    return strcmp(setting("FAKE_CUDA_FAULT", ""), name) == 0;
}

static const tess_kernels *fake_kernels(tess_device *d)
{
    static const char prefix[] = "kernel:";
    static tess_kernels kernels;
    const char *fault = setting("FAKE_CUDA_FAULT", "");
    const bool is_broken = strncmp(fault, prefix, sizeof prefix - 1) == 0;
    const tess_kernels *made =
        has_fault("kernels") ? NULL
                             : fake_kernels_make(is_broken ? fault + sizeof prefix - 1 : NULL);
    if (made == NULL)
        return NULL;
    kernels = *made;
    fake_products_install(&kernels, d);
    return &kernels;
}

/* ---- devices ---- */

static tess_status fake_device_numel(int *numel)
{
    TESS_CHECK(!has_fault("driver"), TESS_E_UNSUPPORTED,
               "the CUDA driver supports CUDA 12.4, this program needs 13.0");
    *numel = atoi(setting("FAKE_CUDA_DEVICES", "1"));
    return TESS_OK;
}

static size_t memory_nbytes(void)
{
    return (size_t)strtoull(setting("FAKE_CUDA_MEMORY", "68719476736"), NULL, 10);
}

static tess_status fake_device_info(int idx, tess_cuda_info *out)
{
    const char *model = setting("FAKE_CUDA_MODELS", "Fake H100");
    for (int i = 0; i < idx && strchr(model, ',') != NULL; i++)
        model = strchr(model, ',') + 1;
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%.*s", (int)strcspn(model, ","), model);
    const bool is_slice = atoi(setting("FAKE_CUDA_SLICES", "0")) == 1;
    snprintf(out->bus_id, sizeof out->bus_id, "0000:%02x:00.0", is_slice ? 1 : idx + 1);
    snprintf((char *)out->uuid, sizeof out->uuid, "fake %d", idx);
    out->capability = 90;
    out->sm_numel = 132;
    out->memory_nbytes = memory_nbytes();
    return TESS_OK;
}

static tess_status fake_device_open(int idx, tess_device **out)
{
    char name[32];
    TESS_CHECK(!has_fault("open"), TESS_E_UNSUPPORTED, "cuda:%d: CUDA says all devices are busy",
               idx);
    snprintf(name, sizeof name, "cuda:%d", idx);
    TESS_TRY(plain_device_create(name, false, out));
    plain_device_set_memory(*out, memory_nbytes(),
                            has_fault("alloc") ? (size_t)1 << 20 : memory_nbytes());
    fake_streams_install(*out, fake_products_drop);
    return TESS_OK;
}

static tess_status fake_prepare(tess_device *d, tess_stream *compute, const tess_cuda_work *work,
                                char note[TESS_CUDA_NOTE_NBYTES])
{
    TESS_CHECK(strcmp(compute->name, "compute") == 0 && work->attention[0].token_numel > 0,
               TESS_E_STATE, "%s: prepared for stream '%s'", d->name, compute->name);
    TESS_TRY(fake_products_prepare(d, compute));
    snprintf(note, TESS_CUDA_NOTE_NBYTES, "own kernels: the CPU's, slots of %zu bytes",
             work->slot_nbytes);
    return TESS_OK;
}

static size_t fake_prepare_nbytes(const tess_cuda_work *work)
{
    (void)work;
    return 0;
}

static tess_cuda_plugin plugin = {
    .abi = TESS_CUDA_ABI,
    .versions = "Fake CUDA 13.0",
    .device_numel = fake_device_numel,
    .device_info = fake_device_info,
    .device_open = fake_device_open,
    .device_close = plain_device_destroy,
    .kernels = fake_kernels,
    .prepare = fake_prepare,
    .prepare_nbytes = fake_prepare_nbytes,
};

TESS_EXPORT const tess_cuda_plugin *tess_cuda_plugin_open(const tess_cuda_host *host);

const tess_cuda_plugin *tess_cuda_plugin_open(const tess_cuda_host *host)
{
    if (has_fault("abi") || !tess_cuda_host_set(host))
        return NULL;
    const char *nccl = setting("FAKE_CUDA_NCCL", "");
    int without = 0;
    const bool is_one = sscanf(nccl, "none:%d", &without) == 1;
    const bool is_none = strcmp(nccl, "none") == 0 ||
                         (is_one && without == atoi(setting("OMPI_COMM_WORLD_RANK", "0")));
    plugin.collectives = is_none ? NULL : &collectives_mpi;
    collectives_mpi_inject(nccl);
    return &plugin;
}

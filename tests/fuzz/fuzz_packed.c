/* Any bytes as the quant_state of a 4-bit weight of [2, 64]: refused, or the weight is read whole.
 */
#include <string.h>

#include "format/model_dir.h"
#include "fuzz.h"

enum { CODES_NBYTES = 64, ABSMAX_NBYTES = 8, MAP_NBYTES = 64, FILE_MAX_NBYTES = 1 << 16 };

static const float table[16] = {
    -1.0F,
    -0.6961928009986877F,
    -0.5250730514526367F,
    -0.39491748809814453F,
    -0.28444138169288635F,
    -0.18477343022823334F,
    -0.09105003625154495F,
    0.0F,
    0.07958029955625534F,
    0.16093020141124725F,
    0.24611230194568634F,
    0.33791524171829224F,
    0.44070982933044434F,
    0.5626170039176941F,
    0.7229568362236023F,
    1.0F,
};

static void put_weight(const uint8_t *state, size_t nbytes)
{
    static uint8_t file[FILE_MAX_NBYTES];
    const size_t map_at = CODES_NBYTES + ABSMAX_NBYTES, state_at = map_at + MAP_NBYTES;
    char *header = (char *)file + 8;
    const int header_nbytes =
        snprintf(header, 1024,
                 "{\"x.weight\":{\"dtype\":\"U8\",\"shape\":[64,1],\"data_offsets\":[0,64]},"
                 "\"x.weight.absmax\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[64,72]},"
                 "\"x.weight.quant_map\":{\"dtype\":\"F32\",\"shape\":[16],"
                 "\"data_offsets\":[72,%zu]},\"x.weight.quant_state.bitsandbytes__nf4\":"
                 "{\"dtype\":\"U8\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}}",
                 state_at, nbytes, state_at, state_at + nbytes);
    uint8_t *data = file + 8 + header_nbytes;
    memset(file, 0, 8);
    file[0] = (uint8_t)(header_nbytes & 255);
    file[1] = (uint8_t)(header_nbytes >> 8);
    memset(data, 0, state_at);
    memcpy(data + map_at, table, sizeof table);
    memcpy(data + state_at, state, nbytes);
    fuzz_put("model.safetensors", file, (size_t)(data - file) + state_at + nbytes);
}

static tess_status read_weight(const tess_model_dir *dir)
{
    char bytes[CODES_NBYTES + ABSMAX_NBYTES];
    const tess_model_tensor *t = tess_model_dir_find(dir, "x.weight");
    fuzz_require(t != NULL && t->packed != NULL, "no weight");
    fuzz_require(t->st->numel == 128 && t->st->nbytes == (int64_t)sizeof bytes, "other sizes");
    fuzz_require(tess_model_dir_tensor_numel(dir) == 1, "members that are not joined");
    return tess_model_dir_read(dir, t, 0, sizeof bytes, bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    tess_model_dir *dir = NULL;
    const tess_ctx ctx = {.io = fuzz_io()};
    if (nbytes > FILE_MAX_NBYTES / 2)
        return 0;
    put_weight(data, nbytes);
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    tess_status st = tess_model_dir_open(&ctx, fuzz_folder, &dir);
    if (st == TESS_OK)
        fuzz_require(read_weight(dir) == TESS_OK, "the weight is not read");
    tess_model_dir_close(&dir);
    fuzz_verdict(st, before_nbytes);
    return 0;
}

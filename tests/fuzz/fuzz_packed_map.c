/*
 * Any bytes as the map of optimum-quanto's weights, and behind a zero byte as what the file's
 * metadata says of them: refused, or the weights are read whole. Module x is qint4 [2, 64], y qint8
 * [2, 16], z e4m3 with a scale per row.
 */
#include <stdarg.h>
#include <string.h>

#include "format/model_dir.h"
#include "fuzz.h"

enum { INPUT_MAX_NBYTES = 1 << 14, DATA_NBYTES = 64 + 4 + 4 + 32 + 8 + 32 + 8 };

static const char members[] =
    "\"x.weight._data._data\":{\"dtype\":\"U8\",\"shape\":[1,64],\"data_offsets\":[0,64]},"
    "\"x.weight._scale\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[64,68]},"
    "\"x.weight._shift\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[68,72]},"
    "\"y.weight._data\":{\"dtype\":\"I8\",\"shape\":[2,16],\"data_offsets\":[72,104]},"
    "\"y.weight._scale\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[104,112]},"
    "\"z.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,16],\"data_offsets\":[112,144]},"
    "\"z.weight_scale\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[144,152]}";

/* A file under construction. */
static char file[8 * INPUT_MAX_NBYTES];
static size_t file_nbytes;

static void put(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void put(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(file + file_nbytes, sizeof file - file_nbytes, format, args);
    va_end(args);
    fuzz_require(n >= 0 && (size_t)n < sizeof file - file_nbytes, "no room");
    file_nbytes += (size_t)n;
}

/* As a JSON string; bytes that are no UTF-8 stay, and the header is refused. */
static void put_quoted(const char *text)
{
    put("\"");
    for (; *text != '\0'; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c < 32 || c == '"' || c == '\\')
            put("\\u%04x", c);
        else
            put("%c", c);
    }
    put("\"");
}

static void put_model(const char *formats)
{
    file_nbytes = 8;
    put("{");
    if (formats[0] != '\0') {
        put("\"__metadata__\":{\"%s\":", TESS_MODEL_FORMATS_KEY);
        put_quoted(formats);
        put("},");
    }
    put("%s}", members);
    for (int i = 0; i < 8; i++)
        file[i] = (char)(i < 4 ? (file_nbytes - 8) >> (8 * i) & 255 : 0);
    memset(file + file_nbytes, 0, DATA_NBYTES);
    fuzz_put("model.safetensors", file, file_nbytes + DATA_NBYTES);
}

static void read_weights(tess_model_dir *dir)
{
    static const struct {
        const char *name;
        int64_t dim[2], nbytes;
    } rows[] = {{"x.weight", {2, 64}, 72}, {"y.weight", {2, 16}, 40}, {"z.weight", {2, 16}, 40}};
    char bytes[DATA_NBYTES];
    fuzz_require(tess_model_dir_tensor_numel(dir) == 3, "members that are not joined");
    for (int i = 0; i < 3; i++) {
        const tess_model_tensor *t = NULL;
        fuzz_require(tess_model_dir_claim(dir, rows[i].name, rows[i].dim, 2, &t) == TESS_OK,
                     "a weight of another shape");
        fuzz_require(t->packed != NULL && t->st->nbytes == rows[i].nbytes, "other sizes");
        fuzz_require(tess_model_dir_read(dir, t, 0, (size_t)t->st->nbytes, bytes) == TESS_OK ||
                         tess_error_status() == TESS_E_FORMAT,
                     "the weight is not read");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static char text[INPUT_MAX_NBYTES + 2];
    tess_model_dir *dir = NULL;
    const tess_ctx ctx = {.io = fuzz_io()};
    if (nbytes > INPUT_MAX_NBYTES)
        return 0;
    memset(text, 0, sizeof text);
    memcpy(text, data, nbytes);
    fuzz_put("quantization_map.json", text, strlen(text));
    put_model(text + strlen(text) + 1);
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    const tess_status st = tess_model_dir_open(&ctx, fuzz_folder, &dir);
    if (st == TESS_OK)
        read_weights(dir);
    tess_model_dir_close(&dir);
    fuzz_verdict(st, before_nbytes);
    return 0;
}

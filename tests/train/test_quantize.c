/* Models written in another format: the bytes that bitsandbytes writes, values that read back, the
 * report against sums made here, and everything that is refused. */
#include "rewrite_test.h"

#include <math.h>

#include "core/arith.h"

enum { VALUE_MAX = 61 * 48 + 80 * 48 };

static tess_safetensors *open_weights(const fixture *f, const char *dir)
{
    tess_safetensors *file = NULL;
    char path[1024];
    snprintf(path, sizeof path, "%.900s/model.safetensors", dir);
    assert_ok(tess_safetensors_open(f->io, path, &file));
    return file;
}

/* Values of a tensor in f32, whatever holds it. */
static void read_values(const fixture *f, const char *model, const char *name, float *value,
                        int64_t *numel)
{
    const tess_ctx ctx = ctx_of(f);
    tess_model_dir *dir = NULL;
    tess_stored s = {0};
    assert_ok(tess_model_dir_open(&ctx, model, &dir));
    const tess_model_tensor *t = tess_model_dir_find(dir, name);
    if (t == NULL)
        fail_msg("'%s' has no '%s'", model, name);
    *numel = t->st->numel;
    assert_true(*numel <= VALUE_MAX);
    assert_ok(tess_stored_read(&s, dir, t));
    assert_ok(tess_stored_decode_all(&s, NULL, value));
    tess_stored_fini(&s);
    tess_model_dir_close(&dir);
}

static void quantize(const fixture *f, const tess_quantize_options *o, tess_quantize_result *out)
{
    const tess_ctx ctx = ctx_of(f);
    assert_ok(tess_quantize_model(&ctx, o, out));
}

/* ---- what bitsandbytes writes ---- */

/* Texts of quant states differ in spelling alone; minus zero of the FP4 table counts as zero. */
static void expect_same_tensor(const tess_safetensors *ours, const tess_safetensors *theirs,
                               const tess_st_tensor *a, const tess_st_tensor *b)
{
    static char x[1 << 16], y[1 << 16];
    char found[2][128];
    if (b == NULL)
        fail_msg("'%s' is not in the golden file", a->name);
    if (strstr(a->name, "quant_state") != NULL)
        return; /* read by expect_same_values */
    tess_st_shape_text(a->dim, a->dim_numel, found[0], sizeof found[0]);
    tess_st_shape_text(b->dim, b->dim_numel, found[1], sizeof found[1]);
    assert_string_equal(found[0], found[1]);
    assert_int_equal(a->dtype, b->dtype);
    assert_true(a->nbytes <= (int64_t)sizeof x);
    assert_ok(tess_safetensors_read(ours, a, 0, (size_t)a->nbytes, x));
    assert_ok(tess_safetensors_read(theirs, b, 0, (size_t)b->nbytes, y));
    if (strstr(a->name, "quant_map") != NULL) {
        for (int64_t i = 0; i < a->numel; i++)
            assert_true(((const float *)(const void *)x)[i] == ((const float *)(const void *)y)[i]);
        return;
    }
    if (memcmp(x, y, (size_t)a->nbytes) != 0)
        fail_msg("'%s' has other bytes", a->name);
}

static void expect_same_values(const fixture *f, const char *ours, const char *theirs)
{
    static float x[VALUE_MAX], y[VALUE_MAX];
    const tess_ctx ctx = ctx_of(f);
    tess_model_dir *dir = NULL;
    int64_t numel = 0;
    assert_ok(tess_model_dir_open(&ctx, theirs, &dir));
    for (int64_t i = 0; i < tess_model_dir_tensor_numel(dir); i++) {
        const char *name = tess_model_dir_at(dir, i)->name;
        read_values(f, ours, name, x, &numel);
        read_values(f, theirs, name, y, &numel);
        if (memcmp(x, y, (size_t)numel * sizeof *x) != 0)
            fail_msg("'%s' of '%s' has other values", name, ours);
    }
    tess_model_dir_close(&dir);
}

static void expect_same_files(const fixture *f, const char *ours, const char *theirs)
{
    tess_safetensors *a = open_weights(f, ours), *b = open_weights(f, theirs);
    assert_int_equal(tess_safetensors_numel(a), tess_safetensors_numel(b));
    for (int64_t i = 0; i < tess_safetensors_numel(a); i++) {
        const tess_st_tensor *t = tess_safetensors_at(a, i);
        expect_same_tensor(a, b, t, tess_safetensors_find(b, t->name));
    }
    tess_safetensors_close(&a);
    tess_safetensors_close(&b);
    expect_same_values(f, ours, theirs);
}

static void expect_golden(const fixture *f, const char *ours, const char *golden)
{
    char theirs[512];
    snprintf(theirs, sizeof theirs, BNB "%s", golden);
    expect_same_files(f, ours, theirs);
}

static void test_quantize_bitsandbytes_same_bytes(void **state)
{
    static const struct {
        const char *golden;
        const char *key[2];
        tess_dtype storage;
    } cases[] = {{"nf4", {"base.format=nf4", "base.double_quant=false"}, TESS_U8},
                 {"double_uint8", {"base.format=nf4", "base.double_quant=true"}, TESS_U8},
                 {"double_bfloat16", {"base.format=nf4", "base.double_quant=true"}, TESS_BF16},
                 {"double_float16", {"base.format=nf4", "base.double_quant=true"}, TESS_F16},
                 {"double_float32", {"base.format=nf4", "base.double_quant=true"}, TESS_F32}};
    const fixture *f = *state;
    char id[2][TESS_SHA256_HEX_NBYTES] = {""};
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        keys k = keys_of(cases[i].key, 2);
        tess_quantize_options o = quantize_of(&k, BNB "plain", at(f, cases[i].golden));
        tess_quantize_result r;
        char ours[256];
        snprintf(ours, sizeof ours, "%s", o.output);
        o.output = ours;
        o.storage = cases[i].storage;
        quantize(f, &o, &r);
        expect_golden(f, ours, cases[i].golden);
        const bool is_double = strncmp(cases[i].golden, "double", 6) == 0;
        if (is_double && id[0][0] != '\0')
            assert_string_equal(r.base_id, id[0]); /* labels are no part of it */
        snprintf(id[is_double ? 0 : 1], sizeof id[0], "%s", r.base_id);
        tess_quantize_result_fini(&r);
    }
    assert_string_not_equal(id[0], id[1]);
}

/* torch computes 127/scb as 127 * (1/scb), up to 2 units in the last place from the quotient: codes
 * may be neighbours where the scaled value, at most 127, is within 127 * 2^-22 of a tie. */
static void expect_int8_neighbours(const fixture *f, const char *ours, const char *weight)
{
    static float x[VALUE_MAX], scb[128];
    static int8_t a[VALUE_MAX], b[VALUE_MAX];
    tess_safetensors *mine = open_weights(f, ours), *theirs = open_weights(f, BNB "int8");
    char name[128];
    int64_t numel = 0;
    const tess_st_tensor *t = tess_safetensors_find(mine, weight);
    snprintf(name, sizeof name, "%.*s.SCB", (int)strlen(weight) - 7, weight);
    read_values(f, BNB "plain", weight, x, &numel);
    assert_ok(tess_safetensors_read(mine, t, 0, (size_t)numel, a));
    assert_ok(
        tess_safetensors_read(theirs, tess_safetensors_find(theirs, weight), 0, (size_t)numel, b));
    t = tess_safetensors_find(mine, name);
    assert_true(t->nbytes <= (int64_t)sizeof scb);
    assert_ok(tess_safetensors_read(mine, t, 0, (size_t)t->nbytes, scb));
    expect_same_tensor(mine, theirs, t, tess_safetensors_find(theirs, name));
    for (int64_t i = 0; i < numel; i++) {
        const double scaled = fabs((double)x[i] * 127.0 / (double)scb[i / (numel / t->numel)]);
        const double from_tie = fabs(scaled - floor(scaled) - 0.5);
        if (a[i] != b[i] && (abs(a[i] - b[i]) > 1 || from_tie > 127.0 / 0x1p22))
            fail_msg("'%s': code %d is %d, expected %d", weight, (int)i, a[i], b[i]);
    }
    tess_safetensors_close(&mine);
    tess_safetensors_close(&theirs);
}

static void test_quantize_int8_bitsandbytes_codes(void **state)
{
    static const char *const key[] = {"base.format=int8"};
    const fixture *f = *state;
    char output[256];
    keys k = keys_of(key, 1);
    tess_quantize_result r;
    snprintf(output, sizeof output, "%s/int8", f->dir);
    tess_quantize_options o = quantize_of(&k, BNB "plain", output);
    quantize(f, &o, &r);
    tess_safetensors *ours = open_weights(f, output), *theirs = open_weights(f, BNB "int8");
    assert_int_equal(tess_safetensors_numel(ours), tess_safetensors_numel(theirs));
    tess_safetensors_close(&ours);
    tess_safetensors_close(&theirs);
    for (int64_t i = 0; i < r.row_numel; i++)
        if (strcmp(r.row[i].from, r.row[i].to) != 0)
            expect_int8_neighbours(f, output, r.row[i].name);
    tess_quantize_result_fini(&r);
}

/* Of optimum-quanto's own files too, byte for byte; its maps and those written here name the same
 * types, so that either is read. */
static void test_quantize_quanto_same_bytes(void **state)
{
    static const struct {
        const char *golden, *format;
    } cases[] = {{"qint8", "base.format=qint8"},
                 {"qint4", "base.format=qint4"},
                 {"qint2", "base.format=qint2"},
                 {"qfloat8", "base.format=qfloat8"}};
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        keys k = keys_of(&cases[i].format, 1);
        tess_quantize_result r;
        char output[256], theirs[256];
        snprintf(output, sizeof output, "%s/%s", f->dir, cases[i].golden);
        snprintf(theirs, sizeof theirs, QUANTO "%s", cases[i].golden);
        tess_quantize_options o = quantize_of(&k, BNB "plain", output);
        quantize(f, &o, &r);
        expect_same_files(f, output, theirs);
        tess_quantize_result_fini(&r);
    }
}

/* ---- round trips ---- */

/* What the files hold quantized goes on as it is. */
static void test_quantize_keep_same_codes(void **state)
{
    static const char *const golden[] = {BNB "mixed",   BNB "int8",       BNB "double_uint8",
                                         QUANTO "half", QUANTO "fp8_raw", QUANTO "fp8_row",
                                         QUANTO "qint2"};
    static const char *const key[] = {"base.format=keep"};
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(golden); i++) {
        char output[256];
        keys k = keys_of(key, 1);
        tess_quantize_result r;
        snprintf(output, sizeof output, "%s/%d", f->dir, i);
        tess_quantize_options o = quantize_of(&k, golden[i], output);
        quantize(f, &o, &r);
        expect_same_files(f, output, golden[i]);
        assert_true(r.relative_rms == 0.0);
        tess_quantize_result_fini(&r);
    }
}

static void test_quantize_small_files_same_model(void **state)
{
    static const char *const key[] = {"base.format=nf4", "base.double_quant=false"};
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char output[256];
    keys k = keys_of(key, 2);
    tess_model_dir *dir = NULL;
    tess_quantize_result r;
    tess_json *index = NULL;
    const tess_json *metadata = NULL;
    const char *id = NULL;
    snprintf(output, sizeof output, "%s/small", f->dir);
    tess_quantize_options o = quantize_of(&k, BNB "plain", output);
    o.shard_nbytes = 5000;
    quantize(f, &o, &r);
    assert_ok(tess_model_dir_open(&ctx, output, &dir));
    assert_true(tess_model_dir_file_numel(dir) > 3);
    int64_t most = 0;
    for (int i = 0; i < tess_model_dir_file_numel(dir); i++)
        most = TESS_MAX(most, tess_model_dir_file_nbytes(dir, i));
    assert_true(most < 5856 + 2048); /* the embedding is larger than the limit; and a header */
    tess_model_dir_close(&dir);
    expect_same_values(f, output, BNB "nf4");
    char path[300];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", output);
    assert_ok(tess_json_read(f->io, path, &index));
    assert_ok(tess_json_get_object(index, "metadata", &metadata));
    assert_ok(tess_json_get_string(metadata, "base.identity", &id));
    assert_string_equal(id, r.base_id);
    tess_json_destroy(&index);
    tess_quantize_result_fini(&r);
}

/* Packed and decoded again: f32 values of codes are exact. */
static void test_quantize_widened_same_values(void **state)
{
    static const char *const key[] = {"base.format=f32"};
    const fixture *f = *state;
    char output[256];
    keys k = keys_of(key, 1);
    tess_quantize_result r;
    snprintf(output, sizeof output, "%s/wide", f->dir);
    tess_quantize_options o = quantize_of(&k, BNB "mixed", output);
    quantize(f, &o, &r);
    expect_same_values(f, output, BNB "mixed");
    tess_json *config = NULL;
    char path[300];
    snprintf(path, sizeof path, "%s/config.json", output);
    assert_ok(tess_json_read(f->io, path, &config));
    assert_null(tess_json_find(config, "quantization_config"));
    tess_json_destroy(&config);
    tess_quantize_result_fini(&r);
}

/* ---- the report ---- */

static void test_quantize_report_matches_sums(void **state)
{
    static const char *const key[] = {"base.format=nf4", "base.block_size=32"};
    static float before[VALUE_MAX], after[VALUE_MAX];
    const fixture *f = *state;
    double whole = 0.0, whole_error = 0.0;
    int changed = 0;
    for (int threads = 1; threads <= 3; threads += 2) {
        char output[256];
        keys k = keys_of(key, 2);
        tess_quantize_result r;
        snprintf(output, sizeof output, "%s/threads-%d", f->dir, threads);
        tess_quantize_options o = quantize_of(&k, BNB "plain", output);
        o.thread_numel = threads;
        quantize(f, &o, &r);
        whole = whole_error = 0.0;
        for (int64_t i = 0; i < r.row_numel; i++) {
            const tess_quantize_row *row = &r.row[i];
            double square = 0.0, error = 0.0, most = 0.0;
            int64_t numel = 0;
            read_values(f, BNB "plain", row->name, before, &numel);
            read_values(f, output, row->name, after, &numel);
            for (int64_t e = 0; e < numel; e++) {
                const double d = (double)after[e] - (double)before[e];
                square += (double)before[e] * (double)before[e];
                error += d * d;
                most = fmax(most, fabs(d));
            }
            if (strcmp(row->from, row->to) == 0) {
                assert_true(row->relative_rms == 0.0 && most == 0.0);
                continue;
            }
            /* fp64 sums of a few thousand terms in another order: 1e-12 is a thousand times more
             * than they can differ. */
            assert_true(fabs(row->relative_rms - sqrt(error / square)) < 1e-12);
            assert_true(row->most == most);
            assert_string_equal(row->to, "nf4/32/double");
            changed++;
            whole += square;
            whole_error += error;
        }
        assert_true(fabs(r.relative_rms - sqrt(whole_error / whole)) < 1e-12);
        assert_true(r.after_nbytes < r.before_nbytes);
        assert_string_equal(r.quant, "nf4/32/double");
        tess_quantize_result_fini(&r);
    }
    assert_int_equal(changed, 2 * 7);
}

/* fp16 scales below its range become 0, and with them whole blocks: counted. */
static void test_compare_counts_blocks_that_vanish(void **state)
{
    const tess_codec f32 = {.format = TESS_FORMAT_F32};
    const tess_codec q8_0 = tess_codec_of_format(TESS_FORMAT_Q8_0);
    tess_stored x = {0}, y = {0};
    tess_stored_error e;
    float *value = NULL;
    (void)state;
    assert_ok(tess_stored_prepare(&x, &f32, 4 * 32));
    value = x.at[0];
    for (int i = 0; i < 4 * 32; i++) /* vanishes, zeros, vanishes, stays */
        value[i] = i / 32 == 1 ? 0.0F : i / 32 == 3 ? 1.0F : 1e-7F;
    assert_ok(tess_stored_prepare(&y, &q8_0, 4 * 32));
    assert_ok(tess_stored_encode(&y, tess_view_host(value, 4 * 32, TESS_F32), "x", NULL));
    assert_ok(tess_stored_compare(&x, &y, "x", NULL, &e));
    assert_int_equal(e.zeroed_numel, 2);
    tess_stored_fini(&x);
    tess_stored_fini(&y);
}

/* Memory is that of the largest tensor: its values in f32 twice are more than any needs. */
static void test_quantize_memory_of_one_tensor(void **state)
{
    static const char *const key[] = {"base.format=nf4"};
    const fixture *f = *state;
    char output[256];
    keys k = keys_of(key, 1);
    tess_quantize_result r;
    int64_t most_numel = 0, model_nbytes = 0;
    snprintf(output, sizeof output, "%s/out", f->dir);
    tess_quantize_options o = quantize_of(&k, TESS_TEST_SOURCE_DIR "/examples/base", output);
    quantize(f, &o, &r);
    for (int64_t i = 0; i < r.row_numel; i++) {
        most_numel = TESS_MAX(most_numel, r.row[i].shape[0] *
                                              (r.row[i].shape_rank > 1 ? r.row[i].shape[1] : 1));
        model_nbytes += r.row[i].before_nbytes;
    }
    const int64_t peak_nbytes = (int64_t)(tess_alloc_peak_nbytes() - f->before_nbytes);
    assert_true(peak_nbytes < 8 * most_numel);
    assert_true(8 * most_numel < model_nbytes); /* so this would have shown a model in memory */
    tess_quantize_result_fini(&r);
}

/* ---- GGUF ---- */

static void test_quantize_gguf_small_vocabulary_refused(void **state)
{
    static const char *const key[] = {"base.format=bf16"};
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char model[256], output[256];
    keys k = keys_of(key, 1);
    tess_quantize_result r;
    tess_io_kind kind = TESS_IO_FILE;
    int64_t nbytes = 0;
    snprintf(model, sizeof model, "%s/model", f->dir);
    snprintf(output, sizeof output, "%s/out.gguf", f->dir);
    assert_int_equal(shell(f, "cp -r " BNB "plain model && cp " TESS_TEST_SOURCE_DIR
                              "/examples/base/tokenizer.json model"),
                     0);
    tess_quantize_options o = quantize_of(&k, model, output);
    assert_refused(tess_quantize_model(&ctx, &o, &r), TESS_E_FORMAT, "tokenizer.json",
                   "4096 tokens", "61 rows");
    assert_ok(tess_io_stat(f->io, output, &kind, &nbytes));
    assert_int_equal(kind, TESS_IO_MISSING);
}

static void test_quantize_gguf_same_values(void **state)
{
    static const struct {
        const char *format, *name;
    } cases[] = {{"base.format=bf16", "a.gguf"}, {"base.format=q8_0", "b.gguf"}};
    static const char *const wide_key[] = {"base.format=f32"};
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        char output[256], wide[256];
        keys k = keys_of(&cases[i].format, 1), w = keys_of(wide_key, 1);
        tess_quantize_result r, again;
        snprintf(output, sizeof output, "%s/%s", f->dir, cases[i].name);
        snprintf(wide, sizeof wide, "%s/wide-%d", f->dir, i);
        tess_quantize_options o = quantize_of(&k, TESS_TEST_SOURCE_DIR "/examples/base", output);
        quantize(f, &o, &r);
        /* read back through the file's own order of rows, then compared with the source */
        tess_quantize_options back = quantize_of(&w, output, wide);
        quantize(f, &back, &again);
        const tess_ctx ctx = ctx_of(f);
        tess_model_dir *dir = NULL, *source = NULL;
        tess_stored x = {0}, y = {0};
        tess_stored_error e;
        assert_ok(tess_model_dir_open(&ctx, wide, &dir));
        assert_ok(tess_model_dir_open(&ctx, TESS_TEST_SOURCE_DIR "/examples/base", &source));
        for (int64_t t = 0; t < r.row_numel; t++) {
            const tess_model_tensor *a = tess_model_dir_find(source, r.row[t].name);
            const tess_model_tensor *b = tess_model_dir_find(dir, r.row[t].name);
            assert_ok(tess_stored_read(&x, source, a));
            assert_ok(tess_stored_read(&y, dir, b));
            assert_ok(tess_stored_compare(&x, &y, r.row[t].name, NULL, &e));
            assert_true(fabs(sqrt(e.error_square / e.square) - r.row[t].relative_rms) < 1e-12);
            assert_true(e.most == r.row[t].most);
            const bool is_q8 = strcmp(r.row[t].to, "q8_0") == 0;
            assert_true(is_q8 ? r.row[t].relative_rms > 1e-3 : r.row[t].relative_rms == 0.0);
        }
        tess_stored_fini(&x);
        tess_stored_fini(&y);
        tess_model_dir_close(&dir);
        tess_model_dir_close(&source);
        tess_quantize_result_fini(&r);
        tess_quantize_result_fini(&again);
    }
}

/* What a GGUF file says of yarn comes back; what it cannot say is refused. */
static void test_quantize_gguf_yarn(void **state)
{
    static const char *const key[] = {"base.format=bf16"};
    static const struct {
        const char *more;
        bool is_refused;
    } cases[] = {{"", false}, {",\"attention_factor\":1.0", true}, {",\"beta_fast\":16", true}};
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char model[256], output[256], rope[256], command[1024];
    snprintf(model, sizeof model, "%s/model", f->dir);
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        keys k = keys_of(key, 1);
        tess_quantize_result r;
        tess_llm_config config;
        tess_gguf *file = NULL;
        snprintf(output, sizeof output, "%s/yarn-%d.gguf", f->dir, i);
        snprintf(rope, sizeof rope,
                 "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,"
                 "\"original_max_position_embeddings\":96%s},",
                 cases[i].more);
        snprintf(command, sizeof command,
                 "rm -rf model && cp -r " TESS_TEST_SOURCE_DIR "/examples/base model && sed -i "
                 "-e '/rope_scaling/d' -e 's/^{/{%s/' model/config.json",
                 rope);
        assert_int_equal(shell(f, command), 0);
        tess_quantize_options o = quantize_of(&k, model, output);
        if (cases[i].is_refused) {
            assert_refused(tess_quantize_model(&ctx, &o, &r), TESS_E_UNSUPPORTED,
                           "a GGUF file has 1.13863, 32 and 1");
            continue;
        }
        quantize(f, &o, &r);
        tess_quantize_result_fini(&r);
        assert_ok(tess_gguf_open(f->io, output, &file));
        assert_ok(tess_gguf_llm_config(file, &config));
        tess_gguf_close(&file);
        assert_true(config.rope.type == TESS_ROPE_YARN && config.rope.factor == 4.0 &&
                    config.rope.attention_factor == tess_rope_yarn_factor(4.0) &&
                    config.rope.beta_fast == 32.0 && config.rope.beta_slow == 1.0);
        assert_int_equal(config.rope.original_max_position, 96);
    }
}

/* A tokenizer of SentencePiece's kind with these merges. */
static void put_tokenizer(const fixture *f, const char *merges)
{
    static const char head[] =
        "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
        "{\"id\":0,\"content\":\"<unk>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
        "\"normalized\":false,\"special\":true}],\"normalizer\":{\"type\":\"Sequence\","
        "\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\xe2\x96\x81\"},{\"type\":"
        "\"Replace\","
        "\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"}]},\"pre_tokenizer\":null,"
        "\"post_processor\":null,\"decoder\":null,\"model\":{\"type\":\"BPE\",\"dropout\":null,"
        "\"unk_token\":\"<unk>\",\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
        "\"fuse_unk\":true,\"byte_fallback\":true,\"vocab\":{\"<unk>\":0,\"\xe2\x96\x81\":1,"
        "\"a\":2,\"b\":3,\"ab\":4,\"\xe2\x96\x81"
        "ab\":5,\"\xe2\x96\x81"
        "a\":6},\"merges\":[";
    char *text = NULL;
    assert_ok(tess_asprintf(&text, "%s%s]}}", head, merges));
    put_text(f, "model/tokenizer.json", text);
    tess_free(text);
}

/* What llama.cpp's scores would merge as the ranks do is written, anything else refused. */
static void test_quantize_gguf_scores_or_refused(void **state)
{
    static const char *const key[] = {"base.format=bf16"};
    static const struct {
        const char *merges, *text; /* NULL: written */
    } cases[] = {
        {"\"a b\",\"\xe2\x96\x81 ab\",\"\xe2\x96\x81"
         "a b\",\"\xe2\x96\x81 a\"",
         NULL},
        {"\"a b\",\"\xe2\x96\x81 ab\",\"\xe2\x96\x81 a\",\"\xe2\x96\x81"
         "a b\"",
         "do not follow each other"},
        {"\"a b\",\"\xe2\x96\x81 ab\",\"\xe2\x96\x81 a\"", "without being a merge"},
    };
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        char model[256], output[256];
        keys k = keys_of(key, 1);
        tess_quantize_result r;
        tess_gguf *file = NULL;
        const char *kind = NULL;
        snprintf(model, sizeof model, "%s/model", f->dir);
        snprintf(output, sizeof output, "%s/%d.gguf", f->dir, i);
        assert_int_equal(shell(f, "rm -rf model && cp -r " BNB "plain model"), 0);
        put_tokenizer(f, cases[i].merges);
        tess_quantize_options o = quantize_of(&k, model, output);
        if (cases[i].text != NULL) {
            assert_refused(tess_quantize_model(&ctx, &o, &r), TESS_E_UNSUPPORTED, cases[i].text,
                           "tokenizer.json");
            continue;
        }
        quantize(f, &o, &r);
        tess_quantize_result_fini(&r);
        assert_ok(tess_gguf_open(f->io, output, &file));
        assert_ok(tess_gguf_get_text(file, "tokenizer.ggml.model", &kind));
        assert_string_equal(kind, "llama");
        /* one entry a row of the embedding, whatever the tokenizer has */
        assert_int_equal(tess_gguf_value_of(file, "tokenizer.ggml.tokens")->numel, 61);
        assert_int_equal(tess_gguf_value_of(file, "tokenizer.ggml.scores")->numel, 61);
        assert_int_equal(tess_gguf_value_of(file, "tokenizer.ggml.token_type")->numel, 61);
        tess_gguf_close(&file);
        expect_same_values(f, output, BNB "plain"); /* heads of 8 rows: all of them moved */
    }
}

/* ---- refusals ---- */

/* The golden model with one element of one tensor replaced. */
static void make_damaged(const fixture *f, const char *dir, const char *tensor, int64_t idx,
                         uint16_t bits)
{
    char path[300];
    assert_int_equal(shell(f, "cp -r " BNB "plain model"), 0);
    tess_safetensors *file = open_weights(f, dir);
    const int64_t at_nbytes =
        tess_safetensors_find(file, tensor)->offset_nbytes + idx * (int64_t)sizeof bits;
    tess_safetensors_close(&file);
    snprintf(path, sizeof path, "%.250s/model.safetensors", dir);
    FILE *raw = fopen(path, "r+b");
    assert_non_null(raw);
    assert_int_equal(fseek(raw, (long)at_nbytes, SEEK_SET), 0);
    assert_int_equal(fwrite(&bits, sizeof bits, 1, raw), 1);
    fclose(raw);
}

static void expect_nothing(const fixture *f, const char *kept)
{
    char **name = NULL;
    int64_t numel = 0;
    assert_ok(tess_io_list(f->io, f->dir, &name, &numel));
    for (int64_t i = 0; i < numel; i++)
        if (strcmp(name[i], kept) != 0)
            fail_msg("'%s' was left behind", name[i]);
    tess_io_list_free(&name, numel);
}

static void test_quantize_bad_values_refused(void **state)
{
    static const struct {
        const char *tensor, *format;
        int64_t idx;
        uint16_t bits;
        const char *text[2];
    } cases[] = {
        {"model.layers.0.mlp.up_proj.weight", "base.format=nf4", 77, 0x7fc0, {"element 77", "nan"}},
        {"model.layers.0.mlp.up_proj.weight", "base.format=int8", 3, 0xff80, {"element 3", "-inf"}},
        {"model.norm.weight", "base.format=nf4", 5, 0x7f80, {"element 5", "inf"}},
        {"model.embed_tokens.weight", "base.format=keep", 61 * 48 - 1, 0x7fc0, {"2927", "nan"}},
        /* 2^16: above what fp16 holds */
        {"model.layers.0.mlp.up_proj.weight", "base.format=f16", 9, 0x4780, {"element 9", "65536"}},
        {"model.layers.0.mlp.up_proj.weight",
         "base.format=int8",
         9,
         0x4780,
         {"element 9", "65536"}},
    };
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        char model[256], output[256];
        keys k = keys_of(&cases[i].format, 1);
        tess_quantize_result r;
        snprintf(model, sizeof model, "%s/model", f->dir);
        snprintf(output, sizeof output, "%s/out", f->dir);
        make_damaged(f, model, cases[i].tensor, cases[i].idx, cases[i].bits);
        tess_quantize_options o = quantize_of(&k, model, output);
        assert_refused(tess_quantize_model(&ctx, &o, &r), TESS_E_FORMAT, cases[i].tensor,
                       cases[i].text[0], cases[i].text[1]);
        expect_nothing(f, "model");
        assert_int_equal(shell(f, "rm -r model"), 0);
    }
}

static void keep_line(void *arg, tess_log_level level, const char *line)
{
    (void)level;
    snprintf(arg, 256, "%s", line);
}

/* The golden qwen3 under a config.json that says less than its files hold. */
static void test_quantize_more_tensors_than_described_refused(void **state)
{
    static const struct {
        const char *edit;
        const char *text[2];  /* of the refusal, */
        const char *log_line; /* or of the warning */
    } cases[] = {
        {"s/\"model_type\": \"qwen3\"/\"model_type\": \"llama\"/",
         {"model.layers.0.self_attn.k_norm.weight", "no place in the llama model"},
         NULL},
        {"s/\"tie_word_embeddings\": false/\"tie_word_embeddings\": true/",
         {"'lm_head.weight' differs from 'model.embed_tokens.weight'", "tie_word_embeddings"},
         NULL},
        {"s/\"num_hidden_layers\": 2/\"num_hidden_layers\": 1/; 0,/\"full_attention\",/{//d}",
         {NULL, NULL},
         "numel=11 first=model.layers.1.input_layernorm.weight"},
        {"s/^//", {NULL, NULL}, ""}};
    static const char *const key[] = {"base.format=bf16"};
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        char model[256], output[256], command[512], line[256] = "";
        const tess_ctx ctx = {.io = f->io,
                              .log = {.sink = keep_line, .arg = line, .least = TESS_LOG_WARN}};
        keys k = keys_of(key, 1);
        tess_quantize_result r;
        snprintf(model, sizeof model, "%s/model%d", f->dir, i);
        snprintf(output, sizeof output, "%s/out%d", f->dir, i);
        snprintf(command, sizeof command,
                 "cp -r " TESS_TEST_SOURCE_DIR "/tests/golden/format/model model%d && "
                 "sed -i '%s' model%d/config.json",
                 i, cases[i].edit, i);
        assert_int_equal(shell(f, command), 0);
        tess_quantize_options o = quantize_of(&k, model, output);
        if (cases[i].log_line == NULL) {
            assert_refused(tess_quantize_model(&ctx, &o, &r), TESS_E_FORMAT, cases[i].text[0],
                           cases[i].text[1]);
            continue;
        }
        assert_ok(tess_quantize_model(&ctx, &o, &r));
        assert_int_equal(*line == '\0', *cases[i].log_line == '\0');
        assert_non_null(strstr(line, cases[i].log_line));
        tess_quantize_result_fini(&r);
    }
}

static void test_quantize_bad_requests_refused(void **state)
{
    static const tess_rewrite_rule two = {".*up_proj.*", "int8"}, odd = {"(", "nf4"},
                                   word = {".*", "int3"};
    static const struct {
        const char *model, *output, *key;
        const tess_rewrite_rule *rule;
        tess_status st;
        const char *text[2];
    } cases[] = {
        {BNB "plain", "out", "base.format=nf4", &two, TESS_E_UNSUPPORTED, {"int8", "8 bits"}},
        {BNB "plain", "out", "base.format=nf4", &odd, TESS_E_CONFIG, {"(", "parenthesis"}},
        {BNB "plain", "out", "base.format=nf4", &word, TESS_E_CONFIG, {"int3", "nf4"}},
        {TESS_TEST_SOURCE_DIR "/examples/base",
         "out",
         "base.format=q8_0",
         NULL,
         TESS_E_UNSUPPORTED,
         {"q8_0", ".gguf"}},
        {BNB "plain", "out.gguf", "base.format=nf4", NULL, TESS_E_UNSUPPORTED, {"nf4", "GGUF"}},
        {BNB "nf4", "out", "base.format=int8", NULL, TESS_E_CONFIG, {"nf4/64", "again"}},
        {BNB "none",
         "out",
         "base.format=nf4",
         NULL,
         TESS_E_CONFIG,
         {"none", "is missing; give a model directory"}},
    };
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        char output[256];
        keys k = keys_of(&cases[i].key, 1);
        tess_quantize_result r;
        snprintf(output, sizeof output, "%s/%s", f->dir, cases[i].output);
        tess_quantize_options o = quantize_of(&k, cases[i].model, output);
        o.choice.rule = cases[i].rule;
        o.choice.rule_numel = cases[i].rule != NULL;
        assert_refused(tess_quantize_model(&ctx, &o, &r), cases[i].st, cases[i].text[0],
                       cases[i].text[1]);
        expect_nothing(f, "");
    }
}

static void test_quantize_existing_output_untouched(void **state)
{
    static const char *const key[] = {"base.format=nf4"};
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    keys k = keys_of(key, 1);
    tess_quantize_result r;
    char output[256];
    snprintf(output, sizeof output, "%s", put_text(f, "taken", "somebody's"));
    tess_quantize_options o = quantize_of(&k, BNB "plain", output);
    assert_refused(tess_quantize_model(&ctx, &o, &r), TESS_E_CONFIG, "taken", "exists");
    expect_nothing(f, "taken");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        folder_test(test_quantize_memory_of_one_tensor), /* the first: a peak does not sink */
        folder_test(test_quantize_bitsandbytes_same_bytes),
        folder_test(test_quantize_int8_bitsandbytes_codes),
        folder_test(test_quantize_quanto_same_bytes),
        folder_test(test_quantize_keep_same_codes),
        folder_test(test_quantize_small_files_same_model),
        folder_test(test_quantize_widened_same_values),
        folder_test(test_quantize_report_matches_sums),
        cmocka_unit_test(test_compare_counts_blocks_that_vanish),
        folder_test(test_quantize_gguf_small_vocabulary_refused),
        folder_test(test_quantize_gguf_same_values),
        folder_test(test_quantize_gguf_yarn),
        folder_test(test_quantize_gguf_scores_or_refused),
        folder_test(test_quantize_bad_values_refused),
        folder_test(test_quantize_more_tensors_than_described_refused),
        folder_test(test_quantize_bad_requests_refused),
        folder_test(test_quantize_existing_output_untouched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

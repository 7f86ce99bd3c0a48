#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/ctx.h"
#include "core/memory.h"
#include "train/data/dataset.h"

enum { DOCUMENTS = 97, VOCAB = 100000, WIDTH = 16, ROWS = 64 };

/* Every token of the test file is its own place in it, so a window shows where it came from. */
typedef struct fixture {
    tess_ctx ctx;
    char folder[64], path[96];
    int64_t token_numel;
    int32_t tokens[ROWS * WIDTH], labels[ROWS * WIDTH], positions[ROWS * WIDTH],
        doc_start[ROWS * WIDTH];
} fixture;

static int64_t numel_of(int64_t document) { return document * document % 41 + 1; }
static uint8_t mask_of(int64_t place) { return place % 5 != 2; }

static int64_t document_of(int64_t place)
{
    int64_t document = 0;
    for (int64_t end = numel_of(0); place >= end; end += numel_of(document))
        document++;
    return document;
}

static tess_status write_file(fixture *f, bool with_mask)
{
    tess_token_writer *writer = NULL;
    const tess_sha256 tokenizer = {{1}};
    f->token_numel = 0;
    tess_status st = tess_token_writer_create(&f->ctx, f->path, VOCAB, &tokenizer, &writer);
    for (int64_t d = 0; d < DOCUMENTS && st == TESS_OK; d++) {
        int32_t id[64];
        uint8_t mask[64];
        for (int64_t i = 0; i < numel_of(d); i++) {
            id[i] = (int32_t)(f->token_numel + i);
            mask[i] = mask_of(f->token_numel + i);
        }
        st = tess_token_writer_add(writer, id, with_mask ? mask : NULL, numel_of(d));
        f->token_numel += numel_of(d);
    }
    if (st == TESS_OK)
        st = tess_token_writer_finish(writer, NULL);
    tess_token_writer_destroy(&writer);
    return st;
}

static int set_up(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    snprintf(f.folder, sizeof f.folder, "/tmp/tess-dataset-XXXXXX");
    if (mkdtemp(f.folder) == NULL || tess_io_create(0, &f.ctx.io) != TESS_OK)
        return -1;
    snprintf(f.path, sizeof f.path, "%s/data.h5", f.folder);
    tess_error_clear();
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    unlink(f->path);
    const int left = rmdir(f->folder);
    tess_io_destroy(&f->ctx.io);
    return left;
}

static tess_dataset_config config_of(bool packing)
{
    return (tess_dataset_config){.sequence_numel = WIDTH,
                                 .packing = packing,
                                 .shuffle = true,
                                 .seed = 42,
                                 .vocab_numel = VOCAB,
                                 .resident_limit_nbytes = TESS_DATASET_RESIDENT_NBYTES};
}

static tess_dataset *open_or_fail(const fixture *f, const tess_dataset_config *config)
{
    tess_dataset *d = NULL;
    if (tess_dataset_open(&f->ctx, f->path, config, &d) != TESS_OK)
        fail_msg("%s", tess_error_message());
    return d;
}

static void fill(fixture *f, tess_dataset *d, int64_t first, int64_t rows)
{
    const tess_dataset_batch batch = {f->tokens, f->labels, f->positions, f->doc_start};
    const int64_t events = tess_alloc_events();
    tess_alloc_freeze();
    const tess_status st = tess_dataset_fill(d, first, rows, &batch);
    tess_alloc_thaw();
    assert_int_equal(st, TESS_OK);
    assert_int_equal(tess_alloc_events(), events);
}

/* Every row by the definition: labels, positions and starts follow from the tokens alone. */
static int64_t check_row(const fixture *f, int64_t row, bool with_mask, int64_t used)
{
    int64_t loss_tokens = 0, start = 0;
    for (int64_t i = 0; i < used; i++) {
        const int64_t at = row * WIDTH + i;
        const int64_t place = f->tokens[at];
        const bool opens = i == 0 || place != f->tokens[at - 1] + 1 ||
                           document_of(place) != document_of(place - 1);
        start = opens ? i : start;
        assert_int_equal(f->positions[at], i - start);
        assert_int_equal(f->doc_start[at], row * WIDTH + start);
        const bool goes_on =
            place + 1 < f->token_numel && document_of(place + 1) == document_of(place);
        const bool counts = goes_on && (!with_mask || mask_of(place + 1));
        assert_int_equal(f->labels[at], counts ? place + 1 : -1);
        loss_tokens += counts;
    }
    return loss_tokens;
}

static void check_epochs(fixture *f, tess_dataset *d, bool with_mask)
{
    const tess_dataset_info *info = tess_dataset_get_info(d);
    int64_t order_sum[2] = {0, 0};
    assert_int_equal(info->sequences_per_epoch, f->token_numel / WIDTH);
    assert_int_equal(info->dropped_token_numel, f->token_numel % WIDTH);
    for (int64_t epoch = 0; epoch < 2; epoch++) {
        static uint8_t seen[8192];
        int64_t total = 0;
        memset(seen, 0, sizeof seen);
        for (int64_t w = 0; w < info->sequences_per_epoch; w++) {
            int64_t counted = 0;
            const int64_t q = epoch * info->sequences_per_epoch + w;
            fill(f, d, q, 1);
            for (int64_t i = 0; i < WIDTH; i++) {
                assert_int_equal(seen[f->tokens[i]], 0);
                seen[f->tokens[i]] = 1;
                order_sum[epoch] += (w * WIDTH + i) * f->tokens[i];
                total++;
            }
            const int64_t expected = check_row(f, 0, with_mask, WIDTH);
            assert_int_equal(tess_dataset_loss_tokens(d, q, 1, &counted), TESS_OK);
            assert_int_equal(counted, expected);
        }
        assert_int_equal(total, f->token_numel - info->dropped_token_numel);
    }
    /* Another epoch, another order. */
    assert_int_not_equal(order_sum[0], order_sum[1]);
}

static void test_fill_packed_covers_each_token_once_per_epoch(void **state)
{
    fixture *f = *state;
    for (int with_mask = 0; with_mask < 2; with_mask++) {
        for (int resident = 0; resident < 2; resident++) {
            tess_dataset_config config = config_of(true);
            config.resident_limit_nbytes = resident ? TESS_DATASET_RESIDENT_NBYTES : 0;
            assert_int_equal(write_file(f, with_mask != 0), TESS_OK);
            tess_dataset *d = open_or_fail(f, &config);
            assert_int_equal(tess_dataset_get_info(d)->is_resident, resident);
            check_epochs(f, d, with_mask != 0);
            tess_dataset_close(&d);
        }
    }
}

static void test_fill_random_access_equals_sequential(void **state)
{
    fixture *f = *state;
    static int32_t whole[4][400 * WIDTH];
    assert_int_equal(write_file(f, true), TESS_OK);
    const tess_dataset_config config = config_of(true);
    tess_dataset *d = open_or_fail(f, &config);
    const int64_t numel = 2 * tess_dataset_get_info(d)->sequences_per_epoch + 5;
    const tess_dataset_batch batch = {whole[0], whole[1], whole[2], whole[3]};
    assert_true(numel <= 400);
    assert_int_equal(tess_dataset_fill(d, 0, numel, &batch), TESS_OK);
    /* In blocks of other sizes, backwards, with a fresh object: as another rank would. */
    for (int64_t rows = 1; rows <= 3; rows++) {
        tess_dataset_close(&d);
        d = open_or_fail(f, &config);
        for (int64_t first = numel - rows; first >= 0; first -= 7) {
            int64_t counted = 0, expected = 0;
            fill(f, d, first, rows);
            for (int64_t i = 0; i < rows * WIDTH; i++) {
                const int64_t shift = f->doc_start[i] + first * WIDTH;
                assert_int_equal(f->tokens[i], whole[0][first * WIDTH + i]);
                assert_int_equal(f->labels[i], whole[1][first * WIDTH + i]);
                assert_int_equal(f->positions[i], whole[2][first * WIDTH + i]);
                assert_int_equal(shift, whole[3][first * WIDTH + i]);
                expected += f->labels[i] >= 0;
            }
            assert_int_equal(tess_dataset_loss_tokens(d, first, rows, &counted), TESS_OK);
            assert_int_equal(counted, expected);
        }
    }
    tess_dataset_close(&d);
}

static uint64_t mix_batch(const fixture *f, int64_t numel)
{
    uint64_t h = 0;
    for (int64_t i = 0; i < numel; i++)
        h = (h ^ (uint64_t)(uint32_t)f->tokens[i] << 32 ^ (uint32_t)f->labels[i] ^
             (uint64_t)(uint32_t)f->doc_start[i] << 16) *
            0x100000001b3u;
    return h;
}

static void test_fill_micro_batches_do_not_depend_on_ranks(void **state)
{
    /* Four steps of 7 micro-batches of 3 sequences: rank r of W takes r, r + W, ... of each step,
     * with a data set of its own. Every micro-batch is filled once, with the same content. */
    fixture *f = *state;
    enum { STEPS = 4, MICRO = 7, EACH = 3 };
    uint64_t want[STEPS * MICRO] = {0};
    assert_int_equal(write_file(f, true), TESS_OK);
    const tess_dataset_config config = config_of(true);
    for (int64_t world = 1; world <= 9; world++) {
        int filled[STEPS * MICRO] = {0};
        for (int64_t rank = 0; rank < world; rank++) {
            tess_dataset *d = open_or_fail(f, &config);
            for (int64_t step = 0; step < STEPS; step++) {
                for (int64_t m = rank; m < MICRO; m += world) {
                    const int64_t g = step * MICRO + m;
                    fill(f, d, g * EACH, EACH);
                    const uint64_t found = mix_batch(f, EACH * WIDTH);
                    want[g] = world == 1 ? found : want[g];
                    assert_true(found == want[g]);
                    filled[g]++;
                }
            }
            tess_dataset_close(&d);
        }
        for (int g = 0; g < STEPS * MICRO; g++)
            assert_int_equal(filled[g], 1);
    }
    for (int g = 1; g < STEPS * MICRO; g++)
        assert_true(want[g] != want[0]);
}

static void test_fill_unpacked_one_document_per_sequence(void **state)
{
    fixture *f = *state;
    uint8_t seen[DOCUMENTS] = {0};
    assert_int_equal(write_file(f, true), TESS_OK);
    const tess_dataset_config config = config_of(false);
    tess_dataset *d = open_or_fail(f, &config);
    const tess_dataset_info *info = tess_dataset_get_info(d);
    int64_t cut = 0, padding = 0;
    assert_int_equal(info->sequences_per_epoch, DOCUMENTS);
    for (int64_t q = DOCUMENTS; q < 2 * DOCUMENTS; q++) {
        int64_t counted = 0;
        fill(f, d, q, 1);
        const int64_t document = document_of(f->tokens[0]);
        const int64_t used = TESS_MIN(numel_of(document), WIDTH);
        assert_int_equal(seen[document], 0);
        seen[document] = 1;
        assert_true(f->tokens[0] == 0 || document_of(f->tokens[0] - 1) != document);
        const int64_t expected = check_row(f, 0, true, used);
        for (int64_t i = used; i < WIDTH; i++) {
            assert_int_equal(f->tokens[i], 0);
            assert_int_equal(f->labels[i], -1);
            assert_int_equal(f->doc_start[i], used);
            assert_int_equal(f->positions[i], i - used);
        }
        cut += numel_of(document) - used;
        padding += WIDTH - used;
        assert_int_equal(tess_dataset_loss_tokens(d, q, 1, &counted), TESS_OK);
        assert_int_equal(counted, expected);
    }
    assert_int_equal(info->dropped_token_numel, cut);
    assert_int_equal(info->padding_token_numel, padding);
    tess_dataset_close(&d);
}

static void test_fill_order_depends_on_seed_and_shuffle_only(void **state)
{
    fixture *f = *state;
    int32_t first[WIDTH];
    assert_int_equal(write_file(f, false), TESS_OK);
    tess_dataset_config config = config_of(true);
    tess_dataset *d = open_or_fail(f, &config);
    fill(f, d, 0, 1);
    memcpy(first, f->tokens, sizeof first);
    tess_dataset_close(&d);
    config.seed = 43;
    d = open_or_fail(f, &config);
    fill(f, d, 0, 1);
    assert_memory_not_equal(first, f->tokens, sizeof first);
    tess_dataset_close(&d);
    config.shuffle = false;
    d = open_or_fail(f, &config);
    for (int64_t q = 0; q < 3; q++) {
        fill(f, d, q, 1);
        for (int64_t i = 0; i < WIDTH; i++)
            assert_int_equal(f->tokens[i], q * WIDTH + i);
    }
    tess_dataset_close(&d);
}

static void test_plan_equals_what_is_allocated(void **state)
{
    fixture *f = *state;
    assert_int_equal(write_file(f, true), TESS_OK);
    for (int resident = 0; resident < 2; resident++) {
        tess_token_file *file = NULL;
        tess_dataset_memory plan;
        tess_dataset_config config = config_of(true);
        config.resident_limit_nbytes = resident ? TESS_DATASET_RESIDENT_NBYTES : 0;
        assert_int_equal(tess_token_file_open(&f->ctx, f->path, &file), TESS_OK);
        assert_int_equal(tess_dataset_plan(tess_token_file_get_info(file), &config, &plan),
                         TESS_OK);
        tess_token_file_close(&file);
        assert_int_equal(plan.index_nbytes, (DOCUMENTS + 1) * 24);
        assert_int_equal(plan.resident_nbytes, resident ? f->token_numel * 5 : 0);
        assert_int_equal(plan.scratch_nbytes, (WIDTH + 1) * 5);
        const size_t before = tess_alloc_nbytes();
        tess_dataset *d = open_or_fail(f, &config);
        const size_t held = tess_alloc_nbytes() - before;
        const size_t planned = plan.index_nbytes + plan.resident_nbytes + plan.scratch_nbytes;
        /* Objects and the path: well below 1 KiB. */
        assert_in_range(held, planned, planned + 1024);
        tess_dataset_close(&d);
        assert_int_equal(tess_alloc_nbytes(), before);
    }
}

static void test_open_refuses_what_does_not_fit(void **state)
{
    fixture *f = *state;
    assert_int_equal(write_file(f, false), TESS_OK);
    const struct {
        int64_t sequence_numel, vocab_numel;
        const char *message;
    } cases[] = {
        {0, VOCAB, "data.sequence_length is 0, expected 1 .. 2147483646"},
        {INT32_MAX, VOCAB, "data.sequence_length is 2147483647"},
        {100000, VOCAB, "tokens are less than one sequence of 100000"},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_dataset *d = NULL;
        tess_dataset_config config = config_of(true);
        config.sequence_numel = cases[i].sequence_numel;
        config.vocab_numel = cases[i].vocab_numel;
        tess_error_clear();
        assert_int_equal(tess_dataset_open(&f->ctx, f->path, &config, &d), TESS_E_RANGE);
        assert_non_null(strstr(tess_error_message(), cases[i].message));
        assert_null(d);
    }
}

/* The greatest id is that of the last token. */
static void test_open_takes_a_tokenizer_that_exceeds_the_model(void **state)
{
    fixture *f = *state;
    char message[160];
    assert_int_equal(write_file(f, false), TESS_OK);
    assert_true(f->token_numel < VOCAB);
    snprintf(message, sizeof message,
             "token %" PRId64 " has id %" PRId64 " of a vocabulary of %d, the model embeds ids "
             "below %" PRId64,
             f->token_numel - 1, f->token_numel - 1, VOCAB, f->token_numel - 1);
    for (int is_resident = 0; is_resident < 2; is_resident++) {
        tess_dataset_config config = config_of(true);
        config.resident_limit_nbytes = is_resident ? TESS_DATASET_RESIDENT_NBYTES : 0;
        config.vocab_numel = f->token_numel;
        tess_dataset *d = open_or_fail(f, &config);
        assert_int_equal(tess_dataset_get_info(d)->is_resident, is_resident);
        fill(f, d, 0, ROWS);
        tess_dataset_close(&d);

        config.vocab_numel--;
        tess_error_clear();
        assert_int_equal(tess_dataset_open(&f->ctx, f->path, &config, &d), TESS_E_RANGE);
        assert_non_null(strstr(tess_error_message(), message));
        assert_null(d);
    }
}

static void test_fill_refuses_sequences_out_of_range(void **state)
{
    fixture *f = *state;
    const tess_dataset_batch batch = {f->tokens, f->labels, f->positions, f->doc_start};
    assert_int_equal(write_file(f, false), TESS_OK);
    const tess_dataset_config config = config_of(true);
    tess_dataset *d = open_or_fail(f, &config);
    assert_int_equal(tess_dataset_fill(d, -1, 1, &batch), TESS_E_RANGE);
    tess_error_clear();
    assert_int_equal(tess_dataset_fill(d, INT64_MAX, 1, &batch), TESS_E_RANGE);
    tess_error_clear();
    assert_int_equal(tess_dataset_fill(d, 0, INT32_MAX, &batch), TESS_E_RANGE);
    assert_non_null(strstr(tess_error_message(), "lower train.micro_batch"));
    tess_error_clear();
    assert_int_equal(tess_dataset_fill(d, INT64_MAX - 1, 1, &batch), TESS_E_RANGE);
    assert_non_null(strstr(tess_error_message(), "beyond epoch"));
    tess_error_clear();
    tess_dataset_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_fill_packed_covers_each_token_once_per_epoch, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_fill_random_access_equals_sequential, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_fill_micro_batches_do_not_depend_on_ranks, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_fill_unpacked_one_document_per_sequence, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_fill_order_depends_on_seed_and_shuffle_only, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_plan_equals_what_is_allocated, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_refuses_what_does_not_fit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_takes_a_tokenizer_that_exceeds_the_model, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_fill_refuses_sequences_out_of_range, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

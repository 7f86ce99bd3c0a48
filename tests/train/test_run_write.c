/* What a run file is turned into: the listing of what decides bits, differences of two, the
 * reference page. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/run_file/run_file.h"

static const char minimal[] = "model: {path: m}\ndata: {path: d.h5}\noutput: {dir: out}\n";

/* The listing is stored in checkpoints: a change of this text is a change of format. */
static void test_run_numerics_listing_is_stable(void **state)
{
    (void)state;
    static const char expected[] = "base.block_size=64\n"
                                   "base.double_quant=true\n"
                                   "base.format=nf4\n"
                                   "base.group_size=auto\n"
                                   "base.overrides=\n"
                                   "base.rule=minmax\n"
                                   "base.scale_meaning=dequant_scale\n"
                                   "base.scaling=row\n"
                                   "compute.dtype=bf16\n"
                                   "data.mask_prompt=true\n"
                                   "data.packing=true\n"
                                   "data.sequence_length=512\n"
                                   "lora.alpha=32\n"
                                   "lora.alpha_pattern=\n"
                                   "lora.dora=false\n"
                                   "lora.dropout=0\n"
                                   "lora.exclude=\n"
                                   "lora.init=default\n"
                                   "lora.init_iterations=1\n"
                                   "lora.layers=\n"
                                   "lora.layers_pattern=\n"
                                   "lora.modules_to_save=\n"
                                   "lora.plus_ratio=1\n"
                                   "lora.power_iterations=4\n"
                                   "lora.rank=16\n"
                                   "lora.rank_pattern=\n"
                                   "lora.rslora=false\n"
                                   "lora.targets=all-linear\n"
                                   "model.init=weights\n"
                                   "shard.reduction=exact\n"
                                   "train.beta1=0.9\n"
                                   "train.beta2=0.999\n"
                                   "train.clip_norm=1\n"
                                   "train.eps=1.0e-08\n"
                                   "train.learning_rate=0.0002\n"
                                   "train.micro_batch=1\n"
                                   "train.micro_batches=8\n"
                                   "train.min_learning_rate_ratio=0\n"
                                   "train.mode=lora\n"
                                   "train.optimizer=adamw\n"
                                   "train.schedule=cosine\n"
                                   "train.seed=0\n"
                                   "train.steps=100\n"
                                   "train.warmup_steps=10\n"
                                   "train.weight_decay=0\n";
    const tess_run_override overrides[] = {
        {"output.dir=elsewhere", 1}, {"compute.threads=7", 2}, {"shard.gather_group=3", 3}};
    for (int64_t numel = 0; numel <= 3; numel += 3) {
        tess_run *run = NULL;
        assert_int_equal(
            tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", overrides, numel, &run),
            TESS_OK);
        char *text = NULL;
        size_t nbytes = 0;
        assert_int_equal(tess_run_numerics(run, &text, &nbytes), TESS_OK);
        assert_string_equal(text, expected);
        tess_free(text);
        tess_run_destroy(&run);
    }
}

/* What a free key decides where steps depend on it. */
static void test_run_numerics_of_spikes(void **state)
{
    (void)state;
    static const char spikes[] = "train.on_spike=", threshold[] = "train.spike_threshold=8",
                      saves[] = "output.checkpoint_every=50";
    static const struct {
        const char *override;
        bool is_listed, has_saves;
    } cases[] = {{"train.on_spike=warn", false, false},
                 {"train.on_spike=skip", true, false},
                 {"train.on_spike=rollback", true, true}};
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        const tess_run_override overrides[] = {{cases[i].override, 1}};
        tess_run *run = NULL;
        char *text = NULL;
        size_t nbytes = 0;
        assert_int_equal(
            tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", overrides, 1, &run), TESS_OK);
        assert_int_equal(tess_run_numerics(run, &text, &nbytes), TESS_OK);
        assert_int_equal(strstr(text, spikes) != NULL, cases[i].is_listed);
        assert_int_equal(strstr(text, threshold) != NULL, cases[i].is_listed);
        assert_int_equal(strstr(text, saves) != NULL, cases[i].has_saves);
        tess_free(text);
        tess_run_destroy(&run);
    }
}

static void test_run_numerics_diff_lists_every_difference(void **state)
{
    (void)state;
    static const struct {
        const char *stored, *current, *text;
        int64_t numel;
    } cases[] = {
        {"a=1\nb=2\n", "a=1\nb=2\n", "", 0},
        {"a=1\nb=2\nc=3\n", "a=1\nb=5\nc=4\n", "b: 2 -> 5, c: 3 -> 4", 2},
        {"a=1\nc=3\n", "a=1\nb=\nc=3\n", "b: absent -> unset", 1},
        {"a=1\nab=2\n", "ab=2\n", "a: 1 -> absent", 1},
        {"", "a=1\n", "a: absent -> 1", 1},
        {"x=a b\n", "", "x: a b -> absent", 1},
        {"x=long\n", "x=longer\n", "x: long -> longer", 1},
        /* a key that is younger than the stored run, with its default or another value */
        {"x=1\n", "lora.dropout=0\nlora.layers=\nlora.rslora=false\nx=1\n", "", 0},
        {"x=1\n", "lora.rslora=true\nx=1\n", "lora.rslora: absent -> true", 1},
        {"lora.rslora=false\n", "", "lora.rslora: false -> absent", 1},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        char *text = NULL;
        int64_t numel = -1;
        assert_int_equal(tess_run_numerics_diff(cases[i].stored, cases[i].current, &text, &numel),
                         TESS_OK);
        assert_string_equal(text, cases[i].text);
        assert_int_equal(numel, cases[i].numel);
        tess_free(text);
    }
}

/* docs/run-file.md is generated: `tessera help run-file > docs/run-file.md`. */
static void test_run_reference_equals_the_committed_page(void **state)
{
    (void)state;
    char *text = NULL;
    size_t nbytes = 0;
    assert_int_equal(tess_run_reference(&text, &nbytes), TESS_OK);
    FILE *file = fopen(TESS_TEST_SOURCE_DIR "/docs/run-file.md", "rb");
    assert_non_null(file);
    static char page[1 << 17];
    const size_t page_nbytes = fread(page, 1, sizeof page - 1, file);
    fclose(file);
    page[page_nbytes] = '\0';
    assert_string_equal(text, page);
    tess_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run_numerics_listing_is_stable),
        cmocka_unit_test(test_run_numerics_of_spikes),
        cmocka_unit_test(test_run_numerics_diff_lists_every_difference),
        cmocka_unit_test(test_run_reference_equals_the_committed_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

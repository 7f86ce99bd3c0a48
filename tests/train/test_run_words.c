/* Who comes from another trainer is told the key, or that there is none, not what is spelt alike.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "train/run_file/run_file.h"
#include "train/run_file/run_priv.h"
#include "train/strbuf.h"

static void refuse_text(const char *text, const char *message)
{
    tess_run *run = NULL;
    tess_error_clear();
    assert_int_equal(tess_run_parse(text, strlen(text), "r.yaml", NULL, 0, &run), TESS_E_CONFIG);
    if (strstr(tess_error_message(), message) == NULL)
        fail_msg("message '%s' lacks '%s'", tess_error_message(), message);
    assert_null(run);
    tess_error_clear();
}

static void test_run_parse_words_of_other_trainers_are_translated(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"train: {gradient_accumulation_steps: 8}\n",
         "unknown key 'train.gradient_accumulation_steps', here it is 'train.micro_batches' "
         "(accumulation steps times ranks)"},
        {"train: {num_train_epochs: 3}\n", "here it is 'train.epochs'"},
        {"lora: {r: 8}\n", "unknown key 'lora.r', here it is 'lora.rank'"},
        {"lora_r: 8\n", "unknown section 'lora_r', here it is 'lora.rank'"},
        {"objective: {discrete_flow_shift: 3}\n", "here it is 'objective.shift_factor'"},
        {"objective: {guidance_scale: 1}\n", "here it is 'objective.guidance'"},
        {"lora: {network_dim: 4}\n", "here it is 'lora.rank'"},
        {"learning_rate: 1.0e-4\n",
         "unknown section 'learning_rate', the nearest known key is 'train.learning_rate'"},
        {"adapters:\n  rank: 8\n",
         "unknown section 'adapters', the nearest known key is 'lora.rank'"},
        {"lora: {bias: none}\n",
         "unknown key 'lora.bias', which has no counterpart here: biases of the base stay frozen"},
        {"train: {load_best_model_at_end: true}\n",
         "which has no counterpart here: keep checkpoints with output.keep_every"},
        {"torch_compile: true\n",
         "unknown section 'torch_compile', which has no counterpart here: the fastest kernels"},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++)
        refuse_text(cases[i].text, cases[i].message);
}

/* Take `word` out of "`a`, `b` | ...", false behind the last. */
static bool next_word(const char **at, char word[64])
{
    if (**at != '`')
        return false;
    const char *end = strchr(*at + 1, '`');
    snprintf(word, 64, "%.*s", (int)(end - *at - 1), *at + 1);
    *at = end + 1 + (end[1] == ',' ? 2 : 0);
    return true;
}

/* Every row of the page: its words lead to its key, or to none, and to its whole note. */
static void test_run_words_each_gets_the_hint_of_its_row(void **state)
{
    (void)state;
    tess_strbuf page = {0};
    int word_numel = 0;
    assert_int_equal(run_words_reference(&page), TESS_OK);
    char *line_end = NULL;
    for (char *line = strstr(page.text, "\n| `") + 1; *line == '|'; line = line_end + 1) {
        char word[64], target[64], note[160], path[80], hint[RUN_HINT_NBYTES], expected[300];
        line_end = strchr(line, '\n');
        *line_end = '\0';
        const char *at = line + 2;
        char *bar = strstr(line, " | ");
        char *second = strstr(bar + 3, " | ");
        snprintf(target, sizeof target, "%.*s", (int)(second - bar - 3), bar + 3);
        snprintf(note, sizeof note, "%.*s", (int)strlen(second + 3) - 2, second + 3);
        while (next_word(&at, word)) {
            snprintf(path, sizeof path, "train.%s", word);
            run_key_hint(path, hint);
            if (strcmp(target, "none") == 0)
                snprintf(expected, sizeof expected, "which has no counterpart here: %s", note);
            else
                snprintf(expected, sizeof expected,
                         *note == '\0' ? "here it is '%.*s'%s" : "here it is '%.*s' (%s)",
                         (int)strlen(target) - 2, target + 1, note);
            assert_string_equal(hint, expected);
            word_numel++;
        }
    }
    assert_true(word_numel > 100);
    tess_strbuf_fini(&page);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run_parse_words_of_other_trainers_are_translated),
        cmocka_unit_test(test_run_words_each_gets_the_hint_of_its_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

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
#include "format/tokenizer.h"
#include "train/prepare/tokenize.h"

#define LLAMA3 TESS_TEST_SOURCE_DIR "/tests/golden/tokenizers/llama3.json"
#define SP_SPLIT TESS_TEST_SOURCE_DIR "/tests/golden/tokenizers/sp-split.json"

typedef struct fixture {
    tess_ctx ctx;
    char folder[64], input[96], output[96];
    const char *inputs[2];
} fixture;

static int set_up(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    snprintf(f.folder, sizeof f.folder, "/tmp/tess-tokenize-XXXXXX");
    if (mkdtemp(f.folder) == NULL || tess_io_create(0, &f.ctx.io) != TESS_OK)
        return -1;
    snprintf(f.output, sizeof f.output, "%s/out.h5", f.folder);
    f.inputs[0] = f.inputs[1] = f.input;
    tess_error_clear();
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    unlink(f->input);
    unlink(f->output);
    /* Fails when a run left anything else behind. */
    const int left = rmdir(f->folder);
    tess_io_destroy(&f->ctx.io);
    return left;
}

static void write_input(fixture *f, const char *name, const char *text)
{
    unlink(f->input);
    snprintf(f->input, sizeof f->input, "%s/%s", f->folder, name);
    assert_int_equal(tess_io_write_all(f->ctx.io, f->input, text, strlen(text)), TESS_OK);
}

static tess_tokenize_options options_of(const fixture *f)
{
    return (tess_tokenize_options){
        .tokenizer_path = LLAMA3, .inputs = f->inputs, .input_numel = 1, .output_path = f->output};
}

static tess_tokenize_result run(const fixture *f, const tess_tokenize_options *options)
{
    tess_tokenize_result result = {0};
    tess_error_clear();
    if (tess_tokenize_run(&f->ctx, options, &result) != TESS_OK)
        fail_msg("%s", tess_error_message());
    return result;
}

/* A document of the output as decoded text, and its mask as digits. */
static void check_document(const fixture *f, const char *tokenizer_path, int64_t document,
                           const char *want_text, const char *want_counted)
{
    tess_token_file *file = NULL;
    tess_tokenizer *t = NULL;
    int32_t id[512];
    uint8_t mask[512];
    char *text = NULL, *counted = NULL;
    size_t nbytes = 0;
    assert_int_equal(tess_token_file_open(&f->ctx, f->output, &file), TESS_OK);
    assert_int_equal(tess_token_file_verify(file), TESS_OK);
    assert_int_equal(tess_tokenizer_open(f->ctx.io, tokenizer_path, &t), TESS_OK);
    assert_memory_equal(&tess_token_file_get_info(file)->tokenizer, tess_tokenizer_digest(t),
                        sizeof(tess_sha256));
    const int64_t *offset = tess_token_file_doc_offsets(file);
    const int64_t numel = offset[document + 1] - offset[document];
    assert_true(numel <= 512);
    assert_int_equal(tess_token_file_read(file, offset[document], numel, id, mask), TESS_OK);
    assert_int_equal(tess_decode(t, id, numel, false, &text, &nbytes), TESS_OK);
    assert_string_equal(text, want_text);
    int64_t kept = 0;
    for (int64_t i = 0; i < numel; i++) {
        if (mask[i] != 0)
            id[kept++] = id[i];
    }
    assert_int_equal(tess_decode(t, id, kept, false, &counted, &nbytes), TESS_OK);
    assert_string_equal(counted, want_counted);
    tess_free(text);
    tess_free(counted);
    tess_tokenizer_destroy(&t);
    tess_token_file_close(&file);
}

static void test_run_text_is_one_document(void **state)
{
    fixture *f = *state;
    tess_tokenize_options options = options_of(f);
    write_input(f, "a.txt", "One.\nTwo <|end_of_text|>\n");
    options.input_numel = 2;
    options.eos_token = "<|end_of_text|>";
    const tess_tokenize_result result = run(f, &options);
    const char *want = "<|begin_of_text|>One.\nTwo <|end_of_text|>\n<|end_of_text|>";
    assert_int_equal(result.file.document_numel, 2);
    assert_int_equal(result.input_nbytes, 50);
    assert_false(result.file.has_mask);
    check_document(f, LLAMA3, 0, want, want);
    check_document(f, LLAMA3, 1, want, want);
}

static void test_run_text_special_tokens_only_on_request(void **state)
{
    fixture *f = *state;
    tess_tokenize_options options = options_of(f);
    write_input(f, "a.txt", "x<|end_of_text|>");
    const int64_t plain = run(f, &options).file.token_numel;
    options.parse_special_text = true;
    assert_int_equal(run(f, &options).file.token_numel, 3);
    assert_true(plain > 6);
    options.no_bos = true;
    assert_int_equal(run(f, &options).file.token_numel, 2);
}

static void test_run_text_separator_splits(void **state)
{
    fixture *f = *state;
    tess_tokenize_options options = options_of(f);
    options.separator = "%";
    options.no_bos = true;
    write_input(f, "fortunes", "%\nOne\nmore\n%\n%\nTwo %\n%\nThree");
    assert_int_equal(run(f, &options).file.document_numel, 3);
    check_document(f, LLAMA3, 0, "One\nmore\n", "One\nmore\n");
    check_document(f, LLAMA3, 1, "Two %\n", "Two %\n");
    check_document(f, LLAMA3, 2, "Three", "Three");
}

static void test_run_jsonl_text_lines_are_documents(void **state)
{
    fixture *f = *state;
    tess_tokenize_options options = options_of(f);
    write_input(f, "a.jsonl",
                "{\"text\": \"One\", \"n\": 1}\n\n{\"text\": \"\"}\r\n{\"text\": \"T\\u0077o\"}");
    const tess_tokenize_result result = run(f, &options);
    assert_int_equal(result.file.document_numel, 2);
    assert_int_equal(result.skipped_empty_numel, 1);
    check_document(f, LLAMA3, 1, "<|begin_of_text|>Two", "<|begin_of_text|>Two");
}

static void test_run_jsonl_prompt_is_masked(void **state)
{
    fixture *f = *state;
    tess_tokenize_options options = options_of(f);
    options.eos_token = "<|end_of_text|>";
    write_input(f, "a.jsonl",
                "{\"prompt\": \"Say:\", \"completion\": \" hello there\"}\n"
                "{\"prompt\": \"\", \"completion\": \"free\"}\n");
    const tess_tokenize_result result = run(f, &options);
    assert_true(result.file.has_mask);
    assert_int_equal(result.no_loss_numel, 0);
    check_document(f, LLAMA3, 0, "<|begin_of_text|>Say: hello there<|end_of_text|>",
                   " hello there<|end_of_text|>");
    check_document(f, LLAMA3, 1, "<|begin_of_text|>free<|end_of_text|>", "free<|end_of_text|>");
    options.train_on_prompts = true;
    assert_false(run(f, &options).file.has_mask);
}

static void test_run_jsonl_chat_counts_answers(void **state)
{
    fixture *f = *state;
    tess_tokenize_options options = options_of(f);
    options.chat_template = "llama3";
    write_input(f, "a.jsonl",
                "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi <|eot_id|>\"}, "
                "{\"role\": \"assistant\", \"content\": \"Yes.\", \"name\": null}]}\n"
                "{\"messages\": [{\"role\": \"user\", \"content\": \"Alone\"}]}\n");
    const tess_tokenize_result result = run(f, &options);
    assert_int_equal(result.no_loss_numel, 1);
    check_document(f, LLAMA3, 0,
                   "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi <|eot_id|>"
                   "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>",
                   "Yes.<|eot_id|>");
}

static void test_run_template_suffix_ends_documents(void **state)
{
    fixture *f = *state;
    tess_tokenize_options options = options_of(f);
    options.tokenizer_path = SP_SPLIT;
    write_input(f, "a.txt", "the letter");
    (void)run(f, &options);
    check_document(f, SP_SPLIT, 0, "<s> the letter</s>", "<s> the letter</s>");
}

static void test_run_long_lines_cross_blocks(void **state)
{
    /* Three lines of 900,000 bytes: reads of 1 MiB end inside them. */
    fixture *f = *state;
    enum { LINE = 900000 };
    tess_tokenize_options options = options_of(f);
    void *room = NULL;
    assert_int_equal(tess_alloc(3 * (LINE + 1), &room), TESS_OK);
    char *text = room;
    for (int i = 0; i < 3; i++) {
        char *line = text + i * (LINE + 1);
        memset(line, ' ', LINE);
        for (int k = 100; k < LINE - 10; k += 40)
            line[k] = '7';
        memcpy(line, "{\"text\": \"line ", 15);
        line[15] = (char)('0' + i);
        memcpy(line + LINE - 2, "\"}\n", 3);
    }
    unlink(f->input);
    snprintf(f->input, sizeof f->input, "%s/long.jsonl", f->folder);
    assert_int_equal(tess_io_write_all(f->ctx.io, f->input, text, 3 * (LINE + 1)), TESS_OK);
    tess_free(room);
    const tess_tokenize_result result = run(f, &options);
    assert_int_equal(result.file.document_numel, 3);
    assert_int_equal(result.input_nbytes, 3 * (LINE + 1));
}

static void test_run_refuses_and_leaves_nothing(void **state)
{
    fixture *f = *state;
    static const struct {
        const char *name, *text, *message;
        tess_status st;
        tess_tokenize_options change;
    } cases[] = {
        {"a.txt", "ok\xff", "a.txt: text is not UTF-8 at byte 2 (0xff)", TESS_E_FORMAT, {0}},
        {"a.txt", "", "no document was added", TESS_E_ARG, {0}},
        {"a.jsonl", "{\"text\": \"a\"}\n{\"text\": 5}\n", "a.jsonl:2", TESS_E_FORMAT, {0}},
        {"a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"\n", "a.jsonl:2", TESS_E_FORMAT, {0}},
        {"a.jsonl", "[]\n", "a.jsonl:1", TESS_E_FORMAT, {0}},
        {"a.jsonl", "{\"body\": \"\"}\n", "expected exactly one of 'text'", TESS_E_FORMAT, {0}},
        {"a.jsonl",
         "{\"messages\": []}\n",
         "chat messages need a template by name",
         TESS_E_ARG,
         {0}},
        {"a.jsonl",
         "{\"messages\": []}\n",
         "a.jsonl:1: a conversation without messages",
         TESS_E_FORMAT,
         {.chat_template = "llama3"}},
        {"a.jsonl",
         "{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"tool_calls\": []}]}\n",
         "only role and content of a message are supported; remove 'tool_calls'",
         TESS_E_UNSUPPORTED,
         {.chat_template = "llama3"}},
        {"a.jsonl",
         "{\"messages\": [{\"role\": \"user\", \"content\": [\"a\"]}]}\n",
         "messages[0].content",
         TESS_E_FORMAT,
         {.chat_template = "llama3"}},
        {"a.txt", "a", "choose llama3, llama3.1, chatml, ", TESS_E_ARG, {.chat_template = "x"}},
        {"a.txt", "a", "end token 'zz' is not in the vocabulary", TESS_E_ARG, {.eos_token = "zz"}},
        {"a.jsonl", "{}", "a separator is for text files", TESS_E_ARG, {.separator = "%"}},
        {"a.txt", "a", "'/nonexistent'", TESS_E_IO, {.tokenizer_path = "/nonexistent"}},
        {"a.txt",
         "a",
         "needs a template by name",
         TESS_E_ARG,
         {.format = TESS_TOKENIZE_JSONL_CHAT}},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_tokenize_options options = options_of(f);
        tess_tokenize_result result = {0};
        options.chat_template = cases[i].change.chat_template;
        options.eos_token = cases[i].change.eos_token;
        options.separator = cases[i].change.separator;
        options.format = cases[i].change.format;
        if (cases[i].change.tokenizer_path != NULL)
            options.tokenizer_path = cases[i].change.tokenizer_path;
        write_input(f, cases[i].name, cases[i].text);
        tess_error_clear();
        const tess_status st = tess_tokenize_run(&f->ctx, &options, &result);
        if (st != cases[i].st || strstr(tess_error_message(), cases[i].message) == NULL)
            print_error("case %d: %s '%s'\n", i, tess_status_name(st), tess_error_message());
        assert_int_equal(st, cases[i].st);
        assert_non_null(strstr(tess_error_message(), cases[i].message));
        assert_int_not_equal(access(f->output, F_OK), 0);
    }
    tess_error_clear();
}

static void test_format_parse_knows_its_names(void **state)
{
    (void)state;
    static const char *const names[] = {"auto", "text", "jsonl-text", "jsonl-prompt", "jsonl-chat"};
    tess_tokenize_format format = TESS_TOKENIZE_AUTO;
    for (int i = 0; i < TESS_NELEM(names); i++) {
        assert_int_equal(tess_tokenize_format_parse(names[i], &format), TESS_OK);
        assert_int_equal((int)format, i);
    }
    assert_int_equal(tess_tokenize_format_parse("csv", &format), TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "format 'csv' is not known; choose auto"));
    tess_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_run_text_is_one_document, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_run_text_special_tokens_only_on_request, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_run_text_separator_splits, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_run_jsonl_text_lines_are_documents, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_run_jsonl_prompt_is_masked, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_run_jsonl_chat_counts_answers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_run_template_suffix_ends_documents, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_run_long_lines_cross_blocks, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_run_refuses_and_leaves_nothing, set_up, tear_down),
        cmocka_unit_test(test_format_parse_knows_its_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * What decides the bits of a run, as sorted lines "key=value": shown to the other ranks before the
 * first collective that depends on it, and to the checkpoint that is resumed or read.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "format/adapter.h"
#include "train/run_file/run_file.h"
#include "train/session_priv.h"
#include "train/strbuf.h"

static const char adapter_key[] = "adapter.digest=";
static const char missing[] = "missing";

/* ---- the adapter that a run starts from ---- */

/* "missing" is a digest of its own: a resume does not read the adapter again. */
static tess_status hash_adapter(tess_session *s, char hex[TESS_SHA256_HEX_NBYTES])
{
    char path[PATH_MAX], *file = NULL;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    int fd = -1;
    tess_sha256 sha;
    TESS_TRY(tess_io_stat(s->ctx->io, s->run->adapter.resume, &kind, &nbytes));
    TESS_TRY(tess_adapter_locate(s->ctx->io, s->run->adapter.resume, &file));
    const bool is_peft = kind != TESS_IO_FILE && strcmp(file, s->run->adapter.resume) == 0;
    const int length =
        snprintf(path, sizeof path, "%s%s", file, is_peft ? "/adapter_model.safetensors" : "");
    tess_free(file);
    TESS_CHECK(length < (int)sizeof path, TESS_E_CONFIG, "adapter.resume: path is too long");
    TESS_TRY(tess_io_stat(s->ctx->io, path, &kind, &nbytes));
    snprintf(hex, TESS_SHA256_HEX_NBYTES, "%s", missing);
    if (kind == TESS_IO_MISSING)
        return TESS_OK;
    TESS_TRY(tess_io_open_read(s->ctx->io, path, true, &fd, &nbytes));
    tess_status st = tess_io_sha256(s->ctx->io, path, fd, nbytes, &sha);
    const tess_status closed = tess_io_close(s->ctx->io, path, &fd);
    if (st == TESS_OK)
        tess_hex(sha.byte, sizeof sha.byte, hex);
    return st != TESS_OK ? st : closed;
}

/* Every rank has a file of its own, perhaps under another path; who has none may resume still.
 * `hex`: rank 0's, empty where no adapter is read. */
static tess_status share_adapter_digest(tess_session *s, char hex[TESS_SHA256_HEX_NBYTES])
{
    char own[TESS_SHA256_HEX_NBYTES] = "";
    memset(hex, 0, TESS_SHA256_HEX_NBYTES);
    if (s->options.kind != TESS_SESSION_TRAIN || s->run->adapter.resume == NULL)
        return TESS_OK;
    TESS_TRY(session_agree(s, hash_adapter(s, own)));
    memcpy(hex, own, sizeof own);
    TESS_TRY(tess_comm_bcast(s->world, 0, hex, TESS_SHA256_HEX_NBYTES));
    tess_status st = TESS_OK;
    if (strcmp(own, hex) != 0 && strcmp(own, missing) != 0)
        st = TESS_FAIL(TESS_E_CONTRACT,
                       "adapter.resume: '%s' has SHA-256 %.16s, that of rank 0 %.16s; give all "
                       "ranks the same adapter",
                       s->run->adapter.resume, own, hex);
    return session_agree(s, st);
}

/* ---- listing ---- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* tess_run_numerics_diff() walks two sorted listings. */
tess_status session_sort_lines(char *text)
{
    int64_t line_numel = 0;
    void *array = NULL, *copy = NULL;
    const size_t nbytes = strlen(text);
    for (const char *p = text; *p; p++)
        line_numel += *p == '\n';
    TESS_TRY(tess_alloc_array(line_numel, sizeof(char *), &array));
    tess_status st = tess_alloc(nbytes + 1, &copy);
    if (st != TESS_OK) {
        tess_free(array);
        return st;
    }
    char **line = array, *rest = memcpy(copy, text, nbytes + 1);
    for (int64_t i = 0; i < line_numel; i++) {
        line[i] = rest;
        rest = strchr(rest, '\n');
        *rest++ = '\0';
    }
    qsort(line, (size_t)line_numel, sizeof *line, by_text);
    for (int64_t i = 0; i < line_numel; i++) {
        const size_t line_nbytes = strlen(line[i]);
        memcpy(text, line[i], line_nbytes);
        text[line_nbytes] = '\n';
        text += line_nbytes + 1;
    }
    tess_free(copy);
    tess_free(array);
    return TESS_OK;
}

static tess_status add_resolved(tess_session *s, const char *adapter, tess_strbuf *b)
{
    char hex[TESS_SHA256_HEX_NBYTES];
    tess_sha256 config;
    TESS_TRY(tess_sha256_of(s->d.config_text, strlen(s->d.config_text), &config));
    tess_hex(config.byte, sizeof config.byte, hex);
    TESS_TRY(tess_strbuf_add(b, "compute.path=%s\nmodel.config=%s\nmodel.family=%s\n",
                             s->kernel_path, hex, s->d.family_name));
    if (s->run->shard.reduction == TESS_RUN_REDUCTION_LIBRARY)
        TESS_TRY(tess_strbuf_add(b, "shard.library_once=%s\n",
                                 s->d.plan->is_library_once ? "true" : "false"));
    if (*adapter != '\0')
        TESS_TRY(tess_strbuf_add(b, "%s%s\n", adapter_key, adapter));
    const char *digest = s->source[0].digest;
    return *digest != '\0' ? tess_strbuf_add(b, "data.digest=%s\n", digest) : TESS_OK;
}

tess_status session_list_numerics(tess_session *s)
{
    tess_strbuf b = {0};
    char *text = NULL, adapter[TESS_SHA256_HEX_NBYTES];
    size_t nbytes = 0;
    TESS_TRY(share_adapter_digest(s, adapter));
    tess_status st = tess_run_numerics(s->run, &text, &nbytes);
    if (st == TESS_OK)
        st = tess_strbuf_add(&b, "%s", text);
    if (st == TESS_OK)
        st = add_resolved(s, adapter, &b);
    tess_free(text);
    if (st == TESS_OK)
        st = tess_strdup(b.text, &s->numerics);
    tess_strbuf_fini(&b);
    return session_agree(s, st == TESS_OK ? session_sort_lines(s->numerics) : st);
}

/* ---- contract ---- */

tess_status session_add_numerics(const tess_session *s, tess_contract *c)
{
    char *rest = NULL, *copy = NULL;
    tess_status st = tess_strdup(s->numerics, &copy);
    for (char *line = copy != NULL ? strtok_r(copy, "\n", &rest) : NULL;
         line != NULL && st == TESS_OK; line = strtok_r(NULL, "\n", &rest)) {
        char *equals = strchr(line, '=');
        *equals = '\0';
        st = tess_contract_add_text(c, line, "%s", equals + 1);
    }
    tess_free(copy);
    return st;
}

static tess_status add_data(const session_source *source, const char *key, tess_contract *c)
{
    char name[64];
    snprintf(name, sizeof name, "%s digest", key);
    TESS_TRY(
        tess_contract_add_text(c, name, "%s", *source->digest != '\0' ? source->digest : "none"));
    snprintf(name, sizeof name, "%s sequences per epoch", key);
    return tess_contract_add_text(c, name, "%lld", (long long)source->sequence_numel);
}

/* What a rank sees of the files decides which collectives it enters: it must be what all see. */
static tess_status add_files(const tess_session *s, tess_contract *c)
{
    TESS_TRY(tess_contract_add_text(c, "weights in model.path", "%s",
                                    s->d.dir != NULL ? "found" : "not found"));
    TESS_TRY(tess_contract_add_text(c, "base stored as in model.path", "%s",
                                    s->d.is_base_as_source ? "yes" : "no"));
    TESS_TRY(add_data(&s->source[0], "data.path", c));
    return add_data(&s->source[1], "data.eval_path", c);
}

static tess_status fill_contract(tess_session *s, tess_contract *c)
{
    TESS_TRY(tess_plan_contract(s->d.plan, &s->d.registry, c));
    if (s->feed->add_wires != NULL)
        TESS_TRY(s->feed->add_wires(s, c));
    TESS_TRY(session_add_numerics(s, c));
    return add_files(s, c);
}

tess_status session_agree_on_contract(tess_session *s)
{
    return session_settle_contract(s, fill_contract);
}

/* Fill a contract and compare it across ranks. */
static tess_status compare(tess_session *s, session_contract_filler fill, tess_sha256 *digest)
{
    tess_contract *c = NULL;
    tess_status st = tess_contract_create(&c);
    if (st == TESS_OK)
        st = fill(s, c);
    if (st == TESS_OK)
        st = tess_contract_digest(c, digest);
    st = session_agree(s, st);
    if (st == TESS_OK)
        st = tess_contract_agree(s->world, c);
    tess_contract_destroy(&c);
    return st;
}

tess_status session_settle_contract(tess_session *s, session_contract_filler fill)
{
    tess_sha256 digest;
    TESS_TRY(compare(s, fill, &digest));
    tess_hex(digest.byte, sizeof digest.byte, s->contract_digest);
    return TESS_OK;
}

/* Ranks may have a model, data or an adapter in different places: what is there is compared. */
static bool is_place_of_input(const tess_run_key *key)
{
    return key->kind == TESS_RUN_PATH &&
           (strcmp(key->section, "model") == 0 || strcmp(key->section, "data") == 0 ||
            strcmp(key->section, "adapter") == 0);
}

static tess_status add_key(const tess_run *run, const tess_run_key *key, tess_contract *c)
{
    tess_strbuf value = {0};
    tess_status st = tess_strbuf_add(&value, "%s", "");
    if (st == TESS_OK && tess_run_value_is_set(run, key))
        st = tess_run_value_write(run, key, &value);
    if (st == TESS_OK)
        st = tess_contract_add_text(c, key->path, "%s", *value.text != '\0' ? value.text : "unset");
    tess_strbuf_fini(&value);
    return st;
}

static tess_status fill_keys(tess_session *s, tess_contract *c)
{
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        if (!is_place_of_input(key))
            TESS_TRY(add_key(s->run, key, c));
    }
    return TESS_OK;
}

tess_status session_agree_on_run(tess_session *s)
{
    tess_sha256 digest;
    return compare(s, fill_keys, &digest);
}

/* ---- against a checkpoint ---- */

static const char *next_line(const char *line)
{
    line += strcspn(line, "\n");
    return *line == '\n' ? line + 1 : line;
}

/* Where the line that begins with `key` stands, NULL when there is none. */
static const char *line_of(const char *listing, const char *key)
{
    const size_t nbytes = strlen(key);
    for (const char *line = listing; *line != '\0'; line = next_line(line))
        if (strncmp(line, key, nbytes) == 0)
            return line;
    return NULL;
}

/* The adapter's weights are in the checkpoint: that its folder is gone changes nothing. */
static tess_status adopt_adapter(tess_session *s, const char *stored)
{
    const char *mine = line_of(s->numerics, adapter_key), *theirs = line_of(stored, adapter_key);
    char *text = NULL;
    if (mine == NULL || theirs == NULL ||
        strncmp(mine + strlen(adapter_key), missing, strlen(missing)) != 0)
        return TESS_OK;
    TESS_TRY(tess_asprintf(&text, "%.*s%.*s%s", (int)(mine - s->numerics), s->numerics,
                           (int)strcspn(theirs, "\n"), theirs, mine + strcspn(mine, "\n")));
    tess_free(s->numerics);
    s->numerics = text;
    return TESS_OK;
}

/* Keys that some lines begin with: those lines, or all others. */
typedef struct line_choice {
    const char *const *key; /* ends with NULL */
    bool is_others;
} line_choice;

static bool is_chosen(const line_choice *choice, const char *line)
{
    for (int i = 0; choice->key[i] != NULL; i++)
        if (strncmp(line, choice->key[i], strlen(choice->key[i])) == 0)
            return !choice->is_others;
    return choice->is_others;
}

/* Chosen lines as a listing of its own. */
static tess_status pick_lines(const char *listing, const line_choice *choice, char **out)
{
    tess_strbuf b = {0};
    tess_status st = tess_strbuf_add(&b, "%s", "");
    for (const char *line = listing; *line != '\0' && st == TESS_OK; line = next_line(line))
        if (is_chosen(choice, line))
            st = tess_strbuf_add(&b, "%.*s\n", (int)strcspn(line, "\n"), line);
    if (st == TESS_OK)
        st = tess_strdup(b.text, out);
    tess_strbuf_fini(&b);
    return st;
}

static tess_status diff_picked(const tess_session *s, const char *stored, line_choice choice,
                               char **text, int64_t *numel)
{
    char *a = NULL, *b = NULL;
    tess_status st = pick_lines(stored, &choice, &a);
    if (st == TESS_OK)
        st = pick_lines(s->numerics, &choice, &b);
    if (st == TESS_OK)
        st = tess_run_numerics_diff(a, b, text, numel);
    tess_free(a);
    tess_free(b);
    return st;
}

/* Evaluation may use other data and batch shapes, but not another function. */
static tess_status accept_read(tess_session *s, const char *path, const char *stored)
{
    static const char *const deciding[] = {"base.",
                                           "lora.alpha=",
                                           "lora.alpha_pattern=",
                                           "lora.rank=",
                                           "lora.rank_pattern=",
                                           "lora.rslora=",
                                           "lora.dora=",
                                           "lora.init=",
                                           "model.config=",
                                           "train.mode=",
                                           NULL};
    static const char *const rounding[] = {"compute.dtype=", NULL};
    char *text = NULL;
    int64_t numel = 0;
    TESS_TRY(diff_picked(s, stored, (line_choice){rounding, false}, &text, &numel));
    if (numel > 0)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN, "checkpoint '%s' was trained with another %s",
                      path, text);
    tess_free(text);
    TESS_TRY(diff_picked(s, stored, (line_choice){deciding, false}, &text, &numel));
    tess_status st = TESS_OK;
    if (numel > 0 && !s->options.accept_config_change)
        st = TESS_FAIL(TESS_E_CONFIG,
                       "checkpoint '%s' is of another model than the run file describes: %s; use "
                       "the run file it was trained with",
                       path, text);
    tess_free(text);
    return st;
}

bool session_may_change_base(const tess_session *s)
{
    return s->options.kind == TESS_SESSION_TRAIN && s->run->adapter.allow_base_change &&
           s->run->train.mode == TESS_RUN_MODE_LORA;
}

/* What describes the base: another one where that is allowed. */
static const char *const of_base[] = {"base.", "model.config=", NULL};

static tess_status accept_base(tess_session *s, const char *path, const char *stored)
{
    char *text = NULL;
    int64_t numel = 0;
    s->is_base_changed = false;
    if (!session_may_change_base(s))
        return TESS_OK;
    TESS_TRY(diff_picked(s, stored, (line_choice){of_base, false}, &text, &numel));
    s->is_base_changed = numel > 0;
    if (numel > 0)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "checkpoint '%s' was trained on another base: %s", path, text);
    tess_free(text);
    return TESS_OK;
}

tess_status session_accept_numerics(tess_session *s, const char *path, const char *stored)
{
    static const char *const nothing[] = {NULL};
    char *text = NULL;
    int64_t difference_numel = 0;
    if (s->options.kind != TESS_SESSION_TRAIN)
        return accept_read(s, path, stored);
    TESS_TRY(adopt_adapter(s, stored));
    TESS_TRY(accept_base(s, path, stored));
    const line_choice rest = {s->is_base_changed ? of_base : nothing, true};
    TESS_TRY(diff_picked(s, stored, rest, &text, &difference_numel));
    tess_status st = TESS_OK;
    if (difference_numel > 0 && !s->options.accept_config_change)
        st = TESS_FAIL(
            TESS_E_CONFIG,
            "checkpoint '%s' was made by another run: %s; --accept-config-change goes on anyway",
            path, text);
    else if (difference_numel > 0)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN, "resume with changed numerics: %s", text);
    tess_free(text);
    return st;
}

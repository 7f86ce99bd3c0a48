/* Text and overrides to a checked tess_run. */
#include "train/run_file/run_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/run_file/run_priv.h"

enum { PATH_NBYTES = 160 };

static tess_status unknown_key(const char *path, const run_where *where)
{
    char place[TESS_RUN_PLACE_NBYTES];
    char found[RUN_EXCERPT_NBYTES];
    char hint[RUN_HINT_NBYTES];
    tess_run_where_text(where, place);
    tess_run_excerpt(path, found);
    run_key_hint(path, hint);
    return TESS_FAIL(TESS_E_CONFIG, "%s: unknown key '%s', %s", place, found, hint);
}

static tess_status set_key(tess_run *run, const char *path, const run_node *node,
                           const run_where *key_where)
{
    const tess_run_key_idx idx = tess_run_key_find(path);
    if (idx == TESS_RUN_KEY_NUMEL)
        return unknown_key(path, key_where);
    char place[TESS_RUN_PLACE_NBYTES];
    const tess_run_place *old = &run->place[idx];
    const bool is_same_source =
        old->is_given && (old->argument_idx > 0) == (key_where->place.argument_idx > 0);
    if (is_same_source) {
        const run_where first = {run->source_name, *old};
        char first_place[TESS_RUN_PLACE_NBYTES];
        tess_run_where_text(key_where, place);
        tess_run_where_text(&first, first_place);
        return TESS_FAIL(TESS_E_CONFIG, "%s: %s is given twice, first at %s: remove one", place,
                         path, first_place);
    }
    TESS_TRY(tess_run_value_set(run, tess_run_key_at(idx), node, key_where));
    run->place[idx] = tess_run_where_of(key_where, node->line, node->column).place;
    return TESS_OK;
}

/* The dotted path of a child, cut where it is longer than any key. */
static void path_of(const char *section, const char *name, char path[PATH_NBYTES])
{
    snprintf(path, PATH_NBYTES, "%.75s.%.75s", section, name);
}

static tess_status read_section(tess_run *run, const run_node *section, const run_where *base)
{
    for (int64_t i = 0; i < section->child_numel; i++) {
        const run_node *node = &section->child[i];
        const run_where where = tess_run_where_of(base, node->name_line, node->name_column);
        char path[PATH_NBYTES];
        path_of(section->name, node->name, path);
        TESS_TRY(set_key(run, path, node, &where));
    }
    return TESS_OK;
}

static tess_status check_section(const run_node *root, int64_t idx, const run_where *base)
{
    const run_node *section = &root->child[idx];
    const run_where where = tess_run_where_of(base, section->name_line, section->name_column);
    char place[TESS_RUN_PLACE_NBYTES];
    char found[RUN_EXCERPT_NBYTES];
    tess_run_where_text(&where, place);
    tess_run_excerpt(section->name, found);
    if (!tess_run_section_is_known(section->name)) {
        char path[PATH_NBYTES];
        char hint[RUN_HINT_NBYTES];
        if (section->kind == RUN_MAP && section->child_numel > 0)
            path_of(section->name, section->child[0].name, path);
        else
            snprintf(path, sizeof path, "%.75s", section->name);
        run_key_hint(path, hint);
        return TESS_FAIL(TESS_E_CONFIG, "%s: unknown section '%s', %s", place, found, hint);
    }
    for (int64_t i = 0; i < idx; i++)
        if (strcmp(root->child[i].name, section->name) == 0)
            return TESS_FAIL(TESS_E_CONFIG,
                             "%s: section '%s' is given twice, first at line %d: join them", place,
                             found, root->child[i].name_line);
    const bool is_empty = section->kind == RUN_SCALAR && section->text_nbytes == 0;
    if (section->kind != RUN_MAP && !is_empty)
        return TESS_FAIL(TESS_E_CONFIG, "%s: section '%s': expected KEY: VALUE pairs", place,
                         found);
    return TESS_OK;
}

static tess_status read_file(tess_run *run, const char *text, size_t nbytes)
{
    const run_where base = {run->source_name, {.is_given = true}};
    run_node root = {0};
    TESS_TRY(tess_run_yaml_read(text, nbytes, &base, &root));
    tess_status st = TESS_OK;
    if (root.kind != RUN_MAP)
        st = TESS_FAIL(TESS_E_CONFIG, "%s:%d:%d: expected sections such as 'model:'",
                       run->source_name, root.line, root.column);
    for (int64_t i = 0; st == TESS_OK && i < root.child_numel; i++) {
        st = check_section(&root, i, &base);
        if (st == TESS_OK)
            st = read_section(run, &root.child[i], &base);
    }
    tess_run_node_fini(&root);
    return st;
}

/* Lists and mappings are YAML, everything else is taken as it stands: a path may hold ': ' or '#'.
 */
static tess_status override_node(const tess_run_key *key, const char *value, const run_where *where,
                                 run_node *node)
{
    if (tess_run_kind_is_list(key->kind) && (*value == '[' || key->kind == TESS_RUN_PATTERNS))
        return tess_run_yaml_read(value, strlen(value), where, node);
    *node = (run_node){.kind = RUN_SCALAR, .text_nbytes = strlen(value)};
    return tess_strdup(value, &node->text);
}

static tess_status apply_override(tess_run *run, const tess_run_override *override)
{
    const run_where where = {run->source_name,
                             {.is_given = true, .argument_idx = override->argument_idx}};
    char place[TESS_RUN_PLACE_NBYTES];
    char found[RUN_EXCERPT_NBYTES];
    tess_run_where_text(&where, place);
    tess_run_excerpt(override->text, found);
    const char *equals = strchr(override->text, '=');
    TESS_CHECK(equals != NULL && equals != override->text, TESS_E_ARG,
               "%s: expected KEY=VALUE, found '%s'", place, found);
    TESS_CHECK(tess_run_utf8_is_valid(override->text), TESS_E_CONFIG,
               "%s: '%s': expected UTF-8, found other bytes", place, found);
    char path[PATH_NBYTES];
    snprintf(path, sizeof path, "%.*s",
             (int)TESS_MIN(equals - override->text, (ptrdiff_t)PATH_NBYTES - 1), override->text);
    const tess_run_key_idx idx = tess_run_key_find(path);
    if (idx == TESS_RUN_KEY_NUMEL)
        return unknown_key(path, &where);
    run_node node = {0};
    TESS_TRY(override_node(tess_run_key_at(idx), equals + 1, &where, &node));
    const tess_status st = set_key(run, path, &node, &where);
    tess_run_node_fini(&node);
    return st;
}

static tess_status missing_key(const tess_run *run, const tess_run_key *key)
{
    return TESS_FAIL(TESS_E_CONFIG, "%s:1:1: key '%s' is missing (%s)", run->source_name, key->path,
                     key->help);
}

/* The default of a key that has one. */
static tess_status set_default(tess_run *run, const tess_run_key *key)
{
    const run_where where = {"default", {0}};
    run_node node = {.kind = RUN_SCALAR, .text_nbytes = strlen(key->initial)};
    TESS_TRY(tess_strdup(key->initial, &node.text));
    const tess_status st = tess_run_value_set(run, key, &node, &where);
    tess_run_node_fini(&node);
    return st;
}

tess_status tess_run_default_write(const tess_run_key *key, tess_strbuf *out)
{
    void *memory = NULL;
    if (key->initial == NULL || *key->initial == '\0')
        return tess_strbuf_add(out, "%s", "");
    TESS_TRY(tess_alloc(sizeof(tess_run), &memory));
    tess_run *run = memory;
    tess_status st = set_default(run, key);
    if (st == TESS_OK)
        st = tess_run_value_write(run, key, out);
    tess_run_destroy(&run);
    return st;
}

static tess_status fill_defaults(tess_run *run)
{
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        if (run->place[i].is_given)
            continue;
        if (key->initial == NULL)
            return missing_key(run, key);
        if (*key->initial == '\0')
            continue;
        TESS_TRY(set_default(run, key));
    }
    return TESS_OK;
}

/* Defaults that follow from other keys; what the user wrote is never changed. */
static tess_status resolve(tess_run *run, const tess_run_source *source, const void *arg)
{
    if (tess_run_is_vectors(run))
        run_quantizer_resolve(run);
    if (tess_run_is_kmeans(run))
        return TESS_OK;
    if (tess_run_is_rqvae(run) || tess_run_is_flux(run))
        run_family_resolve(run);
    const bool is_full = run->train.mode == TESS_RUN_MODE_FULL;
    if (is_full && !run->place[TESS_RUN_KEY_base_format].is_given)
        run->base.format = TESS_RUN_BASE_KEEP;
    TESS_TRY(run_train_count(run, source->epoch_of, arg));
    run_train_resolve(run);
    if (run->output.export_as == TESS_RUN_EXPORT_AUTO)
        run->output.export_as = is_full ? TESS_RUN_EXPORT_HF
                                : tess_run_is_flux(run) && !run_family_needs_peft(run)
                                    ? TESS_RUN_EXPORT_DIFFUSERS
                                    : TESS_RUN_EXPORT_PEFT;
    return TESS_OK;
}

tess_status tess_run_refuse(const tess_run *run, tess_run_key_idx key, const char *why)
{
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, key, place);
    return TESS_FAIL(TESS_E_CONFIG, "%s: %s", place, why);
}

/* What the rules of PEFT leave no meaning for, while its place in the file is known. */
static tess_status check_lora(const tess_run *run)
{
    const tess_run_lora_keys *lora = &run->lora;
    char place[TESS_RUN_PLACE_NBYTES];
    if (lora->layers.item_numel > 0 && !lora->targets.is_list)
        return tess_run_refuse(
            run, TESS_RUN_KEY_lora_layers,
            "needs lora.targets to be a list of names; put the layers into the expression "
            "instead, or write the list");
    if (lora->layers_pattern.item_numel > 0 && lora->layers.item_numel == 0)
        return tess_run_refuse(
            run, TESS_RUN_KEY_lora_layers_pattern,
            "says where a layer's number stands, and lora.layers names no layer: give it "
            "or remove this key");
    if (lora->dora && (lora->init == TESS_RUN_START_PISSA || lora->init == TESS_RUN_START_LOFTQ))
        return tess_run_refuse(
            run, TESS_RUN_KEY_lora_init,
            "pissa and loftq move a part of the weights into the adapter, which DoRA "
            "measures against the whole: choose lora.dora or one of them");
    if (run->adapter.resume != NULL && lora->init != TESS_RUN_START_DEFAULT &&
        lora->init != TESS_RUN_START_PISSA && lora->init != TESS_RUN_START_LOFTQ)
        return tess_run_refuse(
            run, TESS_RUN_KEY_lora_init,
            "has no meaning with adapter.resume, which brings the adapter's weights: "
            "remove it");
    for (int64_t i = 0; i < lora->rank_pattern.item_numel; i++) {
        const tess_run_pattern *p = &lora->rank_pattern.item[i];
        if (p->value == (double)(int64_t)p->value)
            continue;
        tess_run_place_text(run, TESS_RUN_KEY_lora_rank_pattern, place);
        return TESS_FAIL(TESS_E_CONFIG, "%s: '%s': expected a whole number, found %.9g", place,
                         p->pattern, p->value);
    }
    return TESS_OK;
}

/* Keys that mean nothing in full mode are refused, not ignored. */
static tess_status check_mode(const tess_run *run)
{
    if (run->train.mode == TESS_RUN_MODE_LORA) {
        if (run->output.export_as == TESS_RUN_EXPORT_HF)
            return tess_run_refuse(
                run, TESS_RUN_KEY_output_export_as,
                "hf writes a whole model, which train.mode lora does not train: use peft");
        return check_lora(run);
    }
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        const bool is_keep =
            i == TESS_RUN_KEY_base_format && run->base.format == TESS_RUN_BASE_KEEP;
        if (run->place[i].is_given && tess_run_key_is_of_adapters(key) && !is_keep)
            return tess_run_refuse(
                run, (tess_run_key_idx)i,
                "has no meaning with train.mode full, which trains every weight and "
                "freezes none: remove it or set train.mode to lora");
    }
    if (run->output.export_as != TESS_RUN_EXPORT_HF &&
        run->output.export_as != TESS_RUN_EXPORT_NONE)
        return tess_run_refuse(run, TESS_RUN_KEY_output_export_as,
                               "names a form of adapters, and train.mode full has none: use hf");
    return TESS_OK;
}

/* Checkpoints that stay are some of those that are made. */
static tess_status check_milestones(const tess_run *run)
{
    char place[TESS_RUN_PLACE_NBYTES];
    const int64_t every = run->output.checkpoint_every, keep_every = run->output.keep_every;
    tess_run_place_text(run, TESS_RUN_KEY_output_keep_every, place);
    TESS_CHECK(keep_every == 0 || (every > 0 && keep_every % every == 0), TESS_E_CONFIG,
               "%s: expected a multiple of output.checkpoint_every (%" PRId64 "), found %" PRId64
               "; there is no checkpoint at other steps",
               place, every, keep_every);
    return TESS_OK;
}

static tess_status check_fit(const tess_run *run)
{
    char place[TESS_RUN_PLACE_NBYTES];
    TESS_TRY(check_milestones(run));
    TESS_TRY(run_family_check(run));
    if (tess_run_is_kmeans(run))
        return TESS_OK;
    const int64_t block = run->base.block_size;
    if ((block & (block - 1)) != 0) {
        tess_run_place_text(run, TESS_RUN_KEY_base_block_size, place);
        return TESS_FAIL(TESS_E_CONFIG,
                         "%s: expected a power of two from 32 to 4096, found %" PRId64, place,
                         block);
    }
    TESS_TRY(run_train_check(run));
    int64_t token_numel = 0;
    if (__builtin_mul_overflow(run->train.micro_batch, run->data.sequence_length, &token_numel) ||
        token_numel > INT32_MAX) {
        tess_run_place_text(run, TESS_RUN_KEY_train_micro_batch, place);
        return TESS_FAIL(TESS_E_CONFIG,
                         "%s: %" PRId64 " sequences of data.sequence_length %" PRId64
                         " are more than %d tokens in a micro-batch: lower one of them",
                         place, run->train.micro_batch, run->data.sequence_length, INT32_MAX);
    }
    TESS_TRY(check_mode(run));
    return run_unused_check(run);
}

static tess_status find_family(tess_run *run, tess_run_family_of family_of, const void *arg)
{
    if (family_of == NULL || run->model.family != TESS_RUN_FAMILY_AUTO)
        return TESS_OK;
    return family_of(arg, run, &run->model.family);
}

static tess_status build(tess_run *run, const tess_run_source *source, tess_run_family_of family_of,
                         const void *arg)
{
    TESS_TRY(read_file(run, source->text, source->nbytes));
    for (int64_t i = 0; i < source->override_numel; i++)
        TESS_TRY(apply_override(run, &source->overrides[i]));
    TESS_TRY(fill_defaults(run));
    TESS_TRY(find_family(run, family_of, arg));
    TESS_TRY(resolve(run, source, arg));
    return check_fit(run);
}

tess_status tess_run_parse_with(const tess_run_source *source, tess_run_family_of family_of,
                                const void *arg, tess_run **run)
{
    TESS_CHECK(source->text != NULL && source->name != NULL, TESS_E_ARG,
               "run file: no text or no name");
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_run), &memory));
    tess_run *made = memory;
    tess_status st = tess_strdup(source->name, &made->source_name);
    if (st == TESS_OK)
        st = build(made, source, family_of, arg);
    if (st != TESS_OK) {
        tess_run_destroy(&made);
        return st;
    }
    *run = made;
    return TESS_OK;
}

tess_status tess_run_parse(const char *text, size_t nbytes, const char *source_name,
                           const tess_run_override *overrides, int64_t override_numel,
                           tess_run **run)
{
    const tess_run_source source = {.text = text,
                                    .nbytes = nbytes,
                                    .name = source_name,
                                    .overrides = overrides,
                                    .override_numel = override_numel};
    return tess_run_parse_with(&source, NULL, NULL, run);
}

void tess_run_destroy(tess_run **run)
{
    if (*run == NULL)
        return;
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++)
        tess_run_value_fini(*run, tess_run_key_at((tess_run_key_idx)i));
    tess_free((*run)->source_name);
    tess_free(*run);
    *run = NULL;
}

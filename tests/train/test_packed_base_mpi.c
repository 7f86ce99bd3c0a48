/*
 * Training over weights that bitsandbytes, optimum-quanto or fp8 tools have packed: the same bits
 * as over the same codes made on load, under every label of their bytes, at any number of ranks,
 * and after a resume that has neither the source nor a quantizer.
 */
#include <stdio.h>
#include <string.h>

#include "support/base_run.h"
#include "support/rank_test.h"

/* What is left of a path behind its last slash. */
static const char *last_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static base_life kept(const char *name)
{
    return (base_life){.name = name, .overrides = {"model.init=weights", "base.format=keep"}};
}

/* What was made on load goes on elsewhere without the files it was made of, and without a
 * quantizer.
 */
static tess_status check_without_source(base_world *w, const base_life *whole)
{
    char name[80];
    base_life cut = *whole;
    snprintf(name, sizeof name, "%s-cut", whole->name);
    cut.name = name;
    cut.is_stopped = true;
    TESS_TRY(base_put_source(w, "bnb/plain"));
    TESS_TRY(base_live(w, w->comm, &cut));
    TESS_TRY(base_shell(w, "rm -r '%s'%s", w->t.model, ""));
    cut.is_stopped = cut.may_quantize = false;
    TESS_TRY(base_live_alone(w, &cut));
    return base_compare(w, cut.name, whole->name);
}

/* The codes of the files are those that are made on load of the same bf16 weights. */
static tess_status check_on_load(base_world *w)
{
    static const struct {
        const char *golden, *overrides[3];
    } rows[] = {
        {"bnb/nf4", {"base.format=nf4", "base.double_quant=false"}},
        {"quanto/qint8", {"base.format=qint8"}},
        {"quanto/qint4", {"base.format=int4"}},
        {"quanto/qint2", {"base.format=qint2"}},
        {"quanto/qfloat8", {"base.format=qfloat8"}},
        {"quanto/fp8_raw", {"base.format=e4m3", "base.scaling=raw"}},
        {"quanto/fp8_tensor", {"base.format=e4m3", "base.scaling=tensor"}},
    };
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        char load[64];
        snprintf(load, sizeof load, "%s-load", last_of(rows[i].golden));
        base_life l = {.name = load, .may_quantize = true, .overrides = {"model.init=weights"}};
        for (int k = 0; k < TESS_NELEM(rows->overrides); k++)
            l.overrides[k + 1] = rows[i].overrides[k];
        const base_life keep = kept(last_of(rows[i].golden));
        TESS_TRY(base_put_source(w, "bnb/plain"));
        TESS_TRY(base_live(w, w->comm, &l));
        TESS_TRY(base_put_source(w, rows[i].golden));
        TESS_TRY(base_live(w, w->comm, &keep));
        TESS_TRY(base_compare(w, keep.name, load));
        TESS_TRY(check_without_source(w, &l));
    }
    return TESS_OK;
}

/* The same base id and bits under the four labels of quant_storage. */
static tess_status check_labels(base_world *w)
{
    static const char *const label[] = {"bnb/double_uint8", "bnb/double_bfloat16",
                                        "bnb/double_float16", "bnb/double_float32"};
    for (int i = 0; i < TESS_NELEM(label); i++) {
        const base_life l = kept(last_of(label[i]));
        TESS_TRY(base_put_source(w, label[i]));
        TESS_TRY(base_live(w, w->comm, &l));
        TESS_TRY(base_compare(w, l.name, last_of(label[0])));
    }
    return TESS_OK;
}

/* One rank alone, all of them, and a run that is stopped and goes on elsewhere without its source.
 */
static tess_status check_worlds(base_world *w, const char *golden)
{
    char name[3][64];
    static const char *const part[] = {"whole", "all", "cut"};
    for (int i = 0; i < 3; i++)
        snprintf(name[i], sizeof name[i], "%s-%s", last_of(golden), part[i]);
    const base_life whole = kept(name[0]), all = kept(name[1]);
    base_life cut = kept(name[2]);
    TESS_TRY(base_put_source(w, golden));
    TESS_TRY(base_check_cuts(w, &all, false));
    TESS_TRY(base_live_alone(w, &whole));
    TESS_TRY(base_live(w, w->comm, &all));
    TESS_TRY(base_compare(w, all.name, whole.name));
    cut.is_stopped = true;
    TESS_TRY(base_live(w, w->comm, &cut));
    TESS_TRY(base_shell(w, "rm -r '%s'%s", w->t.model, ""));
    cut.is_stopped = false;
    cut.group = "shard.gather_group=1";
    TESS_TRY(base_live_alone(w, &cut));
    return base_compare(w, cut.name, whole.name);
}

/* Dequantized on request, never requantized. */
static tess_status check_choices(base_world *w)
{
    static const struct {
        const char *golden, *format, *more, *text;
    } rows[] = {
        {"bnb/double_uint8", "base.format=nf4", "base.double_quant=false",
         "is nf4/64/double in the file and would be quantized again to nf4/64"},
        {"quanto/qint4", "base.format=qint8", NULL, "would be quantized again to qint8/row/"},
        {"quanto/fp8_row", "base.format=e4m3", NULL, "would be quantized again to e4m3/row/"},
    };
    const base_life wide = {.name = "wide", .overrides = {"model.init=weights", "base.format=f32"}};
    TESS_TRY(base_put_source(w, "bnb/mixed"));
    TESS_TRY(base_live(w, w->comm, &wide));
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        const base_life l = {.name = "again",
                             .overrides = {"model.init=weights", rows[i].format, rows[i].more}};
        TESS_TRY(base_put_source(w, rows[i].golden));
        TESS_TRY(base_refuse(w, &l, TESS_E_CONFIG, rows[i].text));
    }
    return TESS_OK;
}

static tess_status run_all(base_world *w)
{
    static const char *const golden[] = {
        "bnb/mixed",      "bnb/int8",    "quanto/qint8",   "quanto/qint4",      "quanto/qint2",
        "quanto/qfloat8", "quanto/half", "quanto/fp8_raw", "quanto/fp8_tensor", "quanto/fp8_row"};
    TESS_TRY(check_on_load(w));
    TESS_TRY(check_labels(w));
    for (int i = 0; i < TESS_NELEM(golden); i++)
        TESS_TRY(check_worlds(w, golden[i]));
    return check_choices(w);
}

static tess_status run(tess_comm *comm) { return base_world_run(comm, run_all); }

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }

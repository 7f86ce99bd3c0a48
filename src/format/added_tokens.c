#include <stdlib.h>

#include "core/memory.h"
#include "format/tokenizer_priv.h"

static int by_bytes(const void *a, const void *b)
{
    const tess_pattern *x = a, *y = b;
    const int order = memcmp(x->text, y->text, TESS_MIN(x->nbytes, y->nbytes));
    if (order != 0)
        return order;
    return (x->nbytes > y->nbytes) - (x->nbytes < y->nbytes);
}

void tess_patterns_fini(tess_pattern_set *set)
{
    for (int64_t i = 0; i < set->numel; i++)
        tess_free(set->pattern[i].text);
    tess_free(set->pattern);
    *set = (tess_pattern_set){0};
}

static tess_status add_pattern(tess_tokenizer *t, tess_pattern_set *set, int64_t added_idx,
                               tess_text work[2])
{
    const tess_added_token *a = &t->added[added_idx];
    const char *text = a->content;
    size_t nbytes = strlen(a->content);
    if (a->normalized) {
        TESS_TRY(tess_normalize(t, text, nbytes, &work[0], &work[1]));
        text = work[1].byte;
        nbytes = (size_t)work[1].numel;
        TESS_CHECK(nbytes > 0, TESS_E_FORMAT,
                   "tokenizer '%s': added token '%.64s' is empty after normalization", t->name,
                   a->content);
        if (!t->is_byte_level)
            TESS_TRY(tess_tokenizer_put_token(t, text, nbytes, &t->raw[a->id]));
    }
    tess_pattern *p = &set->pattern[set->numel];
    TESS_TRY(tess_strndup(text, nbytes, &p->text));
    p->nbytes = nbytes;
    p->added_idx = added_idx;
    set->has_first[(uint8_t)text[0]] = true;
    set->numel++;
    return TESS_OK;
}

static tess_status sort_patterns(const tess_tokenizer *t, tess_pattern_set *set)
{
    if (set->numel > 1)
        qsort(set->pattern, (size_t)set->numel, sizeof(tess_pattern), by_bytes);
    for (int64_t i = 1; i < set->numel; i++)
        TESS_CHECK(by_bytes(&set->pattern[i - 1], &set->pattern[i]) != 0, TESS_E_FORMAT,
                   "tokenizer '%s': added token '%.64s' is listed twice", t->name,
                   t->added[set->pattern[i].added_idx].content);
    return TESS_OK;
}

tess_status tess_patterns_build(tess_tokenizer *t)
{
    tess_text work[2] = {{0}, {0}};
    void *raw = NULL, *normalized = NULL;
    TESS_TRY(tess_alloc_array(t->added_numel, sizeof(tess_pattern), &raw));
    t->raw_patterns.pattern = raw;
    TESS_TRY(tess_alloc_array(t->added_numel, sizeof(tess_pattern), &normalized));
    t->normalized_patterns.pattern = normalized;
    tess_status st = TESS_OK;
    for (int64_t i = 0; i < t->added_numel && st == TESS_OK; i++)
        st = add_pattern(t, t->added[i].normalized ? &t->normalized_patterns : &t->raw_patterns, i,
                         work);
    tess_text_fini(&work[0]);
    tess_text_fini(&work[1]);
    if (st == TESS_OK)
        st = sort_patterns(t, &t->raw_patterns);
    return st == TESS_OK ? sort_patterns(t, &t->normalized_patterns) : st;
}

/* First pattern in [low, high) whose byte `depth` is at least `byte`; all are longer than depth. */
static int64_t lower_bound(const tess_pattern_set *set, int64_t low, int64_t high, size_t depth,
                           int byte)
{
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if ((uint8_t)set->pattern[middle].text[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest pattern that stands at `at`, or NULL. */
static const tess_pattern *longest_at(const tess_match_request *r, size_t at)
{
    const tess_pattern_set *set = r->set;
    const tess_pattern *longest = NULL;
    int64_t low = 0, high = set->numel;
    for (size_t depth = 0; low < high && at + depth < r->nbytes; depth++) {
        const int byte = (uint8_t)r->text[at + depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
        /* The pattern that ends here sorts before those it is a prefix of. */
        if (low < high && set->pattern[low].nbytes == depth + 1)
            longest = &set->pattern[low++];
    }
    return longest;
}

static bool ends_with_word(const char *text, size_t nbytes)
{
    size_t at = nbytes, char_nbytes = 0;
    if (nbytes == 0)
        return false;
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
    return tess_is_word(tess_utf8_next(text, nbytes, at, &char_nbytes));
}

static bool starts_with_word(const char *text, size_t nbytes)
{
    size_t char_nbytes = 0;
    return nbytes > 0 && tess_is_word(tess_utf8_next(text, nbytes, 0, &char_nbytes));
}

/* Start of the white space that ends at `end`, not before `floor`. */
static size_t spaces_before(const char *text, size_t end, size_t floor)
{
    while (end > floor) {
        size_t at = end, char_nbytes = 0;
        do
            at--;
        while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
        if (!tess_is_space(tess_utf8_next(text, end, at, &char_nbytes)))
            break;
        end = at;
    }
    return TESS_MAX(end, floor);
}

static size_t spaces_behind(const char *text, size_t nbytes, size_t at)
{
    size_t char_nbytes = 0;
    while (at < nbytes && tess_is_space(tess_utf8_next(text, nbytes, at, &char_nbytes)))
        at += char_nbytes;
    return at;
}

bool tess_added_next(const tess_tokenizer *t, const tess_match_request *r, size_t at, size_t done,
                     tess_added_match *out)
{
    while (at < r->nbytes) {
        const tess_pattern *p = r->set->has_first[(uint8_t)r->text[at]] ? longest_at(r, at) : NULL;
        if (p == NULL) {
            at++;
            continue;
        }
        const tess_added_token *a = &t->added[p->added_idx];
        const size_t end = at + p->nbytes;
        const bool is_inside_word =
            a->single_word &&
            (ends_with_word(r->text, at) || starts_with_word(r->text + end, r->nbytes - end));
        if ((r->no_special && t->special[a->id]) || is_inside_word) {
            at = end; /* a match that is passed over still uses up its characters */
            continue;
        }
        out->added_idx = p->added_idx;
        out->start = a->lstrip ? spaces_before(r->text, at, done) : at;
        out->end = a->rstrip ? spaces_behind(r->text, r->nbytes, end) : end;
        if (out->start >= out->end) { /* all of it is white space that the last match took */
            at = end;
            continue;
        }
        out->resume = end;
        return true;
    }
    return false;
}

#include "format/tokenizer_priv.h"

/* [Note: split patterns] Each scanner follows its pattern alternative by alternative; a pattern in
 * a file is only compared with these texts, never run.
 *   `\s*[\r\n]+`  takes a run of white space up to and including its last CR or LF.
 *   `\s+(?!\S)`   takes a run of white space, without its last character when a character that is
 *                 no space follows, provided something is left. */
static const struct {
    tess_split_kind kind;
    const char *name, *pattern;
} patterns[] = {
    {TESS_SPLIT_GPT2, "gpt2",
     "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {TESS_SPLIT_LLAMA3, "llama3",
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
     " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {TESS_SPLIT_QWEN2, "qwen2",
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
     " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {TESS_SPLIT_TEKKEN, "tekken",
     "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
     "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
     "\\p{N}|"
     " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
};

bool tess_split_pattern_find(const char *pattern, tess_split_kind *out)
{
    for (int i = 0; i < TESS_NELEM(patterns); i++) {
        if (strcmp(patterns[i].pattern, pattern) == 0) {
            *out = patterns[i].kind;
            return true;
        }
    }
    return false;
}

const char *tess_split_name(tess_split_kind kind)
{
    for (int i = 0; i < TESS_NELEM(patterns); i++) {
        if (patterns[i].kind == kind)
            return patterns[i].name;
    }
    return "other";
}

typedef enum char_class { IS_LETTER, IS_NUMBER, IS_SPACE, IS_OTHER, IS_END } char_class;

typedef struct scanner {
    const char *text;
    size_t nbytes;
} scanner;

static char_class class_at(const scanner *s, size_t at, size_t *char_nbytes)
{
    *char_nbytes = 0;
    if (at >= s->nbytes)
        return IS_END;
    const uint32_t c = tess_utf8_next(s->text, s->nbytes, at, char_nbytes);
    if (tess_is_letter(c))
        return IS_LETTER;
    if (tess_is_space(c))
        return IS_SPACE;
    return tess_is_number(c) ? IS_NUMBER : IS_OTHER;
}

/* End of the run of one class that starts at `at`; at most `most` characters. */
static size_t run_end(const scanner *s, size_t at, char_class wanted, int most)
{
    size_t n = 0;
    while (most-- != 0 && class_at(s, at, &n) == wanted)
        at += n;
    return at;
}

static bool is_line_end(const scanner *s, size_t at)
{
    return at < s->nbytes && (s->text[at] == '\r' || s->text[at] == '\n');
}

/* `'s|'t|'re|'ve|'m|'ll|'d`; folding case also matches U+017F for s. */
static size_t contraction_end(const scanner *s, bool fold_case)
{
    static const char *const tails[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (s->text[0] != '\'')
        return 0;
    if (fold_case && s->nbytes >= 3 && memcmp(s->text + 1, "\xc5\xbf", 2) == 0)
        return 3;
    for (int i = 0; i < TESS_NELEM(tails); i++) {
        const size_t n = strlen(tails[i]);
        size_t same = 0;
        while (same < n && same + 1 < s->nbytes &&
               (s->text[same + 1] == tails[i][same] ||
                (fold_case && s->text[same + 1] == tails[i][same] - 'a' + 'A')))
            same++;
        if (same == n)
            return 1 + n;
    }
    return 0;
}

/* `\s+(?!\S)|\s+` */
static size_t spaces_end(const scanner *s)
{
    size_t n = 0, at = 0, last = 0;
    while (class_at(s, at, &n) == IS_SPACE) {
        last = at;
        at += n;
    }
    return at < s->nbytes && last > 0 ? last : at;
}

static size_t gpt2_next(const scanner *s)
{
    const size_t contraction = contraction_end(s, false);
    if (contraction > 0)
        return contraction;
    const size_t at = s->text[0] == ' ' ? 1 : 0;
    size_t n = 0;
    const char_class c = class_at(s, at, &n);
    if (c == IS_LETTER || c == IS_NUMBER || c == IS_OTHER)
        return run_end(s, at, c, -1);
    return spaces_end(s);
}

/* `\s*[\r\n]+`: behind the last line end of the white space at the front, 0: none. */
static size_t line_ends_end(const scanner *s)
{
    size_t n = 0, end = 0;
    for (size_t at = 0; class_at(s, at, &n) == IS_SPACE; at += n) {
        if (is_line_end(s, at))
            end = at + n;
    }
    return end;
}

/* ` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`, tekken has `[\r\n/]*`. */
static size_t signs_or_spaces_end(const scanner *s, bool takes_slash)
{
    size_t ignored = 0;
    const size_t at = s->text[0] == ' ' ? 1 : 0;
    if (class_at(s, at, &ignored) == IS_OTHER) {
        size_t end = run_end(s, at, IS_OTHER, -1);
        while (is_line_end(s, end) || (takes_slash && end < s->nbytes && s->text[end] == '/'))
            end++;
        return end;
    }
    const size_t line_ends = line_ends_end(s);
    return line_ends > 0 ? line_ends : spaces_end(s);
}

/* Llama 3 takes up to three digits at a time, Qwen2 one. */
static size_t llama3_next(const scanner *s, int digits)
{
    const size_t contraction = contraction_end(s, true);
    if (contraction > 0)
        return contraction;
    size_t n = 0, ignored = 0;
    const char_class c = class_at(s, 0, &n);
    if (c == IS_LETTER)
        return run_end(s, 0, IS_LETTER, -1);
    if (c != IS_NUMBER && !is_line_end(s, 0) && class_at(s, n, &ignored) == IS_LETTER)
        return run_end(s, n, IS_LETTER, -1);
    if (c == IS_NUMBER)
        return run_end(s, 0, IS_NUMBER, digits);
    return signs_or_spaces_end(s, false);
}

static unsigned case_at(const scanner *s, size_t at, size_t *char_nbytes)
{
    *char_nbytes = 0;
    return at < s->nbytes ? tess_case_of(tess_utf8_next(s->text, s->nbytes, at, char_nbytes)) : 0;
}

/* Behind the run of characters from `at` that may stand there (TESS_CASE_FRONT or _BEHIND); `both`
 * is moved behind the last of them that may stand in both places. */
static size_t case_run_end(const scanner *s, size_t at, unsigned wanted, size_t *both)
{
    size_t n = 0;
    for (unsigned c = 0; ((c = case_at(s, at, &n)) & wanted) != 0;) {
        at += n;
        *both = c == (TESS_CASE_FRONT | TESS_CASE_BEHIND) ? at : *both;
    }
    return at;
}

/* `U*W+` from `at`, else 0. What U* takes is given back up to the last character that W has too,
 * unless more of W follows. */
static size_t lower_word_end(const scanner *s, size_t at)
{
    size_t last = 0, ignored = 0;
    const size_t end = case_run_end(s, at, TESS_CASE_FRONT, &last);
    const size_t behind = case_run_end(s, end, TESS_CASE_BEHIND, &ignored);
    return behind > end ? behind : last;
}

/* `U+W*` from `at`, else 0. */
static size_t upper_word_end(const scanner *s, size_t at)
{
    size_t ignored = 0;
    const size_t end = case_run_end(s, at, TESS_CASE_FRONT, &ignored);
    return end > at ? case_run_end(s, end, TESS_CASE_BEHIND, &ignored) : 0;
}

static size_t tekken_next(const scanner *s)
{
    size_t n = 0, end = 0;
    const char_class c = class_at(s, 0, &n);
    const bool may_lead = c != IS_LETTER && c != IS_NUMBER && !is_line_end(s, 0);
    end = may_lead ? lower_word_end(s, n) : 0;
    end = end == 0 ? lower_word_end(s, 0) : end;
    end = end == 0 && may_lead ? upper_word_end(s, n) : end;
    end = end == 0 ? upper_word_end(s, 0) : end;
    if (end > 0)
        return end;
    return c == IS_NUMBER ? n : signs_or_spaces_end(s, true);
}

static size_t digits_next(const scanner *s, bool together)
{
    size_t n = 0, at = 0;
    if (class_at(s, 0, &n) == IS_NUMBER)
        return run_end(s, 0, IS_NUMBER, together ? -1 : 1);
    for (char_class c = class_at(s, 0, &n); c != IS_NUMBER && c != IS_END; c = class_at(s, at, &n))
        at += n;
    return at;
}

size_t tess_split_next(tess_split_kind kind, const char *text, size_t nbytes)
{
    const scanner s = {text, nbytes};
    switch (kind) {
    case TESS_SPLIT_GPT2:
        return gpt2_next(&s);
    case TESS_SPLIT_LLAMA3:
        return llama3_next(&s, 3);
    case TESS_SPLIT_QWEN2:
        return llama3_next(&s, 1);
    case TESS_SPLIT_TEKKEN:
        return tekken_next(&s);
    case TESS_SPLIT_DIGITS:
        return digits_next(&s, false);
    case TESS_SPLIT_DIGITS_TOGETHER:
        return digits_next(&s, true);
    case TESS_SPLIT_PREFIX_SPACE:
    case TESS_SPLIT_METASPACE:
        break;
    }
    return nbytes;
}

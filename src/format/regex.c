#define PCRE2_CODE_UNIT_WIDTH 8
#include "format/regex.h"

#include <pcre2.h>
#include <string.h>

#include "core/memory.h"

enum { MATCH_LIMIT = 1000000, DEPTH_LIMIT = 1000 };

struct tess_regex {
    pcre2_code *code;
    pcre2_match_data *match;
    pcre2_match_context *limits;
    char *pattern;
};

static tess_status compile(tess_regex *regex, const char *pattern)
{
    int error = 0;
    PCRE2_SIZE at = 0;
    TESS_TRY(tess_strdup(pattern, &regex->pattern));
    regex->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED, &error, &at, NULL);
    if (regex->code == NULL) {
        PCRE2_UCHAR reason[160];
        pcre2_get_error_message(error, reason, sizeof reason);
        return TESS_FAIL(TESS_E_CONFIG, "regular expression '%s': %s at character %zu", pattern,
                         (const char *)reason, (size_t)at);
    }
    regex->match = pcre2_match_data_create_from_pattern(regex->code, NULL);
    regex->limits = pcre2_match_context_create(NULL);
    TESS_CHECK(regex->match != NULL && regex->limits != NULL, TESS_E_MEMORY,
               "no memory for regular expression '%s'", pattern);
    pcre2_set_match_limit(regex->limits, MATCH_LIMIT);
    pcre2_set_depth_limit(regex->limits, DEPTH_LIMIT);
    return TESS_OK;
}

tess_status tess_regex_create(const char *pattern, tess_regex **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_regex), &object));
    tess_regex *regex = object;
    const tess_status st = compile(regex, pattern);
    if (st != TESS_OK) {
        tess_regex_destroy(&regex);
        return st;
    }
    *out = regex;
    return TESS_OK;
}

void tess_regex_destroy(tess_regex **inout)
{
    tess_regex *regex = *inout;
    if (regex == NULL)
        return;
    pcre2_match_context_free(regex->limits);
    pcre2_match_data_free(regex->match);
    pcre2_code_free(regex->code);
    tess_free(regex->pattern);
    tess_free(regex);
    *inout = NULL;
}

tess_status tess_regex_matches(const tess_regex *regex, const char *text, bool *out)
{
    const int n =
        pcre2_match(regex->code, (PCRE2_SPTR)text, strlen(text), 0, 0, regex->match, regex->limits);
    TESS_CHECK(n >= 0 || n == PCRE2_ERROR_NOMATCH, TESS_E_CONFIG,
               "regular expression '%s' exceeded its match limits on '%s'; simplify it",
               regex->pattern, text);
    *out = n >= 0;
    return TESS_OK;
}

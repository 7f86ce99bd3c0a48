#include "format/identity.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "format/text_priv.h"

/* One line of the table, name first, so that sorting lines sorts names (TAB is below all of them).
 */
struct tess_identity {
    char **line;
    int64_t line_numel, room;
};

static const char heading[] = "tessera-base-id 1\n";

tess_status tess_identity_create(tess_identity **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_identity), &object));
    *out = object;
    return TESS_OK;
}

void tess_identity_destroy(tess_identity **identity)
{
    if (*identity == NULL)
        return;
    for (int64_t i = 0; i < (*identity)->line_numel; i++)
        tess_free((*identity)->line[i]);
    tess_free((*identity)->line);
    tess_free(*identity);
    *identity = NULL;
}

static bool is_plain(const char *text)
{
    for (const char *p = text; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            return false;
    return *text != '\0' && tess_utf8_is_valid(text, strlen(text));
}

static tess_status make_room(tess_identity *identity)
{
    void *grown = identity->line;
    if (identity->line_numel < identity->room)
        return TESS_OK;
    TESS_TRY(tess_realloc_array(identity->room, identity->room * 2 + 64, sizeof(char *), &grown));
    identity->line = grown;
    identity->room = identity->room * 2 + 64;
    return TESS_OK;
}

/* Compare up to the TAB after the name: the order of names whatever bytes they hold. */
static int by_name(const char *a, const char *b)
{
    const size_t a_nbytes = strcspn(a, "\t"), b_nbytes = strcspn(b, "\t");
    const int order = memcmp(a, b, TESS_MIN(a_nbytes, b_nbytes));
    if (order != 0)
        return order;
    return (a_nbytes > b_nbytes) - (a_nbytes < b_nbytes);
}

static int by_line(const void *a, const void *b)
{
    return by_name(*(char *const *)a, *(char *const *)b);
}

tess_status tess_identity_add(tess_identity *identity, const char *name, const int64_t *dim,
                              int dim_numel, const char *rule, const tess_sha256 *bytes)
{
    char shape[256] = "scalar", hex[TESS_SHA256_HEX_NBYTES], tame[128];
    size_t used = 0;
    TESS_CHECK(is_plain(name) && is_plain(rule), TESS_E_ARG,
               "base id: tensor '%s': expected a name and a rule of printable UTF-8",
               tess_text_tame(name, tame, sizeof tame));
    TESS_CHECK(dim_numel >= 0 && dim_numel <= 8, TESS_E_ARG,
               "base id: tensor '%s' has %d dimensions, expected 0 to 8", name, dim_numel);
    for (int i = 0; i < dim_numel; i++)
        used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%" PRId64, i > 0 ? "x" : "",
                                 dim[i]);
    tess_hex(bytes->byte, sizeof bytes->byte, hex);
    TESS_TRY(make_room(identity));
    TESS_TRY(tess_asprintf(&identity->line[identity->line_numel], "%s\t%s\t%s\t%s\n", name, shape,
                           rule, hex));
    identity->line_numel++;
    return TESS_OK;
}

static tess_status digest_lines(const tess_identity *identity, tess_sha256_state *state)
{
    TESS_TRY(tess_sha256_update(state, heading, strlen(heading)));
    for (int64_t i = 0; i < identity->line_numel; i++) {
        const char *line = identity->line[i];
        TESS_CHECK(i == 0 || by_name(identity->line[i - 1], line) != 0, TESS_E_STATE,
                   "base id: tensor '%.*s' was added twice", (int)strcspn(line, "\t"), line);
        TESS_TRY(tess_sha256_update(state, line, strlen(line)));
    }
    return TESS_OK;
}

tess_status tess_identity_final(tess_identity *identity, tess_sha256 *out)
{
    tess_sha256_state *state = NULL;
    if (identity->line_numel > 1)
        qsort(identity->line, (size_t)identity->line_numel, sizeof(char *), by_line);
    TESS_TRY(tess_sha256_create(&state));
    tess_status st = digest_lines(identity, state);
    if (st == TESS_OK)
        st = tess_sha256_final(state, out);
    tess_sha256_destroy(&state);
    return st;
}

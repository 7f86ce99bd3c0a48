/* Any bytes: refused, or a tree that dumps to text which parses to the same dump. */
#include <string.h>

#include "format/json.h"
#include "fuzz.h"

static void check_tree(const tess_json *v, int depth)
{
    char where[128];
    fuzz_require(depth <= TESS_JSON_DEPTH_MAX + 1, "deeper than the limit");
    tess_json_where(v, where, sizeof where);
    for (int64_t i = 0; i < tess_json_numel(v); i++) {
        const tess_json *child = tess_json_at(v, i);
        const char *key = tess_json_key(child);
        fuzz_require(key == NULL || tess_json_find(v, key) == child, "a member is not found");
        check_tree(child, depth + 1);
    }
}

static tess_status round_trip(const tess_json *root)
{
    char *first = NULL, *second = NULL;
    size_t nbytes = 0;
    tess_json *again = NULL;
    check_tree(root, 1);
    fuzz_require(tess_json_dump(root, 0, &first, &nbytes) == TESS_OK, "no dump");
    fuzz_require(tess_json_parse("dump", first, nbytes, &again) == TESS_OK, "a dump is refused");
    fuzz_require(tess_json_dump(again, 0, &second, NULL) == TESS_OK, "no second dump");
    fuzz_require(strcmp(first, second) == 0, "dumps differ");
    tess_json_destroy(&again);
    tess_free(first);
    tess_free(second);
    return TESS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    tess_json *root = NULL;
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    tess_status st = tess_json_parse("input", (const char *)data, nbytes, &root);
    if (st == TESS_OK)
        st = round_trip(root);
    tess_json_destroy(&root);
    fuzz_verdict(st, before_nbytes);
    return 0;
}

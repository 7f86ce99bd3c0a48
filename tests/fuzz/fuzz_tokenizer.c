/* Any bytes as tokenizer.json, then (behind a NUL) a text: refused, or a tokenizer that encodes any
 * UTF-8 into ids of its vocabulary and decodes them again. */
#include <string.h>

#include "format/tokenizer.h"
#include "fuzz.h"

static tess_status round_trip(const tess_tokenizer *t, tess_encoder *e, const char *text,
                              size_t nbytes)
{
    tess_ids ids = {0};
    tess_status st = TESS_OK;
    for (unsigned flags = 0; flags < 4 && st == TESS_OK; flags++)
        st = tess_encode(e, text, nbytes, flags, &ids);
    for (int64_t i = 0; i < ids.numel; i++)
        fuzz_require(ids.id[i] >= 0 && ids.id[i] < tess_tokenizer_vocab_numel(t),
                     "an id outside the vocabulary");
    if (st == TESS_OK) {
        char *decoded = NULL;
        size_t decoded_nbytes = 0;
        st = tess_decode(t, ids.id, ids.numel, ids.numel % 2 == 0, &decoded, &decoded_nbytes);
        fuzz_require(st == TESS_OK, "own ids do not decode");
        tess_free(decoded);
    }
    tess_ids_fini(&ids);
    return st;
}

static tess_status use(const tess_tokenizer *t, const char *text, size_t nbytes)
{
    static const char fixed[] =
        "Hello  world's 123\xc3\xa9 <s>\n\n\xe2\x96\x81 \xf0\x9f\x98\x80 aab";
    tess_encoder *e = NULL;
    tess_status st = tess_encoder_create(t, &e);
    if (st == TESS_OK)
        st = round_trip(t, e, fixed, sizeof fixed - 1);
    /* A vocabulary without a character is a legal refusal. */
    if (st == TESS_E_FORMAT)
        tess_error_clear();
    if (st == TESS_OK || st == TESS_E_FORMAT)
        st = round_trip(t, e, text, nbytes);
    tess_encoder_destroy(&e);
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    const char *json = (const char *)data;
    const char *end = nbytes > 0 ? memchr(data, 0, nbytes) : NULL;
    const size_t json_nbytes = end != NULL ? (size_t)(end - json) : nbytes;
    tess_tokenizer *t = NULL;
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    tess_status st = tess_tokenizer_parse("tokenizer.json", json, json_nbytes, &t);
    if (st == TESS_OK)
        st = use(t, end != NULL ? end + 1 : json,
                 end != NULL ? nbytes - json_nbytes - 1 : json_nbytes);
    tess_tokenizer_destroy(&t);
    fuzz_verdict(st, before_nbytes);
    return 0;
}

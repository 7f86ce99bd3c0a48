/* Any bytes as the body of a checkpoint manifest, sealed so that the parser sees them: refused, or
 * a manifest that writes itself back and parses to the same. */
#include <string.h>

#include "fuzz.h"
#include "shard/ckpt_priv.h"

enum { ROOM_NBYTES = 1 << 21 };

static tess_status format_again(const ckpt_manifest *m, ckpt_text *t)
{
    const ckpt_manifest_spec spec = {.kind = m->kind,
                                     .attempt = m->attempt,
                                     .run_id = m->run_id,
                                     .plan_digest = m->plan_digest,
                                     .config_digest = m->config_digest,
                                     .binary_id = m->binary_id,
                                     .gather_group = (int)(m->gather_group % INT_MAX),
                                     .step = m->step,
                                     .epoch = m->epoch,
                                     .wall_time_s = m->wall_time_s,
                                     .base_id = m->base_id,
                                     .index = &m->index,
                                     .files = m->files,
                                     .hashes = m->hashes,
                                     .state = m->state,
                                     .state_numel = m->state_numel,
                                     .base = &m->base,
                                     .base_manifest = m->base_manifest};
    tess_sha256 digest;
    ckpt_manifest_format(&spec, t);
    return t->nbytes + 70 < t->room_nbytes ? ckpt_manifest_seal(t, &digest) : TESS_E_RANGE;
}

static void check_round_trip(const ckpt_manifest *m)
{
    static char room[ROOM_NBYTES];
    static ckpt_manifest again;
    ckpt_text t = {room, sizeof room, 0};
    if (format_again(m, &t) != TESS_OK)
        return;
    fuzz_require(ckpt_manifest_parse("again", t.text, t.nbytes, &again) == TESS_OK,
                 "what was written is refused");
    fuzz_require(again.set.record_numel == m->set.record_numel &&
                     again.set.tensor_numel == m->set.tensor_numel &&
                     again.state_numel == m->state_numel && again.step == m->step &&
                     again.index.pair_numel == m->index.pair_numel,
                 "what was written says something else");
    fuzz_require(
        m->index.pair_numel == 0 ||
            memcmp(again.hashes, m->hashes, (size_t)m->index.pair_numel * sizeof *m->hashes) == 0,
        "hashes changed");
    ckpt_manifest_fini(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static char body[ROOM_NBYTES];
    static ckpt_manifest m;
    tess_sha256 digest;
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    if (nbytes > ROOM_NBYTES - 128)
        return 0;
    if (nbytes > 0)
        memcpy(body, data, nbytes);
    ckpt_text t = {body, sizeof body, nbytes};
    ckpt_text_put(&t, "\n");
    fuzz_require(ckpt_manifest_seal(&t, &digest) == TESS_OK, "no seal");
    const tess_status st = ckpt_manifest_parse("input", t.text, t.nbytes, &m);
    if (st == TESS_OK) {
        check_round_trip(&m);
        ckpt_manifest_fini(&m);
    }
    fuzz_verdict(st, before_nbytes);
    return 0;
}

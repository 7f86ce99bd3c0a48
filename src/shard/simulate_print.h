/** A prediction and what differs between ranks, for people and as JSON. */
#pragma once

#include "shard/simulate.h"

TESS_BEGIN_DECLS

enum { TESS_TIME_TEXT_NBYTES = 24 };
/** "1.250 s", "3.100 ms", "7.000 us". Local. */
void tess_time_text(double s, char text[TESS_TIME_TEXT_NBYTES]);
/** "measured" or "published". Local. */
const char *tess_profile_kind(bool is_measured);
/** Members "device" and "network": what they are called and where their numbers come from. Local.
 */
TESS_MUST_CHECK tess_status tess_profiles_json(const tess_device_profile *device,
                                               const tess_network_profile *network, tess_json *v);

typedef struct tess_prediction {
    const tess_device_profile *device;
    const tess_network_profile *network;
    const tess_simulation *simulation;
    tess_reduction reduction; /* of the plan */
    bool has_kernels;         /* the program has the family's kernels for this device */
    const char *item_name;    /* "tokens_per_s" */
} tess_prediction;

/** Lines for people, into a new string. Local. */
TESS_MUST_CHECK tess_status tess_prediction_text(const tess_prediction *p, char **out);
/** Member "predicted" of a plan's JSON, which plan.json of a run does not have. Local. */
TESS_MUST_CHECK tess_status tess_prediction_json(const tess_prediction *p, tess_json *plan);
/** The same for ranges over ranks, member "single_ranks". Local. */
TESS_MUST_CHECK tess_status tess_rank_ranges_text(const tess_rank_ranges *r, char **out);
TESS_MUST_CHECK tess_status tess_rank_ranges_json(const tess_rank_ranges *r, tess_json *plan);

TESS_END_DECLS

/**
 * The contract table of a launch: every collective's promise and every other fact that must be the
 * same on all ranks, in one order, with one digest.
 *
 * An entry is a name and a value, both text. A wire adds one entry per field, so that a difference
 * is reported as "rank 5: blk.17/frozen wire dtype f32, rank 0: bf16".
 */
#pragma once

#include <stdint.h>

#include "core/digest.h"
#include "core/status.h"
#include "dist/comm.h"

TESS_BEGIN_DECLS

typedef struct tess_contract tess_contract;

/** Empty table. Local. */
TESS_MUST_CHECK tess_status tess_contract_create(tess_contract **out);
void tess_contract_destroy(tess_contract **contract);
/**
 * Add a collective; its place in the table of wires must be its `entry_idx`. Copied, except that
 * `config_key` must live as long as the table. Local.
 *
 * @return TESS_E_ARG `entry_idx` is not the next one; the table is unchanged on failure
 */
TESS_MUST_CHECK tess_status tess_contract_add_wire(tess_contract *contract, const tess_wire *wire);
/** Add a fact: tess_contract_add_text(c, "unit 17 wire dtype", "%s", "bf16"). Local. */
TESS_MUST_CHECK tess_status tess_contract_add_text(tess_contract *contract, const char *name,
                                                   const char *fmt, ...) TESS_PRINTF(3, 4);

/** Collectives in the table. Local. */
int64_t tess_contract_wire_numel(const tess_contract *contract);
/** The collective with `entry_idx`; borrowed until the next add. The index is in range. Local. */
const tess_wire *tess_contract_wire(const tess_contract *contract, int64_t entry_idx);
/** Entries (names and values) in the table. Local. */
int64_t tess_contract_entry_numel(const tess_contract *contract);
/** Name and value of an entry; borrowed until the next add. Local. */
void tess_contract_entry(const tess_contract *contract, int64_t idx, const char **name,
                         const char **value);

/** SHA-256 of the canonical form: version, then lengths and bytes of each name and value, then the
 * entry count. Local. */
TESS_MUST_CHECK tess_status tess_contract_digest(const tess_contract *contract, tess_sha256 *out);
/**
 * Compare the tables of all ranks.
 *
 * Collective over `comm`.
 * @return TESS_E_CONTRACT on all ranks: the first entry that differs, the first rank that differs
 * from rank 0 in it, and both values
 */
TESS_MUST_CHECK tess_status tess_contract_agree(tess_comm *comm, const tess_contract *contract);

TESS_END_DECLS

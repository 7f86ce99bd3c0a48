#include <stdio.h>
#include <string.h>

#include "dist/contract.h"
#include "tests/support/expect.h"

enum { UNITS = 21 };

/* What one rank has different from the others. */
typedef enum twist { SAME, WIRE_DTYPE, TEXT_FIRST, TEXT_LAST, LONGER, SHORTER, RENAMED, END } twist;

static void fill(tess_contract *c, twist t)
{
    EXPECT(tess_contract_add_text(c, "library", "%s", t == TEXT_FIRST ? "2" : "1") == TESS_OK);
    /* more than a message holds, and a difference behind what it holds */
    EXPECT(tess_contract_add_text(c, "long", "%01500d", t == END ? 2 : 1) == TESS_OK);
    const int units = t == SHORTER ? UNITS - 1 : UNITS;
    for (int u = 0; u < units; u++) {
        tess_wire w = {.op = TESS_COMM_ALL_GATHER,
                       .entry_idx = (uint32_t)u,
                       .storage = TESS_U8,
                       .wire = t == WIRE_DTYPE && u == 17 ? TESS_F32 : TESS_BF16,
                       .accumulate = TESS_BF16,
                       .numel_per_rank = 100 + u,
                       .numel_total = 300};
        snprintf(w.name, sizeof w.name, t == RENAMED && u == 3 ? "unit x" : "unit %d", u);
        EXPECT(tess_contract_add_wire(c, &w) == TESS_OK);
    }
    if (t != SHORTER)
        EXPECT(tess_contract_add_text(c, "kernels", "%s", t == TEXT_LAST ? "avx2" : "avx512") ==
               TESS_OK);
    if (t == LONGER)
        EXPECT(tess_contract_add_text(c, "extra", "%d", 1) == TESS_OK);
}

/* `odd` < 0: all ranks the same. */
static tess_status agree(tess_comm *comm, int odd, twist t)
{
    tess_contract *c = NULL;
    EXPECT(tess_contract_create(&c) == TESS_OK);
    fill(c, tess_comm_rank(comm) == odd ? t : SAME);
    tess_error_clear();
    const tess_status st = tess_contract_agree(comm, c);
    tess_contract_destroy(&c);
    return st;
}

static void refuse(tess_comm *comm, int odd, twist t, const char *fmt)
{
    char want[160];
    snprintf(want, sizeof want, fmt, odd); /* one %d, the odd rank */
    EXPECT(agree(comm, odd, t) == TESS_E_CONTRACT);
    if (strncmp(tess_error_message(), want, strlen(want)) != 0) {
        failures++;
        fprintf(stderr, "rank %d: message '%s' does not start with '%s'\n", tess_comm_rank(comm),
                tess_error_message(), want);
    }
}

static void test_differences_are_named(tess_comm *comm)
{
    EXPECT(agree(comm, -1, SAME) == TESS_OK);
    for (int odd = 1; odd < tess_comm_world(comm); odd++) {
        refuse(comm, odd, WIRE_DTYPE, "rank %d: unit 17 wire dtype f32, rank 0: bf16; start all");
        refuse(comm, odd, TEXT_FIRST, "rank %d: library 2, rank 0: 1; ");
        refuse(comm, odd, TEXT_LAST, "rank %d: kernels avx2, rank 0: avx512; ");
        refuse(comm, odd, LONGER, "rank %d: contract entry 150 'extra', rank 0: none; ");
        refuse(comm, odd, SHORTER,
               "rank %d: contract entry 142 is missing, rank 0: 'unit 20 op'; ");
        refuse(comm, odd, RENAMED,
               "rank %d: contract entry 23 is 'unit x op' all_gather, rank 0: 'unit 3 op' ");
    }
    for (int odd = 1; odd < tess_comm_world(comm); odd++) {
        refuse(comm, odd, END, "rank %d: long 0000000000");
        EXPECT(agree(comm, odd, END) == TESS_E_CONTRACT &&
               strstr(tess_error_message(), "(SHA-256 of 1500 bytes: ") != NULL);
    }
    /* rank 0 is the odd one: the first rank that differs from it is named */
    if (tess_comm_world(comm) > 1) {
        EXPECT(agree(comm, 0, TEXT_LAST) == TESS_E_CONTRACT);
        EXPECT(strncmp(tess_error_message(), "rank 1: kernels avx512, rank 0: avx2; ", 38) == 0);
    }
    EXPECT(agree(comm, -1, SAME) == TESS_OK);
}

static void test_digest_covers_every_field(tess_comm *comm)
{
    (void)comm;
    static const twist kinds[] = {SAME,   WIRE_DTYPE, TEXT_FIRST, TEXT_LAST,
                                  LONGER, SHORTER,    RENAMED,    END};
    tess_sha256 digest[TESS_NELEM(kinds)];
    for (int i = 0; i < TESS_NELEM(kinds); i++) {
        tess_contract *c = NULL;
        EXPECT(tess_contract_create(&c) == TESS_OK);
        fill(c, kinds[i]);
        EXPECT(tess_contract_digest(c, &digest[i]) == TESS_OK);
        for (int k = 0; k < i; k++)
            EXPECT(!tess_sha256_is_equal(&digest[k], &digest[i]));
        EXPECT(tess_contract_wire_numel(c) == (kinds[i] == SHORTER ? UNITS - 1 : UNITS));
        EXPECT(tess_contract_wire(c, 5)->numel_per_rank == 105);
        tess_contract_destroy(&c);
        EXPECT(c == NULL);
    }
}

static void test_wires_come_in_order(void)
{
    tess_contract *c = NULL;
    EXPECT(tess_contract_create(&c) == TESS_OK);
    const tess_wire w = {.entry_idx = 1, .name = "late"};
    tess_error_clear();
    EXPECT(tess_contract_add_wire(c, &w) == TESS_E_ARG);
    EXPECT(strcmp(tess_error_message(),
                  "contract of 'late' has entry_idx 1, the next place in the table is 0") == 0);
    EXPECT(tess_contract_entry_numel(c) == 0);
    tess_contract_destroy(&c);
}

int main(int argc, char **argv)
{
    tess_comm *comm = NULL;
    if (tess_comm_create_mpi(&argc, &argv, TESS_COMM_THREAD_OFF, NULL, &comm) != TESS_OK) {
        fprintf(stderr, "%s\n", tess_error_message());
        return 1;
    }
    test_differences_are_named(comm);
    test_digest_covers_every_field(comm);
    test_wires_come_in_order();
    tess_comm_destroy(&comm);
    return failures > 0;
}

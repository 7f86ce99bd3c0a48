/* How HDF5 lays a token file out; the bytes of the sections are written by token_file_write.c.
 * Nothing is ever opened for reading with HDF5. */
#include "core/arith.h"
#include "train/data/hdf5_layout.h"
#include "train/data/token_file_priv.h"

tess_status tess_token_hdf5_create(const char *path, tess_token_file_info *info)
{
    char tokenizer[TESS_SHA256_HEX_NBYTES], payload[2 * TESS_XXH128_NBYTES + 1];
    tess_hex(info->tokenizer.byte, TESS_SHA256_NBYTES, tokenizer);
    tess_hex(info->payload_digest.byte, TESS_XXH128_NBYTES, payload);
    const tess_h5_attribute attributes[] = {{"format_version", NULL, TESS_TOKEN_FILE_VERSION},
                                            {"vocab_numel", NULL, info->vocab_numel},
                                            {"token_numel", NULL, info->token_numel},
                                            {"document_numel", NULL, info->document_numel},
                                            {"loss_token_numel", NULL, info->loss_token_numel},
                                            {"tokenizer_sha256", tokenizer, 0},
                                            {"payload_xxh128", payload, 0}};
    const struct {
        const char *name;
        tess_h5_type type;
        int64_t elem_nbytes;
        tess_token_section *section;
    } sections[] = {{"tokens", info->token_nbytes == 2 ? TESS_H5_U16 : TESS_H5_U32,
                     (int64_t)info->token_nbytes, &info->tokens},
                    {"doc_offsets", TESS_H5_U64, 8, &info->doc_offsets},
                    {"loss_mask", TESS_H5_U8, 1, &info->loss_mask},
                    {"sources", TESS_H5_U8, 1, &info->sources}};
    tess_h5_dataset datasets[TESS_NELEM(sections)];
    tess_h5_layout layout = {TESS_TOKEN_FILE_HEADER_NBYTES, attributes, TESS_NELEM(attributes),
                             datasets, 0};
    for (int i = 0; i < TESS_NELEM(sections); i++)
        if (sections[i].section->nbytes > 0)
            datasets[layout.dataset_numel++] =
                (tess_h5_dataset){.name = sections[i].name,
                                  .type = sections[i].type,
                                  .dim_numel = 1,
                                  .dim = {sections[i].section->nbytes / sections[i].elem_nbytes}};
    TESS_TRY(tess_h5_lay_out(path, &layout));
    for (int i = 0, d = 0; i < TESS_NELEM(sections); i++)
        if (sections[i].section->nbytes > 0)
            sections[i].section->offset_nbytes = datasets[d++].offset_nbytes;
    return TESS_OK;
}

/** Inside of tokenize: inputs read by line, and the state of one run. */
#pragma once

#include "core/digest.h"
#include "format/chat_template.h"
#include "format/json.h"
#include "format/tokenizer.h"
#include "train/prepare/tokenize.h"

TESS_BEGIN_DECLS

/* A text file without separator is one document and held whole; a line of JSON has the limit of the
 * JSON reader. */
enum { TESS_TOKENIZE_DOCUMENT_NBYTES_LIMIT = 256 << 20 };

/** One input file, read forward in blocks; what was read is hashed. */
typedef struct tess_line_reader {
    tess_io *io;
    const char *path;
    int fd;
    int64_t file_nbytes, offset_nbytes; /* of the file; read so far */
    char *byte;                         /* [room_numel] a line starts at `start` */
    int64_t start, filled, room_numel;
    int64_t line_idx; /* of the last line given out, from 1 */
    tess_sha256_state *sha256;
} tess_line_reader;

TESS_MUST_CHECK tess_status tess_line_reader_open(tess_io *io, const char *path,
                                                  tess_line_reader *out);
void tess_line_reader_close(tess_line_reader *reader);
/**
 * Next line without its newline, NUL-terminated in the reader's memory until the next call. Local.
 *
 * @param[out] has_newline  false for a last line that ends with the file
 * @param[out] line         NULL at the end of the file
 */
TESS_MUST_CHECK tess_status tess_line_reader_next(tess_line_reader *reader, const char **line,
                                                  size_t *nbytes, bool *has_newline);
/** The rest of the file as one text. Local. */
TESS_MUST_CHECK tess_status tess_line_reader_rest(tess_line_reader *reader, const char **text,
                                                  size_t *nbytes);

/** A run of tess_tokenize_run. */
typedef struct tess_tokenize_state {
    const tess_ctx *ctx;
    const tess_tokenize_options *options;
    tess_tokenize_result *result;
    tess_tokenizer *tokenizer;
    tess_encoder *encoder;
    tess_chat_template *chat;
    tess_token_writer *writer;
    int32_t eos_id; /* -1: what the template appends */
    unsigned text_flags;
    /* The document being made. */
    tess_ids ids;
    uint8_t *mask;
    int64_t mask_room_numel;
    tess_chat_message *message;
    tess_chat_span *span;
    int64_t message_room_numel;
} tess_tokenize_state;

/** Plain text as a document. */
TESS_MUST_CHECK tess_status tess_tokenize_text(tess_tokenize_state *s, const char *text,
                                               size_t nbytes);
/** One JSON object as a document; `format` is not AUTO. */
TESS_MUST_CHECK tess_status tess_tokenize_object(tess_tokenize_state *s,
                                                 tess_tokenize_format format,
                                                 const tess_json *object);
/** Format by the keys of an object. @return TESS_E_FORMAT none fits */
TESS_MUST_CHECK tess_status tess_tokenize_detect(const tess_json *object,
                                                 tess_tokenize_format *out);
/** Path of a file of the model, which lies beside tokenizer.json; free with tess_free. Local. */
TESS_MUST_CHECK tess_status tess_tokenize_beside(const tess_tokenize_state *s, const char *name,
                                                 char **out);
/** Warn where the model's own chat template is not the one that was chosen, as far as marks in its
 * text tell, and where its files cannot be read. Local. @return TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_tokenize_compare_template(const tess_tokenize_state *s,
                                                           tess_chat_style style);

TESS_END_DECLS

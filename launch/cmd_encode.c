/* tessera encode CHECKPOINT INPUT -o CODES.h5 */
#include <stdio.h>

#include "launch/commands.h"
#include "launch/job.h"
#include "launch/launch.h"
#include "train/strbuf.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_code_options *encode = state->input;
    const char **slots[] = {&encode->checkpoint, &encode->input};
    switch (key) {
    case 'o':
        encode->output = arg;
        return 0;
    case 'm':
        encode->mask = arg;
        return 0;
    case 'j':
        encode->is_json = true;
        return 0;
    case TESS_LAUNCH_KEY_MANIFEST:
        return tess_launch_manifest(state, arg, &encode->manifest_sha256);
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 2);
    case ARGP_KEY_END:
        if (encode->input == NULL)
            return tess_launch_refuse(state, "expected a checkpoint and a file of vectors");
        return encode->output == NULL ? tess_launch_refuse(state, "-o CODES.h5 is missing") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"output", 'o', "CODES.h5", 0, "Codes file to write", 0},
    {"mask", 'm', "FILE", 0,
     "Vectors [N, 1] beside INPUT, of images [N, positions]: 0 where one is masked, else 1. Codes "
     "of a masked one are -1, and it does not count",
     0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    TESS_LAUNCH_MANIFEST_OPTION,
    {0},
};
static const struct argp encode_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "CHECKPOINT INPUT -o CODES.h5",
    .doc = "Write the codes of all vectors of INPUT (.fvecs, .bvecs, .ivecs, .fbin, .u8bin, "
           ".i8bin, .npy, HDF5), or of a folder of images, by the codebooks, or the encoder, of a "
           "checkpoint or run folder, and "
           "print the mean squared error of what they stand for. Under mpirun the ranks share the "
           "work; the file "
           "is the same for any number of them.",
};

static tess_status print_result(const tess_encode_result *r, bool is_json)
{
    char line[256], error[TESS_F64_TEXT_NBYTES], relative[TESS_F64_TEXT_NBYTES];
    tess_f64_text(r->error, error);
    tess_f64_text(r->mean_square > 0.0 ? r->error / r->mean_square : 0.0, relative);
    const char *what = r->is_images ? "image" : "vector";
    const int n = is_json ? snprintf(line, sizeof line,
                                     "{\"%ss\": %lld, \"error\": %s, \"relative_error\": %s}\n",
                                     what, (long long)r->sample_numel, error, relative)
                          : snprintf(line, sizeof line,
                                     "%lld %ss: error %s per %s, %s of their mean squared length\n",
                                     (long long)r->sample_numel, what, error, what, relative);
    TESS_CHECK(n > 0 && (size_t)n < sizeof line, TESS_E_STATE, "encode: result line too long");
    return tess_launch_print(line);
}

static tess_status work(tess_session *session, tess_comm *comm, void *arg)
{
    const tess_code_options *encode = arg;
    tess_encode_result result;
    TESS_TRY(tess_session_encode(session, encode->input, encode->mask, encode->output, &result));
    return tess_agree(comm,
                      tess_comm_rank(comm) == 0 ? print_result(&result, encode->is_json) : TESS_OK);
}

static tess_status run(tess_code_options *encode)
{
    tess_ctx ctx;
    TESS_TRY(tess_launch_open(&encode->common, tess_launch_rank(), &ctx));
    const tess_status st = tess_launch_checkpoint(&encode->common, &ctx, encode->checkpoint,
                                                  encode->manifest_sha256, work, encode);
    tess_launch_close(&ctx);
    return st;
}

int tess_cmd_encode(int argc, char **argv)
{
    tess_code_options encode = {0};
    tess_status st = tess_launch_parse(&encode_argp, argc, argv, &encode, &encode.common);
    if (st == TESS_OK && !encode.common.is_help)
        st = run(&encode);
    return tess_launch_finish(&encode.common, st);
}

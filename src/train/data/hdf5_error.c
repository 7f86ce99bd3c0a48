#include <hdf5.h>
#include <stdio.h>

#include "train/data/hdf5_layout.h"

typedef struct h5_words {
    char text[512];
} h5_words;

static herr_t take_innermost(unsigned n, const H5E_error2_t *error, void *arg)
{
    h5_words *words = arg;
    if (n == 0)
        snprintf(words->text, sizeof words->text, "%s: %s", error->func_name, error->desc);
    return 0;
}

tess_status tess_h5_start(void)
{
    /* MPI may be finalized before exit handlers run; nothing of ours may be left to them. */
    H5dont_atexit();
    TESS_CHECK(H5Eset_auto2(H5E_DEFAULT, NULL, NULL) >= 0, TESS_E_IO, "HDF5 does not start");
    return TESS_OK;
}

void tess_h5_version(char *text, size_t text_nbytes)
{
    unsigned part[3] = {0};
    (void)H5get_libversion(&part[0], &part[1], &part[2]);
    snprintf(text, text_nbytes, "%u.%u.%u", part[0], part[1], part[2]);
}

tess_status tess_h5_fail(tess_status code, const char *path, const char *call, const char *file,
                         int line)
{
    h5_words words = {"no details"};
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_innermost, &words);
    H5Eclear2(H5E_DEFAULT);
    for (char *p = words.text; *p != '\0'; p++)
        *p = *p == '\n' ? ' ' : *p;
    return tess_error_set(code, file, line, "'%s': HDF5 %s failed: %s", path, call, words.text);
}

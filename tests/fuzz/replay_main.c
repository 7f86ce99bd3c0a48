/* Runs a fuzz target over a folder without a fuzzer: each file, 16 truncations of it, and a fixed
 * number of its single-byte changes, from a fixed seed.
 *
 *     replay_TARGET FOLDER... */
#include <dirent.h>
#include <string.h>

#include "fuzz.h"

enum { CUT_NUMEL = 16, CHANGE_NUMEL = 256, FILE_MAX_NBYTES = 1 << 20 };

static uint8_t input[FILE_MAX_NBYTES], changed[FILE_MAX_NBYTES];

static int64_t run_variants(size_t nbytes)
{
    uint32_t state = 12345;
    LLVMFuzzerTestOneInput(input, nbytes);
    for (size_t i = 0; i < CUT_NUMEL; i++)
        LLVMFuzzerTestOneInput(input, nbytes * i / CUT_NUMEL);
    for (int i = 0; nbytes > 0 && i < CHANGE_NUMEL; i++) {
        memcpy(changed, input, nbytes);
        state = state * 1664525u + 1013904223u;
        const size_t at = (size_t)(state >> 8) % nbytes;
        state = state * 1664525u + 1013904223u;
        changed[at] = (uint8_t)(state >> 24);
        LLVMFuzzerTestOneInput(changed, nbytes);
    }
    return 1 + CUT_NUMEL + CHANGE_NUMEL;
}

static int64_t replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    fuzz_require(file != NULL, path);
    const size_t nbytes = fread(input, 1, sizeof input, file);
    fclose(file);
    return run_variants(nbytes);
}

static int64_t replay_folder(const char *folder, int *file_numel)
{
    char path[4096];
    int64_t run_numel = 0;
    DIR *dir = opendir(folder);
    fuzz_require(dir != NULL, folder);
    for (const struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        run_numel += replay_file(path);
        (*file_numel)++;
    }
    closedir(dir);
    return run_numel;
}

int main(int argc, char **argv)
{
    int file_numel = 0;
    int64_t run_numel = 0;
    for (int i = 1; i < argc; i++)
        run_numel += replay_folder(argv[i], &file_numel);
    if (file_numel == 0) {
        fprintf(stderr, "no corpus file in the given folders\n");
        return 1;
    }
    printf("%d files, %lld inputs\n", file_numel, (long long)run_numel);
    return 0;
}

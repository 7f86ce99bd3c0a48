/*
 * Faults of a device: an error of enqueued work reaches whoever waits for it, with CUDA's words,
 * and stays. Each case is a process of its own, as nothing of a device is of use afterwards; tools
 * that count invalid accesses (compute-sanitizer) find those that this program makes on purpose.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "tests/support/cuda_door.h"
#include "tests/support/expect.h"

enum { NUMEL = 1024 };

static void expect_message(const char *part) { EXPECT(strstr(tess_error_message(), part) != NULL); }

static tess_view f32_view(void *data) { return (tess_view){data, NUMEL, TESS_F32, TESS_DEVICE}; }

/* The fake's kernels are the CPU's: they get memory that is there, and the fake says what a device
 * would. */
static bool is_fake(const tess_stream *s) { return !tess_stream_is_timed(s); }

/* A kernel reads where no memory is: the launch succeeds, the end of the stream does not. */
static void case_kernel(const tess_cuda_door *door, tess_stream *s)
{
    void *memory = NULL;
    EXPECT(door->device->ops->alloc(door->device, TESS_DEVICE, NUMEL * sizeof(float), &memory) ==
           TESS_OK);
    void *nowhere = is_fake(s) ? memory : (void *)(uintptr_t)0x10000;
    const tess_add_args add = {
        .a = f32_view(memory), .b = f32_view(nowhere), .out = f32_view(memory)};
    tess_status st = door->kernels->add(&add, s);
    EXPECT(is_fake(s) || st == TESS_OK);
    if (st == TESS_OK)
        st = tess_stream_finish(s);
    EXPECT(st != TESS_OK && tess_status_is_fatal(st));
    expect_message("CUDA says an illegal memory access was encountered");
    tess_error_clear();
    if (is_fake(s))
        return;
    EXPECT(tess_device_zero(door->device, f32_view(memory), s) != TESS_OK);
    expect_message("cudaMemsetAsync");
    tess_error_clear();
}

/* Copies that fail: their words, whether CUDA says so at once or when the stream ends. */
static void case_copy(const tess_cuda_door *door, tess_stream *s)
{
    float here[NUMEL] = {0.0F};
    const tess_view host = tess_view_host(here, NUMEL, TESS_F32);
    tess_status st = tess_device_copy(door->device, f32_view((void *)(uintptr_t)0x10000), host, s);
    if (st == TESS_OK)
        st = tess_stream_finish(s);
    EXPECT(st != TESS_OK);
    expect_message(is_fake(s) ? "emulated failure of a copy" : "CUDA says");
    tess_error_clear();
}

typedef struct fault_case {
    const char *name, *fake_fault;
    void (*run)(const tess_cuda_door *door, tess_stream *s);
} fault_case;

static const fault_case cases[] = {
    {"kernel", "kernel:add:error", case_kernel},
    {"copy", "copy:0:0", case_copy},
};

/* Ends the process: a device after a fault cannot be taken down in order. */
static void run_case(const fault_case *c)
{
    tess_cuda_door door = {0};
    tess_stream *s = NULL;
    (void)setenv("FAKE_CUDA_FAULT", c->fake_fault, 0);
    cuda_door_open_or_skip(&door);
    EXPECT(tess_device_stream_create(door.device, "test", false, &s) == TESS_OK);
    if (s != NULL)
        c->run(&door, s);
    fflush(NULL);
    _exit(failures > 0);
}

/* This program again, for one case. @return its exit code */
static int start_case(char *self, const fault_case *c)
{
    char *const args[] = {self, (char *)(uintptr_t)c->name, NULL};
    int status = 0;
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        execv("/proc/self/exe", args);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
        return 1;
    return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
    int rc = 0;
    const int case_numel = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < case_numel; i++) {
        if (argc > 1 && strcmp(argv[1], cases[i].name) == 0)
            run_case(&cases[i]);
    }
    for (int i = 0; i < case_numel && rc != CUDA_SKIP_CODE; i++) {
        const int got = start_case(argv[0], &cases[i]);
        printf("%s: %s\n", cases[i].name, got == 0 ? "ok" : "not ok");
        rc = got != 0 ? got : rc;
    }
    return rc;
}

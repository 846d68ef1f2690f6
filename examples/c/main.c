/* Runs a compiled sentence encoder (all-MiniLM-L6-v2) from C: no Python, no framework.
 *
 *   ./main ARTIFACT ENTRY WIDTH ID [ID ...]
 *
 * ARTIFACT is the folder that planish saved, ENTRY the function of its library (see planish.h in the folder),
 * WIDTH the length of an output row, and the IDs are one sentence's tokens. The inputs are the ids and a mask of
 * ones, both int64 [1, tokens]; the output is float32 [1, tokens, WIDTH], of which the program prints the first
 * numbers of the mean over the tokens and the time of a call. The sizes are batch and sequence, in this order.
 */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

#include "planish.h"

enum { CALLS = 20, SHOWN = 4 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *symbol(void *library, const char *name, const char *suffix) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    void *found = dlsym(library, full);
    if (!found) {
        fprintf(stderr, "the library has no function %s\n", full);
        exit(1);
    }
    return found;
}

static void print_mean(const float *rows, int64_t tokens, int64_t width) {
    for (int64_t column = 0; column < width && column < SHOWN; column++) {
        double sum = 0;
        for (int64_t row = 0; row < tokens; row++) sum += rows[row * width + column];
        printf("%s%.6f", column ? " " : "", sum / (double)tokens);
    }
    printf("\n");
}

int main(int count, char **words) {
    if (count < 5) {
        fprintf(stderr, "usage: %s ARTIFACT ENTRY WIDTH ID [ID ...]\n", words[0]);
        return 2;
    }
    char path[4096];
    snprintf(path, sizeof path, "%s/kernels/model.so", words[1]);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    planish_entry run = (planish_entry)symbol(library, words[2], "");
    planish_arena_bytes arena_bytes = (planish_arena_bytes)symbol(library, words[2], "_arena_bytes");
    int32_t threads = ((int32_t(*)(void))symbol(library, "planish_threads", ""))();

    planish_weights weights;
    snprintf(path, sizeof path, "%s/weights.safetensors", words[1]);
    if (planish_map_weights(path, &weights)) {
        fprintf(stderr, "cannot use %s\n", path);
        return 1;
    }
    int64_t tokens = count - 4, width = atoll(words[3]);
    const int64_t sizes[] = {1, tokens};
    int64_t *ids = malloc(sizeof(int64_t) * (size_t)tokens), *mask = malloc(sizeof(int64_t) * (size_t)tokens);
    float *result = malloc(sizeof(float) * (size_t)(tokens * width));
    void *arena = planish_arena(arena_bytes(sizes, threads));
    if (!ids || !mask || !result || !arena) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    for (int64_t i = 0; i < tokens; i++) ids[i] = atoll(words[4 + i]), mask[i] = 1;

    const void *inputs[] = {ids, mask};
    void *outputs[] = {result};
    double best = 1e30;
    for (int call = 0; call < CALLS; call++) {
        double start = seconds();
        int32_t failed = run(inputs, outputs, sizes, weights.data, arena, threads, NULL);
        double taken = seconds() - start;
        if (failed) {
            fprintf(stderr, "%s failed with code %d\n", words[2], failed);
            return 1;
        }
        if (taken < best) best = taken;
    }
    print_mean(result, tokens, width);
    printf("%.3f ms a call, %d threads\n", 1e3 * best, threads);
    free(arena), free(result), free(mask), free(ids);
    planish_unmap_weights(&weights);
    return 0;
}

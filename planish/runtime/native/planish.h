/* The C interface of an artifact: its library's entries, its weights and the memory that a call needs.
 *
 *   kernels/<name>.so      the library; needs libc alone
 *   weights.safetensors    all weights as the kernels read them; a call gets the address of the data region
 *   plan.json              inputs, outputs and sizes of every function, and the entries that it runs in order
 *
 * A call, with the library opened by dlopen or linked:
 *
 *   planish_weights weights;
 *   if (planish_map_weights("model.planish/weights.safetensors", &weights)) ...;
 *   int32_t threads = planish_threads();
 *   int64_t sizes[] = {batch, sequence};                        in the order of "sizes" in plan.json
 *   void *arena = planish_arena(ENTRY_arena_bytes(sizes, threads));
 *   const void *inputs[] = {ids, mask};
 *   void *outputs[] = {result};
 *   int32_t failed = ENTRY(inputs, outputs, sizes, weights.data, arena, threads, NULL);
 *
 * Tensors are contiguous and row-major; a bool is one byte. The library is safe to call from several threads at
 * once when each call has an arena of its own; an arena may be reused for any later call that needs no more bytes.
 */
#ifndef PLANISH_H
#define PLANISH_H

#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PLANISH_ALIGNMENT 64

/* Runs one entry. `times`, where it is not NULL, receives the seconds that each kernel took, in the order of the
 * entry's calls in plan.json. Returns 0 on success. */
typedef int32_t (*planish_entry)(const void *const *inputs, void *const *outputs, const int64_t *sizes,
                                 const void *weights, void *arena, int32_t threads, double *times);

/* Bytes of arena that a call with these sizes and threads needs; the arena starts at a multiple of 64. */
typedef int64_t (*planish_arena_bytes)(const int64_t *sizes, int32_t threads);

/* Cores that this process may use: the number of threads to pass unless there is a reason for fewer. */
int32_t planish_threads(void);

/* Weights in memory, read-only. `data` is what entries take. */
typedef struct {
    const void *data;
    void *map;
    size_t map_bytes;
} planish_weights;

/* Maps weights.safetensors. Returns 0; -1 when the file cannot be read; -2 when it is no intact weights file. */
static inline int planish_map_weights(const char *path, planish_weights *weights) {
    struct stat status;
    uint64_t header = 0;
    int i, file = open(path, O_RDONLY | O_CLOEXEC);
    memset(weights, 0, sizeof *weights);
    if (file < 0) return -1;
    if (fstat(file, &status) != 0 || status.st_size < 8) {
        close(file);
        return -2;
    }
    weights->map_bytes = (size_t)status.st_size;
    weights->map = mmap(NULL, weights->map_bytes, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (weights->map == MAP_FAILED) {
        weights->map = NULL;
        return -1;
    }
    /* The file opens with the length of its header as a little-endian 64-bit number. */
    for (i = 7; i >= 0; i--) header = header << 8 | ((const unsigned char *)weights->map)[i];
    if (header > weights->map_bytes - 8 || (header + 8) % PLANISH_ALIGNMENT != 0) {
        munmap(weights->map, weights->map_bytes);
        weights->map = NULL;
        return -2;
    }
    weights->data = (const char *)weights->map + 8 + header;
    return 0;
}

/* Gives the weights back; no call may use them afterwards. */
static inline void planish_unmap_weights(planish_weights *weights) {
    if (weights->map) munmap(weights->map, weights->map_bytes);
    memset(weights, 0, sizeof *weights);
}

/* An arena of at least `bytes`, aligned as entries need it; NULL when there is no memory. Free it with free(). */
static inline void *planish_arena(int64_t bytes) {
    size_t size = bytes > 0 ? (size_t)bytes : 1;
    void *arena = NULL;
    return posix_memalign(&arena, PLANISH_ALIGNMENT, size) == 0 ? arena : NULL;
}

/* @entries@ */

#ifdef __cplusplus
}
#endif

#endif

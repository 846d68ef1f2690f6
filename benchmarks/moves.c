// Times the kernels of a compiled program, and plain loops that move the same bytes in the same memory, alike: from when
// the caller's thread begins until all threads have met behind the work. The loops run on a pool like the program's.
#include <stddef.h>
#include "pool.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define STORE_PAST "vmovntps %1, %0"
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define STORE_PAST "vmovntps %1, %0"
#else
#define VECTOR_BYTES 16
#define STORE_PAST "movntps %1, %0"
#endif

enum { MOST_KERNELS = 64 };

typedef float vector __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t (*entry)(const void *const *, void *const *, const int64_t *, const void *, void *, int32_t, double *);

struct move {
  char *out;
  const char *a, *b; /* b is null to copy */
  int64_t bytes;
  int32_t past; /* whether stores pass the caches by; x86-64 alone */
  double seconds;
};

static void near_stores(vector *out, const vector *a, const vector *b, int64_t n) {
  if (b)
    for (int64_t i = 0; i < n; i++) out[i] = a[i] + b[i];
  else
    for (int64_t i = 0; i < n; i++) {
      out[i] = a[i];
      __asm__ volatile("" ::: "memory"); /* or the compiler calls memcpy, which chooses its stores by itself */
    }
}

static void far_stores(vector *out, const vector *a, const vector *b, int64_t n) {
#if defined(__x86_64__)
  for (int64_t i = 0; i < n; i++) {
    vector value = a[i];
    if (b) value += b[i];
    __asm__ volatile(STORE_PAST : "=m"(out[i]) : "v"(value));
  }
  __asm__ volatile("sfence" ::: "memory");
#else
  near_stores(out, a, b, n);
#endif
}

static void move_task(int task, int tasks, void *data) {
  struct move *m = data;
  double start = task == 0 ? planish_now() : 0;
  int64_t vectors = m->bytes / VECTOR_BYTES, first = vectors * task / tasks, last = vectors * (task + 1) / tasks;
  int64_t at = first * VECTOR_BYTES;
  (m->past ? far_stores : near_stores)((vector *)(m->out + at), (const vector *)(m->a + at),
                                       m->b ? (const vector *)(m->b + at) : NULL, last - first);
  planish_barrier(task, tasks);
  if (task == 0) m->seconds = planish_now() - start;
}

PLANISH_EXPORT void moves_time_loop(void *out, const void *a, const void *b, int64_t bytes, int32_t past,
                                    int32_t threads, int32_t warm, int32_t repeats, double *seconds) {
  struct move m = {out, a, b, bytes, past, 0};
  for (int32_t i = -warm; i < repeats; i++) {
    planish_run(move_task, &m, threads);
    if (i >= 0) seconds[i] = m.seconds;
  }
}

PLANISH_EXPORT int32_t moves_time_kernels(entry run, const void *const *inputs, void *const *outputs,
                                          const int64_t *sizes, const void *weights, void *arena, int32_t threads,
                                          int32_t kernels, int32_t warm, int32_t repeats, double *seconds) {
  if (kernels > MOST_KERNELS) return 1;
  for (int32_t i = -warm; i < repeats; i++) {
    double times[MOST_KERNELS] = {0}, sum = 0;
    int32_t code = run(inputs, outputs, sizes, weights, arena, threads, times);
    if (code) return code;
    for (int32_t j = 0; j < kernels; j++) sum += times[j];
    if (i >= 0) seconds[i] = sum;
  }
  return 0;
}

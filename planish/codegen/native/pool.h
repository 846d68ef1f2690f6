/* What generated programs use: tasks, a barrier among them, and a clock. */
#ifndef PLANISH_POOL_H
#define PLANISH_POOL_H
#include <stdint.h>

#if defined(__GNUC__)
#define PLANISH_EXPORT __attribute__((visibility("default")))
#endif

typedef void (*planish_task)(int task, int tasks, void *data);

/* Run `task` on `threads` threads, the caller's among them, and return when all have ended. */
void planish_run(planish_task task, void *data, int threads);

/* Every task of the run waits here until all have come. */
void planish_barrier(int task, int tasks);

/* Memory that a task reads soon: `bytes` from `offset` on, from the part of `shared` bytes that is the task's. */
struct planish_range {
  int64_t offset, shared, bytes;
};

/* The same, having what lies at `base` brought into the cache while waiting. */
void planish_barrier_ahead(int task, int tasks, const unsigned char *base, const struct planish_range *ranges, int count);

/* Cores in the affinity mask of the calling thread. */
PLANISH_EXPORT int32_t planish_threads(void);

/* Seconds of a monotonic clock. */
double planish_now(void);
#endif

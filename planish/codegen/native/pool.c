/* The thread pool and barrier that a compiled program runs on. It needs libc alone.
 *
 * One pool a library. Workers spin for about a millisecond after a run, then sleep. They keep off the caller's core:
 * the kernel likes to wake a thread on the core of its waker, where two spinning threads would halve the speed. A caller
 * that finds the pool busy runs its program alone, so that several threads may call at once.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

/* Denormal numbers cost a hundred cycles each and carry nothing: programs run with them flushed to zero. Both return
 * what to restore, so that a caller's own setting is as it was. */
#if defined(__x86_64__)
static unsigned long flush_denormals(void) {
  unsigned old = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(old | 0x8040);
  return old;
}
static void restore_denormals(unsigned long old) { __builtin_ia32_ldmxcsr((unsigned)old); }
#elif defined(__aarch64__)
static unsigned long flush_denormals(void) {
  unsigned long old;
  __asm__ volatile("mrs %0, fpcr" : "=r"(old));
  __asm__ volatile("msr fpcr, %0" ::"r"(old | 1UL << 24));
  return old;
}
static void restore_denormals(unsigned long old) { __asm__ volatile("msr fpcr, %0" ::"r"(old)); }
#else
static unsigned long flush_denormals(void) { return 0; }
static void restore_denormals(unsigned long old) { (void)old; }
#endif

enum { MAX_THREADS = 256, SPINS = 20000 };

struct line {
  _Alignas(64) atomic_uint value;
};

static struct line arrived[MAX_THREADS], finished[MAX_THREADS], round_number;
static atomic_int sleepers;
static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER, sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int workers; /* threads started beside the caller */
static int members; /* tasks of the current round */
static int caller_core;
static cpu_set_t allowed; /* cores of the process */
static planish_task current;
static void *current_data;

static void wait_for(atomic_uint *counter, unsigned wanted) {
  for (unsigned i = 0; (int)(atomic_load_explicit(counter, memory_order_acquire) - wanted) < 0; ++i) {
    if (i < SPINS)
      RELAX();
    else
      sched_yield(); /* the core is shared: let the other thread reach the barrier */
  }
}

void planish_barrier(int task, int tasks) {
  if (tasks == 1) return;
  unsigned wanted = atomic_load_explicit(&arrived[task].value, memory_order_relaxed) + 1;
  atomic_store_explicit(&arrived[task].value, wanted, memory_order_release);
  for (int i = 0; i < tasks; ++i)
    if (i != task) wait_for(&arrived[i].value, wanted);
}

enum { LINE = 64, LINES_A_LOOK = 2 };

void planish_barrier_ahead(int task, int tasks, const unsigned char *base, const struct planish_range *ranges, int count) {
  if (tasks == 1) return;
  unsigned wanted = atomic_load_explicit(&arrived[task].value, memory_order_relaxed) + 1;
  atomic_store_explicit(&arrived[task].value, wanted, memory_order_release);
  int64_t done = 0;
  for (int i = 0; i < tasks; ++i) {
    if (i == task) continue;
    while (count > 0 && (int)(atomic_load_explicit(&arrived[i].value, memory_order_acquire) - wanted) < 0) {
      const unsigned char *at = base + ranges->offset + ranges->shared * task / tasks / LINE * LINE + done;
      for (int line = 0; line < LINES_A_LOOK; ++line) __builtin_prefetch(at + line * LINE, 0, 2);
      done += LINES_A_LOOK * LINE;
      if (done >= ranges->bytes) ++ranges, --count, done = 0;
    }
    wait_for(&arrived[i].value, wanted);
  }
}

static void sleep_until_round(unsigned seen) {
  pthread_mutex_lock(&sleep_lock);
  atomic_fetch_add(&sleepers, 1);
  while (atomic_load(&round_number.value) == seen) pthread_cond_wait(&wake, &sleep_lock);
  atomic_fetch_sub(&sleepers, 1);
  pthread_mutex_unlock(&sleep_lock);
}

static void keep_off(int core, int *avoided) {
  if (core < 0 || core == *avoided) return;
  *avoided = core;
  cpu_set_t others = allowed;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others)) sched_setaffinity(0, sizeof others, &others); /* a wish: nothing depends on it */
}

struct start {
  int id;
  unsigned seen;
};

static void *work(void *argument) {
  struct start start = *(struct start *)argument;
  free(argument);
  unsigned seen = start.seen;
  int avoided = -1;
  flush_denormals();
  for (;;) {
    for (unsigned i = 0; atomic_load_explicit(&round_number.value, memory_order_acquire) == seen; ++i) {
      if (i < 2 * SPINS)
        RELAX();
      else
        sleep_until_round(seen);
    }
    ++seen;
    keep_off(caller_core, &avoided);
    if (start.id < members) current(start.id, members, current_data);
    atomic_store_explicit(&finished[start.id].value, seen, memory_order_release);
  }
  return NULL;
}

/* Start workers until there are `wanted`, as far as the system allows. */
static void grow(int wanted) {
  while (workers < wanted) {
    struct start *start = malloc(sizeof *start);
    pthread_t thread;
    if (!start) return;
    start->id = workers + 1;
    start->seen = atomic_load(&round_number.value);
    atomic_store(&finished[start->id].value, start->seen);
    if (pthread_create(&thread, NULL, work, start)) {
      free(start);
      return;
    }
    pthread_detach(thread);
    ++workers;
  }
}

/* A forked child has none of its parent's threads. */
static void forget_workers(void) {
  workers = 0;
  atomic_store(&sleepers, 0);
  pthread_mutex_init(&busy, NULL);
  pthread_mutex_init(&sleep_lock, NULL);
  pthread_cond_init(&wake, NULL);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void set_up(void) { pthread_atfork(NULL, NULL, forget_workers); }

void planish_run(planish_task task, void *data, int threads) {
  pthread_once(&once, set_up);
  if (threads < 1) threads = 1;
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  if (threads == 1 || pthread_mutex_trylock(&busy)) {
    unsigned long old = flush_denormals();
    task(0, 1, data);
    restore_denormals(old);
    return;
  }
  if (!workers) sched_getaffinity(0, sizeof allowed, &allowed);
  grow(threads - 1);
  caller_core = sched_getcpu();
  members = workers + 1 < threads ? workers + 1 : threads;
  for (int i = 0; i < members; ++i) atomic_store_explicit(&arrived[i].value, 0, memory_order_relaxed);
  current = task;
  current_data = data;
  unsigned this_round = atomic_fetch_add(&round_number.value, 1) + 1;
  if (atomic_load(&sleepers)) {
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&sleep_lock);
  }
  unsigned long old = flush_denormals();
  task(0, members, data);
  restore_denormals(old);
  for (int i = 1; i <= workers; ++i) wait_for(&finished[i].value, this_round);
  pthread_mutex_unlock(&busy);
}

int32_t planish_threads(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

double planish_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

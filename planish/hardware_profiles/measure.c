// Measures what one machine can do; prints one number a run.
//   measure rate KERNEL CPUS SECONDS   GFLOP/s (Gop/s) of a kernel below, a multiply-add counted as two
//   measure read BYTES CPUS SECONDS    GB/s of reading BYTES, split over the threads, over and over
//   measure clock CPU SECONDS          GHz
// CPUS are the numbers of the processors to work on, as in 0,2,4, with one thread bound to each. A run repeats a
// short piece of work on all of them at once and takes the tenth percentile of its times.
// HAS_* macros name features of the machine; only the kernels that they allow are built.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MOST_TIMES = 4096, MOST_THREADS = 1024, READ_STEP = 512 };

// A vector of 64 bytes whose lanes are near 1 as f32, as bf16 and as f16.
static const uint32_t seed[16] __attribute__((aligned(64))) = {
    0x3f803f80, 0x3f813f81, 0x3f823f82, 0x3f833f83, 0x3f843f84, 0x3f853f85, 0x3f863f86, 0x3f873f87,
    0x3f883f88, 0x3f893f89, 0x3f8a3f8a, 0x3f8b3f8b, 0x3f8c3f8c, 0x3f8d3f8d, 0x3f8e3f8e, 0x3f8f3f8f};

#define EACH6(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define EACH8(X) EACH6(X) X(6) X(7)
#define EACH12(X) EACH8(X) X(8) X(9) X(10) X(11)
#define EACH24(X) EACH12(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

#if defined(__x86_64__)

#define LOOP(SETUP, BODY, ...)                                                                                  \
  __asm__ volatile(SETUP ".p2align 5\n1:\n" BODY "subq $1, %0\njnz 1b\n"                                        \
                   : "+r"(n)                                                                                    \
                   : "r"(seed)                                                                                  \
                   : "cc", "memory", __VA_ARGS__)
#define LOW "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7"
#define ALL LOW, "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

#define STEP(i) "xorq %2, %1\n"
static void chain(long n) {  // 8 instructions an iteration, each waits one cycle for the one before
  long x = 1, zero = 0;
  __asm__ volatile("1:\n" EACH8(STEP) "subq $1, %0\njnz 1b\n" : "+r"(n), "+r"(x) : "r"(zero) : "cc");
}

#if defined(HAS_AVX512F)
#define WIDE ALL, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm30", "xmm31"
#define ZERO_Z(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define SETUP_Z "vmovups (%1), %%zmm30\nvmovups (%1), %%zmm31\n" EACH24(ZERO_Z)
#define FMA_Z(i) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #i "\n"
static void f32_avx512(long n) { LOOP(SETUP_Z, EACH24(FMA_Z), WIDE); }
#if defined(HAS_AVX512BF16)
#define DPBF16_Z(i) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #i "\n"
static void bf16_avx512(long n) { LOOP(SETUP_Z, EACH24(DPBF16_Z), WIDE); }
#endif
#if defined(HAS_AVX512VNNI)
#define DPBUSD_Z(i) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #i "\n"
static void i8_avx512(long n) { LOOP(SETUP_Z, EACH24(DPBUSD_Z), WIDE); }
#endif
#if defined(HAS_AVX512FP16)
#define FMAH_Z(i) "vfmadd231ph %%zmm30, %%zmm31, %%zmm" #i "\n"
static void f16_avx512(long n) { LOOP(SETUP_Z, EACH24(FMAH_Z), WIDE); }
#endif
#endif

#if defined(HAS_AVX2) && defined(HAS_FMA)
#define ZERO_Y(i) "vpxor %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n"
#define SETUP_Y "vmovups (%1), %%ymm14\nvmovups (%1), %%ymm15\n" EACH12(ZERO_Y)
#define FMA_Y(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #i "\n"
static void f32_avx2(long n) { LOOP(SETUP_Y, EACH12(FMA_Y), ALL); }
#define MADD_Y(i)                                                                              \
  "vpmaddubsw %%ymm14, %%ymm15, %%ymm12\nvpmaddwd %%ymm14, %%ymm12, %%ymm12\nvpaddd %%ymm12, " \
  "%%ymm" #i ", %%ymm" #i "\n"
static void i8_avx2(long n) { LOOP(SETUP_Y, EACH8(MADD_Y), ALL); }
#if defined(HAS_AVXVNNI)
#define DPBUSD_Y(i) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #i "\n"
static void i8_avxvnni(long n) { LOOP(SETUP_Y, EACH12(DPBUSD_Y), ALL); }
#endif
#endif

#define MUL_X(i, product) \
  "movaps %%xmm6, %%xmm" #product "\nmulps %%xmm7, %%xmm" #product "\naddps %%xmm" #product ", %%xmm" #i "\n"
#define SETUP_X "movups (%1), %%xmm6\nmovups (%1), %%xmm7\n"
static void f32_sse2(long n) {
  LOOP(SETUP_X, MUL_X(0, 8) MUL_X(1, 9) MUL_X(2, 10) MUL_X(3, 11) MUL_X(4, 12) MUL_X(5, 13), ALL);
}

#if defined(HAS_AMX_TILE)
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
struct tiles {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static void configure_tiles(void) {  // eight tiles of 16 rows of 64 bytes
  struct tiles tiles __attribute__((aligned(64)));
  memset(&tiles, 0, sizeof tiles);
  tiles.palette = 1;
  for (int i = 0; i < 8; i++) tiles.row_bytes[i] = 64, tiles.rows[i] = 16;
  if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) exit(3);
  __asm__ volatile("ldtilecfg %0" ::"m"(tiles));
  // A stride of zero reads the same row sixteen times.
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm6\ntileloadd (%0,%1,1), %%tmm7\n" ::"r"(seed), "r"(0L) : "memory");
}
#if defined(HAS_AMX_BF16)
#define TDPBF16(i) "tdpbf16ps %%tmm6, %%tmm7, %%tmm" #i "\n"
static void bf16_amx(long n) {
  configure_tiles();
  LOOP("", EACH6(TDPBF16), "xmm0");
  __asm__ volatile("tilerelease");
}
#endif
#if defined(HAS_AMX_INT8)
#define TDPBUSD(i) "tdpbusd %%tmm6, %%tmm7, %%tmm" #i "\n"
static void i8_amx(long n) {
  configure_tiles();
  LOOP("", EACH6(TDPBUSD), "xmm0");
  __asm__ volatile("tilerelease");
}
#endif
#endif

static void read_bytes(const char *p, long n) {  // n steps of READ_STEP bytes
#if defined(HAS_AVX512F)
#define LOAD_Z(i) "vmovups 64*" #i "(%1), %%zmm" #i "\n"
  __asm__ volatile("1:\n" EACH8(LOAD_Z) "addq $512, %1\nsubq $1, %0\njnz 1b\n" : "+r"(n), "+r"(p)::"cc", "memory", LOW);
#else
#define LOAD_X(i) "movups 64*" #i "(%1), %%xmm0\nmovups 64*" #i "+16(%1), %%xmm1\nmovups 64*" #i \
                  "+32(%1), %%xmm2\nmovups 64*" #i "+48(%1), %%xmm3\n"
#define LOAD_Y(i) "vmovups 64*" #i "(%1), %%ymm" #i "\nvmovups 64*" #i "+32(%1), %%ymm" #i "\n"
#if defined(HAS_AVX2)
#define LOAD LOAD_Y
#else
#define LOAD LOAD_X
#endif
  __asm__ volatile("1:\n" EACH8(LOAD) "addq $512, %1\nsubq $1, %0\njnz 1b\n" : "+r"(n), "+r"(p)::"cc", "memory", LOW);
#endif
}

#elif defined(__aarch64__)

#define ZERO_V(i) "movi v" #i ".4s, #0\n"
#define LOOP(BODY)                                                                                           \
  __asm__ volatile("ldr q30, [%1]\nldr q31, [%1]\n" EACH24(ZERO_V) "1:\n" BODY "subs %0, %0, #1\nb.ne 1b\n"  \
                   : "+r"(n)                                                                                 \
                   : "r"(seed)                                                                               \
                   : "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", \
                     "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v30", \
                     "v31")

#define STEP(i) "eor %1, %1, %2\n"
static void chain(long n) {  // 8 instructions an iteration, each waits one cycle for the one before
  long x = 1, zero = 0;
  __asm__ volatile("1:\n" EACH8(STEP) "subs %0, %0, #1\nb.ne 1b\n" : "+r"(n), "+r"(x) : "r"(zero) : "cc");
}

#define FMLA_S(i) "fmla v" #i ".4s, v30.4s, v31.4s\n"
static void f32_neon(long n) { LOOP(EACH24(FMLA_S)); }
#if defined(HAS_FULLFP16)
#define FMLA_H(i) "fmla v" #i ".8h, v30.8h, v31.8h\n"
static void f16_neon(long n) { LOOP(EACH24(FMLA_H)); }
#endif
#if defined(HAS_BF16)
#define BFMMLA(i) "bfmmla v" #i ".4s, v30.8h, v31.8h\n"
static void bf16_neon(long n) { LOOP(EACH24(BFMMLA)); }
#endif
#if defined(HAS_DOTPROD)
#define SDOT(i) "sdot v" #i ".4s, v30.16b, v31.16b\n"
static void i8_dotprod(long n) { LOOP(EACH24(SDOT)); }
#endif
#if defined(HAS_I8MM)
#define SMMLA(i) "smmla v" #i ".4s, v30.16b, v31.16b\n"
static void i8_i8mm(long n) { LOOP(EACH24(SMMLA)); }
#endif

static void read_bytes(const char *p, long n) {  // n steps of READ_STEP bytes
#define LOAD_Q(i) "ldp q0, q1, [%1, #64*" #i "]\nldp q2, q3, [%1, #64*" #i "+32]\n"
  __asm__ volatile("1:\n" EACH8(LOAD_Q) "add %1, %1, #512\nsubs %0, %0, #1\nb.ne 1b\n"
                   : "+r"(n), "+r"(p)::"cc", "memory", "v0", "v1", "v2", "v3");
}

#else
#error "only x86_64 and aarch64 can be measured"
#endif

// `operations` counts the additions and multiplications of one iteration.
struct kernel {
  const char *name;
  void (*run)(long n);
  double operations;
};
static const struct kernel kernels[] = {
#if defined(__x86_64__)
#if defined(HAS_AMX_BF16)
    {"bf16_amx", bf16_amx, 6 * 2 * 16 * 16 * 32},
#endif
#if defined(HAS_AMX_INT8)
    {"i8_amx", i8_amx, 6 * 2 * 16 * 16 * 64},
#endif
#if defined(HAS_AVX512F)
    {"f32_avx512", f32_avx512, 24 * 2 * 16},
#if defined(HAS_AVX512BF16)
    {"bf16_avx512", bf16_avx512, 24 * 2 * 32},
#endif
#if defined(HAS_AVX512VNNI)
    {"i8_avx512", i8_avx512, 24 * 2 * 64},
#endif
#if defined(HAS_AVX512FP16)
    {"f16_avx512", f16_avx512, 24 * 2 * 32},
#endif
#endif
#if defined(HAS_AVX2) && defined(HAS_FMA)
    {"f32_avx2", f32_avx2, 12 * 2 * 8},
    {"i8_avx2", i8_avx2, 8 * 2 * 32},
#if defined(HAS_AVXVNNI)
    {"i8_avxvnni", i8_avxvnni, 12 * 2 * 32},
#endif
#endif
    {"f32_sse2", f32_sse2, 6 * 2 * 4},
#else
    {"f32_neon", f32_neon, 24 * 2 * 4},
#if defined(HAS_FULLFP16)
    {"f16_neon", f16_neon, 24 * 2 * 8},
#endif
#if defined(HAS_BF16)
    {"bf16_neon", bf16_neon, 24 * 2 * 16},
#endif
#if defined(HAS_DOTPROD)
    {"i8_dotprod", i8_dotprod, 24 * 2 * 16},
#endif
#if defined(HAS_I8MM)
    {"i8_i8mm", i8_i8mm, 24 * 2 * 32},
#endif
#endif
    {"chain", chain, 8},
};

static struct {
  const struct kernel *kernel;  // null to read memory
  char *memory;
  long slice;  // bytes of one thread
  long iterations;
  int threads, cpus[MOST_THREADS];
  double seconds;
  atomic_int waiting, round, done;
  double begin[MOST_THREADS], end[MOST_THREADS];
} job;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void meet(void) {  // a barrier that spins: a sleeping one wakes its threads too far apart
  int round = atomic_load(&job.round);
  if (atomic_fetch_add(&job.waiting, 1) + 1 == job.threads) {
    atomic_store(&job.waiting, 0);
    atomic_store(&job.round, round + 1);
    return;
  }
  for (long spins = 1; atomic_load(&job.round) == round; spins++)
    if (spins % 4096 == 0) sched_yield();
}

static void work(int thread) {
  if (job.kernel) {
    job.kernel->run(job.iterations);
    return;
  }
  for (long pass = 0; pass < job.iterations; pass++)
    read_bytes(job.memory + thread * job.slice, job.slice / READ_STEP);
}

static void calibrate(void) {  // until one piece of work lasts 0.3 ms
  for (job.iterations = 1;; job.iterations *= 2) {
    double start = now();
    work(0);
    if (now() - start > 3e-4) return;
  }
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double span(void) {
  double begin = job.begin[0], end = job.end[0];
  for (int i = 1; i < job.threads; i++) {
    if (job.begin[i] < begin) begin = job.begin[i];
    if (job.end[i] > end) end = job.end[i];
  }
  return end - begin;
}

static void stay_on(int cpu) {  // without it a busy machine puts two threads on one processor
  cpu_set_t *set = CPU_ALLOC((size_t)cpu + 1);
  size_t size = CPU_ALLOC_SIZE((size_t)cpu + 1);
  if (!set) exit(4);
  CPU_ZERO_S(size, set);
  CPU_SET_S((size_t)cpu, size, set);
  pthread_setaffinity_np(pthread_self(), size, set);
  CPU_FREE(set);
}

static void *thread_main(void *argument) {
  static double times[MOST_TIMES];
  static double tenth;
  int thread = (int)(intptr_t)argument, count = 0;
  stay_on(job.cpus[thread]);
  if (job.memory) memset(job.memory + thread * job.slice, 1, (size_t)job.slice);
  meet();
  if (thread == 0) calibrate();
  meet();
  double deadline = now() + job.seconds;
  while (!atomic_load(&job.done)) {
    meet();
    job.begin[thread] = now();
    work(thread);
    job.end[thread] = now();
    meet();
    if (thread == 0) {
      times[count++] = span();
      if (count == MOST_TIMES || (count >= 5 && now() > deadline)) atomic_store(&job.done, 1);
    }
    meet();
  }
  if (thread != 0) return NULL;
  qsort(times, (size_t)count, sizeof *times, ascending);
  tenth = times[count / 10];
  return &tenth;
}

static double measure(void) {  // seconds that one piece of work takes
  static pthread_t others[MOST_THREADS];
  for (intptr_t i = 1; i < job.threads; i++)
    if (pthread_create(&others[i], NULL, thread_main, (void *)i)) exit(4);
  double time = *(double *)thread_main((void *)0);
  for (int i = 1; i < job.threads; i++) pthread_join(others[i], NULL);
  return time;
}

static int rate(const char *name) {
  for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
    if (!strcmp(kernels[i].name, name)) job.kernel = &kernels[i];
  if (!job.kernel) return 2;
  double time = measure();
  printf("%.6g\n", job.kernel->operations * (double)job.iterations * job.threads / time * 1e-9);
  return 0;
}

static int read_memory(long bytes) {
  const size_t huge = 2u << 20;
  job.slice = bytes / job.threads / READ_STEP * READ_STEP;
  if (job.slice <= 0) return 2;
  size_t room = ((size_t)job.slice * (size_t)job.threads + huge - 1) / huge * huge;
  job.memory = aligned_alloc(huge, room);
  if (!job.memory) return 4;
  madvise(job.memory, room, MADV_HUGEPAGE);
  double time = measure();
  printf("%.6g\n", (double)job.slice * (double)job.iterations * job.threads / time * 1e-9);
  return 0;
}

int main(int count, char **words) {
  if (count < 4) return 2;
  job.seconds = atof(words[count - 1]);
  for (char *cpu = strtok(words[count - 2], ","); cpu && job.threads < MOST_THREADS; cpu = strtok(NULL, ","))
    job.cpus[job.threads++] = atoi(cpu);
  if (job.threads == 0) return 2;
  if (count == 4 && !strcmp(words[1], "clock")) return rate("chain");
  if (count == 5 && !strcmp(words[1], "rate")) return rate(words[2]);
  if (count == 5 && !strcmp(words[1], "read")) return read_memory(atol(words[2]));
  return 2;
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_le.h"
#include "dw_store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* What the delay store takes:
 *
 *     bench_store DIRECTORY [messages] [bytes] [spread_ms] [sequential]
 *
 * (1,000,000 of 1,024 bytes over an hour if not given). DIRECTORY must not exist. Messages due at
 * random within `spread_ms`, or with "sequential" in the order of insertion, are inserted in
 * batches of 256 with a flush every 4 MiB; a checkpoint is taken; the store is closed and opened
 * again; then time goes by, in steps of a hundredth, with upkeep, and all that comes due is taken
 * and settled, 1,000 at a time. The pages of the files are in memory. On a shared machine the
 * processor's time is the steadier figure. */

#define T0 UINT64_C(1700000000000)

enum { BATCH = 256, FLUSH_BYTES = 4 << 20, TAKE = 1000, STEPS = 100 };

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void must(int result, const char *what) {
    if (result != DW_OK) {
        fprintf(stderr, "bench_store: %s: %s\n", what, dw_strerror(result));
        exit(1);
    }
}

static uint64_t rss_bytes(void) {
    unsigned long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f == NULL || fscanf(f, "%lu %lu", &pages, &resident) != 2) {
        return 0;
    }
    fclose(f);
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t random_state = 1;

static uint64_t random64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

struct plan {
    uint64_t n;
    uint32_t bytes;
    uint64_t spread;
    int sequential;
};

/* ------------------------------------------------------------------ phases */

static uint64_t fill(dw_store *store, const struct plan *plan) {
    const size_t record = 24 + (size_t)plan->bytes;
    uint8_t *batch = calloc(BATCH, record);
    uint64_t index = 0, done = 0;
    double flushing = 0, longest = 0;
    if (batch == NULL) {
        must(DW_ENOMEM, "batch");
    }
    const double begun = now_s(), cpu = cpu_s();
    while (done < plan->n) {
        const uint64_t n = plan->n - done < BATCH ? plan->n - done : BATCH;
        for (uint64_t i = 0; i < n; i++) {
            uint8_t *p = batch + i * record;
            dw_le32_put(p, plan->bytes);
            dw_le64_put(p + 8, plan->sequential ? (done + i) * plan->spread / plan->n
                                                : random64() % plan->spread);
            dw_le64_put(p + 16, done + i + 1);
        }
        struct dw_inserted out;
        const double before = now_s();
        must(dw_store_insert(store, ++index, T0, batch, n * record, &out), "insert");
        const double took = now_s() - before;
        longest = took > longest ? took : longest;
        done += n;
        if (out.buffered > FLUSH_BYTES || done == plan->n) {
            const double flush = now_s();
            must(dw_store_flush(store), "flush");
            flushing += now_s() - flush;
        }
    }
    const double took = now_s() - begun;
    printf(
        "insert      %9.0f/s, %.0f ns of CPU each; %.2f of %.2f s in flush, longest batch of %d: "
        "%.2f ms\n",
        (double)plan->n / took, (cpu_s() - cpu) * 1e9 / (double)plan->n, flushing, took, BATCH,
        longest * 1e3);
    free(batch);
    return index;
}

static void checkpoint(dw_store *store, const char *dir, const char *what) {
    dw_checkpoint *one;
    struct dw_stat stat;
    char snapshot[4096];
    snprintf(snapshot, sizeof snapshot, "%s/snapshot-%s", dir, what);
    const double begun = now_s();
    must(dw_store_checkpoint(store, &one), "checkpoint");
    const double captured = now_s();
    must(dw_checkpoint_finish(one, snapshot), "finish");
    dw_checkpoint_release(one);
    const double finished = now_s();
    dw_store_stat(store, &stat);
    printf("checkpoint  %9.1f ms to begin, %.1f ms to finish with snapshot (%s; %u partitions)\n",
           (captured - begun) * 1e3, (finished - captured) * 1e3, what, stat.partitions);
}

static dw_store *open_store(const char *dir, const char *what) {
    const struct dw_config config = {.now_ms = T0,
                                     .max_record_bytes = 1 << 27,
                                     .max_open_files = 256};
    struct dw_recovery report;
    dw_store *store;
    const double begun = now_s(), cpu = cpu_s();
    must(dw_store_open(dir, &config, &store, &report), "open");
    printf("open        %9.3f s, %.3f s of CPU; %" PRIu64 " pending (%s)\n", now_s() - begun,
           cpu_s() - cpu, report.pending, what);
    return store;
}

struct sink_memory {
    uint8_t *body;
    size_t bytes;
    uint64_t ids[TAKE];
    uint32_t n;
};

static void *body(void *ctx, const struct dw_record *record) {
    struct sink_memory *memory = ctx;
    return record->length <= memory->bytes ? memory->body : NULL;
}

static void done(void *ctx, const struct dw_record *record) {
    struct sink_memory *memory = ctx;
    memory->ids[memory->n++] = record->id;
}

static void corrupt(void *ctx, const struct dw_record *record, const char *file, uint64_t offset) {
    (void)ctx;
    fprintf(stderr, "bench_store: %" PRIu64 " is corrupt: %s at %" PRIu64 "\n", record->id, file,
            offset);
    exit(1);
}

static void upkeep(dw_store *store, uint64_t now, double *longest) {
    bool more = true;
    while (more) {
        const double begun = now_s();
        must(dw_store_maintain(store, now, 4 << 20, &more), "maintain");
        const double took = now_s() - begun;
        *longest = took > *longest ? took : *longest;
    }
}

static void drain(dw_store *store, const struct plan *plan, uint64_t index) {
    static struct sink_memory memory;
    const struct dw_sink sink = {body, done, corrupt, &memory};
    double taking = 0, settling = 0, maintaining = 0, longest = 0, take_cpu = 0, settle_cpu = 0;
    uint64_t drained = 0, next_due = 0, removed;
    memory.bytes = plan->bytes;
    memory.body = malloc(plan->bytes);
    for (uint64_t step = 1; step <= STEPS; step++) {
        const uint64_t now = T0 + plan->spread * step / STEPS;
        double begun = now_s();
        upkeep(store, now, &longest);
        maintaining += now_s() - begun;
        do {
            memory.n = 0;
            begun = now_s();
            const double cpu = cpu_s();
            must(dw_store_take(store, now, TAKE, UINT64_MAX, &sink, &next_due), "take");
            const double taken = now_s(), taken_cpu = cpu_s();
            must(dw_store_settle(store, ++index, memory.ids, memory.n, &removed), "settle");
            taking += taken - begun;
            settling += now_s() - taken;
            take_cpu += taken_cpu - cpu;
            settle_cpu += cpu_s() - taken_cpu;
            drained += memory.n;
        } while (next_due <= now);
    }
    free(memory.body);
    if (drained != plan->n) {
        fprintf(stderr, "bench_store: %" PRIu64 " came out\n", drained);
        exit(1);
    }
    printf("take        %9.0f/s, %.0f ns of CPU each\n", (double)drained / taking,
           take_cpu * 1e9 / (double)drained);
    printf("settle      %9.0f/s, %.0f ns of CPU each\n", (double)drained / settling,
           settle_cpu * 1e9 / (double)drained);
    printf("upkeep      %9.2f s in all, longest call of 4 MiB %.1f ms\n", maintaining,
           longest * 1e3);
}

int main(int argc, char **argv) {
    if (argc < 2 || mkdir(argv[1], 0700) != 0) {
        fputs("bench_store DIRECTORY [messages] [bytes] [spread_ms] [sequential]\n", stderr);
        return 1;
    }
    const struct plan plan = {
        .n = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000000,
        .bytes = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 1024,
        .spread = argc > 4 ? strtoull(argv[4], NULL, 10) : 3600000,
        .sequential = argc > 5 && strcmp(argv[5], "sequential") == 0,
    };
    char dir[4096];
    snprintf(dir, sizeof dir, "%s/store", argv[1]);
    printf("%" PRIu64 " messages of %u bytes within %" PRIu64 " ms, %s\n", plan.n, plan.bytes,
           plan.spread, plan.sequential ? "in order" : "at random");
    const uint64_t before = rss_bytes();
    dw_store *store = open_store(dir, "new");
    const uint64_t index = fill(store, &plan);
    struct dw_stat stat;
    dw_store_stat(store, &stat);
    printf("memory      %9.1f B a message as counted, %.1f B resident\n",
           (double)stat.memory_bytes / (double)plan.n,
           (double)(rss_bytes() - before) / (double)plan.n);
    checkpoint(store, argv[1], "full");
    checkpoint(store, argv[1], "unchanged");
    dw_store_close(store);
    dw_store_release(store);
    store = open_store(dir, "again");
    drain(store, &plan, index);
    checkpoint(store, argv[1], "empty");
    dw_store_close(store);
    dw_store_release(store);
    return 0;
}

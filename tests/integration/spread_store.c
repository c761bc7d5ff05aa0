/* SPDX-License-Identifier: MPL-2.0 */
/* spread_store DIRECTORY NOW_MS: lays the store of a stopped broker out anew, each message that is
 * due soon after that time in a partition of its own. That is all that changes: it holds the same
 * messages, at the same Raft index. A broker makes larger ones; with as many of these as there can
 * be, its store is full with a few thousand messages (test_full_store.py). */
#include "dw_store.h"

#include <stdio.h>
#include <stdlib.h>

static void must(int result, const char *what) {
    if (result != DW_OK) {
        fprintf(stderr, "%s: %s\n", what, dw_strerror(result));
        exit(1);
    }
}

static void log_to_stderr(void *ctx, enum dw_level level, const char *message) {
    (void)ctx;
    (void)level;
    fprintf(stderr, "%s\n", message);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s DIRECTORY NOW_MS\n", argv[0]);
        return 1;
    }
    const uint64_t now_ms = strtoull(argv[2], NULL, 10);
    const struct dw_config config = {.now_ms = now_ms,
                                     .max_record_bytes = 1 << 30,
                                     .max_open_files = 64,
                                     .partition_bytes = 1,
                                     .split_bytes = 1,
                                     .log = log_to_stderr};
    dw_store *store;
    struct dw_recovery report;
    struct dw_stat stat;
    dw_checkpoint *checkpoint;
    must(dw_store_open(argv[1], &config, &store, &report), "open");
    for (bool more = true; more;) {
        must(dw_store_maintain(store, now_ms, 1 << 20, &more), "maintain");
    }
    must(dw_store_checkpoint(store, &checkpoint), "checkpoint");
    must(dw_checkpoint_finish(checkpoint, NULL), "finish");
    dw_checkpoint_release(checkpoint);
    must(dw_store_stat(store, &stat), "stat");
    dw_store_close(store);
    dw_store_release(store);
    printf("%llu %llu\n", (unsigned long long)stat.pending, (unsigned long long)stat.partitions);
    return 0;
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The life of a store, from its first call to its last, its lock, and its figures. Its opening is
 * in dw_recovery.c. Any thread. */

_Static_assert(sizeof(struct dw_stat) % sizeof(uint64_t) == 0, "copied word by word");

enum { SCRATCH_KEPT = 1024 * 1024 };

/* -------------------------------------------------------------------- life */

int dw_enter(struct dw_store *store) {
    dw_lock(store);
    const int result = dw_closed_error(store);
    if (result != DW_OK) {
        dw_unlock(store);
        return result;
    }
    store->ops++;
    return DW_OK;
}

int dw_enter_at(struct dw_store *store, uint64_t now_ms) {
    const int result = dw_enter(store);
    if (result == DW_OK) {
        store->clock = now_ms < DW_DUE_MAX ? now_ms : DW_DUE_MAX;
    }
    return result;
}

int dw_closed_error(const struct dw_store *store) {
    switch (ck_pr_load_uint(&store->closed)) {
    case STORE_OPEN:
        return DW_OK;
    case STORE_CLOSED:
        return DW_ECLOSED;
    default:
        return DW_EBROKEN;
    }
}

/* The store is not to be used any more: what is in memory may be wrong, and what is on the disk is
 * as it was at the last checkpoint, from which Raft's log leads on. */
static void note_broken_locked(struct dw_store *store) {
    const bool first = store->closed == STORE_OPEN;
    if (first) {
        ck_pr_store_uint(&store->closed, STORE_BROKEN);
        dw_unlock(store);
        dw_log(store, DW_LOG_ERROR,
               "%s: the store is closed, as something that must hold does not: %s", store->dir,
               dw_broken_note());
        dw_lock(store);
    }
    dw_broken_forget();
}

int dw_leave(struct dw_store *store, int result) {
    if (dw_broken_note() != NULL) {
        note_broken_locked(store);
        result = DW_EBROKEN;
    }
    if (--store->ops == 0 && store->closed) {
        pthread_cond_broadcast(&store->idle);
    }
    dw_unlock(store);
    return result;
}

/* A thread that has the lock most of the time would mostly be interrupted with it; so it says where
 * it may be. */
void dw_yield_locked(struct dw_store *store) {
    dw_unlock(store);
    sched_yield();
    dw_lock(store);
}

void dw_store_close(dw_store *store) {
    dw_lock(store);
    if (store->closed == STORE_OPEN) {
        ck_pr_store_uint(&store->closed, STORE_CLOSED);
    }
    while (store->ops > 0) {
        pthread_cond_wait(&store->idle, &store->lock);
    }
    dw_unlock(store);
    dw_files_close(&store->files);
}

void dw_free_pending(dw_slab *slab, dw_wheel *wheel, dw_heap *heap, dw_index *by_id,
                     dw_index *by_key) {
    if (wheel != NULL) {
        dw_wheel_free(wheel);
    }
    if (heap != NULL) {
        dw_heap_free(heap);
    }
    if (by_id != NULL) {
        dw_index_free(by_id);
    }
    if (by_key != NULL) {
        dw_index_free(by_key);
    }
    if (slab != NULL) {
        dw_slab_free(slab);
    }
}

void dw_store_free(struct dw_store *store) {
    const struct dw_alloc *alloc = store->alloc;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        if (store->parts[i] != NULL) {
            dw_partition_free(alloc, store->parts[i]);
        }
    }
    dw_free_pending(store->slab, store->wheel, store->heap, store->by_id, store->by_key);
    dw_origins_free(&store->origins);
    dw_origins_free(&store->unread);
    dw_partition_empty(alloc, &store->nowhere);
    dw_release(alloc, store->parts);
    dw_release(alloc, store->marked);
    dw_release(alloc, store->scratch);
    dw_release(alloc, store->dir);
    if (store->files.budget != NULL) {
        dw_files_end(&store->files);
    }
    pthread_cond_destroy(&store->idle);
    pthread_mutex_destroy(&store->lock);
    pthread_mutex_destroy(&store->turn);
    dw_release(alloc, store);
    dw_broken_forget();
}

void dw_store_release(dw_store *store) {
    if (store != NULL) {
        if (DW_INVARIANT(store->closed != STORE_OPEN && store->ops == 0)) {
            dw_store_free(store);
        }
        dw_broken_forget();
    }
}

void dw_log(const struct dw_store *store, enum dw_level level, const char *format, ...) {
    if (store->log == NULL) {
        return;
    }
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    store->log(store->log_ctx, level, message);
}

void *dw_scratch(struct dw_store *store, size_t bytes) {
    if (bytes > store->scratch_bytes || store->scratch_bytes > SCRATCH_KEPT) {
        void *memory = dw_get(store->alloc, bytes);
        if (memory == NULL) {
            return NULL;
        }
        dw_release(store->alloc, store->scratch);
        store->scratch = memory;
        dw_lock(store);
        store->scratch_bytes = bytes;
        dw_unlock(store);
    }
    return store->scratch;
}

/* -------------------------------------------------------------- statistics
 * The numbers are copied word by word with atomic loads and stores, between two steps of a counter
 * that tell a reader whether it saw a mixture; if so it reads again. */

void dw_publish_locked(struct dw_store *store) {
    struct dw_stat stat = {
        .pending = store->pending,
        .pending_bytes = store->pending_bytes,
        .taken = store->taken,
        .next_due = dw_next_due_locked(store),
        .applied = store->applied,
        .digest = store->applied_digest,
        .checkpoint_applied = store->durable_applied,
        .buffered = store->buffered,
        .file_bytes = store->total_bytes - store->buffered,
        .dead_bytes = store->rec_bytes - store->live_bytes,
        .memory_bytes = dw_slab_bytes(store->slab) + dw_wheel_bytes(store->wheel) +
                        dw_heap_bytes(store->heap) + dw_index_bytes(store->by_id) +
                        dw_index_bytes(store->by_key) + dw_origins_bytes(&store->origins) +
                        dw_origins_bytes(&store->unread) + store->scratch_bytes + store->buffered +
                        sizeof *store + 2 * store->parts_capacity * sizeof *store->parts +
                        store->parts_used * sizeof **store->parts,
        .corrupt_records = store->corrupt_records,
        .unreadable = store->unread.count,
        .read_errors = store->read_errors,
        .partitions = store->parts_used - store->retired,
        .open_files = ck_pr_load_32(&store->files.open),
        .write_error = (uint32_t)store->write_error,
        .full = store->parts_used >= DW_FULL_PARTITIONS ||
                dw_slab_used(store->slab) >= DW_FULL_MESSAGES,
    };
    dw_files_unwritten(&store->files, store->write_error != 0, store->buffered);
    dw_wheel_histogram(store->wheel, stat.histogram);
    stat.histogram[0] += dw_heap_count(store->heap) + store->stranded;
    uint64_t words[DW_STAT_WORDS];
    memcpy(words, &stat, sizeof words);
    ck_sequence_write_begin(&store->sequence);
    for (size_t i = 0; i < DW_STAT_WORDS; i++) {
        ck_pr_store_64(&store->published[i], words[i]);
    }
    ck_sequence_write_end(&store->sequence);
}

static void published(struct dw_store *store, struct dw_stat *out) {
    uint64_t words[DW_STAT_WORDS];
    unsigned version;
    do {
        version = ck_sequence_read_begin(&store->sequence);
        for (size_t i = 0; i < DW_STAT_WORDS; i++) {
            words[i] = ck_pr_load_64(&store->published[i]);
        }
    } while (ck_sequence_read_retry(&store->sequence, version));
    memcpy(out, words, sizeof words);
}

int dw_store_stat(dw_store *store, struct dw_stat *out) {
    published(store, out);
    return dw_closed_error(store);
}

uint64_t dw_store_applied(dw_store *store) {
    return ck_pr_load_64(&store->published[offsetof(struct dw_stat, applied) / sizeof(uint64_t)]);
}

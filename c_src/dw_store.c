/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

#include "dw_batch.h"
#include "dw_crc32c.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

_Static_assert(sizeof(struct dw_stat) % sizeof(uint64_t) == 0, "copied word by word");

/* Calls that visit many entries let go of the lock after this many. */
enum { STEP = 1024 };
/* References that a call visits, at most, to find out what is due next. */
enum { NEXT_BUDGET = 8192 };
/* A partition that is empty but may be appended to again is kept while it is at most this long. */
enum { KEEP_EMPTY_BYTES = 64 * 1024 };
enum { SCRATCH_KEPT = 1024 * 1024, PARTS_MIN = 64 };

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
static void note_broken(struct dw_store *store) {
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
        note_broken(store);
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
void dw_let_others(struct dw_store *store) {
    dw_unlock(store);
    sched_yield();
    dw_lock(store);
}

void dw_breathe(struct dw_store *store, size_t i) {
    if (i % STEP == STEP - 1) {
        dw_let_others(store);
    }
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

void dw_store_free(struct dw_store *store) {
    const struct dw_alloc *alloc = store->alloc;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        if (store->parts[i] != NULL) {
            dw_partition_free(alloc, store->parts[i]);
        }
    }
    if (store->wheel != NULL) {
        dw_wheel_free(store->wheel);
    }
    if (store->heap != NULL) {
        dw_heap_free(store->heap);
    }
    if (store->by_id != NULL) {
        dw_index_free(store->by_id);
    }
    if (store->by_key != NULL) {
        dw_index_free(store->by_key);
    }
    if (store->slab != NULL) {
        dw_slab_free(store->slab);
    }
    dw_origins_free(&store->origins);
    dw_origins_free(&store->unread);
    dw_partition_empty(alloc, &store->nowhere);
    dw_release(alloc, store->parts);
    dw_release(alloc, store->touched);
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

/* -------------------------------------------------------------- scheduling */

uint64_t dw_next_due(struct dw_store *store) {
    uint64_t due = dw_wheel_next_within(store->wheel, NEXT_BUDGET);
    uint32_t top = dw_heap_top(store->heap);
    if (top != DW_NIL) {
        uint64_t late = dw_slab_at(store->slab, top)->due;
        due = late < due ? late : due;
    }
    if (store->stranded > 0 && store->stranded_due < due) {
        due = store->stranded_due;
    }
    return due;
}

int dw_schedule(struct dw_store *store, uint32_t k) {
    int result = dw_wheel_insert(store->wheel, k);
    return result == DW_ELATE ? dw_heap_push(store->heap, k) : result;
}

int dw_requeue(struct dw_store *store, uint32_t k) {
    struct dw_entry *entry = dw_slab_at(store->slab, k);
    const uint64_t state = entry->state;
    /* What is due in the wheel's very millisecond must come out by id, and the wheel would put it
     * behind what it has; the heap does not. */
    int result = entry->due <= dw_wheel_now(store->wheel) ? dw_heap_push(store->heap, k)
                                                          : dw_wheel_insert(store->wheel, k);
    if (result == DW_OK) {
        *(state == DW_STRANDED ? &store->stranded : &store->taken) -= 1;
    }
    return result;
}

int dw_requeue_all(struct dw_store *store, uint32_t state) {
    const bool stranded = state == DW_STRANDED;
    int result = DW_OK;
    dw_lock(store);
    for (uint32_t k = 0; result == DW_OK && k < dw_slab_limit(store->slab); k++) {
        if ((stranded ? store->stranded : store->taken) == 0) {
            break;
        }
        if (k % STEP == STEP - 1) {
            dw_publish(store);
            dw_let_others(store);
        }
        struct dw_entry *entry = dw_slab_at(store->slab, k);
        if (entry->state == state) {
            if (!stranded) {
                entry->due = dw_origin_get(&store->origins, k, entry->due) & DW_DUE_MAX;
                dw_origin_forget(&store->origins, k);
            }
            result = dw_requeue(store, k);
        }
    }
    dw_publish(store);
    dw_unlock(store);
    return result;
}

int dw_store_untake(dw_store *store) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    result = dw_requeue_all(store, DW_STRANDED);
    if (result == DW_OK) {
        result = dw_requeue_all(store, DW_TAKEN);
    }
    dw_lock(store);
    return dw_leave(store, result);
}

static int postpone(struct dw_store *store, uint64_t id, uint64_t until) {
    uint32_t k = dw_index_find(store->by_id, id);
    if (k == DW_NIL) {
        return DW_ENOENT;
    }
    struct dw_entry *entry = dw_slab_at(store->slab, k);
    if (entry->state != DW_TAKEN) {
        return DW_ENOENT;
    }
    const uint64_t before = entry->due;
    const bool first = dw_origin_get(&store->origins, k, DW_NEVER) == DW_NEVER;
    int result = dw_origin_note(&store->origins, k, before);
    if (result == DW_OK) {
        entry->due = (until < DW_DUE_MAX ? until : DW_DUE_MAX) & DW_DUE_MAX;
        result = dw_requeue(store, k);
        if (result != DW_OK) {
            entry->due = before & DW_DUE_MAX;
            if (first) {
                dw_origin_forget(&store->origins, k);
            }
        }
    }
    return result;
}

int dw_store_postpone(dw_store *store, uint64_t id, uint64_t until) {
    int result = dw_enter(store);
    if (result == DW_OK) {
        result = postpone(store, id, until);
        dw_publish(store);
        result = dw_leave(store, result);
    }
    return result;
}

uint64_t dw_store_next_due(dw_store *store) {
    if (dw_enter(store) != DW_OK) {
        return DW_NEVER;
    }
    uint64_t due = dw_next_due(store);
    return dw_leave(store, DW_OK) == DW_OK ? due : DW_NEVER;
}

/* -------------------------------------------------------------- partitions */

int dw_grow_parts(struct dw_store *store, uint32_t capacity) {
    if (capacity <= store->parts_capacity) {
        return DW_OK;
    }
    capacity = capacity < PARTS_MIN ? PARTS_MIN : capacity < DW_PART_MAX ? capacity : DW_PART_MAX;
    /* And one for `nowhere'. */
    const size_t bytes = (capacity + (size_t)1) * sizeof *store->parts;
    struct dw_partition **parts = dw_get(store->alloc, bytes);
    struct dw_partition **touched = dw_get(store->alloc, bytes);
    if (parts == NULL || touched == NULL) {
        dw_release(store->alloc, parts);
        dw_release(store->alloc, touched);
        return DW_ENOMEM;
    }
    struct dw_partition **old_touched = store->touched;
    memset(parts, 0, bytes);
    memset(touched, 0, bytes);
    if (store->touched_count > 0) {
        memcpy(touched, old_touched, store->touched_count * sizeof *touched);
    }
    dw_lock(store);
    struct dw_partition **old_parts = store->parts;
    if (store->parts_capacity > 0) {
        memcpy(parts, old_parts, store->parts_capacity * sizeof *parts);
    }
    store->parts = parts;
    store->parts_capacity = capacity;
    store->touched = touched;
    dw_unlock(store);
    dw_release(store->alloc, old_parts);
    dw_release(store->alloc, old_touched);
    return DW_OK;
}

static bool takes_more(const struct dw_store *store, const struct dw_partition *partition) {
    const uint64_t length = dw_stream_length(&partition->rec);
    return !partition->sealed && (length == DW_FILE_HEADER || length < store->partition_bytes);
}

static struct dw_partition *find_target(struct dw_store *store, uint32_t level, uint64_t slice) {
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        struct dw_partition *partition = store->parts[i];
        if (partition != NULL && partition->level == level && partition->slice == slice &&
            takes_more(store, partition)) {
            return partition;
        }
    }
    return NULL;
}

/* Makes a partition for the slice and gives it the lowest free number. */
static int new_target(struct dw_store *store, uint32_t level, uint64_t slice,
                      struct dw_partition **out) {
    /* Whoever finishes a checkpoint frees some. */
    dw_lock(store);
    const bool full = store->parts_used == store->parts_capacity;
    dw_unlock(store);
    if (full) {
        if (store->parts_capacity >= DW_PART_MAX) {
            return DW_EFULL;
        }
        uint32_t capacity = 2 * store->parts_capacity;
        int result = dw_grow_parts(store, capacity < DW_PART_MAX ? capacity : DW_PART_MAX);
        if (result != DW_OK) {
            return result;
        }
    }
    struct dw_partition *partition =
        dw_partition_new(store->alloc, store->next_serial, level, slice);
    if (partition == NULL) {
        return DW_ENOMEM;
    }
    store->next_serial++;
    dw_lock(store);
    uint32_t number = 0;
    while (store->parts[number] != NULL) {
        number++;
    }
    partition->number = number;
    store->parts[number] = partition;
    store->parts_used++;
    store->total_bytes += 2 * DW_FILE_HEADER;
    store->buffered += 2 * DW_FILE_HEADER;
    dw_unlock(store);
    *out = partition;
    return DW_OK;
}

/* There can be no other partition: the one that has most room, whatever its slice. Where a record
 * lies is a matter of speed alone. */
static struct dw_partition *find_any(struct dw_store *store) {
    struct dw_partition *best = NULL;
    uint64_t best_length = DW_PARTITION_BYTES_MAX - UINT32_MAX;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        struct dw_partition *partition = store->parts[i];
        if (partition != NULL && !partition->sealed &&
            dw_stream_length(&partition->rec) < best_length) {
            best = partition;
            best_length = dw_stream_length(&partition->rec);
        }
    }
    return best;
}

int dw_target(struct dw_store *store, uint64_t clock_ms, uint64_t due, struct dw_partition **out) {
    uint32_t level;
    uint64_t slice;
    dw_place(clock_ms, due, &level, &slice);
    struct dw_partition **target = &store->target[level][slice % DW_TARGETS];
    struct dw_partition *partition = *target;
    if (partition == NULL || partition->slice != slice || !takes_more(store, partition)) {
        dw_lock(store);
        partition = find_target(store, level, slice);
        dw_unlock(store);
    }
    if (partition == NULL) {
        *target = NULL;
        int result = new_target(store, level, slice, &partition);
        if (result == DW_EFULL) {
            dw_lock(store);
            *out = find_any(store);
            dw_unlock(store);
            return *out != NULL ? DW_OK : DW_EFULL;
        }
        if (result != DW_OK) {
            return result;
        }
    }
    *target = partition;
    *out = partition;
    return DW_OK;
}

void dw_touch(struct dw_store *store, struct dw_partition *partition) {
    if (!partition->touched) {
        partition->touched = true;
        partition->rec_mark = dw_stream_length(&partition->rec);
        partition->idx_mark = dw_stream_length(&partition->idx);
        partition->added = 0;
        partition->added_bytes = 0;
        partition->doomed = 0;
        store->touched[store->touched_count++] = partition;
    }
}

void dw_rollback(struct dw_store *store) {
    for (uint32_t i = 0; i < store->touched_count; i++) {
        struct dw_partition *partition = store->touched[i];
        dw_stream_truncate(&partition->rec, partition->rec_mark);
        dw_stream_truncate(&partition->idx, partition->idx_mark);
        partition->touched = false;
    }
    store->touched_count = 0;
}

static void retire(struct dw_store *store, struct dw_partition *partition) {
    partition->retired = true;
    partition->sealed = true;
    store->retired++;
    if (store->moving == partition) {
        store->moving = NULL;
    }
    struct dw_partition **target = &store->target[partition->level][partition->slice % DW_TARGETS];
    if (*target == partition) {
        *target = NULL;
    }
    const uint64_t rec = dw_stream_buffered(&partition->rec);
    const uint64_t idx = dw_stream_buffered(&partition->idx);
    store->buffered -= rec + idx;
    store->total_bytes -= rec + idx;
    /* The header of the file is no record. */
    store->rec_bytes -= partition->rec.written > 0 ? rec : rec - DW_FILE_HEADER;
}

void dw_retire_if_empty(struct dw_store *store, struct dw_partition *partition) {
    if (partition->live == 0 && !partition->retired &&
        (!takes_more(store, partition) || dw_stream_length(&partition->rec) > KEEP_EMPTY_BYTES ||
         dw_slice_is_past(store->clock, partition->level, partition->slice))) {
        retire(store, partition);
    }
}

void dw_commit(struct dw_store *store) {
    for (uint32_t i = 0; i < store->touched_count; i++) {
        struct dw_partition *partition = store->touched[i];
        const uint64_t rec = dw_stream_length(&partition->rec) - partition->rec_mark;
        const uint64_t idx = dw_stream_length(&partition->idx) - partition->idx_mark;
        store->rec_bytes += rec;
        store->total_bytes += rec + idx;
        store->buffered += rec + idx;
        store->live_bytes += partition->added_bytes;
        partition->live += partition->added;
        partition->live_bytes += partition->added_bytes;
        partition->touched = false;
        dw_retire_if_empty(store, partition);
    }
    store->touched_count = 0;
}

void dw_record_dead(struct dw_store *store, uint32_t k) {
    const struct dw_entry *entry = dw_slab_at(store->slab, k);
    struct dw_partition *partition = dw_part_of(store, entry);
    const uint64_t bytes = dw_rec_bytes(entry->len);
    partition->live--;
    partition->live_bytes -= bytes;
    store->live_bytes -= bytes;
    dw_partition_dead(partition, entry->off);
}

int dw_reserve_doomed(struct dw_store *store) {
    for (uint32_t i = 0; i < store->touched_count; i++) {
        struct dw_partition *partition = store->touched[i];
        if (partition->doomed > 0) {
            int result =
                dw_partition_reserve_dead(partition, store->alloc, &store->lock, partition->doomed);
            if (result != DW_OK) {
                return result;
            }
        }
    }
    return DW_OK;
}

/* A partition's buffers, and it, for the caller to free without the lock. */
struct remains {
    struct dw_partition *partition; /* NULL: only the buffers */
    struct dw_buf *buffers[6];
};

static void take_buffers(struct dw_partition *partition, struct dw_buf *out[6]) {
    struct dw_stream *streams[2] = {&partition->rec, &partition->idx};
    for (int i = 0; i < 2; i++) {
        out[3 * i] = streams[i]->writing;
        out[3 * i + 1] = streams[i]->active;
        out[3 * i + 2] = streams[i]->spare;
        streams[i]->writing = NULL;
        streams[i]->active = NULL;
        streams[i]->spare = NULL;
    }
}

/* The next retired partition with which something can be done. */
static bool next_remains(struct dw_store *store, uint32_t *number, struct remains *out) {
    for (; store->retired > 0 && *number < store->parts_capacity; (*number)++) {
        struct dw_partition *partition = store->parts[*number];
        if (partition == NULL || !partition->retired || partition->pins > 0) {
            continue;
        }
        *out = (struct remains){.partition = NULL};
        take_buffers(partition, out->buffers);
        if (partition->named == 0 || partition->named < store->durable) {
            store->parts[*number] = NULL;
            store->parts_used--;
            store->retired--;
            store->total_bytes -= partition->rec.written + partition->idx.written;
            store->rec_bytes -=
                partition->rec.written > 0 ? partition->rec.written - DW_FILE_HEADER : 0;
            out->partition = partition;
        }
        (*number)++;
        return true;
    }
    return false;
}

static void unlink_file(struct dw_store *store, const struct dw_partition *partition,
                        enum dw_file_kind kind) {
    char name[DW_FILE_NAME_BYTES];
    dw_file_name(name, kind, partition->serial, partition->level, partition->slice);
    const int dirfd = dw_files_dir(&store->files);
    const int err = dirfd < 0 || store->io->unlinkat(dirfd, name, 0) != 0 ? errno : 0;
    if (dirfd >= 0) {
        dw_files_release(&store->files.dir);
    }
    if (err != 0 && err != ENOENT) {
        dw_log(store, DW_LOG_WARNING, "%s/%s: cannot be removed: %s", store->dir, name,
               strerror(err));
    }
}

void dw_reap(struct dw_store *store) {
    uint32_t number = 0;
    struct remains remains;
    dw_lock(store);
    while (next_remains(store, &number, &remains)) {
        dw_unlock(store);
        for (int i = 0; i < 6; i++) {
            dw_release(store->alloc, remains.buffers[i]);
        }
        if (remains.partition != NULL) {
            dw_files_forget(&remains.partition->rec.file);
            dw_files_forget(&remains.partition->idx.file);
            if (remains.partition->rec.created) {
                unlink_file(store, remains.partition, DW_FILE_REC);
            }
            if (remains.partition->idx.created) {
                unlink_file(store, remains.partition, DW_FILE_IDX);
            }
            dw_partition_free(store->alloc, remains.partition);
        }
        dw_lock(store);
    }
    dw_publish(store);
    dw_unlock(store);
}

int dw_flush_partition(struct dw_store *store, struct dw_partition *partition) {
    struct dw_stream *streams[2] = {&partition->rec, &partition->idx};
    int result = DW_OK;
    for (int i = 0; i < 2; i++) {
        char name[DW_FILE_NAME_BYTES];
        dw_file_name(name, i == 0 ? DW_FILE_REC : DW_FILE_IDX, partition->serial, partition->level,
                     partition->slice);
        uint64_t flushed;
        int err = dw_stream_flush(streams[i], store->alloc, &store->files, name, &flushed);
        dw_lock(store);
        store->buffered -= flushed;
        if (err == EIO) {
            partition->suspect = true;
        }
        dw_unlock(store);
        if (err == EIO) {
            partition->sealed = true;
        }
        if (err != 0 && result == DW_OK) {
            result = dw_io_error(err);
        }
    }
    return result;
}

/* Says in the log when writing begins to fail and when it goes on, at most once a minute. */
static void note_written(struct dw_store *store, int err) {
    enum { EACH_MS = 60000 };
    dw_lock(store);
    const uint64_t now_ms = store->clock;
    const uint64_t buffered = store->buffered;
    store->write_error = err;
    dw_unlock(store);
    if (err != 0) {
        dw_files_write_failed(&store->files);
    }
    if (err != 0 && !store->write_said &&
        (store->write_logged == 0 || now_ms - store->write_logged >= EACH_MS)) {
        store->write_said = true;
        store->write_logged = now_ms;
        dw_log(store, DW_LOG_ERROR,
               "%s: cannot be written to: %s; what is delayed is kept in memory and in Raft's log, "
               "and tried again",
               store->dir, strerror(err));
    } else if (err == 0 && store->write_said && buffered == 0) {
        store->write_said = false;
        dw_log(store, DW_LOG_INFO, "%s: is written to again", store->dir);
    }
}

int dw_flush_all(struct dw_store *store) {
    int result = DW_OK;
    int err = 0;
    store->disk_full = false;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        dw_lock(store);
        struct dw_partition *partition = store->parts[i];
        bool skip = partition == NULL || partition->retired;
        dw_unlock(store);
        if (!skip &&
            (dw_stream_buffered(&partition->rec) > 0 || dw_stream_buffered(&partition->idx) > 0)) {
            int failed = dw_flush_partition(store, partition);
            if (failed == DW_ENOSPC) {
                store->disk_full = true;
            }
            if (result == DW_OK && failed != DW_OK) {
                result = failed;
                err = dw_store_errno();
            }
        }
    }
    note_written(store, err);
    return result == DW_OK ? DW_OK : dw_io_error(err);
}

int dw_store_flush(dw_store *store) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    result = dw_flush_all(store);
    dw_reap(store);
    dw_lock(store);
    dw_publish(store);
    return dw_leave(store, result);
}

/* ------------------------------------------------------------------ insert */

void dw_unlink_entry(struct dw_store *store, uint32_t k) {
    dw_index_del(store->by_id, k);
    if (dw_slab_at(store->slab, k)->key_hash != 0) {
        dw_index_del(store->by_key, k);
    }
}

void dw_drop_entry(struct dw_store *store, uint32_t k) {
    dw_origin_forget(&store->origins, k);
    dw_origin_forget(&store->unread, k);
    switch (dw_slab_at(store->slab, k)->state) {
    case DW_WAITING:
        dw_wheel_cancel(store->wheel, k);
        break;
    case DW_LATE:
        dw_heap_cancel(store->heap, k);
        break;
    case DW_TAKEN:
        store->taken--;
        dw_slab_put(store->slab, k);
        break;
    default:
        if (!DW_INVARIANT(dw_slab_at(store->slab, k)->state == DW_STRANDED)) {
            break;
        }
        store->stranded--;
        dw_slab_put(store->slab, k);
        break;
    }
}

int dw_link_entry(struct dw_store *store, const struct dw_entry *like) {
    uint32_t k = dw_slab_get(store->slab);
    if (k == DW_NIL) {
        return dw_slab_used(store->slab) >= DW_NIL - 1 ? DW_EFULL : DW_ENOMEM;
    }
    *dw_slab_at(store->slab, k) = *like;
    if (dw_index_put(store->by_id, k) != DW_OK) {
        dw_slab_put(store->slab, k);
        return DW_ENOMEM;
    }
    if (like->key_hash != 0 && dw_index_put(store->by_key, k) != DW_OK) {
        dw_index_del(store->by_id, k);
        dw_slab_put(store->slab, k);
        return DW_ENOMEM;
    }
    if (dw_schedule(store, k) != DW_OK) {
        dw_unlink_entry(store, k);
        dw_slab_put(store->slab, k);
        return DW_ENOMEM;
    }
    return DW_OK;
}

/* Appends the records to the buffers of their partitions, where nobody sees them yet.
 * *staged_count: how many. */
static int stage(struct dw_store *store, uint64_t index, uint64_t clock_ms, uint64_t base_ms,
                 const void *batch, uint32_t count, const struct dw_plan *plan,
                 struct dw_entry *staged, uint32_t *staged_count, uint64_t *bytes) {
    size_t pos = 0;
    *staged_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct dw_batch_record record;
        dw_batch_next(batch, &pos, base_ms, &record);
        if (plan->out != NULL && plan->out[i]) {
            continue;
        }
        struct dw_partition *partition;
        int result = dw_target(store, clock_ms, record.due, &partition);
        if (result == DW_OK) {
            dw_touch(store, partition);
            result = dw_partition_reserve(partition, store->alloc, &store->lock, record.length);
        }
        if (result != DW_OK) {
            return result;
        }
        const struct dw_rec_header header = {
            .id = index << 16 | i,
            .due = record.due,
            .key_hash = record.key_hash,
            .index = index,
            .length = record.length,
            .body_crc = dw_crc32c(0, record.body, record.length),
            .encoding = record.encoding,
        };
        staged[(*staged_count)++] = (struct dw_entry){
            .due = record.due & DW_DUE_MAX,
            .part = partition->number & DW_PART_NONE,
            .state = DW_WAITING,
            .id = header.id,
            .key_hash = record.key_hash,
            .off = dw_partition_append(partition, &header, record.body),
            .len = record.length,
        };
        *bytes += record.length;
    }
    return DW_OK;
}

/* Lock held: shows all of them, or none. */
static int link_all(struct dw_store *store, const struct dw_entry *staged, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        int result = dw_link_entry(store, &staged[i]);
        if (result != DW_OK) {
            while (i-- > 0) {
                uint32_t k = dw_index_find(store->by_id, staged[i].id);
                dw_unlink_entry(store, k);
                dw_drop_entry(store, k);
            }
            return result;
        }
    }
    return DW_OK;
}

/* Lock held: entry k is about to go. */
static void doom(struct dw_store *store, uint32_t k) {
    struct dw_partition *partition = dw_part_of(store, dw_slab_at(store->slab, k));
    dw_touch(store, partition);
    partition->doomed++;
}

/* Lock held: entry k goes; it was doomed, and room was made to note it. */
static void remove_entry(struct dw_store *store, uint32_t k) {
    const uint32_t length = dw_slab_at(store->slab, k)->len;
    dw_record_dead(store, k);
    dw_unlink_entry(store, k);
    dw_drop_entry(store, k);
    store->pending--;
    store->pending_bytes -= length;
}

/* Lock held: room is made for every note of a dead record before the first is made. */
static int doom_gone(struct dw_store *store, const struct dw_plan *plan) {
    if (plan->gone_count == 0) {
        return DW_OK;
    }
    for (size_t i = 0; i < plan->gone_count; i++) {
        doom(store, plan->gone[i]);
        dw_breathe(store, i);
    }
    dw_unlock(store);
    int result = dw_reserve_doomed(store);
    dw_lock(store);
    return result;
}

/* Lock held. */
static void remove_gone(struct dw_store *store, const struct dw_plan *plan, struct dw_keyed *out) {
    for (size_t i = 0; i < plan->gone_count; i++) {
        const bool taken = dw_slab_at(store->slab, plan->gone[i])->state == DW_TAKEN;
        remove_entry(store, plan->gone[i]);
        if (taken) {
            out->taken++;
        } else {
            *(i < plan->replaced_count ? &out->replaced : &out->cancelled) += 1;
        }
        dw_breathe(store, i);
    }
}

static int insert(struct dw_store *store, uint64_t index, uint64_t clock_ms, uint64_t base_ms,
                  const void *batch, uint32_t count, const struct dw_plan *plan,
                  struct dw_keyed *out) {
    uint32_t staged_count;
    uint64_t bytes = 0;
    struct dw_entry *staged = dw_scratch(store, count * sizeof *staged);
    if (staged == NULL) {
        return DW_ENOMEM;
    }
    int result =
        stage(store, index, clock_ms, base_ms, batch, count, plan, staged, &staged_count, &bytes);
    dw_lock(store);
    if (result == DW_OK) {
        result = doom_gone(store, plan);
    }
    if (result == DW_OK) {
        result = link_all(store, staged, staged_count);
    }
    if (result == DW_OK) {
        *out = plan->in_batch;
        store->pending += staged_count;
        store->pending_bytes += bytes;
        remove_gone(store, plan, out);
        dw_commit(store);
        store->applied = index;
        out->inserted.count = staged_count;
        out->inserted.bytes = bytes;
    } else {
        dw_rollback(store);
    }
    dw_unlock(store);
    return result;
}

/* Batches of the first kind have no plan: all of their records are inserted. */
static int insert_plain(struct dw_store *store, uint64_t index, uint64_t clock_ms, uint64_t base_ms,
                        const void *batch, size_t bytes, struct dw_keyed *out) {
    const struct dw_plan plan = {0};
    uint32_t count;
    int result = dw_batch_check(batch, bytes, store->max_record_bytes, &count);
    return result == DW_OK ? insert(store, index, clock_ms, base_ms, batch, count, &plan, out)
                           : result;
}

static int insert_keyed(struct dw_store *store, uint64_t index, uint64_t clock_ms, uint64_t base_ms,
                        const void *batch, size_t bytes, struct dw_keyed *out) {
    struct dw_plan plan;
    uint32_t count;
    int result = dw_batch_check_keyed(batch, bytes, store->max_record_bytes, &count);
    if (result == DW_OK) {
        result = dw_plan_make(store, batch, count, &plan);
    }
    if (result == DW_OK) {
        result = insert(store, index, clock_ms, base_ms, batch, count, &plan, out);
        dw_plan_free(store, &plan);
    }
    return result;
}

typedef int insert_batch(struct dw_store *store, uint64_t index, uint64_t clock_ms,
                         uint64_t base_ms, const void *batch, size_t bytes, struct dw_keyed *out);

static int insert_with(insert_batch *how, struct dw_store *store, uint64_t index, uint64_t base_ms,
                       const void *batch, size_t bytes, struct dw_keyed *out) {
    *out = (struct dw_keyed){.inserted.next_due = DW_NEVER};
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (index > store->applied) {
        const uint64_t clock_ms = store->clock;
        dw_unlock(store);
        result =
            index >> 48 != 0 ? DW_EINVAL : how(store, index, clock_ms, base_ms, batch, bytes, out);
        dw_lock(store);
    }
    dw_publish(store);
    out->inserted.next_due = dw_next_due(store);
    out->inserted.buffered = store->buffered;
    result = dw_leave(store, result);
    if (result == DW_EBROKEN) {
        *out = (struct dw_keyed){.inserted.next_due = DW_NEVER};
    }
    return result;
}

int dw_store_insert(dw_store *store, uint64_t index, uint64_t base_ms, const void *batch,
                    size_t bytes, struct dw_inserted *out) {
    struct dw_keyed keyed;
    int result = insert_with(insert_plain, store, index, base_ms, batch, bytes, &keyed);
    *out = keyed.inserted;
    return result;
}

int dw_store_insert_keyed(dw_store *store, uint64_t index, uint64_t base_ms, const void *batch,
                          size_t bytes, struct dw_keyed *out) {
    return insert_with(insert_keyed, store, index, base_ms, batch, bytes, out);
}

/* ------------------------------------------------------------------ settle */

/* Lock held. Room is made for every note of a dead record before the first is made. */
static int settle(struct dw_store *store, const uint64_t *ids, size_t n, uint64_t *removed) {
    for (size_t i = 0; i < n; i++) {
        uint32_t k = dw_index_find(store->by_id, ids[i]);
        if (k != DW_NIL) {
            doom(store, k);
        }
        dw_breathe(store, i);
    }
    dw_unlock(store);
    int result = dw_reserve_doomed(store);
    dw_lock(store);
    if (result != DW_OK) {
        dw_rollback(store);
        return result;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t k = dw_index_find(store->by_id, ids[i]);
        if (k != DW_NIL) {
            remove_entry(store, k);
            *removed += 1;
        }
        dw_breathe(store, i);
    }
    dw_commit(store);
    return DW_OK;
}

int dw_store_settle(dw_store *store, uint64_t index, const uint64_t *ids, size_t n,
                    uint64_t *removed) {
    *removed = 0;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (index > store->applied) {
        result = settle(store, ids, n, removed);
        if (result == DW_OK) {
            store->applied = index;
        }
        dw_publish(store);
    }
    result = dw_leave(store, result);
    *removed = result == DW_OK ? *removed : 0;
    return result;
}

void dw_store_note(dw_store *store, uint64_t index) {
    if (dw_enter(store) == DW_OK) {
        if (index > store->applied) {
            store->applied = index;
            dw_publish(store);
        }
        (void)dw_leave(store, DW_OK);
    }
}

/* -------------------------------------------------------------- statistics
 * The numbers are copied word by word with atomic loads and stores, between two steps of a counter
 * that tell a reader whether it saw a mixture; if so it reads again. */

void dw_publish(struct dw_store *store) {
    struct dw_stat stat = {
        .pending = store->pending,
        .pending_bytes = store->pending_bytes,
        .taken = store->taken,
        .next_due = dw_next_due(store),
        .applied = store->applied,
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

/* ------------------------------------------------------------------- check */

struct tally {
    uint64_t waiting, late, taken, stranded, keyed, bytes, live_bytes;
};

static const char *check_entry(struct dw_store *store, uint32_t k, struct tally *tally) {
    const struct dw_entry *entry = dw_slab_at(store->slab, k);
    switch (entry->state) {
    case DW_WAITING:
        tally->waiting++;
        break;
    case DW_LATE:
        tally->late++;
        break;
    case DW_TAKEN:
        tally->taken++;
        break;
    case DW_STRANDED:
        tally->stranded++;
        break;
    default:
        return NULL;
    }
    if (dw_index_find(store->by_id, entry->id) != k) {
        return "an entry is not found by its id";
    }
    tally->keyed += entry->key_hash != 0;
    tally->bytes += entry->len;
    tally->live_bytes += dw_rec_bytes(entry->len);
    struct dw_partition *partition =
        entry->part < store->parts_capacity ? store->parts[entry->part] : NULL;
    if (partition == NULL || partition->retired) {
        return "an entry is in no partition";
    }
    if (entry->off * (uint64_t)DW_REC_UNIT < DW_FILE_HEADER) {
        return "an entry is before its partition's first record";
    }
    partition->added++;
    partition->added_bytes += dw_rec_bytes(entry->len);
    return NULL;
}

static const char *check_entries(struct dw_store *store) {
    struct tally tally = {0};
    for (uint32_t k = 0; k < dw_slab_limit(store->slab); k++) {
        const char *wrong = check_entry(store, k, &tally);
        if (wrong != NULL) {
            return wrong;
        }
    }
    if (tally.waiting != dw_wheel_count(store->wheel) || tally.late != dw_heap_count(store->heap)) {
        return "wheel or heap count other entries";
    }
    if (tally.taken != store->taken || tally.stranded != store->stranded) {
        return "other entries are taken";
    }
    const uint64_t all = tally.waiting + tally.late + tally.taken + tally.stranded;
    if (all != store->pending || all != dw_index_count(store->by_id) ||
        tally.keyed != dw_index_count(store->by_key)) {
        return "the number of pending records is wrong";
    }
    if (tally.bytes != store->pending_bytes || tally.live_bytes != store->live_bytes) {
        return "the bytes of pending records are wrong";
    }
    return NULL;
}

static const char *check_partitions(struct dw_store *store) {
    uint64_t total = 0, rec = 0, buffered = 0;
    uint32_t used = 0, retired = 0;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        const struct dw_partition *partition = store->parts[i];
        if (partition == NULL) {
            continue;
        }
        used++;
        retired += partition->retired;
        if (partition->number != i || partition->touched) {
            return "a partition is not where it belongs";
        }
        if (partition->live != partition->added ||
            partition->live_bytes != partition->added_bytes) {
            return "a partition counts other records";
        }
        const bool gone = partition->retired;
        const uint64_t rec_length =
            gone ? partition->rec.written : dw_stream_length(&partition->rec);
        const uint64_t idx_length =
            gone ? partition->idx.written : dw_stream_length(&partition->idx);
        total += rec_length + idx_length;
        rec += rec_length > 0 ? rec_length - DW_FILE_HEADER : 0;
        buffered +=
            gone ? 0 : dw_stream_buffered(&partition->rec) + dw_stream_buffered(&partition->idx);
    }
    if (used != store->parts_used || retired != store->retired) {
        return "the number of partitions is wrong";
    }
    if (total != store->total_bytes || rec != store->rec_bytes || buffered != store->buffered) {
        return "the bytes in partitions are wrong";
    }
    return store->touched_count == 0 ? NULL : "a call left partitions touched";
}

static const char *check(struct dw_store *store) {
    const char *wrong = dw_wheel_check(store->wheel);
    if (wrong == NULL) {
        wrong = dw_heap_check(store->heap);
    }
    if (wrong == NULL) {
        wrong = dw_index_check(store->by_id);
    }
    if (wrong == NULL) {
        wrong = dw_index_check(store->by_key);
    }
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        if (store->parts[i] != NULL) {
            store->parts[i]->added = 0;
            store->parts[i]->added_bytes = 0;
        }
    }
    if (wrong == NULL) {
        wrong = check_entries(store);
    }
    return wrong == NULL ? check_partitions(store) : wrong;
}

const char *dw_store_check(dw_store *store) {
    if (dw_enter(store) != DW_OK) {
        return NULL;
    }
    const char *wrong = check(store);
    (void)dw_leave(store, DW_OK);
    return wrong;
}

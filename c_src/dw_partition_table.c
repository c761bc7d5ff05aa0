/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* The table of partitions: which there are, where a record goes, what the present call has appended
 * and made dead, and what goes when nothing in it is live.
 *
 * The writer alone changes the table and the partitions in it, under the lock; what it alone looks
 * at, it changes without. A call marks each partition before it appends to it, and ends with
 * dw_commit_locked() or dw_rollback(): all that it appended counts then, or none. */

enum {
    KEEP_EMPTY_BYTES = 64 * 1024, /* an empty one that may be appended to again, if no longer */
    PARTS_MIN = 64,
};

int dw_grow_parts(struct dw_store *store, uint32_t capacity) {
    if (capacity <= store->parts_capacity) {
        return DW_OK;
    }
    capacity = capacity < PARTS_MIN ? PARTS_MIN : capacity < DW_PART_MAX ? capacity : DW_PART_MAX;
    /* And one for `nowhere'. */
    const size_t bytes = (capacity + (size_t)1) * sizeof *store->parts;
    struct dw_partition **parts = dw_get(store->alloc, bytes);
    struct dw_partition **marked = dw_get(store->alloc, bytes);
    if (parts == NULL || marked == NULL) {
        dw_release(store->alloc, parts);
        dw_release(store->alloc, marked);
        return DW_ENOMEM;
    }
    struct dw_partition **old_marked = store->marked;
    memset(parts, 0, bytes);
    memset(marked, 0, bytes);
    if (store->marked_count > 0) {
        memcpy(marked, old_marked, store->marked_count * sizeof *marked);
    }
    dw_lock(store);
    struct dw_partition **old_parts = store->parts;
    if (store->parts_capacity > 0) {
        memcpy(parts, old_parts, store->parts_capacity * sizeof *parts);
    }
    store->parts = parts;
    store->parts_capacity = capacity;
    store->marked = marked;
    dw_unlock(store);
    dw_release(store->alloc, old_parts);
    dw_release(store->alloc, old_marked);
    return DW_OK;
}

static bool takes_more(const struct dw_store *store, const struct dw_partition *partition) {
    const uint64_t length = dw_stream_length(&partition->rec);
    return dw_partition_is_open(partition) &&
           (length == DW_FILE_HEADER || length < store->partition_bytes);
}

static struct dw_partition *find_open_locked(struct dw_store *store, uint32_t level,
                                             uint64_t slice) {
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
static struct dw_partition *find_any_locked(struct dw_store *store) {
    struct dw_partition *best = NULL;
    uint64_t best_length = DW_PARTITION_BYTES_MAX - UINT32_MAX;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        struct dw_partition *partition = store->parts[i];
        if (partition != NULL && dw_partition_is_open(partition) &&
            dw_stream_length(&partition->rec) < best_length) {
            best = partition;
            best_length = dw_stream_length(&partition->rec);
        }
    }
    return best;
}

int dw_find_target(struct dw_store *store, uint64_t clock_ms, uint64_t due,
                   struct dw_partition **out) {
    uint32_t level;
    uint64_t slice;
    dw_place(clock_ms, due, &level, &slice);
    struct dw_partition **target = &store->target[level][slice % DW_TARGETS];
    struct dw_partition *partition = *target;
    if (partition == NULL || partition->slice != slice || !takes_more(store, partition)) {
        dw_lock(store);
        partition = find_open_locked(store, level, slice);
        dw_unlock(store);
    }
    if (partition == NULL) {
        *target = NULL;
        int result = new_target(store, level, slice, &partition);
        if (result == DW_EFULL) {
            dw_lock(store);
            *out = find_any_locked(store);
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

void dw_mark_unmarked(struct dw_store *store, struct dw_partition *partition) {
    partition->marked = true;
    partition->rec_mark = dw_stream_length(&partition->rec);
    partition->idx_mark = dw_stream_length(&partition->idx);
    partition->added = 0;
    partition->added_bytes = 0;
    partition->dead_expected = 0;
    store->marked[store->marked_count++] = partition;
}

void dw_rollback(struct dw_store *store) {
    for (uint32_t i = 0; i < store->marked_count; i++) {
        struct dw_partition *partition = store->marked[i];
        dw_stream_truncate(&partition->rec, partition->rec_mark);
        dw_stream_truncate(&partition->idx, partition->idx_mark);
        partition->marked = false;
    }
    store->marked_count = 0;
}

static void retire_locked(struct dw_store *store, struct dw_partition *partition) {
    dw_partition_note_locked(partition, DW_PARTITION_RETIRE);
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

void dw_retire_if_empty_locked(struct dw_store *store, struct dw_partition *partition) {
    if (partition->live == 0 && !dw_partition_is_retired(partition) &&
        (!takes_more(store, partition) || dw_stream_length(&partition->rec) > KEEP_EMPTY_BYTES ||
         dw_slice_is_past(store->clock, partition->level, partition->slice))) {
        retire_locked(store, partition);
    }
}

void dw_retire_all_locked(struct dw_store *store) {
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        struct dw_partition *partition = store->parts[i];
        if (partition != NULL && !dw_partition_is_retired(partition)) {
            store->live_bytes -= partition->live_bytes;
            partition->live = 0;
            partition->live_bytes = 0;
            retire_locked(store, partition);
        }
    }
}

void dw_commit_locked(struct dw_store *store) {
    for (uint32_t i = 0; i < store->marked_count; i++) {
        struct dw_partition *partition = store->marked[i];
        const uint64_t rec = dw_stream_length(&partition->rec) - partition->rec_mark;
        const uint64_t idx = dw_stream_length(&partition->idx) - partition->idx_mark;
        store->rec_bytes += rec;
        store->total_bytes += rec + idx;
        store->buffered += rec + idx;
        store->live_bytes += partition->added_bytes;
        partition->live += partition->added;
        partition->live_bytes += partition->added_bytes;
        partition->marked = false;
        dw_retire_if_empty_locked(store, partition);
    }
    store->marked_count = 0;
}

void dw_record_dead_locked(struct dw_store *store, uint32_t k) {
    const struct dw_entry *entry = dw_slab_at(store->slab, k);
    struct dw_partition *partition = dw_part_of_locked(store, entry);
    const uint64_t bytes = dw_rec_bytes(entry->len);
    partition->live--;
    partition->live_bytes -= bytes;
    store->live_bytes -= bytes;
    dw_partition_dead(partition, entry->off);
}

int dw_reserve_dead(struct dw_store *store) {
    for (uint32_t i = 0; i < store->marked_count; i++) {
        struct dw_partition *partition = store->marked[i];
        if (partition->dead_expected > 0) {
            int result = dw_partition_reserve_dead(partition, store->alloc, &store->lock,
                                                   partition->dead_expected);
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
static bool next_remains_locked(struct dw_store *store, uint32_t *number, struct remains *out) {
    for (; store->retired > 0 && *number < store->parts_capacity; (*number)++) {
        struct dw_partition *partition = store->parts[*number];
        if (partition == NULL || !dw_partition_is_retired(partition) || partition->pins > 0) {
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
    dw_partition_file_name(partition, kind, name);
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
    while (next_remains_locked(store, &number, &remains)) {
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
    dw_publish_locked(store);
    dw_unlock(store);
}

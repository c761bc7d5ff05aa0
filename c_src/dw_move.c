/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_fetch.h"

#include "dw_crc32c.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Moving records between partitions.
 *
 * Splitting a coarse partition, being rid of garbage, leaving damaged files and merging small
 * leftovers are all one thing: nothing more is appended to the partition, it is read from its
 * beginning to its end a window at a time, and what is live in it is appended where it belongs now
 * and noted as dead in the old place. Then nothing is live in it any more, and it is retired like
 * any other. A checkpoint between two windows is as good as at any other time, and a crash goes
 * back to one. What is damaged stays where it is, for its reader to be told; and so does what
 * cannot be read, until that is tried again.
 *
 * The writer does it, in steps of dw_store_maintain(), with the lock for looking and for what
 * others see. The store owns one move at a time. */

enum {
    WINDOW_MIN = 64 * 1024,
    WINDOW_MAX = 4 * 1024 * 1024,
    PAST_MAX = 256,           /* partitions whose time is over, and that still hold something */
    WHEEL_BUDGET = 1024,      /* references under one lock */
    WHEEL_ROUNDS = 16,        /* of that, a call */
    GARBAGE_SHARE = 8,        /* of split_bytes: less garbage is let be */
    RETIMED_SHARE = 4,        /* so many times as many entries for other due times as records */
    IDLE_TICKS = 60,          /* calls after which a file that was not used is closed */
    PAUSE_MIN_MS = 60 * 1000, /* until what could not be read is tried again; doubles */
    PAUSE_MAX_MS = 60 * 60 * 1000,
};

/* ------------------------------------------------------------------ moving */

/* A live record in the window. */
struct moved {
    struct dw_rec_header header;
    uint32_t k;
    uint32_t at; /* in the window */
    uint32_t off;
    uint64_t due; /* when it is to be handed out next */
    struct dw_partition *target;
};

struct window {
    uint64_t from; /* where in the record file */
    uint64_t end;  /* of that file */
    uint8_t *bytes;
    size_t length;
    size_t consumed; /* up to the first record that is not whole in it */
    size_t needed;   /* the first record's bytes, if it is longer than the window */
    uint32_t records;
};

/* The file's part of the window: 0 or an errno. From the disk if it is read `again`. Where the file
 * ends before, what it does have counts: zeros are no record. */
static int read_file(struct dw_store *store, struct dw_partition *partition, uint8_t *to,
                     size_t bytes, uint64_t from, bool again) {
    const int fd = dw_rec_file_acquire(store, partition);
    if (fd < 0) {
        return errno;
    }
    const int err = dw_rec_file_read(store, fd, to, bytes, from, again);
    dw_files_release(&partition->rec.file);
    return err == DW_TOO_SHORT ? 0 : err;
}

/* Copies what a buffer has of the window. */
static void read_buffer(struct window *window, const struct dw_buf *buf) {
    if (buf == NULL) {
        return;
    }
    const uint64_t window_end = window->from + window->length;
    const uint64_t from = buf->base > window->from ? buf->base : window->from;
    const uint64_t end = buf->base + buf->fill < window_end ? buf->base + buf->fill : window_end;
    if (from < end) {
        memcpy(window->bytes + (from - window->from), buf->bytes + (from - buf->base),
               (size_t)(end - from));
    }
}

/* From the file and, as there may be no room on the disk, from what is not yet in it. */
static int read_window(struct dw_store *store, struct dw_partition *partition,
                       struct window *window, bool again) {
    const uint64_t written = partition->rec.written;
    read_buffer(window, partition->rec.writing);
    read_buffer(window, partition->rec.active);
    if (window->from >= written) {
        return 0;
    }
    const uint64_t in_file = written - window->from;
    return read_file(store, partition, window->bytes,
                     in_file < window->length ? (size_t)in_file : window->length, window->from,
                     again);
}

/* The next whole record at *at or after it; false if there is none. */
static bool next_record(struct window *window, size_t *at, struct dw_rec_header *header) {
    while (window->length - *at >= DW_REC_HEADER) {
        if (dw_rec_decode(window->bytes + *at, header)) {
            const uint64_t bytes = dw_rec_bytes(header->length);
            if (bytes <= window->length - *at) {
                return true;
            }
            if (window->from + *at + bytes <= window->end) {
                if (*at == 0) {
                    window->needed = (size_t)bytes;
                }
                window->consumed = *at;
                return false;
            }
        }
        *at += DW_REC_UNIT;
    }
    window->consumed = window->from + window->length == window->end ? window->length : *at;
    return false;
}

static uint32_t count_records(struct window *window) {
    uint32_t n = 0;
    struct dw_rec_header header;
    window->needed = 0;
    for (size_t at = 0; next_record(window, &at, &header);) {
        at += (size_t)dw_rec_bytes(header.length);
        n++;
    }
    return n;
}

/* Is there nothing but whole records in it, up to its end? */
static bool is_sound(const struct window *window) {
    struct dw_rec_header header;
    for (size_t at = 0; window->length - at >= DW_REC_HEADER;) {
        if (!dw_rec_decode(window->bytes + at, &header)) {
            return false;
        }
        const uint64_t bytes = dw_rec_bytes(header.length);
        if (bytes > window->length - at) {
            return window->from + at + bytes <= window->end;
        }
        if (dw_crc32c(0, window->bytes + at + DW_REC_HEADER, header.length) != header.body_crc) {
            return false;
        }
        at += (size_t)bytes;
    }
    return true;
}

/* Those records of the window that are live in the partition. */
static uint32_t find_live(struct dw_store *store, const struct dw_partition *partition,
                          struct window *window, struct moved *moved) {
    uint32_t n = 0;
    struct dw_rec_header header;
    size_t seen = 0;
    dw_lock(store);
    for (size_t at = 0; next_record(window, &at, &header);
         at += (size_t)dw_rec_bytes(header.length)) {
        const uint32_t k = dw_index_find(store->by_id, header.id);
        dw_yield_each_locked(store, seen++);
        if (k == DW_NIL) {
            continue;
        }
        const struct dw_entry *entry = dw_slab_at(store->slab, k);
        if (entry->part == partition->number &&
            entry->off * (uint64_t)DW_REC_UNIT == window->from + at &&
            entry->len == header.length) {
            /* It may have been given another due time where it is. */
            const uint64_t due = dw_due_of_locked(store, k, entry);
            struct moved record = {.header = header, .k = k, .at = (uint32_t)at, .due = entry->due};
            if (header.due != due) {
                record.header.due = due;
                record.header.index = store->applied;
            }
            moved[n++] = record;
        }
    }
    dw_unlock(store);
    return n;
}

/* Appends copies, which nobody sees yet. What does not pass its checksum is left out. */
static int stage(struct dw_store *store, struct dw_partition *partition,
                 const struct window *window, struct moved *moved, uint32_t *count) {
    dw_lock(store);
    const uint64_t clock_ms = store->clock;
    dw_unlock(store);
    uint32_t kept = 0;
    dw_mark_partition(store, partition);
    for (uint32_t i = 0; i < *count; i++) {
        struct moved *record = &moved[i];
        const uint8_t *body = window->bytes + record->at + DW_REC_HEADER;
        const uint32_t length = record->header.length;
        if (dw_crc32c(0, body, length) != record->header.body_crc) {
            continue;
        }
        int result = dw_find_target(store, clock_ms, record->due, &record->target);
        if (result == DW_OK) {
            dw_mark_partition(store, record->target);
            result = dw_partition_reserve(record->target, store->alloc, &store->lock, length);
        }
        if (result != DW_OK) {
            return result;
        }
        record->off = dw_partition_append(record->target, &record->header, body);
        moved[kept++] = *record;
    }
    *count = kept;
    partition->dead_expected = kept;
    return dw_reserve_dead(store);
}

static int move_records(struct dw_store *store, struct dw_partition *partition,
                        struct window *window) {
    struct moved *moved = dw_scratch(store, (window->records + (size_t)1) * sizeof *moved);
    if (moved == NULL) {
        return DW_ENOMEM;
    }
    uint32_t count = find_live(store, partition, window, moved);
    int result = stage(store, partition, window, moved, &count);
    if (result != DW_OK) {
        dw_rollback(store);
        return result;
    }
    dw_lock(store);
    for (uint32_t i = 0; i < count; i++) {
        struct dw_entry *entry = dw_slab_at(store->slab, moved[i].k);
        dw_record_dead_locked(store, moved[i].k);
        entry->part = moved[i].target->number & DW_PART_NONE;
        entry->off = moved[i].off;
        dw_yield_each_locked(store, i);
    }
    dw_commit_locked(store);
    dw_unlock(store);
    return DW_OK;
}

/* Fills the window, with at least one whole record. */
static int open_window(struct dw_store *store, struct dw_partition *partition, size_t bytes,
                       struct window *window) {
    window->from = store->moving_off;
    window->end = dw_stream_length(&partition->rec);
    const uint64_t left = window->end - window->from;
    for (;;) {
        window->length = left < bytes ? (size_t)left : bytes;
        window->bytes = dw_get(store->alloc, window->length + 1);
        if (window->bytes == NULL) {
            return DW_ENOMEM;
        }
        int err = read_window(store, partition, window, false);
        if (err == 0 && !is_sound(window)) {
            err = read_window(store, partition, window, true);
        }
        if (err != 0 && dw_is_scarcity(err)) {
            return dw_io_error(err);
        }
        if (err != 0) {
            store->moving_err = err;
            window->consumed = window->length;
            return DW_OK;
        }
        window->records = count_records(window);
        if (window->needed == 0) {
            return DW_OK;
        }
        bytes = window->needed;
        dw_release(store->alloc, window->bytes);
        window->bytes = NULL;
    }
}

/* What remains in it is damaged, or could not be read, and is then tried again. */
static void give_up(struct dw_store *store, struct dw_partition *partition) {
    store->moving = NULL;
    dw_lock(store);
    const uint64_t live = partition->live;
    const uint64_t clock_ms = store->clock;
    if (store->moving_err == 0) {
        dw_partition_note_locked(partition, DW_PARTITION_GIVE_UP);
    }
    dw_unlock(store);
    if (store->moving_err != 0) {
        const uint32_t longer = 2 * partition->move_pause_ms;
        partition->move_pause_ms = longer < PAUSE_MIN_MS   ? PAUSE_MIN_MS
                                   : longer > PAUSE_MAX_MS ? PAUSE_MAX_MS
                                                           : longer;
        partition->move_after = clock_ms + partition->move_pause_ms;
        dw_log(store, DW_LOG_ERROR,
               "%s: partition %" PRIu64 ": %" PRIu64 " records cannot be moved now: %s", store->dir,
               partition->serial, live, strerror(store->moving_err));
        return;
    }
    dw_log(store, DW_LOG_WARNING, "%s: partition %" PRIu64 ": %" PRIu64 " records cannot be moved",
           store->dir, partition->serial, live);
}

static int move_step(struct dw_store *store, size_t max_bytes) {
    struct dw_partition *partition = store->moving;
    struct window window = {0};
    const size_t bytes = max_bytes < WINDOW_MIN   ? WINDOW_MIN
                         : max_bytes > WINDOW_MAX ? WINDOW_MAX
                                                  : max_bytes;
    int result = open_window(store, partition, bytes, &window);
    if (result == DW_OK && window.records > 0) {
        result = move_records(store, partition, &window);
    }
    dw_release(store->alloc, window.bytes);
    if (result == DW_OK && store->moving == partition) {
        store->moving_off += window.consumed;
        if (store->moving_off + DW_REC_HEADER > window.end) {
            give_up(store, partition);
        }
    }
    return result;
}

/* ---------------------------------------------------------------- choosing */

static uint64_t garbage(const struct dw_partition *partition) {
    return dw_stream_length(&partition->rec) - DW_FILE_HEADER - partition->live_bytes;
}

static bool is_mostly_garbage(const struct dw_store *store, const struct dw_partition *partition) {
    const uint64_t dead = garbage(partition);
    return dead > partition->live_bytes && dead > store->split_bytes / GARBAGE_SHARE;
}

/* Where messages are given one due time after the other, the index has an entry for each, and
 * opening takes memory for all of them: no more than some times that of the messages. */
static bool is_index_garbage(const struct dw_store *store, const struct dw_partition *partition) {
    return partition->retimed * DW_IDX_ENTRY >
           RETIMED_SHARE * partition->records * DW_IDX_ENTRY + store->split_bytes / GARBAGE_SHARE;
}

/* A slice whose time is now empties by itself. */
static bool is_being_emptied(uint64_t clock_ms, const struct dw_partition *partition) {
    const unsigned shift = dw_level_shift(partition->level);
    const uint64_t start = partition->slice << shift;
    const uint64_t end = (partition->slice + 1) << shift;
    const uint64_t grace = UINT64_C(1) << dw_level_shift(0);
    return start <= clock_ms + grace && clock_ms < end + 2 * grace;
}

enum reason { LET_BE, MERGE, SHRINK, SPLIT, SAVE };

static enum reason reason_to_move(const struct dw_store *store,
                                  const struct dw_partition *partition) {
    const uint64_t clock_ms = store->clock;
    if (dw_partition_is_retired(partition) || dw_partition_is_stuck(partition) ||
        partition->live == 0) {
        return LET_BE;
    }
    if (partition->move_after > clock_ms && partition->move_after <= clock_ms + PAUSE_MAX_MS) {
        return LET_BE;
    }
    if (dw_partition_must_move(partition) || dw_partition_failed(partition) != 0) {
        return SAVE;
    }
    const bool past = dw_slice_is_past(clock_ms, partition->level, partition->slice);
    if (!past && partition->live_bytes > store->split_bytes &&
        dw_slice_is_near(clock_ms, partition->level, partition->slice)) {
        return SPLIT;
    }
    if (is_index_garbage(store, partition) ||
        (is_mostly_garbage(store, partition) && !is_being_emptied(clock_ms, partition))) {
        return SHRINK;
    }
    return past ? MERGE : LET_BE;
}

/* What to move next, NULL if nothing needs it. */
static struct dw_partition *choose(struct dw_store *store) {
    struct dw_partition *best = NULL;
    enum reason best_reason = LET_BE;
    uint32_t past = 0;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        struct dw_partition *partition = store->parts[i];
        if (partition == NULL) {
            continue;
        }
        const enum reason reason = reason_to_move(store, partition);
        past += reason == MERGE;
        if (reason > best_reason ||
            (reason == best_reason && best != NULL && partition->live_bytes < best->live_bytes)) {
            best = partition;
            best_reason = reason;
        }
    }
    return best_reason > MERGE || past > PAST_MAX ? best : NULL;
}

/* Partitions whose time is over and that are empty go; one that gathers garbage while
 * its time is now gets no more records, so that it empties. */
static void retire_empty_locked(struct dw_store *store) {
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        struct dw_partition *partition = store->parts[i];
        if (partition == NULL || dw_partition_is_retired(partition)) {
            continue;
        }
        dw_retire_if_empty_locked(store, partition);
        if (dw_partition_is_open(partition) && is_mostly_garbage(store, partition) &&
            garbage(partition) > 2 * store->split_bytes) {
            dw_partition_note_locked(partition, DW_PARTITION_SEAL);
        }
    }
}

/* ---------------------------------------------------------------- maintain */

/* Lets the wheel do ahead what the next take would have to. */
static bool work_ahead(struct dw_store *store, uint64_t now_ms) {
    bool more = true;
    for (uint32_t round = 0; more && round < WHEEL_ROUNDS; round++) {
        uint32_t k;
        dw_lock(store);
        more = dw_wheel_peek(store->wheel, now_ms, WHEEL_BUDGET, &k) == DW_PEEK_AGAIN;
        more = dw_wheel_work(store->wheel, WHEEL_BUDGET) || more;
        dw_unlock(store);
    }
    return more;
}

/* Frees buffers that were kept for records that did not come. */
static void free_spares(struct dw_store *store) {
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        dw_lock(store);
        struct dw_partition *partition = store->parts[i];
        struct dw_buf *rec = NULL, *idx = NULL;
        if (partition != NULL && !dw_partition_is_retired(partition)) {
            rec = dw_stream_tick(&partition->rec);
            idx = dw_stream_tick(&partition->idx);
        }
        dw_unlock(store);
        dw_release(store->alloc, rec);
        dw_release(store->alloc, idx);
    }
}

static int upkeep(struct dw_store *store, size_t max_bytes, bool *more) {
    dw_lock(store);
    retire_empty_locked(store);
    if (store->moving == NULL && (store->moving = choose(store)) != NULL) {
        dw_partition_note_locked(store->moving, DW_PARTITION_SEAL);
        store->moving_off = DW_FILE_HEADER;
        store->moving_err = 0;
    }
    dw_unlock(store);
    if (store->moving == NULL) {
        return DW_OK;
    }
    /* Moving takes room on the disk: none is begun while there is none. */
    int result = store->disk_full ? dw_flush_all(store) : DW_OK;
    if (result == DW_OK) {
        result = move_step(store, max_bytes);
    }
    if (result == DW_OK) {
        *more = true;
        result = dw_flush_all(store);
    }
    return result;
}

int dw_store_maintain(dw_store *store, uint64_t now_ms, size_t max_bytes, bool *more) {
    *more = false;
    int result = dw_enter_at(store, now_ms);
    if (result != DW_OK) {
        return result;
    }
    now_ms = store->clock;
    const bool stranded = store->stranded > 0;
    const bool unwritten = store->write_error != 0;
    dw_unlock(store);
    if (unwritten) {
        (void)dw_flush_all(store);
    }
    if (stranded) {
        result = dw_requeue_all(store, DW_STRANDED);
    }
    if (result == DW_OK) {
        struct dw_budget_use before, after;
        const bool ahead = work_ahead(store, now_ms);
        dw_budget_use(store->files.budget, &before);
        result = upkeep(store, max_bytes, more);
        dw_budget_use(store->files.budget, &after);
        /* While syncs fail, what was moved would only have to be moved again: not at once. */
        *more = (*more && after.lost_on_closing == before.lost_on_closing) || ahead;
    }
    dw_reap(store);
    if (!*more) {
        /* Many stores may be idle: they do not keep files open. */
        dw_files_close_idle(&store->files, IDLE_TICKS);
        free_spares(store);
    }
    dw_lock(store);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

#include "dw_crc32c.h"

/* Giving pending messages another due time: the writer's.
 *
 * A record is read and appended where its new time belongs, with the new time in it. Where that
 * cannot be, it stays where it is, and its index entry is appended once more: what becomes of it
 * is the same on every replica, so it must not depend on what can be read or written here and now.
 */

/* One record, read for being written again. */
struct held {
    const struct dw_alloc *alloc;
    struct dw_record record;
    void *body;
    bool whole;
};

static void *held_body(void *ctx, const struct dw_record *record) {
    struct held *held = ctx;
    dw_release(held->alloc, held->body);
    held->body = dw_get(held->alloc, record->length);
    return held->body;
}

static void held_done(void *ctx, const struct dw_record *record) {
    struct held *held = ctx;
    held->record = *record;
    held->whole = true;
}

static void held_corrupt(void *ctx, const struct dw_record *record, const char *file,
                         uint64_t offset) {
    (void)ctx;
    (void)record;
    (void)file;
    (void)offset;
}

/* The entry takes its new time, and its new place if it is another. One that waits gets
 * a new number, as wheel and heap refer to the old one; one that is taken stays taken. */
static int retime_locked(struct dw_store *store, uint32_t k, const struct dw_entry *like) {
    struct dw_entry *entry = dw_slab_at(store->slab, k);
    const bool moves = like->part != entry->part || like->off != entry->off;
    if (entry->state == DW_WAITING || entry->state == DW_LATE) {
        int result = dw_link_entry_locked(store, like);
        if (result == DW_OK) {
            if (moves) {
                dw_record_dead_locked(store, k);
            }
            dw_unlink_entry_locked(store, k);
            dw_drop_entry_locked(store, k);
        }
        return result;
    }
    if (moves) {
        dw_record_dead_locked(store, k);
    }
    store->digest -= dw_digest_of_locked(store, k, entry);
    dw_origin_forget(&store->origins, k);
    entry->due = like->due;
    entry->part = like->part;
    entry->off = like->off;
    store->digest += dw_digest_of_locked(store, k, entry);
    return DW_OK;
}

/* The second half of a change whose first one came to `result`. */
static int retime_or_roll_back(struct dw_store *store, uint32_t k, const struct dw_entry *like,
                               int result) {
    if (result == DW_OK) {
        dw_lock(store);
        result = retime_locked(store, k, like);
        if (result == DW_OK) {
            dw_commit_locked(store);
        }
        dw_unlock(store);
    }
    if (result != DW_OK) {
        dw_rollback(store);
    }
    return result;
}

static int rewrite(struct dw_store *store, uint64_t index, uint64_t clock_ms, uint32_t k,
                   struct dw_partition *old, uint64_t due, const struct held *held) {
    struct dw_partition *partition;
    int result = dw_find_target(store, clock_ms, due, &partition);
    if (result != DW_OK) {
        return result;
    }
    dw_mark_partition(store, partition);
    dw_mark_partition(store, old);
    const struct dw_rec_header header = {
        .id = held->record.id,
        .due = due,
        .key_hash = held->record.key_hash,
        .index = index,
        .length = held->record.length,
        .body_crc = dw_crc32c(0, held->body, held->record.length),
        .encoding = held->record.encoding,
    };
    struct dw_entry like = {0};
    result = dw_partition_reserve(partition, store->alloc, &store->lock, header.length);
    if (result == DW_OK) {
        like = (struct dw_entry){
            .due = due & DW_DUE_MAX,
            .part = partition->number & DW_PART_NONE,
            .state = DW_WAITING,
            .id = header.id,
            .key_hash = header.key_hash,
            .off = dw_partition_append(partition, &header, held->body),
            .len = header.length,
        };
        old->dead_expected++;
        result = dw_reserve_dead(store);
    }
    return retime_or_roll_back(store, k, &like, result);
}

int dw_retime_in_place(struct dw_store *store, uint64_t id, uint64_t due) {
    dw_lock(store);
    const uint32_t k = dw_index_find(store->by_id, id);
    if (!DW_INVARIANT(k != DW_NIL)) {
        dw_unlock(store);
        return DW_OK;
    }
    struct dw_entry like = *dw_slab_at(store->slab, k);
    struct dw_partition *partition = dw_part_of_locked(store, &like);
    dw_unlock(store);
    dw_mark_partition(store, partition);
    int result = dw_stream_reserve(&partition->idx, store->alloc, &store->lock, DW_IDX_ENTRY);
    if (result == DW_OK) {
        dw_partition_retime(partition, &like, due);
        like.due = due & DW_DUE_MAX;
        like.state = DW_WAITING;
    }
    return retime_or_roll_back(store, k, &like, result);
}

static int reschedule(struct dw_store *store, uint64_t index, uint64_t id, uint64_t due) {
    struct held held = {.alloc = store->alloc};
    const struct dw_sink sink = {held_body, held_done, held_corrupt, &held};
    int result = dw_store_read(store, id, &sink);
    bool in_place =
        result != DW_ENOENT && result != DW_ENOMEM && result != DW_ECLOSED && result != DW_EBROKEN;
    if (result == DW_OK && held.whole) {
        dw_lock(store);
        const uint64_t clock_ms = store->clock;
        const uint32_t k = dw_index_find(store->by_id, id);
        struct dw_partition *old = dw_part_of_locked(store, dw_slab_at(store->slab, k));
        dw_unlock(store);
        result = rewrite(store, index, clock_ms, k, old, due, &held);
        in_place = result != DW_OK && result != DW_ENOMEM;
    }
    dw_release(store->alloc, held.body);
    return in_place ? dw_retime_in_place(store, id, due) : result;
}

int dw_store_reschedule(dw_store *store, uint64_t index, uint64_t id, uint64_t due) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (index <= store->applied) {
        return dw_leave(store, DW_OK);
    }
    dw_unlock(store);
    result = reschedule(store, index, id, due < DW_DUE_MAX ? due : DW_DUE_MAX);
    dw_lock(store);
    if (result == DW_OK || result == DW_ENOENT) {
        dw_applied_locked(store, index);
    }
    dw_publish_locked(store);
    return dw_leave(store, result);
}

int dw_store_reschedule_many(dw_store *store, uint64_t index, const struct dw_id_due *dues,
                             size_t n, uint64_t *moved) {
    *moved = 0;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (index <= store->applied) {
        return dw_leave(store, DW_OK);
    }
    dw_unlock(store);
    for (size_t i = 0; i < n && result == DW_OK; i++) {
        const uint64_t due = dues[i].due;
        result = reschedule(store, index, dues[i].id, due < DW_DUE_MAX ? due : DW_DUE_MAX);
        *moved += result == DW_OK;
        result = result == DW_ENOENT ? DW_OK : result;
    }
    dw_lock(store);
    if (result == DW_OK) {
        dw_applied_locked(store, index);
    }
    dw_publish_locked(store);
    return dw_leave(store, result);
}

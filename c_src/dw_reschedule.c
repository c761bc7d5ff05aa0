/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

/* Giving pending messages another due time: the writer's.
 *
 * A record stays where it is, and its index entry is appended once more with the new time. So it
 * costs the same whatever the message's size, asks nothing of the disk, and what becomes of it is
 * the same on every replica. Moving (dw_move.c) puts the record where its time belongs when its
 * partition is split or rewritten, which too many of these entries bring about as well. */

/* The entry takes its new time. One that waits gets a new number, as wheel and heap refer to the
 * old one; one that is taken stays taken. */
static int retime_locked(struct dw_store *store, uint32_t k, const struct dw_entry *like) {
    struct dw_entry *entry = dw_slab_at(store->slab, k);
    if (entry->state == DW_WAITING || entry->state == DW_LATE) {
        int result = dw_link_entry_locked(store, like);
        if (result == DW_OK) {
            dw_unlink_entry_locked(store, k);
            dw_drop_entry_locked(store, k);
        }
        return result;
    }
    store->digest -= dw_digest_of_locked(store, k, entry);
    dw_origin_forget(&store->origins, k);
    entry->due = like->due;
    store->digest += dw_digest_of_locked(store, k, entry);
    return DW_OK;
}

int dw_retime(struct dw_store *store, uint64_t id, uint64_t due) {
    dw_lock(store);
    const uint32_t k = dw_index_find(store->by_id, id);
    if (k == DW_NIL) {
        dw_unlock(store);
        return DW_ENOENT;
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
        dw_lock(store);
        result = retime_locked(store, k, &like);
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
        result = dw_retime(store, dues[i].id, due < DW_DUE_MAX ? due : DW_DUE_MAX);
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

int dw_store_reschedule(dw_store *store, uint64_t index, uint64_t id, uint64_t due) {
    const struct dw_id_due one = {id, due};
    uint64_t moved;
    const bool applied = index <= dw_store_applied(store);
    const int result = dw_store_reschedule_many(store, index, &one, 1, &moved);
    return result == DW_OK && moved == 0 && !applied ? DW_ENOENT : result;
}

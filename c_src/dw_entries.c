/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

/* Entries: what is pending, with its place in the indexes and in the wheel or the heap.
 *
 * All of it is guarded by the store's lock, and each function here that needs it leaves things
 * whole when it returns: an entry is in both indexes, and in one of wheel, heap, taken and
 * stranded, or it is nowhere. Who makes and removes entries is the writer; taking, postponing and
 * queueing again is anyone's. */

/* References that a call visits, at most, to find out what is due next. */
enum { NEXT_BUDGET = 8192 };

/* -------------------------------------------------------------------- in and out */

void dw_unlink_entry_locked(struct dw_store *store, uint32_t k) {
    const struct dw_entry *entry = dw_slab_at(store->slab, k);
    store->digest -= dw_digest_of_locked(store, k, entry);
    dw_index_del(store->by_id, k);
    if (entry->key_hash != 0) {
        dw_index_del(store->by_key, k);
    }
}

void dw_drop_entry_locked(struct dw_store *store, uint32_t k) {
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

int dw_link_entry_locked(struct dw_store *store, const struct dw_entry *like) {
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
    store->digest += dw_digest_of_locked(store, k, like);
    if (dw_schedule_locked(store, k) != DW_OK) {
        dw_unlink_entry_locked(store, k);
        dw_slab_put(store->slab, k);
        return DW_ENOMEM;
    }
    return DW_OK;
}

/* -------------------------------------------------------------- scheduling */

uint64_t dw_next_due_locked(struct dw_store *store) {
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

int dw_schedule_locked(struct dw_store *store, uint32_t k) {
    int result = dw_wheel_insert(store->wheel, k);
    return result == DW_ELATE ? dw_heap_push(store->heap, k) : result;
}

int dw_requeue_locked(struct dw_store *store, uint32_t k) {
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
        if (k % DW_LOCK_STEP == DW_LOCK_STEP - 1) {
            dw_publish_locked(store);
            dw_yield_locked(store);
            if (k >= dw_slab_limit(store->slab)) {
                break; /* it has been purged */
            }
        }
        struct dw_entry *entry = dw_slab_at(store->slab, k);
        if (entry->state == state) {
            if (!stranded) {
                entry->due = dw_due_of_locked(store, k, entry) & DW_DUE_MAX;
                dw_origin_forget(&store->origins, k);
            }
            result = dw_requeue_locked(store, k);
        }
    }
    dw_publish_locked(store);
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

static int postpone_locked(struct dw_store *store, uint64_t id, uint64_t until) {
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
        result = dw_requeue_locked(store, k);
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
    if (result != DW_OK) {
        return result;
    }
    result = postpone_locked(store, id, until);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

int dw_store_postpone_many(dw_store *store, const struct dw_id_due *untils, size_t n) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    for (size_t i = 0; i < n; i++) {
        const int one = postpone_locked(store, untils[i].id, untils[i].due);
        result = result == DW_OK && one != DW_ENOENT ? one : result;
        dw_yield_each_locked(store, i);
    }
    dw_publish_locked(store);
    return dw_leave(store, result);
}

uint64_t dw_store_next_due(dw_store *store) {
    if (dw_enter(store) != DW_OK) {
        return DW_NEVER;
    }
    uint64_t due = dw_next_due_locked(store);
    return dw_leave(store, DW_OK) == DW_OK ? due : DW_NEVER;
}

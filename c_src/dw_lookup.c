/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_fetch.h"

/* Pending messages by id, with their bodies, and ids by key. Any thread, beside the writer; it
 * changes nothing but the figures of what could not be read. */

/* -------------------------------------------------------------------- read */

int dw_store_read(dw_store *store, uint64_t id, const struct dw_sink *sink) {
    struct dw_fetch fetch;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    result = dw_fetch_new(store, &fetch, 1);
    dw_lock(store);
    if (result == DW_OK) {
        uint32_t k = dw_index_find(store->by_id, id);
        if (k == DW_NIL) {
            result = DW_ENOENT;
        } else {
            dw_fetch_add_locked(&fetch, k);
        }
    }
    dw_unlock(store);
    if (result == DW_OK) {
        result = dw_fetch_read(&fetch);
        if (result == DW_OK) {
            result = dw_fetch_hand_out(&fetch, &fetch.wanted[0], sink);
        }
        dw_fetch_clear(&fetch);
    }
    dw_fetch_free(&fetch);
    dw_lock(store);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

/* The next of the ids that are there, as far as a fetch goes. */
static void fetch_ids_locked(struct dw_fetch *fetch, const uint64_t *ids, uint32_t n,
                             uint64_t *left_bytes, uint32_t *seen) {
    struct dw_store *store = fetch->store;
    uint64_t bytes = 0;
    while (*left_bytes > 0 && *seen < n && fetch->count < DW_FETCH_MAX && bytes < DW_FETCH_BYTES) {
        const uint32_t k = dw_index_find(store->by_id, ids[(*seen)++]);
        if (k != DW_NIL) {
            const uint32_t length = dw_slab_at(store->slab, k)->len;
            dw_fetch_add_locked(fetch, k);
            bytes += dw_rec_bytes(length);
            *left_bytes -= length < *left_bytes ? length : *left_bytes;
        }
    }
}

int dw_store_read_many(dw_store *store, const uint64_t *ids, uint32_t n, uint64_t max_bytes,
                       const struct dw_sink *sink, uint32_t *seen) {
    struct dw_fetch fetch;
    *seen = 0;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    result = dw_fetch_new(store, &fetch, n);
    while (result == DW_OK && *seen < n && max_bytes > 0) {
        dw_lock(store);
        fetch_ids_locked(&fetch, ids, n, &max_bytes, seen);
        dw_unlock(store);
        if (fetch.count > 0) {
            result = dw_fetch_read(&fetch);
            for (uint32_t i = 0; result == DW_OK && i < fetch.count; i++) {
                result = dw_fetch_hand_out(&fetch, &fetch.wanted[i], sink);
                if (result == DW_EACCES || result == DW_EIO || result == DW_ENOSPC) {
                    result = DW_OK; /* dw_store_read() says why */
                }
            }
            dw_fetch_clear(&fetch);
        }
    }
    dw_fetch_free(&fetch);
    dw_lock(store);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

/* -------------------------------------------------------------------- find */

int dw_store_find(dw_store *store, uint64_t key_hash, uint64_t *ids, uint32_t max, uint64_t *n) {
    *n = 0;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    uint32_t *numbers = max > 0 ? dw_get(store->alloc, max * sizeof *numbers) : NULL;
    dw_lock(store);
    if (max > 0 && numbers == NULL) {
        result = DW_ENOMEM;
    } else if (key_hash != 0) {
        *n = dw_index_all(store->by_key, key_hash, numbers, max);
        for (uint64_t i = 0; i < *n && i < max; i++) {
            ids[i] = dw_slab_at(store->slab, numbers[i])->id;
        }
    }
    dw_unlock(store);
    dw_release(store->alloc, numbers);
    dw_lock(store);
    return dw_leave(store, result);
}

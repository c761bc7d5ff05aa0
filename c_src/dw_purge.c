/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

/* Removing all that is pending at once: the writer's.
 *
 * What is in memory is exchanged for fresh tables, and the old ones are freed whole, without a look
 * at what was in them; all partitions are retired. Who looked at entries meanwhile finds them again
 * by their ids, or not at all, as after any other removal. */

/* What is pending, in memory. */
struct tables {
    dw_slab *slab;
    dw_wheel *wheel;
    dw_heap *heap;
    dw_index *by_id;
    dw_index *by_key;
    struct dw_origins origins;
    struct dw_origins unread;
};

static void free_tables(struct tables *tables) {
    dw_free_pending(tables->slab, tables->wheel, tables->heap, tables->by_id, tables->by_key);
    dw_origins_free(&tables->origins);
    dw_origins_free(&tables->unread);
}

/* Empty ones; false: no memory for all of them. */
static bool make_tables(const struct dw_alloc *alloc, uint64_t start_ms, struct tables *out) {
    *out = (struct tables){.slab = dw_slab_new(alloc)};
    dw_origins_init(&out->origins, alloc);
    dw_origins_init(&out->unread, alloc);
    if (out->slab != NULL) {
        out->wheel = dw_wheel_new(alloc, out->slab, start_ms);
        out->heap = dw_heap_new(alloc, out->slab);
        out->by_id = dw_index_new(alloc, out->slab, DW_BY_ID);
        out->by_key = dw_index_new(alloc, out->slab, DW_BY_KEY);
    }
    return out->wheel != NULL && out->heap != NULL && out->by_id != NULL && out->by_key != NULL;
}

static void exchange_tables_locked(struct dw_store *store, struct tables *tables) {
    const struct tables old = {store->slab,   store->wheel,   store->heap,  store->by_id,
                               store->by_key, store->origins, store->unread};
    store->slab = tables->slab;
    store->wheel = tables->wheel;
    store->heap = tables->heap;
    store->by_id = tables->by_id;
    store->by_key = tables->by_key;
    store->origins = tables->origins;
    store->unread = tables->unread;
    *tables = old;
}

int dw_store_purge(dw_store *store, uint64_t index, uint64_t *removed, uint64_t *taken) {
    *removed = 0;
    *taken = 0;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (index <= store->applied) {
        return dw_leave(store, DW_OK);
    }
    const uint64_t start_ms = dw_wheel_now(store->wheel);
    dw_unlock(store);
    struct tables tables;
    result = make_tables(store->alloc, start_ms, &tables) ? DW_OK : DW_ENOMEM;
    dw_lock(store);
    if (result == DW_OK) {
        exchange_tables_locked(store, &tables);
        dw_retire_all_locked(store);
        *removed = store->pending;
        *taken = store->taken;
        store->pending = 0;
        store->pending_bytes = 0;
        store->taken = 0;
        store->stranded = 0;
        store->digest = 0;
        dw_applied_locked(store, index);
        dw_publish_locked(store);
    }
    dw_unlock(store);
    free_tables(&tables);
    dw_lock(store);
    return dw_leave(store, result);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_fetch.h"

/* Taking what is due, in its order: the dispatcher's. One call at a time, beside the writer.
 *
 * What comes out of wheel or heap is taken, and stays so until it is settled, postponed or untaken.
 * What cannot be handed out is put back before the call returns; what there is no memory to put
 * back for is stranded, and is queued by the next call. */

enum {
    PEEK_BUDGET = 1024,  /* references that the wheel visits under one lock */
    PAUSE_MIN_MS = 1000, /* until a record that cannot be read is tried again */
    PAUSE_MAX_MS = 30000,
};

/* Until when what could not be read of the partition's file is left. The pause grows
 * with each that ends without success, and is forgotten after a while without failures. */
static uint64_t pause_until_locked(struct dw_partition *partition, uint64_t now_ms) {
    const uint64_t end = partition->pause_end;
    if (end <= now_ms || end > now_ms + PAUSE_MAX_MS) {
        const bool again =
            partition->pause_ms > 0 && now_ms >= end && now_ms - end <= 2 * (uint64_t)PAUSE_MAX_MS;
        const uint32_t longer = again ? 2 * partition->pause_ms : PAUSE_MIN_MS;
        partition->pause_ms = longer < PAUSE_MAX_MS ? longer : PAUSE_MAX_MS;
        partition->pause_end = now_ms + partition->pause_ms;
    }
    return partition->pause_end;
}

/* A record that was taken is not handed out after all, and not before `until`, unless
 * that is DW_NEVER. */
static void put_back_locked(struct dw_store *store, uint64_t id, uint64_t until) {
    uint32_t k = dw_index_find(store->by_id, id);
    if (k == DW_NIL) {
        return;
    }
    struct dw_entry *entry = dw_slab_at(store->slab, k);
    if (entry->state != DW_TAKEN) {
        return;
    }
    if (until != DW_NEVER && dw_origin_note(&store->origins, k, entry->due) == DW_OK) {
        entry->due = (until < DW_DUE_MAX ? until : DW_DUE_MAX) & DW_DUE_MAX;
    }
    if (dw_requeue_locked(store, k) != DW_OK) {
        /* Tried again by the next take. */
        if (store->stranded == 0 || entry->due < store->stranded_due) {
            store->stranded_due = entry->due;
        }
        store->stranded++;
        store->taken--;
        entry->state = DW_STRANDED;
    }
}

/* The next entry due, removed from wheel or heap. DW_NIL if there is none; *again if the
 * wheel has to look further first. */
static uint32_t next_entry_locked(struct dw_store *store, uint64_t now_ms, bool *again) {
    uint32_t k = DW_NIL;
    const enum dw_peek peek = dw_wheel_peek(store->wheel, now_ms, PEEK_BUDGET, &k);
    if (peek == DW_PEEK_AGAIN) {
        *again = true;
        return DW_NIL;
    }
    const struct dw_entry *waiting = peek == DW_PEEK_ENTRY ? dw_slab_at(store->slab, k) : NULL;
    const uint32_t top = dw_heap_top(store->heap);
    const struct dw_entry *late = top != DW_NIL ? dw_slab_at(store->slab, top) : NULL;
    if (late != NULL && late->due <= now_ms &&
        (waiting == NULL || late->due < waiting->due ||
         (late->due == waiting->due && late->id < waiting->id))) {
        dw_heap_pop(store->heap);
        return top;
    }
    if (waiting == NULL) {
        return DW_NIL;
    }
    dw_wheel_pop(store->wheel);
    return k;
}

struct take {
    uint64_t now_ms;
    uint32_t left_n;
    uint64_t left_bytes;
    bool over;       /* nothing more is to be taken */
    uint64_t rounds; /* that the wheel may still ask for before it shows the next entry */
};

/* The wheel asks to be called again when it has worked for long, but also when it has no memory. It
 * never has to look at more than all that is in it, once a level. */
static uint64_t most_rounds_locked(const struct dw_store *store) {
    return 16 + 16 * (dw_wheel_count(store->wheel) / PEEK_BUDGET + 1);
}

static void fetch_due_locked(struct dw_fetch *fetch, struct take *take) {
    struct dw_store *store = fetch->store;
    const uint32_t most = take->left_n < DW_FETCH_MAX ? take->left_n : DW_FETCH_MAX;
    uint64_t bytes = 0;
    while (fetch->count < most && bytes < DW_FETCH_BYTES) {
        bool again = false;
        uint32_t k = next_entry_locked(store, take->now_ms, &again);
        if (k == DW_NIL) {
            take->over = !again;
            take->rounds -= again;
            return;
        }
        take->rounds = most_rounds_locked(store);
        const uint32_t length = dw_slab_at(store->slab, k)->len;
        store->taken++;
        dw_fetch_add_locked(fetch, k);
        bytes += dw_rec_bytes(length);
        take->left_n--;
        if (length >= take->left_bytes) {
            take->left_n = 0;
            break;
        }
        take->left_bytes -= length;
    }
    take->over = take->left_n == 0;
}

/* Hands out what was read, unless `result` is an error by now, and puts back what was not. */
static int hand_out_all(struct dw_fetch *fetch, struct take *take, const struct dw_sink *sink,
                        int result) {
    struct dw_store *store = fetch->store;
    uint32_t i = 0;
    for (; result == DW_OK && i < fetch->count; i++) {
        struct dw_wanted *wanted = &fetch->wanted[i];
        result = dw_fetch_hand_out(fetch, wanted, sink);
        if (wanted->fate == DW_FATE_UNREADABLE) {
            dw_lock(store);
            put_back_locked(store, wanted->record.id,
                            pause_until_locked(wanted->partition, take->now_ms));
            dw_unlock(store);
            result = DW_OK;
        } else if (wanted->fate == DW_FATE_LEFT) {
            dw_lock(store);
            put_back_locked(store, wanted->record.id, DW_NEVER);
            dw_unlock(store);
            take->over = true;
            result = DW_OK;
        } else if (result != DW_OK) {
            break;
        }
    }
    if (result != DW_OK) {
        dw_lock(store);
        for (; i < fetch->count; i++) {
            put_back_locked(store, fetch->wanted[i].record.id, DW_NEVER);
        }
        dw_unlock(store);
    }
    return result;
}

static int take_all(struct dw_fetch *fetch, struct take *take, const struct dw_sink *sink) {
    struct dw_store *store = fetch->store;
    int result = DW_OK;
    while (result == DW_OK && !take->over) {
        dw_lock(store);
        fetch_due_locked(fetch, take);
        dw_publish_locked(store);
        dw_unlock(store);
        if (fetch->count > 0) {
            result = dw_fetch_read(fetch);
            result = hand_out_all(fetch, take, sink, result);
            dw_fetch_clear(fetch);
        } else if (take->rounds == 0) {
            result = DW_ENOMEM;
        }
    }
    return result;
}

int dw_store_take(dw_store *store, uint64_t now_ms, uint32_t max_n, uint64_t max_bytes,
                  const struct dw_sink *sink, uint64_t *next_due) {
    *next_due = DW_NEVER;
    int result = dw_enter_at(store, now_ms);
    if (result != DW_OK) {
        return result;
    }
    now_ms = store->clock;
    const bool stranded = store->stranded > 0;
    const bool any = max_n > 0 && dw_next_due_locked(store) <= now_ms;
    dw_unlock(store);
    if (stranded) {
        result = dw_requeue_all(store, DW_STRANDED);
    }
    if (result == DW_OK && any) {
        struct take take = {.now_ms = now_ms, .left_n = max_n, .left_bytes = max_bytes};
        struct dw_fetch fetch;
        dw_lock(store);
        take.rounds = most_rounds_locked(store);
        dw_unlock(store);
        result = dw_fetch_new(store, &fetch, max_n);
        if (result == DW_OK) {
            result = take_all(&fetch, &take, sink);
        }
        dw_fetch_free(&fetch);
    }
    dw_lock(store);
    *next_due = dw_next_due_locked(store);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

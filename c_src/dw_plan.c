/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_plan.h"

#include "dw_batch.h"

#include <string.h>

/* Keyed batches: what a batch does is found out before anything is changed.
 *
 * Each key of the batch has a slot in a hash table, with a chain of the batch's own records that
 * are to be inserted under it and a note of whether what the store has under it goes. */

#define NO_RECORD UINT32_MAX

struct slot {
    uint64_t key_hash;        /* 0: unused */
    uint32_t last;            /* of the batch's records under this key, the last that stays */
    enum dw_on_key clears_by; /* DW_REPLACE or DW_CANCEL: what the store has goes; or DW_KEEP */
    bool releases;            /* what the store has is released, if it does not go */
};

struct planning {
    struct dw_store *store;
    struct dw_plan *plan;
    struct slot *slots;
    uint32_t mask;
    uint32_t *before; /* one a record: the one before it in its chain */
};

static struct slot *slot_of(const struct planning *planning, uint64_t key_hash) {
    /* The table is the batch's own, and the hashes are well mixed. */
    uint32_t i = (uint32_t)key_hash & planning->mask;
    while (planning->slots[i].key_hash != 0 && planning->slots[i].key_hash != key_hash) {
        i = (i + 1) & planning->mask;
    }
    if (planning->slots[i].key_hash == 0) {
        planning->slots[i] = (struct slot){.key_hash = key_hash, .last = NO_RECORD};
    }
    return &planning->slots[i];
}

static void clear(struct planning *planning, struct slot *slot, enum dw_on_key by) {
    uint64_t *went =
        by == DW_CANCEL ? &planning->plan->in_batch.cancelled : &planning->plan->in_batch.replaced;
    for (; slot->last != NO_RECORD; slot->last = planning->before[slot->last]) {
        planning->plan->fates[slot->last] = DW_LEFT_OUT;
        *went += 1;
    }
    if (slot->clears_by == DW_KEEP) {
        slot->clears_by = by;
    }
}

static void release(struct planning *planning, struct slot *slot) {
    for (uint32_t i = slot->last; i != NO_RECORD; i = planning->before[i]) {
        planning->plan->fates[i] = DW_INSERTED_DUE;
    }
    slot->releases = true;
}

static bool is_pending_locked(const struct planning *planning, const struct slot *slot) {
    return slot->last != NO_RECORD ||
           (slot->clears_by == DW_KEEP &&
            dw_index_find(planning->store->by_key, slot->key_hash) != DW_NIL);
}

static void plan_record_locked(struct planning *planning, uint32_t i,
                               const struct dw_batch_record *record) {
    struct slot *slot = slot_of(planning, record->key_hash);
    if (record->on_key == DW_REPLACE || record->on_key == DW_CANCEL) {
        clear(planning, slot, record->on_key);
    }
    if (record->on_key == DW_RELEASE) {
        release(planning, slot);
    }
    if (record->on_key == DW_CANCEL || record->on_key == DW_RELEASE) {
        planning->plan->fates[i] = DW_LEFT_OUT;
    } else if (record->on_key == DW_DROP && is_pending_locked(planning, slot)) {
        planning->plan->fates[i] = DW_LEFT_OUT;
        planning->plan->in_batch.dropped++;
    } else {
        planning->before[i] = slot->last;
        slot->last = i;
    }
}

/* What the store has under keys that are cleared by `by` goes: counted, or noted. */
static size_t find_gone_locked(struct planning *planning, enum dw_on_key by, uint32_t *gone,
                               size_t max) {
    size_t n = 0;
    for (uint32_t i = 0; i <= planning->mask; i++) {
        const struct slot *slot = &planning->slots[i];
        if (slot->key_hash != 0 && slot->clears_by == by) {
            n += dw_index_all(planning->store->by_key, slot->key_hash,
                              gone == NULL ? NULL : gone + n, gone == NULL ? 0 : max - n);
        }
        dw_yield_each_locked(planning->store, i);
    }
    return n;
}

static int find_all_gone(struct planning *planning) {
    struct dw_store *store = planning->store;
    struct dw_plan *plan = planning->plan;
    dw_lock(store);
    const size_t replaced = find_gone_locked(planning, DW_REPLACE, NULL, 0);
    const size_t n = replaced + find_gone_locked(planning, DW_CANCEL, NULL, 0);
    dw_unlock(store);
    if (n == 0) {
        return DW_OK;
    }
    plan->gone = dw_get(store->alloc, n * sizeof *plan->gone);
    if (plan->gone == NULL) {
        return DW_ENOMEM;
    }
    /* Only the writer, which this is, changes what is in the index. */
    dw_lock(store);
    find_gone_locked(planning, DW_REPLACE, plan->gone, replaced);
    find_gone_locked(planning, DW_CANCEL, plan->gone + replaced, n - replaced);
    dw_unlock(store);
    plan->replaced_count = replaced;
    plan->gone_count = n;
    return DW_OK;
}

/* Entries that the store has under keys that are released: counted, or noted, at most so many. */
static size_t find_released_locked(struct planning *planning, uint32_t *found, size_t max) {
    size_t n = 0;
    for (uint32_t i = 0; i <= planning->mask; i++) {
        const struct slot *slot = &planning->slots[i];
        if (slot->releases && slot->clears_by == DW_KEEP) {
            const size_t room = found != NULL && n < max ? max - n : 0;
            n += dw_index_all(planning->store->by_key, slot->key_hash, room > 0 ? found + n : NULL,
                              room);
        }
        dw_yield_each_locked(planning->store, i);
    }
    return found == NULL || n < max ? n : max;
}

/* The ids of those of them that are due later. */
static void note_released_locked(struct planning *planning, uint64_t base_ms, const uint32_t *found,
                                 size_t n) {
    struct dw_store *store = planning->store;
    struct dw_plan *plan = planning->plan;
    for (size_t i = 0; i < n; i++) {
        const struct dw_entry *entry = dw_slab_at(store->slab, found[i]);
        if (dw_due_of_locked(store, found[i], entry) > base_ms) {
            plan->released[plan->released_count++] = entry->id;
        }
        dw_yield_each_locked(store, i);
    }
}

static int find_all_released(struct planning *planning, uint64_t base_ms) {
    struct dw_store *store = planning->store;
    struct dw_plan *plan = planning->plan;
    dw_lock(store);
    const size_t n = find_released_locked(planning, NULL, 0);
    dw_unlock(store);
    if (n == 0) {
        return DW_OK;
    }
    uint32_t *found = dw_get(store->alloc, n * sizeof *found);
    plan->released = dw_get(store->alloc, n * sizeof *plan->released);
    if (found != NULL && plan->released != NULL) {
        dw_lock(store);
        note_released_locked(planning, base_ms, found, find_released_locked(planning, found, n));
        dw_unlock(store);
    }
    const bool whole = found != NULL && plan->released != NULL;
    dw_release(store->alloc, found);
    return whole ? DW_OK : DW_ENOMEM;
}

static void plan_records(struct planning *planning, const void *batch, uint32_t count) {
    size_t pos = 0;
    dw_lock(planning->store);
    for (uint32_t i = 0; i < count; i++) {
        struct dw_batch_record record;
        dw_batch_next(batch, &pos, 0, &record);
        if (record.key_hash != 0) {
            plan_record_locked(planning, i, &record);
        }
        dw_yield_each_locked(planning->store, i);
    }
    dw_unlock(planning->store);
}

int dw_plan_make(struct dw_store *store, const void *batch, uint32_t count, uint64_t base_ms,
                 struct dw_plan *plan) {
    *plan = (struct dw_plan){0};
    uint32_t slots = 4;
    while (slots < 2 * count) {
        slots *= 2;
    }
    struct planning planning = {.store = store, .plan = plan, .mask = slots - 1};
    planning.slots = dw_get(store->alloc, slots * sizeof *planning.slots);
    planning.before = dw_get(store->alloc, count * sizeof *planning.before);
    plan->fates = dw_get(store->alloc, count);
    int result = DW_ENOMEM;
    if (planning.slots != NULL && planning.before != NULL && plan->fates != NULL) {
        memset(planning.slots, 0, slots * sizeof *planning.slots);
        memset(plan->fates, DW_INSERTED, count);
        plan_records(&planning, batch, count);
        result = find_all_gone(&planning);
        if (result == DW_OK) {
            result = find_all_released(&planning, base_ms);
        }
    }
    dw_release(store->alloc, planning.slots);
    dw_release(store->alloc, planning.before);
    if (result != DW_OK) {
        dw_plan_free(store, plan);
    }
    return result;
}

void dw_plan_free(struct dw_store *store, struct dw_plan *plan) {
    dw_release(store->alloc, plan->fates);
    dw_release(store->alloc, plan->gone);
    dw_release(store->alloc, plan->released);
    *plan = (struct dw_plan){0};
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_plan.h"

#include "dw_batch.h"
#include "dw_crc32c.h"

#include <string.h>

/* The writer's changes: inserting batches, plain and keyed, and settling.
 *
 * Each is made in two halves. First, without the lock, everything that can fail: records are
 * appended to buffers where nobody looks, and room is made for the notes of those that go. Then,
 * under the lock, entries appear and go, all or none. One whose Raft index is not above the store's
 * does nothing. */

/* ------------------------------------------------------------------ insert */

/* Appends the records to the buffers of their partitions, where nobody sees them yet.
 * *appended_count: how many; *released: of these, those that are due earlier than they say. */
static int append_all(struct dw_store *store, uint64_t index, uint64_t clock_ms, uint64_t base_ms,
                      const void *batch, uint32_t count, const struct dw_plan *plan,
                      struct dw_entry *appended, uint32_t *appended_count, uint64_t *bytes,
                      uint64_t *released) {
    size_t pos = 0;
    *appended_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct dw_batch_record record;
        dw_batch_next(batch, &pos, base_ms, &record);
        const uint8_t fate = plan->fates != NULL ? plan->fates[i] : DW_INSERTED;
        if (fate == DW_LEFT_OUT) {
            continue;
        }
        if (fate == DW_INSERTED_DUE && record.due > base_ms) {
            record.due = base_ms;
            *released += 1;
        }
        struct dw_partition *partition;
        int result = dw_find_target(store, clock_ms, record.due, &partition);
        if (result == DW_OK) {
            dw_mark_partition(store, partition);
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
        appended[(*appended_count)++] = (struct dw_entry){
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

/* Shows all of them, or none. */
static int link_all_locked(struct dw_store *store, const struct dw_entry *appended,
                           uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        int result = dw_link_entry_locked(store, &appended[i]);
        if (result != DW_OK) {
            while (i-- > 0) {
                uint32_t k = dw_index_find(store->by_id, appended[i].id);
                dw_unlink_entry_locked(store, k);
                dw_drop_entry_locked(store, k);
            }
            return result;
        }
    }
    return DW_OK;
}

/* Entry k is about to go. */
static void expect_dead_locked(struct dw_store *store, uint32_t k) {
    struct dw_partition *partition = dw_part_of_locked(store, dw_slab_at(store->slab, k));
    dw_mark_partition(store, partition);
    partition->dead_expected++;
}

/* Entry k goes; it was expected, and room was made to note it. */
static void remove_entry_locked(struct dw_store *store, uint32_t k) {
    const uint32_t length = dw_slab_at(store->slab, k)->len;
    dw_record_dead_locked(store, k);
    dw_unlink_entry_locked(store, k);
    dw_drop_entry_locked(store, k);
    store->pending--;
    store->pending_bytes -= length;
}

/* Room is made for every note of a dead record before the first is made. */
static int expect_gone_locked(struct dw_store *store, const struct dw_plan *plan) {
    if (plan->gone_count == 0) {
        return DW_OK;
    }
    for (size_t i = 0; i < plan->gone_count; i++) {
        expect_dead_locked(store, plan->gone[i]);
        dw_yield_each_locked(store, i);
    }
    dw_unlock(store);
    int result = dw_reserve_dead(store);
    dw_lock(store);
    return result;
}

static void remove_gone_locked(struct dw_store *store, const struct dw_plan *plan,
                               struct dw_keyed *out) {
    for (size_t i = 0; i < plan->gone_count; i++) {
        const bool taken = dw_slab_at(store->slab, plan->gone[i])->state == DW_TAKEN;
        remove_entry_locked(store, plan->gone[i]);
        if (taken) {
            out->taken++;
        } else {
            *(i < plan->replaced_count ? &out->replaced : &out->cancelled) += 1;
        }
        dw_yield_each_locked(store, i);
    }
}

static int insert(struct dw_store *store, uint64_t index, uint64_t clock_ms, uint64_t base_ms,
                  const void *batch, uint32_t count, const struct dw_plan *plan,
                  struct dw_keyed *out) {
    uint32_t appended_count;
    uint64_t bytes = 0, released = 0;
    struct dw_entry *appended = dw_scratch(store, count * sizeof *appended);
    if (appended == NULL) {
        return DW_ENOMEM;
    }
    int result = append_all(store, index, clock_ms, base_ms, batch, count, plan, appended,
                            &appended_count, &bytes, &released);
    dw_lock(store);
    if (result == DW_OK) {
        result = expect_gone_locked(store, plan);
    }
    if (result == DW_OK) {
        result = link_all_locked(store, appended, appended_count);
    }
    if (result == DW_OK) {
        *out = plan->in_batch;
        store->pending += appended_count;
        store->pending_bytes += bytes;
        remove_gone_locked(store, plan, out);
        dw_commit_locked(store);
        dw_applied_locked(store, index);
        out->inserted.count = appended_count;
        out->inserted.bytes = bytes;
        out->released = released;
    } else {
        dw_rollback(store);
    }
    dw_unlock(store);
    return result;
}

/* Batches of the first kind have no plan: all of their records are inserted. */
static int insert_plain(struct dw_store *store, uint64_t index, uint64_t clock_ms, uint64_t base_ms,
                        const void *batch, size_t bytes, enum dw_keyed_version version,
                        struct dw_keyed *out) {
    const struct dw_plan plan = {0};
    (void)version;
    uint32_t count;
    int result = dw_batch_check(batch, bytes, store->max_record_bytes, &count);
    return result == DW_OK ? insert(store, index, clock_ms, base_ms, batch, count, &plan, out)
                           : result;
}

static int release_all(struct dw_store *store, uint64_t base_ms, const struct dw_plan *plan) {
    int result = DW_OK;
    for (size_t i = 0; result == DW_OK && i < plan->released_count; i++) {
        result = dw_retime(store, plan->released[i], base_ms);
    }
    return result;
}

static int insert_keyed(struct dw_store *store, uint64_t index, uint64_t clock_ms, uint64_t base_ms,
                        const void *batch, size_t bytes, enum dw_keyed_version version,
                        struct dw_keyed *out) {
    struct dw_plan plan;
    uint32_t count;
    base_ms = base_ms < DW_DUE_MAX ? base_ms : DW_DUE_MAX;
    int result = dw_batch_check_keyed(batch, bytes, store->max_record_bytes, version, &count);
    if (result == DW_OK) {
        result = dw_plan_make(store, batch, count, base_ms, &plan);
    }
    if (result == DW_OK) {
        result = release_all(store, base_ms, &plan);
        if (result == DW_OK) {
            result = insert(store, index, clock_ms, base_ms, batch, count, &plan, out);
        }
        if (result == DW_OK) {
            out->released += plan.released_count;
        }
        dw_plan_free(store, &plan);
    }
    return result;
}

typedef int insert_batch(struct dw_store *store, uint64_t index, uint64_t clock_ms,
                         uint64_t base_ms, const void *batch, size_t bytes,
                         enum dw_keyed_version version, struct dw_keyed *out);

static int insert_with(insert_batch *how, struct dw_store *store, uint64_t index, uint64_t base_ms,
                       const void *batch, size_t bytes, enum dw_keyed_version version,
                       struct dw_keyed *out) {
    *out = (struct dw_keyed){.inserted.next_due = DW_NEVER};
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (index > store->applied) {
        const uint64_t clock_ms = store->clock;
        dw_unlock(store);
        result = index >> 48 != 0
                     ? DW_EINVAL
                     : how(store, index, clock_ms, base_ms, batch, bytes, version, out);
        dw_lock(store);
    }
    dw_publish_locked(store);
    out->inserted.next_due = dw_next_due_locked(store);
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
    int result = insert_with(insert_plain, store, index, base_ms, batch, bytes, DW_KEYED_1, &keyed);
    *out = keyed.inserted;
    return result;
}

int dw_store_insert_keyed(dw_store *store, uint64_t index, uint64_t base_ms, const void *batch,
                          size_t bytes, enum dw_keyed_version version, struct dw_keyed *out) {
    return insert_with(insert_keyed, store, index, base_ms, batch, bytes, version, out);
}

/* ------------------------------------------------------------------ settle */

/* What is to go: all with these ids, or those that are due when it says. */
struct settled {
    const uint64_t *ids;
    const struct dw_id_due *released; /* if there are no ids */
    bool or_before;                   /* what is due before that, too */
    size_t n;
};

/* The entry of number i, DW_NIL if it stays or is not there. */
static uint32_t find_settled_locked(const struct dw_store *store, const struct settled *settled,
                                    size_t i) {
    if (settled->ids != NULL) {
        return dw_index_find(store->by_id, settled->ids[i]);
    }
    const struct dw_id_due *released = &settled->released[i];
    const uint32_t k = dw_index_find(store->by_id, released->id);
    if (k == DW_NIL) {
        return DW_NIL;
    }
    const uint64_t due = dw_due_of_locked(store, k, dw_slab_at(store->slab, k));
    return due == released->due || (settled->or_before && due < released->due) ? k : DW_NIL;
}

/* Room is made for every note of a dead record before the first is made. Meanwhile others may
 * postpone what goes, which changes nothing of when it is due. */
static int settle_locked(struct dw_store *store, const struct settled *settled, uint64_t *removed) {
    for (size_t i = 0; i < settled->n; i++) {
        uint32_t k = find_settled_locked(store, settled, i);
        if (k != DW_NIL) {
            expect_dead_locked(store, k);
        }
        dw_yield_each_locked(store, i);
    }
    dw_unlock(store);
    int result = dw_reserve_dead(store);
    dw_lock(store);
    if (result != DW_OK) {
        dw_rollback(store);
        return result;
    }
    for (size_t i = 0; i < settled->n; i++) {
        uint32_t k = find_settled_locked(store, settled, i);
        if (k != DW_NIL) {
            remove_entry_locked(store, k);
            *removed += 1;
        }
        dw_yield_each_locked(store, i);
    }
    dw_commit_locked(store);
    return DW_OK;
}

static int settle(struct dw_store *store, uint64_t index, const struct settled *settled,
                  uint64_t *removed) {
    *removed = 0;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (index > store->applied) {
        result = settle_locked(store, settled, removed);
        if (result == DW_OK) {
            dw_applied_locked(store, index);
        }
        dw_publish_locked(store);
    }
    result = dw_leave(store, result);
    *removed = result == DW_OK ? *removed : 0;
    return result;
}

int dw_store_settle(dw_store *store, uint64_t index, const uint64_t *ids, size_t n,
                    uint64_t *removed) {
    return settle(store, index, &(struct settled){.ids = ids, .n = n}, removed);
}

int dw_store_settle_due(dw_store *store, uint64_t index, const struct dw_id_due *released, size_t n,
                        uint64_t *removed) {
    return settle(store, index, &(struct settled){.released = released, .n = n}, removed);
}

int dw_store_settle_due_by(dw_store *store, uint64_t index, const struct dw_id_due *released,
                           size_t n, uint64_t *removed) {
    return settle(store, index, &(struct settled){.released = released, .or_before = true, .n = n},
                  removed);
}

void dw_store_note(dw_store *store, uint64_t index) {
    if (dw_enter(store) != DW_OK) {
        return;
    }
    if (index > store->applied) {
        dw_applied_locked(store, index);
        dw_publish_locked(store);
    }
    (void)dw_leave(store, DW_OK);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

/* Counts everything again and compares: for tests, which call it between two calls of theirs. It
 * holds the lock throughout, and uses the partitions' counters of the present call, which is none.
 */

struct tally {
    uint64_t waiting, late, taken, stranded, keyed, bytes, live_bytes, digest;
};

static const char *check_entry_locked(struct dw_store *store, uint32_t k, struct tally *tally) {
    const struct dw_entry *entry = dw_slab_at(store->slab, k);
    switch (entry->state) {
    case DW_WAITING:
        tally->waiting++;
        break;
    case DW_LATE:
        tally->late++;
        break;
    case DW_TAKEN:
        tally->taken++;
        break;
    case DW_STRANDED:
        tally->stranded++;
        break;
    default:
        return NULL;
    }
    if (dw_index_find(store->by_id, entry->id) != k) {
        return "an entry is not found by its id";
    }
    tally->keyed += entry->key_hash != 0;
    tally->bytes += entry->len;
    tally->live_bytes += dw_rec_bytes(entry->len);
    tally->digest += dw_digest_of_locked(store, k, entry);
    struct dw_partition *partition =
        entry->part < store->parts_capacity ? store->parts[entry->part] : NULL;
    if (partition == NULL || dw_partition_is_retired(partition)) {
        return "an entry is in no partition";
    }
    if (entry->off * (uint64_t)DW_REC_UNIT < DW_FILE_HEADER) {
        return "an entry is before its partition's first record";
    }
    partition->added++;
    partition->added_bytes += dw_rec_bytes(entry->len);
    return NULL;
}

static const char *check_entries_locked(struct dw_store *store) {
    struct tally tally = {0};
    for (uint32_t k = 0; k < dw_slab_limit(store->slab); k++) {
        const char *wrong = check_entry_locked(store, k, &tally);
        if (wrong != NULL) {
            return wrong;
        }
    }
    if (tally.waiting != dw_wheel_count(store->wheel) || tally.late != dw_heap_count(store->heap)) {
        return "wheel or heap count other entries";
    }
    if (tally.taken != store->taken || tally.stranded != store->stranded) {
        return "other entries are taken";
    }
    const uint64_t all = tally.waiting + tally.late + tally.taken + tally.stranded;
    if (all != store->pending || all != dw_index_count(store->by_id) ||
        tally.keyed != dw_index_count(store->by_key)) {
        return "the number of pending records is wrong";
    }
    if (tally.bytes != store->pending_bytes || tally.live_bytes != store->live_bytes) {
        return "the bytes of pending records are wrong";
    }
    if (tally.digest != store->digest || tally.digest != store->applied_digest) {
        return "the digest of what is pending is wrong";
    }
    return NULL;
}

static const char *check_partitions_locked(struct dw_store *store) {
    uint64_t total = 0, rec = 0, buffered = 0;
    uint32_t used = 0, retired = 0;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        const struct dw_partition *partition = store->parts[i];
        if (partition == NULL) {
            continue;
        }
        used++;
        retired += dw_partition_is_retired(partition);
        if (partition->number != i || partition->marked) {
            return "a partition is not where it belongs";
        }
        if (partition->live != partition->added ||
            partition->live_bytes != partition->added_bytes) {
            return "a partition counts other records";
        }
        const bool gone = dw_partition_is_retired(partition);
        const uint64_t rec_length =
            gone ? partition->rec.written : dw_stream_length(&partition->rec);
        const uint64_t idx_length =
            gone ? partition->idx.written : dw_stream_length(&partition->idx);
        total += rec_length + idx_length;
        rec += rec_length > 0 ? rec_length - DW_FILE_HEADER : 0;
        buffered +=
            gone ? 0 : dw_stream_buffered(&partition->rec) + dw_stream_buffered(&partition->idx);
    }
    if (used != store->parts_used || retired != store->retired) {
        return "the number of partitions is wrong";
    }
    if (total != store->total_bytes || rec != store->rec_bytes || buffered != store->buffered) {
        return "the bytes in partitions are wrong";
    }
    return store->marked_count == 0 ? NULL : "a call left partitions marked";
}

static const char *check_locked(struct dw_store *store) {
    const char *wrong = dw_wheel_check(store->wheel);
    if (wrong == NULL) {
        wrong = dw_heap_check(store->heap);
    }
    if (wrong == NULL) {
        wrong = dw_index_check(store->by_id);
    }
    if (wrong == NULL) {
        wrong = dw_index_check(store->by_key);
    }
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        if (store->parts[i] != NULL) {
            store->parts[i]->added = 0;
            store->parts[i]->added_bytes = 0;
        }
    }
    if (wrong == NULL) {
        wrong = check_entries_locked(store);
    }
    return wrong == NULL ? check_partitions_locked(store) : wrong;
}

const char *dw_store_check(dw_store *store) {
    if (dw_enter(store) != DW_OK) {
        return NULL;
    }
    const char *wrong = check_locked(store);
    (void)dw_leave(store, DW_OK);
    return wrong;
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_fetch.h"

#include "dw_crc32c.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum {
    DIRECT_BYTES = 32 * 1024, /* a longer record is read where it goes */
    GAP_BYTES = 2048,         /* read over rather than begin another read */
    UNREADABLE_MAX = 16,      /* in one fetch, as each try may take the disk long */
    LOGGED_EACH = 8,          /* records of a partition that are corrupt; then at powers of 2 */
};

int dw_fetch_new(struct dw_store *store, struct dw_fetch *fetch, uint32_t max_n) {
    const uint32_t most = max_n < DW_FETCH_MAX ? max_n : DW_FETCH_MAX;
    *fetch = (struct dw_fetch){
        .store = store,
        .wanted = dw_get(store->alloc, most * sizeof *fetch->wanted),
        .order = dw_get(store->alloc, most * sizeof *fetch->order),
        .fd = -1,
    };
    return fetch->wanted == NULL || fetch->order == NULL ? DW_ENOMEM : DW_OK;
}

static int reserve_arena(struct dw_fetch *fetch, size_t bytes) {
    if (bytes > fetch->arena_bytes) {
        dw_release(fetch->store->alloc, fetch->arena);
        fetch->arena = dw_get(fetch->store->alloc, bytes);
        fetch->arena_bytes = fetch->arena != NULL ? bytes : 0;
    }
    return bytes > fetch->arena_bytes ? DW_ENOMEM : DW_OK;
}

void dw_fetch_free(struct dw_fetch *fetch) {
    dw_release(fetch->store->alloc, fetch->wanted);
    dw_release(fetch->store->alloc, fetch->order);
    dw_release(fetch->store->alloc, fetch->arena);
}

void dw_fetch_add_locked(struct dw_fetch *fetch, uint32_t k) {
    struct dw_store *store = fetch->store;
    const struct dw_entry *entry = dw_slab_at(store->slab, k);
    struct dw_wanted *wanted = &fetch->wanted[fetch->count++];
    struct dw_partition *partition = dw_part_of_locked(store, entry);
    const uint64_t off = (uint64_t)entry->off * DW_REC_UNIT;
    *wanted = (struct dw_wanted){
        .record = {.id = entry->id,
                   .due = dw_due_of_locked(store, k, entry),
                   .key_hash = entry->key_hash,
                   .length = entry->len},
        .partition = partition,
        .buf = dw_stream_buf_locked(&partition->rec, off),
        .off = off,
    };
    partition->pins++;
    fetch->any_unread = store->unread.count > 0;
}

void dw_fetch_clear(struct dw_fetch *fetch) {
    struct dw_store *store = fetch->store;
    uint32_t spare = 0;
    dw_lock(store);
    if (fetch->acquired != NULL) {
        if (fetch->fd >= 0) {
            dw_files_release(&fetch->acquired->rec.file);
        }
        fetch->acquired = NULL;
    }
    for (uint32_t i = 0; i < fetch->count; i++) {
        struct dw_wanted *wanted = &fetch->wanted[i];
        wanted->partition->pins--;
        if (wanted->buf != NULL && dw_buf_unref_locked(wanted->buf)) {
            fetch->wanted[spare++].buf = wanted->buf;
        }
    }
    dw_unlock(store);
    for (uint32_t i = 0; i < spare; i++) {
        dw_release(store->alloc, fetch->wanted[i].buf);
    }
    fetch->count = 0;
    fetch->arena_used = 0;
    fetch->unreadable = 0;
}

/* ------------------------------------------------------------ record files */

int dw_rec_file_acquire(struct dw_store *store, struct dw_partition *partition) {
    char name[DW_FILE_NAME_BYTES];
    dw_partition_file_name(partition, DW_FILE_REC, name);
    return dw_files_acquire(&store->files, &partition->rec.file, name, 0);
}

int dw_rec_file_read(struct dw_store *store, int fd, void *to, size_t bytes, uint64_t off,
                     bool again) {
    if (again) {
        dw_io_forget(store->io, fd, off, bytes);
    }
    const ssize_t n = dw_io_read(store->io, fd, to, bytes, off);
    if (n < 0) {
        return errno;
    }
    if ((size_t)n < bytes) {
        memset((char *)to + n, 0, bytes - (size_t)n);
        return DW_TOO_SHORT;
    }
    return 0;
}

/* ----------------------------------------------------------------- reading */

int dw_fetch_descriptor(struct dw_fetch *fetch, struct dw_partition *partition) {
    struct dw_store *store = fetch->store;
    if (fetch->acquired == partition) {
        return fetch->fd;
    }
    if (fetch->acquired != NULL && fetch->fd >= 0) {
        dw_files_release(&fetch->acquired->rec.file);
    }
    fetch->fd = dw_rec_file_acquire(store, partition);
    fetch->fd_err = fetch->fd < 0 ? errno : 0;
    fetch->acquired = partition;
    return fetch->fd;
}

int dw_fetch_file(struct dw_fetch *fetch, struct dw_partition *partition, void *to, size_t bytes,
                  uint64_t off) {
    int fd = dw_fetch_descriptor(fetch, partition);
    if (fd < 0) {
        return fetch->fd_err;
    }
    return dw_rec_file_read(fetch->store, fd, to, bytes, off, false);
}

void dw_fetch_check(struct dw_wanted *wanted, const uint8_t *bytes) {
    if (!dw_rec_decode(bytes, &wanted->header) || wanted->header.id != wanted->record.id ||
        wanted->header.length != wanted->record.length) {
        wanted->fate = DW_FATE_CORRUPT;
        return;
    }
    wanted->record.encoding = wanted->header.encoding;
    wanted->bytes = bytes;
    wanted->fate = DW_FATE_THERE;
}

static void fail(struct dw_fetch *fetch, struct dw_wanted *wanted, int err) {
    if (err == DW_TOO_SHORT) {
        wanted->fate = DW_FATE_CORRUPT;
    } else {
        wanted->fate = dw_is_scarcity(err) ? DW_FATE_SCARCE : DW_FATE_UNREADABLE;
        wanted->err = err;
        fetch->unreadable++;
    }
}

/* Reads the records of order[from..to), which lie in one file with small gaps. If they cannot be
 * read together, then one by one. */
static void read_run(struct dw_fetch *fetch, uint32_t from, uint32_t to) {
    struct dw_wanted *first = &fetch->wanted[fetch->order[from]];
    const struct dw_wanted *last = &fetch->wanted[fetch->order[to - 1]];
    const size_t bytes = (size_t)(last->off + dw_rec_bytes(last->record.length) - first->off);
    uint8_t *at = fetch->arena + fetch->arena_used;
    fetch->arena_used += bytes;
    const bool together = fetch->unreadable < UNREADABLE_MAX &&
                          dw_fetch_file(fetch, first->partition, at, bytes, first->off) == 0;
    for (uint32_t i = from; i < to; i++) {
        struct dw_wanted *wanted = &fetch->wanted[fetch->order[i]];
        if (!together && fetch->unreadable >= UNREADABLE_MAX) {
            wanted->fate = DW_FATE_LEFT;
            continue;
        }
        uint8_t *mine = at + (wanted->off - first->off);
        /* The padding after the body may be missing at a file's end. */
        int err = together
                      ? 0
                      : dw_fetch_file(fetch, wanted->partition, mine,
                                      DW_REC_HEADER + (size_t)wanted->record.length, wanted->off);
        if (err == 0) {
            dw_fetch_check(wanted, mine);
        } else {
            fail(fetch, wanted, err);
        }
    }
}

static bool lies_before(const struct dw_wanted *a, const struct dw_wanted *b) {
    return a->partition != b->partition ? a->partition->serial < b->partition->serial
                                        : a->off < b->off;
}

/* Heapsort: there is no context in qsort's comparison. */
static void sift(const struct dw_fetch *fetch, uint32_t root, uint32_t count) {
    uint16_t *order = fetch->order;
    for (uint32_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count &&
            lies_before(&fetch->wanted[order[child]], &fetch->wanted[order[child + 1]])) {
            child++;
        }
        if (!lies_before(&fetch->wanted[order[root]], &fetch->wanted[order[child]])) {
            return;
        }
        const uint16_t swapped = order[root];
        order[root] = order[child];
        order[child] = swapped;
    }
}

static void sort_order(struct dw_fetch *fetch, uint32_t count) {
    uint16_t *order = fetch->order;
    uint32_t i = 1;
    while (i < count && lies_before(&fetch->wanted[order[i - 1]], &fetch->wanted[order[i]])) {
        i++;
    }
    if (i >= count) {
        return;
    }
    for (uint32_t root = count / 2; root-- > 0;) {
        sift(fetch, root, count);
    }
    for (uint32_t left = count; left-- > 1;) {
        const uint16_t swapped = order[0];
        order[0] = order[left];
        order[left] = swapped;
        sift(fetch, 0, left);
    }
}

int dw_fetch_read(struct dw_fetch *fetch) {
    uint32_t count = 0;
    size_t bytes = 0;
    for (uint32_t i = 0; i < fetch->count; i++) {
        struct dw_wanted *wanted = &fetch->wanted[i];
        if (wanted->buf != NULL) {
            dw_fetch_check(wanted, wanted->buf->bytes + (wanted->off - wanted->buf->base));
        } else if (dw_rec_bytes(wanted->record.length) > DIRECT_BYTES) {
            wanted->fate = DW_FATE_DIRECT;
        } else {
            fetch->order[count++] = (uint16_t)i;
            bytes += (size_t)dw_rec_bytes(wanted->record.length);
        }
    }
    /* No more is read over than is wanted. */
    size_t gaps = bytes;
    if (reserve_arena(fetch, bytes + gaps) != DW_OK) {
        return DW_ENOMEM;
    }
    sort_order(fetch, count);
    for (uint32_t from = 0; from < count;) {
        const struct dw_wanted *last = &fetch->wanted[fetch->order[from]];
        uint32_t to = from + 1;
        for (; to < count; to++) {
            const struct dw_wanted *next = &fetch->wanted[fetch->order[to]];
            const uint64_t end = last->off + dw_rec_bytes(last->record.length);
            if (next->partition != last->partition || next->off < end ||
                next->off - end > GAP_BYTES || next->off - end > gaps) {
                break;
            }
            gaps -= (size_t)(next->off - end);
            last = next;
        }
        read_run(fetch, from, to);
        from = to;
    }
    return DW_OK;
}

/* --------------------------------------------------------------- handing out */

/* Counts what cannot be used, and says it in the log; of many in one file only some, and how many
 * there are. */
static void note_unusable(struct dw_fetch *fetch, const struct dw_wanted *wanted) {
    struct dw_store *store = fetch->store;
    const struct dw_partition *partition = wanted->partition;
    const bool corrupt = wanted->fate == DW_FATE_CORRUPT;
    char name[DW_FILE_NAME_BYTES];
    dw_partition_file_name(partition, DW_FILE_REC, name);
    dw_lock(store);
    store->corrupt_records += corrupt;
    store->read_errors += !corrupt;
    const uint32_t k = dw_index_find(store->by_id, wanted->record.id);
    if (k != DW_NIL && corrupt) {
        dw_origin_forget(&store->unread, k);
    } else if (k != DW_NIL) {
        /* Without memory for it, it is not counted. */
        (void)dw_origin_note(&store->unread, k, 0);
    }
    const uint32_t met = ++wanted->partition->corrupt;
    dw_unlock(store);
    if (met <= LOGGED_EACH || (met & (met - 1)) == 0) {
        dw_log(store, DW_LOG_ERROR,
               "%s/%s: record %" PRIu64 " at offset %" PRIu64 " %s (%s)%s; number %" PRIu32
               " of this file",
               store->dir, name, wanted->record.id, wanted->off,
               corrupt ? "is damaged" : "cannot be read",
               corrupt ? "read twice, it is not what was written" : strerror(wanted->err),
               corrupt ? "" : ", and is tried again later", met);
    }
}

static void note_read(struct dw_fetch *fetch, const struct dw_wanted *wanted) {
    struct dw_store *store = fetch->store;
    if (fetch->any_unread) {
        dw_lock(store);
        const uint32_t k = dw_index_find(store->by_id, wanted->record.id);
        if (k != DW_NIL) {
            dw_origin_forget(&store->unread, k);
        }
        dw_unlock(store);
    }
}

static void report_corrupt(struct dw_fetch *fetch, const struct dw_wanted *wanted,
                           const struct dw_sink *sink) {
    char name[DW_FILE_NAME_BYTES];
    dw_partition_file_name(wanted->partition, DW_FILE_REC, name);
    note_unusable(fetch, wanted);
    sink->corrupt(sink->ctx, &wanted->record, name, wanted->off);
}

static int hand_out_direct(struct dw_fetch *fetch, struct dw_wanted *wanted,
                           const struct dw_sink *sink) {
    uint8_t header[DW_REC_HEADER];
    int err = dw_fetch_file(fetch, wanted->partition, header, sizeof header, wanted->off);
    if (err != 0) {
        fail(fetch, wanted, err);
        return DW_OK;
    }
    dw_fetch_check(wanted, header);
    if (wanted->fate != DW_FATE_THERE) {
        return DW_OK;
    }
    void *body = sink->body(sink->ctx, &wanted->record);
    if (body == NULL) {
        return DW_ENOMEM;
    }
    err = dw_fetch_file(fetch, wanted->partition, body, wanted->record.length,
                        wanted->off + DW_REC_HEADER);
    if (err != 0) {
        fail(fetch, wanted, err);
    } else if (dw_crc32c(0, body, wanted->record.length) != wanted->header.body_crc) {
        wanted->fate = DW_FATE_CORRUPT;
    } else {
        sink->done(sink->ctx, &wanted->record);
    }
    return DW_OK;
}

static int hand_out_read(struct dw_wanted *wanted, const struct dw_sink *sink) {
    const uint8_t *from = wanted->bytes + DW_REC_HEADER;
    if (dw_crc32c(0, from, wanted->record.length) != wanted->header.body_crc) {
        wanted->fate = DW_FATE_CORRUPT;
        return DW_OK;
    }
    void *body = sink->body(sink->ctx, &wanted->record);
    if (body == NULL) {
        return DW_ENOMEM;
    }
    memcpy(body, from, wanted->record.length);
    sink->done(sink->ctx, &wanted->record);
    return DW_OK;
}

/* What seems damaged is read once more, from the disk. */
static int hand_out_again(struct dw_fetch *fetch, struct dw_wanted *wanted,
                          const struct dw_sink *sink) {
    const int fd = dw_fetch_descriptor(fetch, wanted->partition);
    if (fd < 0) {
        fail(fetch, wanted, fetch->fd_err);
        return DW_OK;
    }
    dw_io_forget(fetch->store->io, fd, wanted->off, (size_t)dw_rec_bytes(wanted->record.length));
    return hand_out_direct(fetch, wanted, sink);
}

int dw_fetch_hand_out(struct dw_fetch *fetch, struct dw_wanted *wanted,
                      const struct dw_sink *sink) {
    int result = DW_OK;
    if (wanted->fate == DW_FATE_THERE) {
        result = hand_out_read(wanted, sink);
    } else if (wanted->fate == DW_FATE_DIRECT && fetch->unreadable >= UNREADABLE_MAX) {
        wanted->fate = DW_FATE_LEFT;
    } else if (wanted->fate == DW_FATE_DIRECT) {
        result = hand_out_direct(fetch, wanted, sink);
    }
    if (result == DW_OK && wanted->fate == DW_FATE_CORRUPT && wanted->buf == NULL) {
        result = hand_out_again(fetch, wanted, sink);
    }
    if (result != DW_OK) {
        return result;
    }
    switch (wanted->fate) {
    case DW_FATE_CORRUPT:
        report_corrupt(fetch, wanted, sink);
        return DW_OK;
    case DW_FATE_UNREADABLE:
    case DW_FATE_SCARCE:
        note_unusable(fetch, wanted);
        return dw_io_error(wanted->err);
    case DW_FATE_LEFT:
        return dw_io_error(EAGAIN);
    default:
        note_read(fetch, wanted);
        return DW_OK;
    }
}

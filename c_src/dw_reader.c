/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

#include "dw_crc32c.h"
#include "dw_le.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

/* Reading records beside the writer.
 *
 * Under the lock, references to at most SLICE records are collected: where each is, with the
 * partition pinned and, if it is not yet in the file, its buffer. Then, without the lock, they are
 * read in the order in which they lie, neighbours together, into an arena of bounded size, checked,
 * and handed out in the order in which they were asked for. A record may meanwhile be settled or
 * moved; what was collected stays readable until it is unpinned.
 *
 * A record is corrupt only if it was read, twice, and is not what was written, or its file ends
 * before it. What cannot be read is tried again later, after pauses that each of the files has of
 * its own, since a bad place on a disk says nothing of others. */

enum {
    SLICE = 256,
    SLICE_BYTES = 256 * 1024, /* no more of records at a time, but at least one */
    DIRECT_BYTES = 32 * 1024, /* a longer record is read where it goes */
    GAP_BYTES = 2048,         /* read over rather than begin another read */
    PEEK_BUDGET = 1024,       /* references that the wheel visits under one lock */
    PAUSE_MIN_MS = 1000,      /* until a record that cannot be read is tried again */
    PAUSE_MAX_MS = 30000,
    UNREADABLE_MAX = 16, /* in one slice, as each try may take the disk long */
    LOGGED_EACH = 8,     /* records of a partition that are corrupt; then at powers of 2 */
    TOO_SHORT = -1,      /* no errno: the file ends before */
};

/* What became of one that was collected. */
enum fate {
    FATE_OPEN,       /* not read yet */
    FATE_THERE,      /* at `bytes`, header checked */
    FATE_DIRECT,     /* to be read where it goes */
    FATE_CORRUPT,    /* is not what was written */
    FATE_UNREADABLE, /* an error, `err` */
    FATE_SCARCE,     /* no descriptor or memory now: nothing can be read */
    FATE_LEFT,       /* not tried, after too many others */
};

struct ref {
    struct dw_record record; /* due as far as known: the entry's */
    struct dw_rec_header header;
    struct dw_partition *partition;
    struct dw_buf *buf; /* NULL: in the file */
    uint64_t off;
    const uint8_t *bytes;
    enum fate fate;
    int err;
};

struct slice {
    struct dw_store *store;
    struct ref *refs;
    uint16_t *order; /* of refs, as they lie in the files */
    uint8_t *arena;  /* what is read, and the gaps between */
    size_t arena_bytes;
    size_t arena_used;
    uint32_t count;
    uint32_t unreadable;
    bool any_unread;               /* of the store's */
    struct dw_partition *acquired; /* whose record file is pinned as `fd` */
    int fd;
    int fd_err;
};

static int slice_new(struct dw_store *store, struct slice *slice, uint32_t max_n) {
    const uint32_t most = max_n < SLICE ? max_n : SLICE;
    *slice = (struct slice){
        .store = store,
        .refs = dw_get(store->alloc, most * sizeof *slice->refs),
        .order = dw_get(store->alloc, most * sizeof *slice->order),
        .fd = -1,
    };
    return slice->refs == NULL || slice->order == NULL ? DW_ENOMEM : DW_OK;
}

static int reserve_arena(struct slice *slice, size_t bytes) {
    if (bytes > slice->arena_bytes) {
        dw_release(slice->store->alloc, slice->arena);
        slice->arena = dw_get(slice->store->alloc, bytes);
        slice->arena_bytes = slice->arena != NULL ? bytes : 0;
    }
    return bytes > slice->arena_bytes ? DW_ENOMEM : DW_OK;
}

static void slice_free(struct slice *slice) {
    dw_release(slice->store->alloc, slice->refs);
    dw_release(slice->store->alloc, slice->order);
    dw_release(slice->store->alloc, slice->arena);
}

/* Lock held: notes where entry k's record is. */
static void collect(struct slice *slice, uint32_t k) {
    struct dw_store *store = slice->store;
    const struct dw_entry *entry = dw_slab_at(store->slab, k);
    struct ref *ref = &slice->refs[slice->count++];
    struct dw_partition *partition = dw_part_of_locked(store, entry);
    const uint64_t off = (uint64_t)entry->off * DW_REC_UNIT;
    *ref = (struct ref){
        .record = {.id = entry->id,
                   .due = dw_origin_get(&store->origins, k, entry->due),
                   .key_hash = entry->key_hash,
                   .length = entry->len},
        .partition = partition,
        .buf = dw_stream_buf_locked(&partition->rec, off),
        .off = off,
    };
    partition->pins++;
    slice->any_unread = store->unread.count > 0;
}

/* Lock not held: gives up what was collected. */
static void let_go(struct slice *slice) {
    struct dw_store *store = slice->store;
    uint32_t spare = 0;
    dw_lock(store);
    if (slice->acquired != NULL) {
        if (slice->fd >= 0) {
            dw_files_release(&slice->acquired->rec.file);
        }
        slice->acquired = NULL;
    }
    for (uint32_t i = 0; i < slice->count; i++) {
        struct ref *ref = &slice->refs[i];
        ref->partition->pins--;
        if (ref->buf != NULL && dw_buf_unref_locked(ref->buf)) {
            slice->refs[spare++].buf = ref->buf;
        }
    }
    dw_unlock(store);
    for (uint32_t i = 0; i < spare; i++) {
        dw_release(store->alloc, slice->refs[i].buf);
    }
    slice->count = 0;
    slice->arena_used = 0;
    slice->unreadable = 0;
}

/* ----------------------------------------------------------------- reading */

/* The descriptor of the partition's record file; -1, and slice->fd_err. */
static int acquire(struct slice *slice, struct dw_partition *partition) {
    struct dw_store *store = slice->store;
    if (slice->acquired == partition) {
        return slice->fd;
    }
    if (slice->acquired != NULL && slice->fd >= 0) {
        dw_files_release(&slice->acquired->rec.file);
    }
    char name[DW_FILE_NAME_BYTES];
    dw_file_name(name, DW_FILE_REC, partition->serial, partition->level, partition->slice);
    slice->fd = dw_files_acquire(&store->files, &partition->rec.file, name, 0);
    slice->fd_err = slice->fd < 0 ? errno : 0;
    slice->acquired = partition;
    return slice->fd;
}

/* Reads from the record file: 0, an errno, or TOO_SHORT. */
static int read_file(struct slice *slice, struct dw_partition *partition, void *to, size_t bytes,
                     uint64_t off) {
    int fd = acquire(slice, partition);
    if (fd < 0) {
        return slice->fd_err;
    }
    ssize_t n = dw_io_read(slice->store->io, fd, to, bytes, off);
    if (n < 0) {
        return errno;
    }
    return (size_t)n == bytes ? 0 : TOO_SHORT;
}

static void check_ref(struct ref *ref, const uint8_t *bytes) {
    if (!dw_rec_decode(bytes, &ref->header) || ref->header.id != ref->record.id ||
        ref->header.length != ref->record.length) {
        ref->fate = FATE_CORRUPT;
        return;
    }
    ref->record.encoding = ref->header.encoding;
    ref->bytes = bytes;
    ref->fate = FATE_THERE;
}

static void fail_ref(struct slice *slice, struct ref *ref, int err) {
    if (err == TOO_SHORT) {
        ref->fate = FATE_CORRUPT;
    } else {
        ref->fate = dw_is_scarcity(err) ? FATE_SCARCE : FATE_UNREADABLE;
        ref->err = err;
        slice->unreadable++;
    }
}

/* Reads the records of order[from..to), which lie in one file with small gaps. If they cannot be
 * read together, then one by one. */
static void read_run(struct slice *slice, uint32_t from, uint32_t to) {
    struct ref *first = &slice->refs[slice->order[from]];
    const struct ref *last = &slice->refs[slice->order[to - 1]];
    const size_t bytes = (size_t)(last->off + dw_rec_bytes(last->record.length) - first->off);
    uint8_t *at = slice->arena + slice->arena_used;
    slice->arena_used += bytes;
    const bool together = slice->unreadable < UNREADABLE_MAX &&
                          read_file(slice, first->partition, at, bytes, first->off) == 0;
    for (uint32_t i = from; i < to; i++) {
        struct ref *ref = &slice->refs[slice->order[i]];
        if (!together && slice->unreadable >= UNREADABLE_MAX) {
            ref->fate = FATE_LEFT;
            continue;
        }
        uint8_t *mine = at + (ref->off - first->off);
        /* The padding after the body may be missing at a file's end. */
        int err = together ? 0
                           : read_file(slice, ref->partition, mine,
                                       DW_REC_HEADER + (size_t)ref->record.length, ref->off);
        if (err == 0) {
            check_ref(ref, mine);
        } else {
            fail_ref(slice, ref, err);
        }
    }
}

static bool lies_before(const struct ref *a, const struct ref *b) {
    return a->partition != b->partition ? a->partition->serial < b->partition->serial
                                        : a->off < b->off;
}

/* Heapsort: there is no context in qsort's comparison. */
static void sift(const struct slice *slice, uint32_t root, uint32_t count) {
    uint16_t *order = slice->order;
    for (uint32_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count &&
            lies_before(&slice->refs[order[child]], &slice->refs[order[child + 1]])) {
            child++;
        }
        if (!lies_before(&slice->refs[order[root]], &slice->refs[order[child]])) {
            return;
        }
        const uint16_t swapped = order[root];
        order[root] = order[child];
        order[child] = swapped;
    }
}

static void sort_order(struct slice *slice, uint32_t count) {
    uint16_t *order = slice->order;
    uint32_t i = 1;
    while (i < count && lies_before(&slice->refs[order[i - 1]], &slice->refs[order[i]])) {
        i++;
    }
    if (i >= count) {
        return;
    }
    for (uint32_t root = count / 2; root-- > 0;) {
        sift(slice, root, count);
    }
    for (uint32_t left = count; left-- > 1;) {
        const uint16_t swapped = order[0];
        order[0] = order[left];
        order[left] = swapped;
        sift(slice, 0, left);
    }
}

/* Reads all that was collected but for long records' bodies. DW_OK, DW_ENOMEM */
static int read_slice(struct slice *slice) {
    uint32_t count = 0;
    size_t bytes = 0;
    for (uint32_t i = 0; i < slice->count; i++) {
        struct ref *ref = &slice->refs[i];
        if (ref->buf != NULL) {
            check_ref(ref, ref->buf->bytes + (ref->off - ref->buf->base));
        } else if (dw_rec_bytes(ref->record.length) > DIRECT_BYTES) {
            ref->fate = FATE_DIRECT;
        } else {
            slice->order[count++] = (uint16_t)i;
            bytes += (size_t)dw_rec_bytes(ref->record.length);
        }
    }
    /* No more is read over than is wanted. */
    size_t gaps = bytes;
    if (reserve_arena(slice, bytes + gaps) != DW_OK) {
        return DW_ENOMEM;
    }
    sort_order(slice, count);
    for (uint32_t from = 0; from < count;) {
        const struct ref *last = &slice->refs[slice->order[from]];
        uint32_t to = from + 1;
        for (; to < count; to++) {
            const struct ref *next = &slice->refs[slice->order[to]];
            const uint64_t end = last->off + dw_rec_bytes(last->record.length);
            if (next->partition != last->partition || next->off < end ||
                next->off - end > GAP_BYTES || next->off - end > gaps) {
                break;
            }
            gaps -= (size_t)(next->off - end);
            last = next;
        }
        read_run(slice, from, to);
        from = to;
    }
    return DW_OK;
}

/* --------------------------------------------------------------- handing out */

/* Counts what cannot be used, and says it in the log; of many in one file only some, and how many
 * there are. */
static void note_unusable(struct slice *slice, const struct ref *ref) {
    struct dw_store *store = slice->store;
    const struct dw_partition *partition = ref->partition;
    const bool corrupt = ref->fate == FATE_CORRUPT;
    char name[DW_FILE_NAME_BYTES];
    dw_file_name(name, DW_FILE_REC, partition->serial, partition->level, partition->slice);
    dw_lock(store);
    store->corrupt_records += corrupt;
    store->read_errors += !corrupt;
    const uint32_t k = dw_index_find(store->by_id, ref->record.id);
    if (k != DW_NIL && corrupt) {
        dw_origin_forget(&store->unread, k);
    } else if (k != DW_NIL) {
        /* Without memory for it, it is not counted. */
        (void)dw_origin_note(&store->unread, k, 0);
    }
    const uint32_t met = ++ref->partition->corrupt;
    dw_unlock(store);
    if (met <= LOGGED_EACH || (met & (met - 1)) == 0) {
        dw_log(store, DW_LOG_ERROR,
               "%s/%s: record %" PRIu64 " at offset %" PRIu64 " %s (%s)%s; number %" PRIu32
               " of this file",
               store->dir, name, ref->record.id, ref->off,
               corrupt ? "is damaged" : "cannot be read",
               corrupt ? "read twice, it is not what was written" : strerror(ref->err),
               corrupt ? "" : ", and is tried again later", met);
    }
}

static void note_read(struct slice *slice, const struct ref *ref) {
    struct dw_store *store = slice->store;
    if (slice->any_unread) {
        dw_lock(store);
        const uint32_t k = dw_index_find(store->by_id, ref->record.id);
        if (k != DW_NIL) {
            dw_origin_forget(&store->unread, k);
        }
        dw_unlock(store);
    }
}

static void report_corrupt(struct slice *slice, const struct ref *ref, const struct dw_sink *sink) {
    char name[DW_FILE_NAME_BYTES];
    dw_file_name(name, DW_FILE_REC, ref->partition->serial, ref->partition->level,
                 ref->partition->slice);
    note_unusable(slice, ref);
    sink->corrupt(sink->ctx, &ref->record, name, ref->off);
}

static int hand_out_direct(struct slice *slice, struct ref *ref, const struct dw_sink *sink) {
    uint8_t header[DW_REC_HEADER];
    int err = read_file(slice, ref->partition, header, sizeof header, ref->off);
    if (err != 0) {
        fail_ref(slice, ref, err);
        return DW_OK;
    }
    check_ref(ref, header);
    if (ref->fate != FATE_THERE) {
        return DW_OK;
    }
    void *body = sink->body(sink->ctx, &ref->record);
    if (body == NULL) {
        return DW_ENOMEM;
    }
    err = read_file(slice, ref->partition, body, ref->record.length, ref->off + DW_REC_HEADER);
    if (err != 0) {
        fail_ref(slice, ref, err);
    } else if (dw_crc32c(0, body, ref->record.length) != ref->header.body_crc) {
        ref->fate = FATE_CORRUPT;
    } else {
        sink->done(sink->ctx, &ref->record);
    }
    return DW_OK;
}

static int hand_out_read(struct ref *ref, const struct dw_sink *sink) {
    const uint8_t *from = ref->bytes + DW_REC_HEADER;
    if (dw_crc32c(0, from, ref->record.length) != ref->header.body_crc) {
        ref->fate = FATE_CORRUPT;
        return DW_OK;
    }
    void *body = sink->body(sink->ctx, &ref->record);
    if (body == NULL) {
        return DW_ENOMEM;
    }
    memcpy(body, from, ref->record.length);
    sink->done(sink->ctx, &ref->record);
    return DW_OK;
}

/* What seems damaged is read once more, from the disk. */
static int hand_out_again(struct slice *slice, struct ref *ref, const struct dw_sink *sink) {
    const int fd = acquire(slice, ref->partition);
    if (fd < 0) {
        fail_ref(slice, ref, slice->fd_err);
        return DW_OK;
    }
    dw_io_forget(slice->store->io, fd, ref->off, (size_t)dw_rec_bytes(ref->record.length));
    return hand_out_direct(slice, ref, sink);
}

/* Hands out one record that was read, or says what keeps it from it: DW_OK, DW_ENOMEM, DW_EIO,
 * DW_EACCES. */
static int hand_out(struct slice *slice, struct ref *ref, const struct dw_sink *sink) {
    int result = DW_OK;
    if (ref->fate == FATE_THERE) {
        result = hand_out_read(ref, sink);
    } else if (ref->fate == FATE_DIRECT && slice->unreadable >= UNREADABLE_MAX) {
        ref->fate = FATE_LEFT;
    } else if (ref->fate == FATE_DIRECT) {
        result = hand_out_direct(slice, ref, sink);
    }
    if (result == DW_OK && ref->fate == FATE_CORRUPT && ref->buf == NULL) {
        result = hand_out_again(slice, ref, sink);
    }
    if (result != DW_OK) {
        return result;
    }
    switch (ref->fate) {
    case FATE_CORRUPT:
        report_corrupt(slice, ref, sink);
        return DW_OK;
    case FATE_UNREADABLE:
    case FATE_SCARCE:
        note_unusable(slice, ref);
        return dw_io_error(ref->err);
    case FATE_LEFT:
        return dw_io_error(EAGAIN);
    default:
        note_read(slice, ref);
        return DW_OK;
    }
}

/* -------------------------------------------------------------------- take */

/* Lock held: until when what could not be read of the partition's file is left. The pause grows
 * with each that ends without success, and is forgotten after a while without failures. */
static uint64_t pause_until(struct dw_partition *partition, uint64_t now_ms) {
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

/* Lock held: a record that was taken is not handed out after all, and not before `until`, unless
 * that is DW_NEVER. */
static void put_back(struct dw_store *store, uint64_t id, uint64_t until) {
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

/* Lock held: the next entry due, removed from wheel or heap. DW_NIL if there is none; *again if the
 * wheel has to look further first. */
static uint32_t next_entry(struct dw_store *store, uint64_t now_ms, bool *again) {
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
static uint64_t most_rounds(const struct dw_store *store) {
    return 16 + 16 * (dw_wheel_count(store->wheel) / PEEK_BUDGET + 1);
}

/* Lock held. */
static void collect_due(struct slice *slice, struct take *take) {
    struct dw_store *store = slice->store;
    const uint32_t most = take->left_n < SLICE ? take->left_n : SLICE;
    uint64_t bytes = 0;
    while (slice->count < most && bytes < SLICE_BYTES) {
        bool again = false;
        uint32_t k = next_entry(store, take->now_ms, &again);
        if (k == DW_NIL) {
            take->over = !again;
            take->rounds -= again;
            return;
        }
        take->rounds = most_rounds(store);
        const uint32_t length = dw_slab_at(store->slab, k)->len;
        store->taken++;
        collect(slice, k);
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

/* Hands out what was collected, unless `result` is an error by now, and puts back what was not. */
static int hand_out_slice(struct slice *slice, struct take *take, const struct dw_sink *sink,
                          int result) {
    struct dw_store *store = slice->store;
    uint32_t i = 0;
    for (; result == DW_OK && i < slice->count; i++) {
        struct ref *ref = &slice->refs[i];
        result = hand_out(slice, ref, sink);
        if (ref->fate == FATE_UNREADABLE) {
            dw_lock(store);
            put_back(store, ref->record.id, pause_until(ref->partition, take->now_ms));
            dw_unlock(store);
            result = DW_OK;
        } else if (ref->fate == FATE_LEFT) {
            dw_lock(store);
            put_back(store, ref->record.id, DW_NEVER);
            dw_unlock(store);
            take->over = true;
            result = DW_OK;
        } else if (result != DW_OK) {
            break;
        }
    }
    if (result != DW_OK) {
        dw_lock(store);
        for (; i < slice->count; i++) {
            put_back(store, slice->refs[i].record.id, DW_NEVER);
        }
        dw_unlock(store);
    }
    return result;
}

static int take_slices(struct slice *slice, struct take *take, const struct dw_sink *sink) {
    struct dw_store *store = slice->store;
    int result = DW_OK;
    while (result == DW_OK && !take->over) {
        dw_lock(store);
        collect_due(slice, take);
        dw_publish_locked(store);
        dw_unlock(store);
        if (slice->count > 0) {
            result = read_slice(slice);
            result = hand_out_slice(slice, take, sink, result);
            let_go(slice);
        } else if (take->rounds == 0) {
            result = DW_ENOMEM;
        }
    }
    return result;
}

int dw_store_take(dw_store *store, uint64_t now_ms, uint32_t max_n, uint64_t max_bytes,
                  const struct dw_sink *sink, uint64_t *next_due) {
    *next_due = DW_NEVER;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (now_ms > DW_DUE_MAX) {
        now_ms = DW_DUE_MAX;
    }
    store->clock = now_ms;
    const bool stranded = store->stranded > 0;
    const bool any = max_n > 0 && dw_next_due_locked(store) <= now_ms;
    dw_unlock(store);
    if (stranded) {
        result = dw_requeue_all(store, DW_STRANDED);
    }
    if (result == DW_OK && any) {
        struct take take = {.now_ms = now_ms, .left_n = max_n, .left_bytes = max_bytes};
        struct slice slice;
        dw_lock(store);
        take.rounds = most_rounds(store);
        dw_unlock(store);
        result = slice_new(store, &slice, max_n);
        if (result == DW_OK) {
            result = take_slices(&slice, &take, sink);
        }
        slice_free(&slice);
    }
    dw_lock(store);
    *next_due = dw_next_due_locked(store);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

/* -------------------------------------------------------------------- read */

int dw_store_read(dw_store *store, uint64_t id, const struct dw_sink *sink) {
    struct slice slice;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    result = slice_new(store, &slice, 1);
    dw_lock(store);
    if (result == DW_OK) {
        uint32_t k = dw_index_find(store->by_id, id);
        if (k == DW_NIL) {
            result = DW_ENOENT;
        } else {
            collect(&slice, k);
        }
    }
    dw_unlock(store);
    if (result == DW_OK) {
        result = read_slice(&slice);
        if (result == DW_OK) {
            result = hand_out(&slice, &slice.refs[0], sink);
        }
        let_go(&slice);
    }
    slice_free(&slice);
    dw_lock(store);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

/* Lock held: the next of the ids that are there, as far as a slice goes. */
static void collect_ids(struct slice *slice, const uint64_t *ids, uint32_t n, uint64_t *left_bytes,
                        uint32_t *seen) {
    struct dw_store *store = slice->store;
    uint64_t bytes = 0;
    while (*left_bytes > 0 && *seen < n && slice->count < SLICE && bytes < SLICE_BYTES) {
        const uint32_t k = dw_index_find(store->by_id, ids[(*seen)++]);
        if (k != DW_NIL) {
            const uint32_t length = dw_slab_at(store->slab, k)->len;
            collect(slice, k);
            bytes += dw_rec_bytes(length);
            *left_bytes -= length < *left_bytes ? length : *left_bytes;
        }
    }
}

int dw_store_read_many(dw_store *store, const uint64_t *ids, uint32_t n, uint64_t max_bytes,
                       const struct dw_sink *sink, uint32_t *seen) {
    struct slice slice;
    *seen = 0;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    result = slice_new(store, &slice, n);
    while (result == DW_OK && *seen < n && max_bytes > 0) {
        dw_lock(store);
        collect_ids(&slice, ids, n, &max_bytes, seen);
        dw_unlock(store);
        if (slice.count > 0) {
            result = read_slice(&slice);
            for (uint32_t i = 0; result == DW_OK && i < slice.count; i++) {
                result = hand_out(&slice, &slice.refs[i], sink);
                if (result == DW_EACCES || result == DW_EIO || result == DW_ENOSPC) {
                    result = DW_OK; /* dw_store_read() says why */
                }
            }
            let_go(&slice);
        }
    }
    slice_free(&slice);
    dw_lock(store);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

/* -------------------------------------------------------------- keep aside */

enum { KEPT_HEADER = 64, KEPT_UNIT = 8 };

/* Corrupt records on their way into the file. */
struct keeping {
    struct slice slice; /* of one */
    uint64_t now_ms;
    struct dw_file file;
    int fd;
    uint64_t from; /* the file's length before; UINT64_MAX: not known */
    uint64_t end;  /* and now */
    uint32_t count;
};

static int open_kept(struct dw_store *store, struct keeping *keeping) {
    struct stat st;
    dw_file_init(&keeping->file);
    keeping->fd = dw_files_acquire(&store->files, &keeping->file, DW_KEPT_NAME, 1);
    if (keeping->fd < 0) {
        return dw_io_error(errno);
    }
    if (store->io->fstat(keeping->fd, &st) != 0) {
        keeping->from = UINT64_MAX;
        return dw_io_error(errno);
    }
    keeping->from = (uint64_t)st.st_size;
    keeping->end = (keeping->from + KEPT_UNIT - 1) / KEPT_UNIT * KEPT_UNIT;
    return DW_OK;
}

static int sync_kept(struct dw_store *store, const struct keeping *keeping) {
    if (store->io->fdatasync(keeping->fd) != 0) {
        return dw_io_error(errno);
    }
    if (keeping->from > 0) {
        return DW_OK;
    }
    const int dirfd = dw_files_dir(&store->files);
    if (dirfd < 0) {
        return dw_io_error(errno);
    }
    const int result = store->io->fsync(dirfd) == 0 ? DW_OK : dw_io_error(errno);
    dw_files_release(&store->files.dir);
    return result;
}

static int close_kept(struct dw_store *store, struct keeping *keeping, int result) {
    if (result == DW_OK) {
        result = sync_kept(store, keeping);
    }
    if (keeping->fd >= 0) {
        /* What a failed call has left of it is passed over by whoever reads it; best is none. */
        if (result != DW_OK && keeping->from != UINT64_MAX) {
            (void)store->io->ftruncate(keeping->fd, (off_t)keeping->from);
        }
        dw_files_release(&keeping->file);
        dw_files_forget(&keeping->file);
    }
    return result;
}

static bool is_whole(const struct ref *ref, const uint8_t *bytes, size_t there) {
    struct dw_rec_header header;
    return there == DW_REC_HEADER + (size_t)ref->record.length && dw_rec_decode(bytes, &header) &&
           header.id == ref->record.id && header.length == ref->record.length &&
           dw_crc32c(0, bytes + DW_REC_HEADER, header.length) == header.body_crc;
}

/* What there is of a record: its bytes, at most those that it should have, read once more if they
 * are not what was written. *there: how many. */
static int read_raw(struct slice *slice, const struct ref *ref, uint8_t *to, size_t *there) {
    const struct dw_io *io = slice->store->io;
    const size_t bytes = DW_REC_HEADER + (size_t)ref->record.length;
    if (ref->buf != NULL) {
        memcpy(to, ref->buf->bytes + (ref->off - ref->buf->base), bytes);
        *there = bytes;
        return DW_OK;
    }
    const int fd = acquire(slice, ref->partition);
    if (fd < 0) {
        return dw_io_error(slice->fd_err);
    }
    for (int i = 0; i < 2; i++) {
        if (i > 0) {
            dw_io_forget(io, fd, ref->off, bytes);
        }
        const ssize_t n = dw_io_read(io, fd, to, bytes, ref->off);
        if (n < 0) {
            return dw_io_error(errno);
        }
        *there = (size_t)n;
        if (is_whole(ref, to, *there)) {
            break;
        }
    }
    return DW_OK;
}

static int write_kept(struct keeping *keeping, const struct ref *ref, uint8_t *entry,
                      const char *name, size_t there) {
    static const uint8_t magic[4] = {'D', 'W', 'K', '1'};
    const size_t name_bytes = strlen(name);
    const size_t bytes = KEPT_HEADER + name_bytes + there;
    const size_t padded = (bytes + KEPT_UNIT - 1) / KEPT_UNIT * KEPT_UNIT;
    memset(entry, 0, KEPT_HEADER);
    memcpy(entry, magic, sizeof magic);
    dw_le64_put(entry + 8, keeping->now_ms);
    dw_le64_put(entry + 16, ref->record.id);
    dw_le64_put(entry + 24, ref->record.due);
    dw_le64_put(entry + 32, ref->record.key_hash);
    dw_le64_put(entry + 40, ref->off);
    dw_le32_put(entry + 48, ref->record.length);
    dw_le32_put(entry + 52, (uint32_t)there);
    dw_le32_put(entry + 56, (uint32_t)name_bytes);
    memmove(entry + KEPT_HEADER + name_bytes, entry + KEPT_HEADER + DW_FILE_NAME_BYTES, there);
    memcpy(entry + KEPT_HEADER, name, name_bytes);
    memset(entry + bytes, 0, padded - bytes);
    dw_le32_put(entry + 4, dw_crc32c(0, entry + 8, bytes - 8));
    if (dw_io_write(keeping->slice.store->io, keeping->fd, entry, padded, keeping->end) != 0) {
        return dw_io_error(errno);
    }
    keeping->end += padded;
    return DW_OK;
}

static int keep_one(struct keeping *keeping, bool *kept) {
    const struct ref *ref = &keeping->slice.refs[0];
    const struct dw_alloc *alloc = keeping->slice.store->alloc;
    const struct dw_partition *partition = ref->partition;
    char name[DW_FILE_NAME_BYTES];
    dw_file_name(name, DW_FILE_REC, partition->serial, partition->level, partition->slice);
    /* Where the bytes are read to there is room for the longest name before them. */
    uint8_t *entry = dw_get(alloc, KEPT_HEADER + DW_FILE_NAME_BYTES + DW_REC_HEADER +
                                       (size_t)ref->record.length + KEPT_UNIT);
    size_t there = 0;
    if (entry == NULL) {
        return DW_ENOMEM;
    }
    int result = read_raw(&keeping->slice, ref, entry + KEPT_HEADER + DW_FILE_NAME_BYTES, &there);
    const bool whole = is_whole(ref, entry + KEPT_HEADER + DW_FILE_NAME_BYTES, there);
    if (result == DW_OK && !whole) {
        result = write_kept(keeping, ref, entry, name, there);
        *kept = result == DW_OK;
        keeping->count += *kept;
    }
    dw_release(alloc, entry);
    return result;
}

static int keep_all(struct keeping *keeping, const uint64_t *ids, uint32_t n, bool *kept) {
    struct dw_store *store = keeping->slice.store;
    int result = DW_OK;
    for (uint32_t i = 0; result == DW_OK && i < n; i++) {
        dw_lock(store);
        const uint32_t k = dw_index_find(store->by_id, ids[i]);
        if (k != DW_NIL) {
            collect(&keeping->slice, k);
        }
        dw_unlock(store);
        if (k != DW_NIL) {
            result = keep_one(keeping, &kept[i]);
            let_go(&keeping->slice);
        }
    }
    return result;
}

int dw_store_keep_aside(dw_store *store, uint64_t now_ms, const uint64_t *ids, uint32_t n,
                        bool *kept) {
    memset(kept, 0, n * sizeof *kept);
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (store->keeping) {
        return dw_leave(store, dw_io_error(EAGAIN));
    }
    store->keeping = true;
    dw_unlock(store);
    struct keeping keeping = {.now_ms = now_ms, .fd = -1};
    result = slice_new(store, &keeping.slice, 1);
    if (result == DW_OK) {
        result = open_kept(store, &keeping);
        if (result == DW_OK) {
            result = keep_all(&keeping, ids, n, kept);
        }
        result = close_kept(store, &keeping, result);
    }
    slice_free(&keeping.slice);
    if (result != DW_OK) {
        memset(kept, 0, n * sizeof *kept);
    } else if (keeping.count > 0) {
        dw_log(store, DW_LOG_ERROR,
               "%s/" DW_KEPT_NAME ": %" PRIu32 " damaged records are kept here", store->dir,
               keeping.count);
    }
    dw_lock(store);
    store->keeping = false;
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

/* -------------------------------------------------------------------- page
 * One walk over all entries keeps the max_n first ones after the cursor, in a heap whose top is the
 * last of them; or, backwards, the last ones before it, their first on top. An entry keeps its
 * number and its due time for as long as it is pending and is not rescheduled, so what stays is met
 * exactly once. */

enum { PAGE_STEP = 2048 };

struct page {
    struct dw_record from; /* the cursor: due and id */
    struct dw_record *out;
    uint32_t max_n;
    uint32_t n;
    bool back;
};

static bool comes_before(const struct page *page, const struct dw_record *a,
                         const struct dw_record *b) {
    if (page->back) {
        return a->due != b->due ? a->due > b->due : a->id > b->id;
    }
    return a->due != b->due ? a->due < b->due : a->id < b->id;
}

static void page_sift(const struct page *page, uint32_t root, uint32_t count) {
    struct dw_record *heap = page->out;
    const struct dw_record moved = heap[root];
    for (uint32_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && comes_before(page, &heap[child], &heap[child + 1])) {
            child++;
        }
        if (!comes_before(page, &moved, &heap[child])) {
            break;
        }
        heap[root] = heap[child];
    }
    heap[root] = moved;
}

static void page_push(const struct page *page, uint32_t count, const struct dw_record *record) {
    struct dw_record *heap = page->out;
    uint32_t at = count;
    for (; at > 0 && comes_before(page, &heap[(at - 1) / 2], record); at = (at - 1) / 2) {
        heap[at] = heap[(at - 1) / 2];
    }
    heap[at] = *record;
}

static bool is_pending(const struct dw_entry *entry) {
    return entry->state != DW_FREE && entry->state != DW_DEAD;
}

/* Lock held: one step of the walk, from entry number `from`. */
static void page_step(struct dw_store *store, uint32_t from, uint32_t to, struct page *page) {
    for (uint32_t k = from; k < to; k++) {
        const struct dw_entry *entry = dw_slab_at(store->slab, k);
        if (!is_pending(entry)) {
            continue;
        }
        const struct dw_record record = {
            .id = entry->id,
            .due = dw_origin_get(&store->origins, k, entry->due),
            .key_hash = entry->key_hash,
            .length = entry->len,
        };
        if (!comes_before(page, &page->from, &record)) {
            continue;
        }
        if (page->n < page->max_n) {
            page_push(page, page->n++, &record);
        } else if (comes_before(page, &record, &page->out[0])) {
            page->out[0] = record;
            page_sift(page, 0, page->max_n);
        }
    }
}

static void page_sort(const struct page *page) {
    struct dw_record *out = page->out;
    for (uint32_t left = page->n; left-- > 1;) {
        const struct dw_record first = out[0];
        out[0] = out[left];
        out[left] = first;
        page_sift(page, 0, left);
    }
}

static void read_header(struct slice *slice, struct ref *ref) {
    uint8_t header[DW_REC_HEADER];
    if (ref->buf != NULL) {
        check_ref(ref, ref->buf->bytes + (ref->off - ref->buf->base));
        return;
    }
    for (int i = 0; i < 2 && ref->fate != FATE_THERE; i++) {
        if (i > 0) {
            dw_io_forget(slice->store->io, slice->fd, ref->off, sizeof header);
        }
        if (read_file(slice, ref->partition, header, sizeof header, ref->off) != 0) {
            return;
        }
        check_ref(ref, header);
    }
}

/* The encodings stand in the records alone. One that cannot be read is left at 0. */
static int page_encodings(struct dw_store *store, struct dw_record *out, uint32_t n) {
    struct slice slice;
    int result = slice_new(store, &slice, n);
    for (uint32_t from = 0; result == DW_OK && from < n;) {
        const uint32_t to = n - from < SLICE ? n : from + SLICE;
        uint16_t which[SLICE];
        dw_lock(store);
        for (uint32_t i = from; i < to; i++) {
            uint32_t k = dw_index_find(store->by_id, out[i].id);
            if (k != DW_NIL) {
                which[slice.count] = (uint16_t)(i - from);
                collect(&slice, k);
            }
        }
        dw_unlock(store);
        for (uint32_t i = 0; i < slice.count; i++) {
            struct ref *ref = &slice.refs[i];
            read_header(&slice, ref);
            if (ref->fate == FATE_THERE) {
                out[from + which[i]].encoding = ref->record.encoding;
            }
        }
        let_go(&slice);
        from = to;
    }
    slice_free(&slice);
    return result;
}

static int find_page(struct dw_store *store, struct page *page, bool encodings) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    for (uint32_t k = 0; page->max_n > 0 && k < dw_slab_limit(store->slab);) {
        const uint32_t limit = dw_slab_limit(store->slab);
        const uint32_t to = limit - k < PAGE_STEP ? limit : k + PAGE_STEP;
        page_step(store, k, to, page);
        k = to;
        dw_yield_locked(store);
    }
    dw_unlock(store);
    page_sort(page);
    if (encodings && page->n > 0) {
        result = page_encodings(store, page->out, page->n);
    }
    dw_lock(store);
    return dw_leave(store, result);
}

int dw_store_page(dw_store *store, uint64_t after_due, uint64_t after_id, struct dw_record *out,
                  uint32_t max_n, uint32_t *n) {
    struct page page = {
        .from = {.due = after_due, .id = after_id}, .out = out, .max_n = max_n, .back = false};
    int result = find_page(store, &page, true);
    *n = page.n;
    return result;
}

int dw_store_places(dw_store *store, uint64_t due, uint64_t id, bool back, struct dw_record *out,
                    uint32_t max_n, uint32_t *n) {
    struct page page = {.from = {.due = due, .id = id}, .out = out, .max_n = max_n, .back = back};
    int result = find_page(store, &page, false);
    *n = page.n;
    return result;
}

/* ------------------------------------------------------------------- count */

/* Calls see for each pending entry, with its due time. */
static int each_pending(dw_store *store, void (*see)(void *ctx, uint64_t due, uint32_t bytes),
                        void *ctx) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    for (uint32_t k = 0; k < dw_slab_limit(store->slab);) {
        const uint32_t limit = dw_slab_limit(store->slab);
        const uint32_t to = limit - k < PAGE_STEP ? limit : k + PAGE_STEP;
        for (; k < to; k++) {
            const struct dw_entry *entry = dw_slab_at(store->slab, k);
            if (is_pending(entry)) {
                see(ctx, dw_origin_get(&store->origins, k, entry->due), entry->len);
            }
        }
        dw_yield_locked(store);
    }
    return dw_leave(store, result);
}

struct range {
    uint64_t from, to, count, bytes;
};

static void count_in_range(void *ctx, uint64_t due, uint32_t bytes) {
    struct range *range = ctx;
    if (due >= range->from && due <= range->to) {
        range->count += 1;
        range->bytes += bytes;
    }
}

int dw_store_count(dw_store *store, uint64_t from_due, uint64_t to_due, uint64_t *count,
                   uint64_t *bytes) {
    struct range range = {.from = from_due, .to = to_due};
    int result = each_pending(store, count_in_range, &range);
    *count = range.count;
    *bytes = range.bytes;
    return result;
}

struct ranges {
    const uint64_t *bounds;
    uint32_t n;
    uint64_t *counts;
};

static void count_until(void *ctx, uint64_t due, uint32_t bytes) {
    const struct ranges *ranges = ctx;
    uint32_t low = 0, high = ranges->n;
    (void)bytes;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (due <= ranges->bounds[middle]) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    ranges->counts[low] += 1;
}

int dw_store_count_until(dw_store *store, const uint64_t *bounds, uint32_t n, uint64_t *counts) {
    memset(counts, 0, (n + 1) * sizeof *counts);
    struct ranges ranges = {.bounds = bounds, .n = n, .counts = counts};
    return each_pending(store, count_until, &ranges);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

#include "dw_crc32c.h"
#include "dw_le.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

/* Opening a store.
 *
 * What the manifest names is a consistent cut: every partition's index file up to its named length
 * says what was added to it and what was dead at that checkpoint. So recovery reads the index files
 * and not the records, and sorts what it finds by id, since the wheel keeps the order in which
 * entries of one millisecond are inserted.
 *
 * A failed system call says nothing of what is on the disk: the store is not opened then. Only what
 * was read, and once more, and is not what was written is damaged; and a file is missing only if
 * the directory does not list it either.
 *
 * Where an index file is damaged, its good entries count, and the records are read for what they
 * leave out. Then records come back whose being dead stood in the damaged part: settled ones are
 * delivered again, and of moved ones there are two. Of two records with one id, the one in an
 * undamaged index is right, else the one with the later Raft index. The partition is then moved
 * into fresh ones by dw_store_maintain(). An index whose entries are all good, but which has other
 * records than the manifest says, is not to be trusted with either: the store is not opened.
 *
 * Cutting a file that is also a snapshot's: the file in a snapshot may be the very same (a hard
 * link), but every snapshot of a file names at most the length that the store's manifest names.
 * A snapshot is made after the manifest of the same checkpoint, and lengths only grow within one
 * opening; an opening starts from the manifest's length; and dw_store_restore() shares a file with
 * the snapshot only if it is exactly as long as named, that is if no other snapshot names more. */

enum { CHUNK_ENTRIES = 4096, WINDOW_BYTES = 64 * 1024 };
enum { LISTED_REC = 1, LISTED_IDX = 2 };

struct found {
    uint64_t id;
    uint32_t k;
    uint32_t rebuilt; /* not from an undamaged index */
};

struct opening {
    struct dw_store *store;
    struct dw_manifest manifest;
    struct dw_recovery report;
    struct found *found;
    size_t count;
    size_t capacity;
    uint64_t first_due;
    uint64_t max_serial;
    uint8_t *listed; /* which files of the manifest's partitions the directory has, by LISTED_* */
    bool damaged;    /* not all indexes were whole */
    uint8_t *chunk;  /* of index entries */
    uint8_t *window; /* on a record file */
    int result;
};

/* One partition being read. */
struct reading {
    struct opening *opening;
    struct dw_partition *partition;
    int rec_fd;
    int idx_fd;
    int rec_result; /* why it could not be opened now, with the errno */
    int rec_errno;
    uint64_t rec_there; /* bytes, at most those named */
    uint64_t idx_there;
    uint64_t bad[2];    /* index entries, by pass */
    uint64_t first_bad; /* where */
    uint64_t again;     /* records that were added once more, with another due time */
    uint8_t *dead;      /* a bit for each 32 bytes of .rec: no record is shorter */
    uint8_t *seen;      /* added by good entries */
    size_t bitmap_bytes;
};

/* ----------------------------------------------------------------- bitmaps */

static void set_bit(uint8_t *bitmap, uint32_t off) {
    bitmap[off / 32] |= (uint8_t)(1u << (off / 4 % 8));
}

static bool has_bit(const uint8_t *bitmap, uint32_t off) {
    return (bitmap[off / 32] & 1u << (off / 4 % 8)) != 0;
}

static uint8_t *new_bitmap(const struct reading *reading) {
    uint8_t *bitmap = dw_get(reading->opening->store->alloc, reading->bitmap_bytes);
    if (bitmap != NULL) {
        memset(bitmap, 0, reading->bitmap_bytes);
    }
    return bitmap;
}

static bool in_rec(const struct reading *reading, uint32_t off, uint64_t bytes) {
    const uint64_t at = (uint64_t)off * DW_REC_UNIT;
    return at >= DW_FILE_HEADER && at + bytes <= reading->partition->rec.written;
}

/* ------------------------------------------------------------ what is found */

static int add_found(struct opening *opening, uint64_t id, uint32_t k, bool rebuilt) {
    if (opening->count == opening->capacity) {
        const struct dw_alloc *alloc = opening->store->alloc;
        size_t capacity = opening->capacity < 1024 ? 1024 : 2 * opening->capacity;
        struct found *found = dw_get(alloc, capacity * sizeof *found);
        if (found == NULL) {
            return DW_ENOMEM;
        }
        if (opening->count > 0) {
            memcpy(found, opening->found, opening->count * sizeof *found);
        }
        dw_release(alloc, opening->found);
        opening->found = found;
        opening->capacity = capacity;
    }
    opening->found[opening->count++] = (struct found){.id = id, .k = k, .rebuilt = rebuilt};
    return DW_OK;
}

static int add_record(struct reading *reading, const struct dw_idx_entry *record, bool rebuilt) {
    struct opening *opening = reading->opening;
    dw_slab *slab = opening->store->slab;
    uint32_t k = dw_slab_get(slab);
    if (k == DW_NIL) {
        return DW_ENOMEM;
    }
    struct dw_entry *entry = dw_slab_at(slab, k);
    entry->due = record->due & DW_DUE_MAX;
    entry->part = reading->partition->number & 0xfff;
    entry->id = record->id;
    entry->key_hash = record->key_hash;
    entry->off = record->off;
    entry->len = record->length;
    if (record->due < opening->first_due) {
        opening->first_due = record->due;
    }
    if (record->off * (uint64_t)DW_REC_UNIT + dw_rec_bytes(record->length) > reading->rec_there) {
        opening->report.corrupt_records++;
    }
    return add_found(opening, record->id, k, rebuilt);
}

static const char *name_of(const struct reading *reading, enum dw_file_kind kind,
                           char name[DW_FILE_NAME_BYTES]) {
    const struct dw_partition *partition = reading->partition;
    dw_file_name(name, kind, partition->serial, partition->level, partition->slice);
    return name;
}

/* What keeps the store from being opened: a call failed, or there is other than there was. */
static int refuse(const struct reading *reading, enum dw_file_kind kind, const char *what,
                  int err) {
    char name[DW_FILE_NAME_BYTES];
    dw_log(reading->opening->store, DW_LOG_ERROR, "%s/%s: cannot be %s: %s",
           reading->opening->store->dir, name_of(reading, kind, name), what, strerror(err));
    return dw_io_error(err);
}

/* ---------------------------------------------------------- the index file */

/* What to do with the entries of an index file: first note what is dead, then add what is not. */
enum pass { PASS_DEAD, PASS_ADD };

static bool is_good(const struct reading *reading, const struct dw_idx_entry *entry) {
    return entry->kind == DW_IDX_ADDED
               ? entry->length > 0 && in_rec(reading, entry->off, dw_rec_bytes(entry->length))
               : entry->kind != DW_IDX_BAD;
}

static int index_entry(struct reading *reading, enum pass pass, const uint8_t *bytes, uint64_t at) {
    struct dw_idx_entry entry;
    dw_idx_decode(bytes, &entry);
    if (!is_good(reading, &entry)) {
        if (reading->bad[pass]++ == 0) {
            reading->first_bad = at;
        }
        return DW_OK;
    }
    if (entry.kind == DW_IDX_DEAD) {
        for (uint32_t i = 0; pass == PASS_DEAD && i < entry.dead_count; i++) {
            if (in_rec(reading, entry.dead[i], 0)) {
                set_bit(reading->dead, entry.dead[i]);
            }
        }
        return DW_OK;
    }
    if (pass == PASS_DEAD) {
        return DW_OK;
    }
    const bool again = has_bit(reading->seen, entry.off);
    set_bit(reading->seen, entry.off);
    if (has_bit(reading->dead, entry.off)) {
        return DW_OK;
    }
    reading->again += again;
    return add_record(reading, &entry, false);
}

static bool chunk_is_good(const struct reading *reading, uint64_t entries) {
    for (uint64_t i = 0; i < entries; i++) {
        struct dw_idx_entry entry;
        dw_idx_decode(reading->opening->chunk + i * DW_IDX_ENTRY, &entry);
        if (!is_good(reading, &entry)) {
            return false;
        }
    }
    return true;
}

/* Entries of the index file, read once more if any is damaged. */
static int read_chunk(struct reading *reading, uint64_t at, uint64_t entries) {
    const struct dw_io *io = reading->opening->store->io;
    uint8_t *chunk = reading->opening->chunk;
    const size_t bytes = (size_t)entries * DW_IDX_ENTRY;
    int err = dw_io_read_all(io, reading->idx_fd, chunk, bytes, at);
    if (err == 0 && !chunk_is_good(reading, entries)) {
        dw_io_forget(io, reading->idx_fd, at, bytes);
        err = dw_io_read_all(io, reading->idx_fd, chunk, bytes, at);
    }
    return err == 0 ? DW_OK : refuse(reading, DW_FILE_IDX, "read", err);
}

static int index_pass(struct reading *reading, enum pass pass) {
    uint64_t at = DW_FILE_HEADER;
    while (at + DW_IDX_ENTRY <= reading->idx_there) {
        uint64_t entries = (reading->idx_there - at) / DW_IDX_ENTRY;
        if (entries > CHUNK_ENTRIES) {
            entries = CHUNK_ENTRIES;
        }
        int result = read_chunk(reading, at, entries);
        for (uint64_t i = 0; result == DW_OK && i < entries; i++) {
            result = index_entry(reading, pass, reading->opening->chunk + i * DW_IDX_ENTRY,
                                 at + i * DW_IDX_ENTRY);
        }
        if (result != DW_OK) {
            return result;
        }
        at += entries * DW_IDX_ENTRY;
    }
    return DW_OK;
}

/* --------------------------------------------------------- the record file */

/* A view of the record file that follows where it is looked at. */
struct window {
    uint64_t at;
    size_t bytes;
    int err;
};

/* `bytes` at `at`, at most WINDOW_BYTES, of what is there; NULL, and window->err. */
static const uint8_t *look(const struct reading *reading, struct window *window, uint64_t at,
                           size_t bytes) {
    uint8_t *memory = reading->opening->window;
    if (at < window->at || at + bytes > window->at + window->bytes) {
        const uint64_t left = reading->rec_there - at;
        window->at = at;
        window->bytes = left < WINDOW_BYTES ? (size_t)left : WINDOW_BYTES;
        window->err =
            dw_io_read_all(reading->opening->store->io, reading->rec_fd, memory, window->bytes, at);
        if (window->err != 0) {
            return NULL;
        }
    }
    return memory + (at - window->at);
}

/* The record header at `at`: DW_OK; DW_ECORRUPT if there is none, nor when it is read again, or it
 * goes beyond the file. `again`: read it again. */
static int look_at_header(const struct reading *reading, struct window *window, uint64_t at,
                          bool again, struct dw_rec_header *header) {
    for (int i = 0; i < (again ? 2 : 1); i++) {
        if (i > 0) {
            dw_io_forget(reading->opening->store->io, reading->rec_fd, window->at, window->bytes);
            window->bytes = 0;
        }
        const uint8_t *bytes = look(reading, window, at, DW_REC_HEADER);
        if (bytes == NULL) {
            return refuse(reading, DW_FILE_REC, "read", window->err);
        }
        if (dw_rec_decode(bytes, header) &&
            at + dw_rec_bytes(header->length) <= reading->rec_there) {
            return DW_OK;
        }
    }
    return DW_ECORRUPT;
}

/* Adds the records of which the index file's good entries know nothing. */
static int walk_records(struct reading *reading) {
    struct window window = {0};
    const uint64_t end = reading->rec_there;
    uint64_t lost_from = 0; /* where what cannot be made out begins, 0: nowhere */
    for (uint64_t at = DW_FILE_HEADER; at + DW_REC_HEADER <= end;) {
        struct dw_rec_header header;
        int result = look_at_header(reading, &window, at, lost_from == 0, &header);
        if (result == DW_ECORRUPT) {
            if (lost_from == 0) {
                lost_from = at;
            }
            at += DW_REC_UNIT;
            continue;
        }
        if (result != DW_OK) {
            return result;
        }
        if (lost_from != 0) {
            char name[DW_FILE_NAME_BYTES];
            dw_log(reading->opening->store, DW_LOG_ERROR,
                   "%s/%s: no record can be made out from offset %" PRIu64 " to %" PRIu64,
                   reading->opening->store->dir, name_of(reading, DW_FILE_REC, name), lost_from,
                   at);
            lost_from = 0;
        }
        const struct dw_idx_entry record = {
            .id = header.id,
            .due = header.due,
            .key_hash = header.key_hash,
            .off = (uint32_t)(at / DW_REC_UNIT),
            .length = header.length,
        };
        if (!has_bit(reading->seen, record.off) && !has_bit(reading->dead, record.off)) {
            result = add_record(reading, &record, true);
            if (result != DW_OK) {
                return result;
            }
        }
        at += dw_rec_bytes(header.length);
    }
    if (lost_from != 0) {
        char name[DW_FILE_NAME_BYTES];
        dw_log(reading->opening->store, DW_LOG_ERROR,
               "%s/%s: no record can be made out from offset %" PRIu64 " on",
               reading->opening->store->dir, name_of(reading, DW_FILE_REC, name), lost_from);
    }
    return DW_OK;
}

/* --------------------------------------------------------------- partition */

/* Opens a file and cuts it to what is named. *there: how much of that there is. DW_OK, with *out -1
 * if it is missing. */
static int open_file(struct reading *reading, enum dw_file_kind kind, uint64_t named, bool listed,
                     int *out, uint64_t *there) {
    struct dw_store *store = reading->opening->store;
    char name[DW_FILE_NAME_BYTES];
    name_of(reading, kind, name);
    *there = 0;
    int fd = dw_io_open(store->io, store->dirfd, name, O_RDWR);
    if (fd < 0 && errno == ENOENT && !listed) {
        dw_log(store, DW_LOG_ERROR, "%s/%s: is missing", store->dir, name);
        return DW_OK;
    }
    if (fd < 0) {
        return refuse(reading, kind, "opened", errno);
    }
    *out = fd;
    struct stat st = {0};
    if (store->io->fstat(fd, &st) != 0) {
        return refuse(reading, kind, "read", errno);
    }
    const uint64_t size = (uint64_t)st.st_size;
    *there = size < named ? size : named;
    if (size < named) {
        dw_log(store, DW_LOG_ERROR, "%s/%s: ends at offset %" PRIu64 ", not %" PRIu64, store->dir,
               name, size, named);
    } else if (size > named) {
        reading->opening->report.cut_bytes += size - named;
        if (store->io->ftruncate(fd, (off_t)named) != 0) {
            dw_log(store, DW_LOG_WARNING, "%s/%s: cannot be cut to %" PRIu64 " bytes: %s",
                   store->dir, name, named, strerror(errno));
        }
    }
    return DW_OK;
}

/* DW_ECORRUPT if it was read twice, or the file is too short for it. */
static int check_header(struct reading *reading, enum dw_file_kind kind, int fd, uint64_t there) {
    struct dw_store *store = reading->opening->store;
    const struct dw_partition *partition = reading->partition;
    uint8_t bytes[DW_FILE_HEADER];
    int result = DW_ECORRUPT;
    for (int i = 0; there >= sizeof bytes && result == DW_ECORRUPT && i < 2; i++) {
        if (i > 0) {
            dw_io_forget(store->io, fd, 0, sizeof bytes);
        }
        const int err = dw_io_read_all(store->io, fd, bytes, sizeof bytes, 0);
        if (err != 0) {
            return refuse(reading, kind, "read", err);
        }
        result = dw_file_header_check(bytes, kind, partition->serial, partition->level,
                                      partition->slice);
    }
    if (result != DW_OK) {
        char name[DW_FILE_NAME_BYTES];
        dw_log(store, DW_LOG_ERROR, "%s/%s: its first %u bytes are %s", store->dir,
               name_of(reading, kind, name), DW_FILE_HEADER,
               result == DW_EVERSION ? "of a later version" : "damaged");
    }
    return result;
}

static int rebuild_index(struct reading *reading) {
    struct opening *opening = reading->opening;
    struct dw_store *store = opening->store;
    struct dw_partition *partition = reading->partition;
    char name[DW_FILE_NAME_BYTES];
    if (reading->rec_result != DW_OK) {
        dw_io_error(reading->rec_errno);
        return reading->rec_result;
    }
    dw_log(store, DW_LOG_WARNING,
           "%s/%s: damaged at offset %" PRIu64 "; made again from the records, of which some may "
           "be delivered twice",
           store->dir, name_of(reading, DW_FILE_IDX, name), reading->first_bad);
    opening->report.rebuilt_indexes++;
    opening->damaged = true;
    dw_partition_note_locked(partition, DW_PARTITION_FIND_DAMAGE);
    return walk_records(reading);
}

static int read_index(struct reading *reading) {
    reading->bitmap_bytes = (size_t)(reading->partition->rec.written / 256 + 1);
    reading->dead = new_bitmap(reading);
    reading->seen = new_bitmap(reading);
    if (reading->dead == NULL || reading->seen == NULL) {
        return DW_ENOMEM;
    }
    bool damaged = reading->idx_fd < 0 || reading->idx_there < reading->partition->idx.written;
    reading->first_bad = reading->idx_there;
    if (reading->idx_fd >= 0) {
        int result = check_header(reading, DW_FILE_IDX, reading->idx_fd, reading->idx_there);
        if (result == DW_ECORRUPT) {
            damaged = true;
            reading->first_bad = 0;
        } else if (result != DW_OK) {
            return result;
        }
    }
    int result = index_pass(reading, PASS_DEAD);
    if (result == DW_OK) {
        result = index_pass(reading, PASS_ADD);
    }
    if (result == DW_OK && reading->bad[PASS_DEAD] != reading->bad[PASS_ADD]) {
        result = refuse(reading, DW_FILE_IDX, "read twice alike", EIO);
    }
    if (result == DW_OK && (damaged || reading->bad[PASS_DEAD] > 0)) {
        result = rebuild_index(reading);
    }
    return result;
}

/* What is there is what the manifest says, or it is said what is missing of a damaged one. */
static int check_partition(struct reading *reading, uint64_t named, uint64_t found) {
    struct dw_store *store = reading->opening->store;
    struct dw_partition *partition = reading->partition;
    const bool damaged = partition->state == DW_PARTITION_DAMAGED;
    if (!damaged && found != named) {
        char name[DW_FILE_NAME_BYTES];
        dw_log(store, DW_LOG_ERROR,
               "%s/%s: it has %" PRIu64 " records, not %" PRIu64 " as the manifest says. "
               "(Without this file it is made again from the records, of which some "
               "may then be delivered twice.)",
               store->dir, name_of(reading, DW_FILE_IDX, name), found, named);
        return DW_ECORRUPT;
    }
    if (damaged && found < named) {
        reading->opening->report.corrupt_records += named - found;
        dw_log(store, DW_LOG_ERROR,
               "%s: partition %" PRIu64 ": %" PRIu64 " of its %" PRIu64 " records are lost",
               store->dir, partition->serial, named - found, named);
    }
    return DW_OK;
}

static int open_record_file(struct reading *reading, uint64_t named, bool listed) {
    int result =
        open_file(reading, DW_FILE_REC, named, listed, &reading->rec_fd, &reading->rec_there);
    /* What matters of its header is that no later version wrote it. */
    if (result == DW_OK && reading->rec_fd >= 0) {
        result = check_header(reading, DW_FILE_REC, reading->rec_fd, reading->rec_there);
        result = result == DW_ECORRUPT ? DW_OK : result;
    }
    if (result == DW_OK || result == DW_EVERSION) {
        if (reading->rec_fd < 0 || reading->rec_there < named) {
            dw_partition_note_locked(reading->partition, DW_PARTITION_SEAL);
        }
        return result;
    }
    /* All that is in it is known from the index, and is tried again when it is due. */
    reading->rec_result = result;
    reading->rec_errno = dw_store_errno();
    reading->rec_there = named;
    dw_partition_note_locked(reading->partition, DW_PARTITION_SEAL);
    return DW_OK;
}

static int open_files(struct reading *reading, const struct dw_manifest_part *named,
                      uint8_t listed) {
    int result = open_record_file(reading, named->rec_bytes, (listed & LISTED_REC) != 0);
    if (result == DW_OK) {
        result = open_file(reading, DW_FILE_IDX, named->idx_bytes, (listed & LISTED_IDX) != 0,
                           &reading->idx_fd, &reading->idx_there);
    }
    return result;
}

static int read_partition(struct opening *opening, const struct dw_manifest_part *named,
                          uint8_t listed, struct dw_partition *partition) {
    struct dw_store *store = opening->store;
    struct reading reading = {
        .opening = opening, .partition = partition, .rec_fd = -1, .idx_fd = -1};
    const size_t before = opening->count;
    int result = open_files(&reading, named, listed);
    if (result == DW_OK) {
        result = read_index(&reading);
    }
    if (result == DW_OK) {
        result = check_partition(&reading, named->live, opening->count - before - reading.again);
    }
    dw_release(store->alloc, reading.dead);
    dw_release(store->alloc, reading.seen);
    if (reading.rec_fd >= 0) {
        store->io->close(reading.rec_fd);
    }
    if (reading.idx_fd >= 0) {
        store->io->close(reading.idx_fd);
    }
    return result;
}

static int read_partitions(struct opening *opening) {
    struct dw_store *store = opening->store;
    if (opening->manifest.count > DW_PART_MAX) {
        return DW_EFULL;
    }
    int result = dw_grow_parts(store, opening->manifest.count + 1);
    for (uint32_t i = 0; result == DW_OK && i < opening->manifest.count; i++) {
        const struct dw_manifest_part *named = &opening->manifest.parts[i];
        struct dw_partition *partition =
            dw_partition_named(store->alloc, named->serial, named->level, named->slice,
                               named->rec_bytes, named->idx_bytes);
        if (partition == NULL) {
            return DW_ENOMEM;
        }
        partition->number = i;
        partition->named = store->durable;
        store->parts[i] = partition;
        store->parts_used++;
        store->total_bytes += named->rec_bytes + named->idx_bytes;
        store->rec_bytes += named->rec_bytes - DW_FILE_HEADER;
        result = read_partition(opening, named, opening->listed[i], partition);
    }
    return result;
}

/* ----------------------------------------------------------- sort and build
 * Natural merge sort: a partition's records are in order but where some were moved into it, so
 * there are few runs. */

static size_t run_end(const struct found *found, size_t from, size_t count) {
    size_t end = from;
    while (end < count && (end == from || found[end - 1].id <= found[end].id)) {
        end++;
    }
    return end;
}

static void merge(const struct found *in, size_t from, size_t mid, size_t end, struct found *out) {
    size_t left = from;
    size_t right = mid;
    for (size_t i = from; i < end; i++) {
        if (left < mid && (right == end || in[left].id <= in[right].id)) {
            out[i] = in[left++];
        } else {
            out[i] = in[right++];
        }
    }
}

static int sort_found(struct opening *opening) {
    const size_t count = opening->count;
    if (run_end(opening->found, 0, count) == count) {
        return DW_OK;
    }
    struct found *spare = dw_get(opening->store->alloc, count * sizeof *spare);
    if (spare == NULL) {
        return DW_ENOMEM;
    }
    for (size_t runs = 2; runs > 1;) {
        runs = 0;
        for (size_t from = 0; from < count; runs++) {
            const size_t mid = run_end(opening->found, from, count);
            const size_t end = run_end(opening->found, mid, count);
            merge(opening->found, from, mid, end, spare);
            from = end;
        }
        struct found *sorted = spare;
        spare = opening->found;
        opening->found = sorted;
    }
    dw_release(opening->store->alloc, spare);
    opening->capacity = count;
    return DW_OK;
}

/* The Raft index in the record of entry k, 0 if the record is damaged or missing. */
static int record_index(struct opening *opening, uint32_t k, uint64_t *index) {
    struct dw_store *store = opening->store;
    const struct dw_entry *entry = dw_slab_at(store->slab, k);
    struct dw_partition *partition = dw_part_of_locked(store, entry);
    const struct reading reading = {.opening = opening, .partition = partition};
    const uint64_t off = (uint64_t)entry->off * DW_REC_UNIT;
    char name[DW_FILE_NAME_BYTES];
    *index = 0;
    int fd = dw_io_open(store->io, store->dirfd, name_of(&reading, DW_FILE_REC, name), O_RDONLY);
    if (fd < 0) {
        return errno == ENOENT && (opening->listed[entry->part] & LISTED_REC) == 0
                   ? DW_OK
                   : refuse(&reading, DW_FILE_REC, "opened", errno);
    }
    int result = DW_OK;
    struct stat st;
    struct dw_rec_header header;
    uint8_t bytes[DW_REC_HEADER];
    if (store->io->fstat(fd, &st) != 0) {
        result = refuse(&reading, DW_FILE_REC, "read", errno);
    }
    for (int i = 0; result == DW_OK && (uint64_t)st.st_size >= off + sizeof bytes && i < 2; i++) {
        if (i > 0) {
            dw_io_forget(store->io, fd, off, sizeof bytes);
        }
        const int err = dw_io_read_all(store->io, fd, bytes, sizeof bytes, off);
        if (err != 0) {
            result = refuse(&reading, DW_FILE_REC, "read", err);
        } else if (dw_rec_decode(bytes, &header)) {
            *index = header.index;
            break;
        }
    }
    store->io->close(fd);
    return result;
}

/* Of two entries of one id, whether the first, which stands before the other, is right. */
static int is_better(struct opening *opening, const struct found *a, const struct found *b,
                     bool *better) {
    const struct dw_entry *first = dw_slab_at(opening->store->slab, a->k);
    const struct dw_entry *second = dw_slab_at(opening->store->slab, b->k);
    if (first->part == second->part && first->off == second->off) {
        *better = false; /* one record, given another due time where it is */
        return DW_OK;
    }
    if (a->rebuilt != b->rebuilt) {
        *better = b->rebuilt;
        return DW_OK;
    }
    uint64_t index_a, index_b = 0;
    int result = record_index(opening, a->k, &index_a);
    if (result == DW_OK) {
        result = record_index(opening, b->k, &index_b);
    }
    *better = index_a >= index_b;
    return result;
}

static int drop_duplicates(struct opening *opening) {
    size_t kept = 0;
    for (size_t i = 0; i < opening->count; i++) {
        const struct found *found = &opening->found[i];
        struct found *last = kept > 0 ? &opening->found[kept - 1] : NULL;
        if (last == NULL || last->id != found->id) {
            opening->found[kept++] = *found;
            continue;
        }
        bool better;
        int result = is_better(opening, last, found, &better);
        if (result != DW_OK) {
            return result;
        }
        dw_slab_put(opening->store->slab, better ? found->k : last->k);
        *last = better ? *last : *found;
    }
    opening->count = kept;
    return DW_OK;
}

/* Where no index was damaged, there are as many messages as there were. */
static int check_count(const struct opening *opening) {
    uint64_t named = 0;
    for (uint32_t i = 0; i < opening->manifest.count; i++) {
        named += opening->manifest.parts[i].live;
    }
    if (!opening->damaged && opening->count != named) {
        dw_log(opening->store, DW_LOG_ERROR,
               "%s: its indexes have %zu messages, not %" PRIu64 " as the manifest says",
               opening->store->dir, opening->count, named);
        return DW_ECORRUPT;
    }
    return DW_OK;
}

static int build(struct opening *opening, uint64_t now_ms) {
    struct dw_store *store = opening->store;
    const uint64_t start = opening->first_due < now_ms ? opening->first_due : now_ms;
    store->wheel = dw_wheel_new(store->alloc, store->slab, start);
    store->heap = dw_heap_new(store->alloc, store->slab);
    if (store->wheel == NULL || store->heap == NULL) {
        return DW_ENOMEM;
    }
    for (size_t i = 0; i < opening->count; i++) {
        const uint32_t k = opening->found[i].k;
        const struct dw_entry *entry = dw_slab_at(store->slab, k);
        const uint64_t bytes = dw_rec_bytes(entry->len);
        struct dw_partition *partition = dw_part_of_locked(store, entry);
        if (dw_index_put(store->by_id, k) != DW_OK ||
            (entry->key_hash != 0 && dw_index_put(store->by_key, k) != DW_OK) ||
            dw_schedule_locked(store, k) != DW_OK) {
            return DW_ENOMEM;
        }
        partition->live++;
        partition->live_bytes += bytes;
        store->live_bytes += bytes;
        store->pending++;
        store->pending_bytes += entry->len;
    }
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        if (store->parts[i] != NULL) {
            dw_retire_if_empty_locked(store, store->parts[i]);
        }
    }
    return DW_OK;
}

/* --------------------------------------------------------------- directory */

static void clean(void *arg, const char *name) {
    struct opening *opening = arg;
    struct dw_store *store = opening->store;
    enum dw_file_kind kind;
    uint64_t serial, slice;
    uint32_t level;
    if (dw_file_name_parse(name, &kind, &serial, &level, &slice)) {
        if (serial > opening->max_serial) {
            opening->max_serial = serial;
        }
        const struct dw_manifest_part *named = dw_manifest_find(&opening->manifest, serial);
        if (named != NULL && named->level == level && named->slice == slice) {
            opening->listed[named - opening->manifest.parts] |=
                kind == DW_FILE_REC ? LISTED_REC : LISTED_IDX;
            return;
        }
    } else if (strcmp(name, DW_MANIFEST_TMP) != 0) {
        return;
    }
    if (store->io->unlinkat(store->dirfd, name, 0) != 0) {
        dw_log(store, DW_LOG_WARNING, "%s/%s: belongs to no checkpoint, but cannot be removed: %s",
               store->dir, name, strerror(errno));
    }
}

static void see_manifest(void *arg, const char *name) {
    bool *seen = arg;
    *seen = *seen || strcmp(name, DW_MANIFEST_NAME) == 0;
}

/* DW_ENOENT: there is no checkpoint, which the directory's list confirms, as everything else that
 * is in it is removed then. */
static int read_manifest(struct opening *opening) {
    struct dw_store *store = opening->store;
    bool seen = false;
    int result = dw_manifest_read(store->io, store->alloc, store->dirfd, &opening->manifest);
    if (result == DW_ENOENT) {
        if (dw_io_list(store->io, store->dirfd, see_manifest, &seen) != 0) {
            return dw_io_error(errno);
        }
        return seen ? dw_io_error(EIO) : DW_ENOENT;
    }
    return result;
}

static int open_store(struct opening *opening, const char *dir, uint64_t now_ms) {
    struct dw_store *store = opening->store;
    store->dirfd = dw_io_open_dir(store->io, dir, 1);
    if (store->dirfd < 0) {
        return dw_io_error(errno);
    }
    int result = read_manifest(opening);
    if (result != DW_OK && result != DW_ENOENT) {
        return result;
    }
    opening->listed = dw_get(store->alloc, opening->manifest.count + (size_t)1);
    if (opening->listed == NULL) {
        return DW_ENOMEM;
    }
    memset(opening->listed, 0, opening->manifest.count + (size_t)1);
    /* The manifest may have been renamed by a process that did not live to sync the directory. It
     * must be durable before what only an older one names is removed. */
    if (store->io->fsync(store->dirfd) != 0 ||
        dw_io_list(store->io, store->dirfd, clean, opening) != 0) {
        return dw_io_error(errno);
    }
    store->durable = result == DW_OK ? 1 : 0;
    store->checkpoint = store->durable;
    store->applied = store->durable_applied = opening->manifest.applied;
    store->next_serial = opening->manifest.next_serial > opening->max_serial
                             ? opening->manifest.next_serial
                             : opening->max_serial + 1;
    result = read_partitions(opening);
    if (result == DW_OK) {
        result = sort_found(opening);
    }
    if (result == DW_OK) {
        result = drop_duplicates(opening);
    }
    if (result == DW_OK) {
        result = check_count(opening);
    }
    if (result == DW_OK) {
        result = build(opening, now_ms);
    }
    return result;
}

static struct dw_store *new_store(const char *dir, const struct dw_config *config) {
    const struct dw_alloc *alloc = config->alloc != NULL ? config->alloc : &dw_alloc_libc;
    struct dw_store *store = dw_get(alloc, sizeof *store);
    if (store == NULL) {
        return NULL;
    }
    *store = (struct dw_store){
        .alloc = alloc,
        .io = config->io != NULL ? config->io : &dw_io_posix,
        .log = config->log,
        .log_ctx = config->log_ctx,
        .dirfd = -1,
        .max_record_bytes = config->max_record_bytes,
        .partition_bytes = config->partition_bytes != 0 ? config->partition_bytes : 1 << 30,
        .split_bytes = config->split_bytes != 0 ? config->split_bytes : 8 << 20,
        .clock = config->now_ms,
    };
    pthread_mutex_init(&store->turn, NULL);
    pthread_mutex_init(&store->lock, NULL);
    pthread_cond_init(&store->idle, NULL);
    ck_sequence_init(&store->sequence);
    dw_origins_init(&store->origins, alloc);
    dw_origins_init(&store->unread, alloc);
    dw_stream_init(&store->nowhere.rec);
    dw_stream_init(&store->nowhere.idx);
    const size_t bytes = strlen(dir) + 1;
    store->dir = dw_get(alloc, bytes);
    dw_budget *budget =
        config->budget != NULL ? config->budget : dw_budget_new(alloc, config->max_open_files);
    if (budget != NULL) {
        dw_files_init(&store->files, store->io, &store->lock, budget, store->dir);
    }
    if (budget != NULL && config->budget == NULL) {
        dw_budget_drop(budget);
    }
    store->slab = dw_slab_new(alloc);
    if (store->slab != NULL) {
        store->by_id = dw_index_new(alloc, store->slab, DW_BY_ID);
        store->by_key = dw_index_new(alloc, store->slab, DW_BY_KEY);
    }
    if (budget == NULL || store->dir == NULL || store->by_id == NULL || store->by_key == NULL) {
        dw_store_free(store);
        return NULL;
    }
    memcpy(store->dir, dir, bytes);
    return store;
}

static bool config_is_valid(const struct dw_config *config) {
    return config->now_ms <= DW_DUE_MAX && config->max_record_bytes >= 1 &&
           config->max_record_bytes <= INT32_MAX && config->max_open_files >= 8 &&
           config->max_open_files <= 4096 && config->partition_bytes <= DW_PARTITION_BYTES_MAX / 2;
}

int dw_store_open(const char *dir, const struct dw_config *config, dw_store **out,
                  struct dw_recovery *report) {
    *out = NULL;
    *report = (struct dw_recovery){0};
    if (!config_is_valid(config)) {
        return DW_EINVAL;
    }
    struct dw_store *store = new_store(dir, config);
    if (store == NULL) {
        return DW_ENOMEM;
    }
    const struct dw_alloc *alloc = store->alloc;
    struct opening opening = {
        .store = store,
        .first_due = DW_NEVER,
        .chunk = dw_get(alloc, CHUNK_ENTRIES * DW_IDX_ENTRY),
        .window = dw_get(alloc, WINDOW_BYTES),
    };
    int result = DW_ENOMEM;
    if (opening.chunk != NULL && opening.window != NULL) {
        result = open_store(&opening, dir, config->now_ms);
    }
    if (result == DW_OK) {
        const int err = dw_files_give_dir(&store->files, store->dirfd);
        result = err == 0 ? DW_OK : dw_io_error(err);
        store->dirfd = err == 0 ? -1 : store->dirfd;
    }
    if (dw_broken_note() != NULL) {
        dw_log(store, DW_LOG_ERROR,
               "%s: the store is not opened, as something that must hold does not: %s", store->dir,
               dw_broken_note());
        dw_broken_forget();
        result = DW_EBROKEN;
    }
    dw_release(alloc, opening.found);
    dw_release(alloc, opening.chunk);
    dw_release(alloc, opening.window);
    dw_release(alloc, opening.listed);
    dw_manifest_free(alloc, &opening.manifest);
    if (result != DW_OK) {
        dw_log(store, DW_LOG_ERROR, "%s: the store is not opened: %s", store->dir,
               result == DW_EIO || result == DW_ENOSPC || result == DW_EACCES
                   ? strerror(dw_store_errno())
                   : dw_strerror(result));
        if (store->dirfd >= 0) {
            store->io->close(store->dirfd);
        }
        dw_files_close(&store->files);
        dw_store_free(store);
        return result;
    }
    opening.report.applied = store->applied;
    opening.report.pending = store->pending;
    opening.report.partitions = store->parts_used - store->retired;
    *report = opening.report;
    dw_publish_locked(store);
    *out = store;
    return DW_OK;
}

/* --------------------------------------------------------------- snapshots */

static int read_manifest_of(const struct dw_io *io, const struct dw_alloc *alloc, const char *dir,
                            int *dirfd, struct dw_manifest *manifest) {
    *dirfd = dw_io_open_dir(io, dir, 0);
    if (*dirfd < 0) {
        return errno == ENOENT ? DW_ENOENT : dw_io_error(errno);
    }
    int result = dw_manifest_read(io, alloc, *dirfd, manifest);
    if (result != DW_OK) {
        io->close(*dirfd);
        *dirfd = -1;
    }
    return result;
}

int dw_store_peek_applied(const char *dir, uint64_t *applied) {
    int dirfd;
    struct dw_manifest manifest = {0};
    *applied = 0;
    int result = read_manifest_of(&dw_io_posix, &dw_alloc_libc, dir, &dirfd, &manifest);
    if (result == DW_ENOENT) {
        return DW_OK;
    }
    if (result == DW_OK) {
        *applied = manifest.applied;
        dw_io_posix.close(dirfd);
        dw_manifest_free(&dw_alloc_libc, &manifest);
    }
    return result;
}

/* The length of a file of a snapshot. DW_ECORRUPT if it is missing or shorter than named. */
static int snapshot_file(const struct dw_io *io, int dirfd, const char *name, uint64_t named,
                         uint64_t *size) {
    int fd = dw_io_open(io, dirfd, name, O_RDONLY);
    if (fd < 0) {
        return errno == ENOENT ? DW_ECORRUPT : dw_io_error(errno);
    }
    struct stat st;
    int result = DW_OK;
    if (io->fstat(fd, &st) != 0) {
        result = dw_io_error(errno);
    } else {
        *size = (uint64_t)st.st_size;
        result = *size < named ? DW_ECORRUPT : DW_OK;
    }
    io->close(fd);
    return result;
}

/* Calls `each` for every file that the manifest names, until one fails. */
static int each_file(const struct dw_manifest *manifest,
                     int (*each)(void *arg, const char *name, uint64_t bytes), void *arg) {
    for (uint32_t i = 0; i < manifest->count; i++) {
        const struct dw_manifest_part *part = &manifest->parts[i];
        char name[DW_FILE_NAME_BYTES];
        dw_file_name(name, DW_FILE_REC, part->serial, part->level, part->slice);
        int result = each(arg, name, part->rec_bytes);
        if (result == DW_OK) {
            dw_file_name(name, DW_FILE_IDX, part->serial, part->level, part->slice);
            result = each(arg, name, part->idx_bytes);
        }
        if (result != DW_OK) {
            return result;
        }
    }
    return DW_OK;
}

struct restoring {
    const struct dw_io *io;
    const struct dw_alloc *alloc;
    int from;
    int to;
    int err;
};

static int check_one(void *arg, const char *name, uint64_t bytes) {
    struct restoring *restoring = arg;
    uint64_t size;
    return snapshot_file(restoring->io, restoring->from, name, bytes, &size);
}

int dw_validate_with(const char *snapshot_dir, uint64_t *applied, const struct dw_io *io,
                     const struct dw_alloc *alloc) {
    struct restoring restoring = {.io = io, .alloc = alloc};
    struct dw_manifest manifest = {0};
    *applied = 0;
    int result = read_manifest_of(io, alloc, snapshot_dir, &restoring.from, &manifest);
    if (result != DW_OK) {
        return result;
    }
    result = each_file(&manifest, check_one, &restoring);
    if (result == DW_OK) {
        *applied = manifest.applied;
    }
    io->close(restoring.from);
    dw_manifest_free(alloc, &manifest);
    return result;
}

int dw_store_validate(const char *snapshot_dir, uint64_t *applied) {
    return dw_validate_with(snapshot_dir, applied, &dw_io_posix, &dw_alloc_libc);
}

static void remove_one(void *arg, const char *name) {
    struct restoring *restoring = arg;
    enum dw_file_kind kind;
    uint64_t serial, slice;
    uint32_t level;
    if ((dw_file_name_parse(name, &kind, &serial, &level, &slice) ||
         strcmp(name, DW_MANIFEST_TMP) == 0) &&
        restoring->io->unlinkat(restoring->to, name, 0) != 0) {
        restoring->err = errno;
    }
}

/* A file longer than named is copied, not shared: another snapshot may name more of it, and what
 * the restored store appends must not change that. */
static int restore_one(void *arg, const char *name, uint64_t bytes) {
    struct restoring *restoring = arg;
    const struct dw_io *io = restoring->io;
    uint64_t size;
    int result = snapshot_file(io, restoring->from, name, bytes, &size);
    if (result != DW_OK) {
        return result;
    }
    result = dw_io_clone(io, restoring->alloc, restoring->from, restoring->to, name, bytes,
                         size > bytes);
    if (result != DW_OK) {
        return result;
    }
    int fd = dw_io_open(io, restoring->to, name, O_RDWR);
    if (fd < 0) {
        return dw_io_error(errno);
    }
    if (io->fdatasync(fd) != 0) {
        result = dw_io_error(errno);
    }
    io->close(fd);
    return result;
}

/* The manifest goes first and comes back last: whatever fails between leaves a directory without a
 * checkpoint, never one that names what is not there. */
static int restore(struct restoring *restoring, const struct dw_manifest *manifest) {
    const struct dw_io *io = restoring->io;
    int result = each_file(manifest, check_one, restoring);
    if (result != DW_OK) {
        return result;
    }
    if ((io->unlinkat(restoring->to, DW_MANIFEST_NAME, 0) != 0 && errno != ENOENT) ||
        io->fsync(restoring->to) != 0 ||
        dw_io_list(io, restoring->to, remove_one, restoring) != 0) {
        return dw_io_error(errno);
    }
    if (restoring->err != 0) {
        return dw_io_error(restoring->err);
    }
    result = each_file(manifest, restore_one, restoring);
    if (result == DW_OK && io->fsync(restoring->to) != 0) {
        result = dw_io_error(errno);
    }
    if (result == DW_OK) {
        result = dw_manifest_write(io, restoring->alloc, restoring->to, manifest);
    }
    return result;
}

int dw_restore_with(const char *dir, const char *snapshot_dir, const struct dw_io *io,
                    const struct dw_alloc *alloc) {
    struct restoring restoring = {.io = io, .alloc = alloc};
    struct dw_manifest manifest = {0};
    int result = read_manifest_of(io, alloc, snapshot_dir, &restoring.from, &manifest);
    if (result != DW_OK) {
        return result;
    }
    restoring.to = dw_io_open_dir(io, dir, 1);
    if (restoring.to < 0) {
        result = dw_io_error(errno);
    } else {
        result = restore(&restoring, &manifest);
        io->close(restoring.to);
    }
    io->close(restoring.from);
    dw_manifest_free(alloc, &manifest);
    return result;
}

int dw_store_restore(const char *dir, const char *snapshot_dir) {
    return dw_restore_with(dir, snapshot_dir, &dw_io_posix, &dw_alloc_libc);
}

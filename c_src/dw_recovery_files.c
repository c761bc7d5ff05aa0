/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_recovery.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

/* Opening a store: the two files of one partition.
 *
 * The index file is read twice, first for what is dead and then for what is not, so that a bit for
 * each record is all that has to be remembered. Where it is damaged the records are read for what
 * its good entries leave out. It owns the descriptors until it returns, and leaves them closed. */

/* One partition being read. */
struct reading {
    struct dw_opening *opening;
    struct dw_partition *partition;
    int rec_fd;
    int idx_fd;
    int rec_result; /* why it could not be opened now, with the errno */
    int rec_errno;
    uint64_t rec_there; /* bytes, at most those named */
    uint64_t idx_there;
    uint64_t bad[2];    /* index entries, by pass */
    uint64_t first_bad; /* where */
    uint64_t records;   /* that were ever added */
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

static int add_found(struct dw_opening *opening, uint64_t id, uint32_t k, bool rebuilt) {
    if (opening->count == opening->capacity) {
        const struct dw_alloc *alloc = opening->store->alloc;
        size_t capacity = opening->capacity < 1024 ? 1024 : 2 * opening->capacity;
        struct dw_found *found = dw_get(alloc, capacity * sizeof *found);
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
    opening->found[opening->count++] = (struct dw_found){.id = id, .k = k, .rebuilt = rebuilt};
    return DW_OK;
}

static int add_record(struct reading *reading, const struct dw_idx_entry *record, bool rebuilt) {
    struct dw_opening *opening = reading->opening;
    dw_slab *slab = opening->store->slab;
    uint32_t k = dw_slab_get(slab);
    if (k == DW_NIL) {
        return DW_ENOMEM;
    }
    struct dw_entry *entry = dw_slab_at(slab, k);
    entry->due = record->due & DW_DUE_MAX;
    entry->part = reading->partition->number & DW_PART_NONE;
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
    return dw_partition_file_name(reading->partition, kind, name);
}

static int refuse(const struct reading *reading, enum dw_file_kind kind, const char *what,
                  int err) {
    return dw_refuse(reading->opening->store, reading->partition, kind, what, err);
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
    reading->records += !again;
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
        if (entries > DW_CHUNK_ENTRIES) {
            entries = DW_CHUNK_ENTRIES;
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
struct view {
    uint64_t at;
    size_t bytes;
    int err;
};

/* `bytes` at `at`, at most DW_VIEW_BYTES, of what is there; NULL, and view->err. */
static const uint8_t *look(const struct reading *reading, struct view *view, uint64_t at,
                           size_t bytes) {
    uint8_t *memory = reading->opening->view;
    if (at < view->at || at + bytes > view->at + view->bytes) {
        const uint64_t left = reading->rec_there - at;
        view->at = at;
        view->bytes = left < DW_VIEW_BYTES ? (size_t)left : DW_VIEW_BYTES;
        view->err =
            dw_io_read_all(reading->opening->store->io, reading->rec_fd, memory, view->bytes, at);
        if (view->err != 0) {
            return NULL;
        }
    }
    return memory + (at - view->at);
}

/* The record header at `at`: DW_OK; DW_ECORRUPT if there is none, nor when it is read again, or it
 * goes beyond the file. `again`: read it again. */
static int look_at_header(const struct reading *reading, struct view *view, uint64_t at, bool again,
                          struct dw_rec_header *header) {
    for (int i = 0; i < (again ? 2 : 1); i++) {
        if (i > 0) {
            dw_io_forget(reading->opening->store->io, reading->rec_fd, view->at, view->bytes);
            view->bytes = 0;
        }
        const uint8_t *bytes = look(reading, view, at, DW_REC_HEADER);
        if (bytes == NULL) {
            return refuse(reading, DW_FILE_REC, "read", view->err);
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
    struct view view = {0};
    const uint64_t end = reading->rec_there;
    uint64_t lost_from = 0; /* where what cannot be made out begins, 0: nowhere */
    for (uint64_t at = DW_FILE_HEADER; at + DW_REC_HEADER <= end;) {
        struct dw_rec_header header;
        int result = look_at_header(reading, &view, at, lost_from == 0, &header);
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
    struct dw_opening *opening = reading->opening;
    struct dw_store *store = opening->store;
    struct dw_partition *partition = reading->partition;
    char name[DW_FILE_NAME_BYTES];
    if (reading->rec_result != DW_OK) {
        dw_io_error(reading->rec_errno);
        return reading->rec_result;
    }
    dw_log(store, DW_LOG_WARNING,
           "%s/%s: damaged at offset %" PRIu64 "; made again from the records, of which some may "
           "be delivered twice, or when they were due before they were rescheduled",
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
    int result = open_record_file(reading, named->rec_bytes, (listed & DW_LISTED_REC) != 0);
    if (result == DW_OK) {
        result = open_file(reading, DW_FILE_IDX, named->idx_bytes, (listed & DW_LISTED_IDX) != 0,
                           &reading->idx_fd, &reading->idx_there);
        /* Where it is missing, it is made for notes of what is dead, or no checkpoint could be:
         * what comes before them is a hole in it, and damaged. */
        reading->partition->idx.created = reading->idx_fd >= 0;
    }
    return result;
}

int dw_read_partition(struct dw_opening *opening, const struct dw_manifest_part *named,
                      uint8_t listed, struct dw_partition *partition) {
    struct dw_store *store = opening->store;
    struct reading reading = {.opening = opening,
                              .partition = partition,
                              .rec_fd = -1,
                              .idx_fd = -1};
    const size_t before = opening->count;
    int result = open_files(&reading, named, listed);
    if (result == DW_OK) {
        result = read_index(&reading);
    }
    if (result == DW_OK) {
        result = check_partition(&reading, named->live, opening->count - before - reading.again);
    }
    partition->records = reading.records;
    partition->retimed = reading.again;
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

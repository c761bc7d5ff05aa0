/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_partition.h"

#include "dw_crc32c.h"
#include "dw_invariant.h"
#include "dw_le.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Partitions each for itself: the bytes of their files, which slice a due time belongs to, what is
 * buffered of them, their states. Which there are is known to dw_partition_table.c.
 *
 * What is appended goes to buffers that grow, so room is made before anything is changed, without
 * the lock, and filling it cannot fail. */

enum { VERSION = 1, BUFFER_MIN = 4096, SPARE_MAX = 2 * 1024 * 1024, SPARE_TICKS = 2 };

/* ----------------------------------------------------------------- formats */

static const uint8_t rec_magic[4] = {'D', 'W', 'R', '1'};
static const uint8_t file_magic[2][8] = {
    [DW_FILE_REC] = {'D', 'W', 'H', 'R', 'E', 'C', '\r', '\n'},
    [DW_FILE_IDX] = {'D', 'W', 'H', 'I', 'D', 'X', '\r', '\n'},
};
static const char *const extension[2] = {[DW_FILE_REC] = "rec", [DW_FILE_IDX] = "idx"};

static uint64_t due_and_encoding(uint64_t due, uint16_t encoding) {
    return due | (uint64_t)encoding << 48;
}

void dw_rec_encode(uint8_t *out, const struct dw_rec_header *header) {
    memcpy(out, rec_magic, sizeof rec_magic);
    dw_le32_put(out + 8, header->length);
    dw_le32_put(out + 12, header->body_crc);
    dw_le64_put(out + 16, header->id);
    dw_le64_put(out + 24, due_and_encoding(header->due, header->encoding));
    dw_le64_put(out + 32, header->key_hash);
    dw_le64_put(out + 40, header->index);
    dw_le32_put(out + 4, dw_crc32c(0, out + 8, DW_REC_HEADER - 8));
}

bool dw_rec_decode(const uint8_t *in, struct dw_rec_header *header) {
    if (memcmp(in, rec_magic, sizeof rec_magic) != 0 ||
        dw_le32(in + 4) != dw_crc32c(0, in + 8, DW_REC_HEADER - 8)) {
        return false;
    }
    header->length = dw_le32(in + 8);
    header->body_crc = dw_le32(in + 12);
    header->id = dw_le64(in + 16);
    header->due = dw_le64(in + 24) & DW_DUE_MAX;
    header->encoding = dw_le16(in + 30);
    header->key_hash = dw_le64(in + 32);
    header->index = dw_le64(in + 40);
    return header->length > 0;
}

void dw_idx_encode(uint8_t *out, const struct dw_idx_entry *entry) {
    memset(out, 0, DW_IDX_ENTRY);
    out[4] = (uint8_t)entry->kind;
    if (entry->kind == DW_IDX_ADDED) {
        dw_le64_put(out + 8, entry->id);
        dw_le64_put(out + 16, due_and_encoding(entry->due, entry->encoding));
        dw_le64_put(out + 24, entry->key_hash);
        dw_le32_put(out + 32, entry->off);
        dw_le32_put(out + 36, entry->length);
    } else {
        out[5] = (uint8_t)entry->dead_count;
        for (uint32_t i = 0; i < entry->dead_count; i++) {
            dw_le32_put(out + 8 + 4 * i, entry->dead[i]);
        }
    }
    dw_le32_put(out, dw_crc32c(0, out + 4, DW_IDX_ENTRY - 4));
}

void dw_idx_decode(const uint8_t *in, struct dw_idx_entry *entry) {
    entry->kind = DW_IDX_BAD;
    if (dw_le32(in) != dw_crc32c(0, in + 4, DW_IDX_ENTRY - 4)) {
        return;
    }
    if (in[4] == DW_IDX_ADDED) {
        entry->id = dw_le64(in + 8);
        entry->due = dw_le64(in + 16) & DW_DUE_MAX;
        entry->encoding = dw_le16(in + 22);
        entry->key_hash = dw_le64(in + 24);
        entry->off = dw_le32(in + 32);
        entry->length = dw_le32(in + 36);
        entry->kind = DW_IDX_ADDED;
    } else if (in[4] == DW_IDX_DEAD && in[5] >= 1 && in[5] <= DW_IDX_DEAD_MAX) {
        entry->dead_count = in[5];
        for (uint32_t i = 0; i < entry->dead_count; i++) {
            entry->dead[i] = dw_le32(in + 8 + 4 * i);
        }
        entry->kind = DW_IDX_DEAD;
    }
}

static uint32_t file_header_crc(const uint8_t *p) {
    return dw_crc32c(dw_crc32c(0, p, 12), p + 16, DW_FILE_HEADER - 16);
}

void dw_file_header_encode(uint8_t *out, enum dw_file_kind kind, uint64_t serial, uint32_t level,
                           uint64_t slice) {
    memset(out, 0, DW_FILE_HEADER);
    memcpy(out, file_magic[kind], 8);
    dw_le32_put(out + 8, VERSION);
    dw_le64_put(out + 16, serial);
    dw_le32_put(out + 24, level);
    dw_le64_put(out + 32, slice);
    dw_le32_put(out + 12, file_header_crc(out));
}

int dw_file_header_check(const uint8_t *in, enum dw_file_kind kind, uint64_t serial, uint32_t level,
                         uint64_t slice) {
    if (memcmp(in, file_magic[kind], 8) != 0 || dw_le32(in + 12) != file_header_crc(in)) {
        return DW_ECORRUPT;
    }
    if (dw_le32(in + 8) != VERSION) {
        return DW_EVERSION;
    }
    if (dw_le64(in + 16) != serial || dw_le32(in + 24) != level || dw_le64(in + 32) != slice) {
        return DW_ECORRUPT;
    }
    return DW_OK;
}

void dw_file_name(char out[DW_FILE_NAME_BYTES], enum dw_file_kind kind, uint64_t serial,
                  uint32_t level, uint64_t slice) {
    snprintf(out, DW_FILE_NAME_BYTES, "%08" PRIu64 "-%" PRIu32 "-%" PRIu64 ".%s", serial, level,
             slice, extension[kind]);
}

/* Parses one number and the character after it. */
static const char *parse_number(const char *p, char after, uint64_t *out) {
    uint64_t v = 0;
    int digits = 0;
    for (; *p >= '0' && *p <= '9' && digits < 19; p++, digits++) {
        v = v * 10 + (uint64_t)(*p - '0');
    }
    *out = v;
    return digits > 0 && *p == after ? p + 1 : NULL;
}

bool dw_file_name_parse(const char *name, enum dw_file_kind *kind, uint64_t *serial,
                        uint32_t *level, uint64_t *slice) {
    uint64_t wide_level;
    const char *p = parse_number(name, '-', serial);
    if (p == NULL || (p = parse_number(p, '-', &wide_level)) == NULL || wide_level >= DW_LEVELS ||
        (p = parse_number(p, '.', slice)) == NULL) {
        return false;
    }
    *level = (uint32_t)wide_level;
    if (strcmp(p, extension[DW_FILE_REC]) == 0) {
        *kind = DW_FILE_REC;
    } else if (strcmp(p, extension[DW_FILE_IDX]) == 0) {
        *kind = DW_FILE_IDX;
    } else {
        return false;
    }
    char canonical[DW_FILE_NAME_BYTES];
    dw_file_name(canonical, *kind, *serial, *level, *slice);
    return strcmp(canonical, name) == 0;
}

/* ------------------------------------------------------------------ slices */

static uint64_t slice_start(uint32_t level, uint64_t slice) {
    return slice << dw_level_shift(level);
}

static uint32_t level_of(uint64_t from, uint64_t due) {
    uint64_t differing = (from ^ due) >> dw_level_shift(0);
    if (differing == 0) {
        return 0;
    }
    return (uint32_t)(63 - __builtin_clzll(differing)) / 4;
}

bool dw_slice_is_near(uint64_t clock_ms, uint32_t level, uint64_t slice) {
    uint64_t start = slice_start(level, slice);
    return level > 0 &&
           (start <= clock_ms || start - clock_ms <= UINT64_C(1) << (dw_level_shift(level) - 2));
}

bool dw_slice_is_past(uint64_t clock_ms, uint32_t level, uint64_t slice) {
    return slice_start(level, slice + 1) <= clock_ms;
}

void dw_place(uint64_t clock_ms, uint64_t due, uint32_t *level, uint64_t *slice) {
    if (due < clock_ms) {
        due = clock_ms;
    }
    uint64_t from = clock_ms;
    for (;;) {
        *level = level_of(from, due);
        *slice = due >> dw_level_shift(*level);
        if (!dw_slice_is_near(clock_ms, *level, *slice)) {
            return;
        }
        /* Its beginning agrees with `due` in all bits above the slice, so the level falls. */
        from = slice_start(*level, *slice);
    }
}

/* ----------------------------------------------------------------- streams */

void dw_stream_init(struct dw_stream *stream) {
    *stream = (struct dw_stream){0};
    dw_file_init(&stream->file);
}

uint64_t dw_stream_length(const struct dw_stream *stream) {
    const struct dw_buf *last = stream->active != NULL ? stream->active : stream->writing;
    return last != NULL ? last->base + last->fill : stream->written;
}

bool dw_buf_unref_locked(struct dw_buf *buf) {
    return --buf->refs == 0;
}

int dw_stream_reserve(struct dw_stream *stream, const struct dw_alloc *alloc, pthread_mutex_t *lock,
                      size_t bytes) {
    struct dw_buf *old = stream->active;
    if (old != NULL && old->capacity - old->fill >= bytes) {
        return DW_OK;
    }
    /* New memory is dear where it comes page by page, and a stream that is written often needs as
     * much each time. */
    struct dw_buf *buf = stream->spare;
    if (old == NULL && buf != NULL && buf->capacity >= bytes) {
        stream->spare = NULL;
        buf->refs = 1;
        buf->fill = 0;
        buf->base = dw_stream_length(stream);
        pthread_mutex_lock(lock);
        stream->active = buf;
        pthread_mutex_unlock(lock);
        return DW_OK;
    }
    size_t need = (old != NULL ? old->fill : 0) + bytes;
    size_t capacity = old != NULL ? 2 * old->capacity : BUFFER_MIN - sizeof(struct dw_buf);
    if (capacity < need) {
        capacity = need;
    }
    buf = dw_get(alloc, sizeof *buf + capacity);
    if (buf == NULL) {
        return DW_ENOMEM;
    }
    buf->capacity = capacity;
    buf->refs = 1;
    buf->fill = 0;
    if (old == NULL) {
        buf->base = dw_stream_length(stream);
    } else {
        buf->base = old->base;
        buf->fill = old->fill;
        memcpy(buf->bytes, old->bytes, old->fill);
    }
    pthread_mutex_lock(lock);
    stream->active = buf;
    bool last = old != NULL && dw_buf_unref_locked(old);
    pthread_mutex_unlock(lock);
    if (last) {
        dw_release(alloc, old);
    }
    return DW_OK;
}

uint8_t *dw_stream_put(struct dw_stream *stream, size_t bytes) {
    struct dw_buf *buf = stream->active;
    if (!DW_INVARIANT(buf != NULL && buf->capacity - buf->fill >= bytes)) {
        return NULL;
    }
    uint8_t *p = buf->bytes + buf->fill;
    buf->fill += bytes;
    return p;
}

void dw_stream_truncate(struct dw_stream *stream, uint64_t length) {
    if (stream->active != NULL) {
        if (DW_INVARIANT(length >= stream->active->base)) {
            stream->active->fill = (size_t)(length - stream->active->base);
        }
    }
}

uint64_t dw_stream_buffered(const struct dw_stream *stream) {
    return dw_stream_length(stream) - stream->written;
}

struct dw_buf *dw_stream_buf_locked(const struct dw_stream *stream, uint64_t off) {
    struct dw_buf *buf = NULL;
    if (stream->active != NULL && off >= stream->active->base) {
        buf = stream->active;
    } else if (stream->writing != NULL && off >= stream->writing->base) {
        buf = stream->writing;
    }
    if (buf != NULL) {
        buf->refs++;
    }
    return buf;
}

/* Writes `writing`. 0, or an errno. */
static int write_out(struct dw_stream *stream, struct dw_files *files, const char *name) {
    const struct dw_buf *buf = stream->writing;
    int fd = dw_files_acquire(files, &stream->file, name, !stream->created);
    if (fd < 0) {
        return errno;
    }
    int err = dw_io_write(files->io, fd, buf->bytes, buf->fill, buf->base) == 0 ? 0 : errno;
    dw_files_wrote(&stream->file);
    dw_files_release(&stream->file);
    pthread_mutex_lock(files->lock);
    stream->created = true;
    pthread_mutex_unlock(files->lock);
    return err;
}

int dw_stream_flush(struct dw_stream *stream, const struct dw_alloc *alloc, struct dw_files *files,
                    const char *name, uint64_t *flushed) {
    *flushed = 0;
    for (;;) {
        if (stream->writing == NULL) {
            if (stream->active == NULL || stream->active->fill == 0) {
                return 0;
            }
            pthread_mutex_lock(files->lock);
            stream->writing = stream->active;
            stream->active = NULL;
            pthread_mutex_unlock(files->lock);
        }
        int err = write_out(stream, files, name);
        if (err != 0) {
            return err;
        }
        struct dw_buf *buf = stream->writing;
        pthread_mutex_lock(files->lock);
        stream->written += buf->fill;
        *flushed += buf->fill;
        stream->writing = NULL;
        bool last = dw_buf_unref_locked(buf);
        pthread_mutex_unlock(files->lock);
        if (last && buf->capacity <= SPARE_MAX) {
            struct dw_buf *before = stream->spare;
            stream->spare = buf;
            stream->spare_ticks = 0;
            buf = before;
        }
        if (last) {
            dw_release(alloc, buf);
        }
    }
}

struct dw_buf *dw_stream_tick(struct dw_stream *stream) {
    struct dw_buf *spare = stream->spare;
    if (spare == NULL || ++stream->spare_ticks < SPARE_TICKS) {
        return NULL;
    }
    stream->spare = NULL;
    return spare;
}

/* ------------------------------------------------------------------ states */

enum dw_partition_state dw_partition_after(enum dw_partition_state state,
                                           enum dw_partition_event event) {
    enum {
        OPEN = DW_PARTITION_OPEN,
        SEALED = DW_PARTITION_SEALED,
        DAMAGED = DW_PARTITION_DAMAGED,
        SUSPECT = DW_PARTITION_SUSPECT,
        STUCK = DW_PARTITION_STUCK,
        STUCK_SUSPECT = DW_PARTITION_STUCK_SUSPECT,
        RETIRED = DW_PARTITION_RETIRED,
    };
    /* Nothing is ever opened again. A failed write weighs more than damage, as it keeps checkpoints
     * from being taken; and what moving left behind stays. By event: seal, find damage, fail to
     * write, give up, retire. */
    static const uint8_t after[DW_PARTITION_STATES][DW_PARTITION_EVENTS] = {
        [OPEN] = {SEALED, DAMAGED, SUSPECT, STUCK, RETIRED},
        [SEALED] = {SEALED, DAMAGED, SUSPECT, STUCK, RETIRED},
        [DAMAGED] = {DAMAGED, DAMAGED, SUSPECT, STUCK, RETIRED},
        [SUSPECT] = {SUSPECT, SUSPECT, SUSPECT, STUCK_SUSPECT, RETIRED},
        [STUCK] = {STUCK, STUCK, STUCK_SUSPECT, STUCK, RETIRED},
        [STUCK_SUSPECT] = {STUCK_SUSPECT, STUCK_SUSPECT, STUCK_SUSPECT, STUCK_SUSPECT, RETIRED},
        [RETIRED] = {RETIRED, RETIRED, RETIRED, RETIRED, RETIRED},
    };
    return (enum dw_partition_state)after[state][event];
}

/* --------------------------------------------------------------- partition */

static struct dw_partition *partition_new(const struct dw_alloc *alloc, uint64_t serial,
                                          uint32_t level, uint64_t slice) {
    struct dw_partition *partition = dw_get(alloc, sizeof *partition);
    if (partition != NULL) {
        *partition = (struct dw_partition){.serial = serial, .level = level, .slice = slice};
        dw_stream_init(&partition->rec);
        dw_stream_init(&partition->idx);
    }
    return partition;
}

static struct dw_buf *header_buf(const struct dw_alloc *alloc, enum dw_file_kind kind,
                                 const struct dw_partition *partition) {
    struct dw_buf *buf = dw_get(alloc, BUFFER_MIN);
    if (buf != NULL) {
        buf->base = 0;
        buf->fill = DW_FILE_HEADER;
        buf->capacity = BUFFER_MIN - sizeof *buf;
        buf->refs = 1;
        dw_file_header_encode(buf->bytes, kind, partition->serial, partition->level,
                              partition->slice);
    }
    return buf;
}

struct dw_partition *dw_partition_new(const struct dw_alloc *alloc, uint64_t serial, uint32_t level,
                                      uint64_t slice) {
    struct dw_partition *partition = partition_new(alloc, serial, level, slice);
    if (partition == NULL) {
        return NULL;
    }
    partition->rec.active = header_buf(alloc, DW_FILE_REC, partition);
    partition->idx.active = header_buf(alloc, DW_FILE_IDX, partition);
    if (partition->rec.active == NULL || partition->idx.active == NULL) {
        dw_partition_free(alloc, partition);
        return NULL;
    }
    return partition;
}

struct dw_partition *dw_partition_named(const struct dw_alloc *alloc, uint64_t serial,
                                        uint32_t level, uint64_t slice, uint64_t rec_bytes,
                                        uint64_t idx_bytes) {
    struct dw_partition *partition = partition_new(alloc, serial, level, slice);
    if (partition != NULL) {
        partition->rec.written = partition->rec.synced = rec_bytes;
        partition->idx.written = partition->idx.synced = idx_bytes;
        partition->rec.created = partition->idx.created = true;
    }
    return partition;
}

static void free_buffers(const struct dw_alloc *alloc, struct dw_stream *stream) {
    dw_release(alloc, stream->writing);
    dw_release(alloc, stream->active);
    dw_release(alloc, stream->spare);
}

void dw_partition_empty(const struct dw_alloc *alloc, struct dw_partition *partition) {
    free_buffers(alloc, &partition->rec);
    free_buffers(alloc, &partition->idx);
}

void dw_partition_free(const struct dw_alloc *alloc, struct dw_partition *partition) {
    dw_partition_empty(alloc, partition);
    dw_release(alloc, partition);
}

int dw_partition_reserve(struct dw_partition *partition, const struct dw_alloc *alloc,
                         pthread_mutex_t *lock, uint32_t length) {
    int result = dw_stream_reserve(&partition->rec, alloc, lock, (size_t)dw_rec_bytes(length));
    if (result == DW_OK) {
        result = dw_stream_reserve(&partition->idx, alloc, lock, DW_IDX_ENTRY);
    }
    return result;
}

static void put_entry(struct dw_stream *idx, const struct dw_idx_entry *entry) {
    uint8_t *p = dw_stream_put(idx, DW_IDX_ENTRY);
    if (p != NULL) {
        dw_idx_encode(p, entry);
    }
}

uint32_t dw_partition_append(struct dw_partition *partition, const struct dw_rec_header *header,
                             const void *body) {
    uint32_t off = (uint32_t)(dw_stream_length(&partition->rec) / DW_REC_UNIT);
    size_t bytes = (size_t)dw_rec_bytes(header->length);
    uint8_t *p = dw_stream_put(&partition->rec, bytes);
    if (p != NULL) {
        dw_rec_encode(p, header);
        memcpy(p + DW_REC_HEADER, body, header->length);
        memset(p + DW_REC_HEADER + header->length, 0, bytes - DW_REC_HEADER - header->length);
    }
    const struct dw_idx_entry entry = {
        .kind = DW_IDX_ADDED,
        .encoding = header->encoding,
        .id = header->id,
        .due = header->due,
        .key_hash = header->key_hash,
        .off = off,
        .length = header->length,
    };
    put_entry(&partition->idx, &entry);
    partition->records++;
    partition->added++;
    partition->added_bytes += bytes;
    return off;
}

void dw_partition_retime(struct dw_partition *partition, const struct dw_entry *entry,
                         uint64_t due) {
    const struct dw_idx_entry again = {
        .kind = DW_IDX_ADDED,
        .id = entry->id,
        .due = due,
        .key_hash = entry->key_hash,
        .off = entry->off,
        .length = entry->len,
    };
    put_entry(&partition->idx, &again);
    partition->retimed++;
}

int dw_partition_reserve_dead(struct dw_partition *partition, const struct dw_alloc *alloc,
                              pthread_mutex_t *lock, uint32_t n) {
    return dw_stream_reserve(&partition->idx, alloc, lock,
                             ((size_t)n / DW_IDX_DEAD_MAX + 1) * DW_IDX_ENTRY);
}

void dw_partition_dead(struct dw_partition *partition, uint32_t off) {
    /* The last entry takes it if it is one of dead records, has room, and is not yet on its way to
     * the file. */
    struct dw_buf *buf = partition->idx.active;
    if (!DW_INVARIANT(buf != NULL)) {
        return;
    }
    if (buf->fill >= DW_IDX_ENTRY && buf->base + buf->fill > DW_FILE_HEADER) {
        uint8_t *last = buf->bytes + buf->fill - DW_IDX_ENTRY;
        if (last[4] == DW_IDX_DEAD && last[5] < DW_IDX_DEAD_MAX) {
            dw_le32_put(last + 8 + 4 * last[5], off);
            last[5]++;
            dw_le32_put(last, dw_crc32c(0, last + 4, DW_IDX_ENTRY - 4));
            return;
        }
    }
    const struct dw_idx_entry entry = {.kind = DW_IDX_DEAD, .dead_count = 1, .dead = {off}};
    put_entry(&partition->idx, &entry);
}

/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_PARTITION_H
#define DW_PARTITION_H

#include "dw_files.h"
#include "dw_slab.h"

#include <stdbool.h>

/* A partition holds the records of one slice of due time, in two append-only files. The writer
 * appends; readers and checkpoints pin it, and read beside that. What is marked here as needing the
 * lock means the store's.
 *
 *   SERIAL-LEVEL-SLICE.rec   the records: decimal numbers, serial of 8 digits at least
 *   SERIAL-LEVEL-SLICE.idx   what is in it and what is dead, so that opening a store need not read
 *                            the records
 *
 * Both begin with 64 bytes, little-endian as everything:
 *
 *    0  8  "DWHREC\r\n" or "DWHIDX\r\n"
 *    8  4  version of the format, 1
 *   12  4  CRC-32C of these 64 bytes but these four
 *   16  8  serial number; no two files that checkpoints of one directory name have the same, but
 *          after dw_store_restore()
 *   24  4  level
 *   28  4  0
 *   32  8  slice
 *   40 24  0
 *
 * Then, in .rec, records one after the other, each padded with zeros to a multiple of 8 bytes:
 *
 *    0  4  "DWR1"
 *    4  4  CRC-32C of bytes 8 to 47
 *    8  4  length of the body, at least 1
 *   12  4  CRC-32C of the body
 *   16  8  id
 *   24  6  due, ms since the epoch
 *   30  2  encoding
 *   32  8  key hash
 *   40  8  Raft index that gave it this due time: of two records with one id, the later is right
 *   48     body
 *
 * A record says nothing of the file that it is in, so it is moved byte for byte, and the index can
 * be made again from the records.
 *
 * And in .idx, entries of 40 bytes:
 *
 *    0  4  CRC-32C of bytes 4 to 39
 *    4  1  1: a record was added           2: records are dead (settled or moved away)
 *    5  1  0                               how many, 1 to 8
 *    6  2  0                               0
 *    8  8  id                              8 times 4 bytes: where each begins in .rec,
 *   16  6  due                             in units of 8 bytes
 *   22  2  encoding
 *   24  8  key hash
 *   32  4  where it begins in .rec, in units of 8 bytes
 *   36  4  length of its body
 *
 * A record may be added again with another due time, which it was given where it is: its last entry
 * is right (its encoding there is 0).
 *
 * Bytes beyond what the manifest names are not there. */

#define DW_FILE_HEADER 64u
#define DW_REC_HEADER 48u
#define DW_IDX_ENTRY 40u
#define DW_IDX_DEAD_MAX 8u
#define DW_REC_UNIT 8u
/* What 32 bits of DW_REC_UNIT reach. */
#define DW_PARTITION_BYTES_MAX (UINT64_C(1) << 35)

struct dw_rec_header {
    uint64_t id;
    uint64_t due;
    uint64_t key_hash;
    uint64_t index;
    uint32_t length;
    uint32_t body_crc;
    uint16_t encoding;
};

void dw_rec_encode(uint8_t *out, const struct dw_rec_header *header);
bool dw_rec_decode(const uint8_t *in, struct dw_rec_header *header); /* false: corrupt */

/* Bytes in the file of a record with a body of `length`. */
static inline uint64_t dw_rec_bytes(uint32_t length) {
    return (DW_REC_HEADER + (uint64_t)length + (DW_REC_UNIT - 1)) & ~(uint64_t)(DW_REC_UNIT - 1);
}

enum dw_idx_kind { DW_IDX_BAD = 0, DW_IDX_ADDED = 1, DW_IDX_DEAD = 2 };

struct dw_idx_entry {
    enum dw_idx_kind kind;
    uint16_t encoding;
    uint64_t id;
    uint64_t due;
    uint64_t key_hash;
    uint32_t off;
    uint32_t length;
    uint32_t dead_count;
    uint32_t dead[DW_IDX_DEAD_MAX];
};

void dw_idx_encode(uint8_t *out, const struct dw_idx_entry *entry);
void dw_idx_decode(const uint8_t *in, struct dw_idx_entry *entry); /* kind DW_IDX_BAD: corrupt */

enum dw_file_kind { DW_FILE_REC, DW_FILE_IDX };

void dw_file_header_encode(uint8_t *out, enum dw_file_kind kind, uint64_t serial, uint32_t level,
                           uint64_t slice);
/* DW_OK, DW_ECORRUPT, DW_EVERSION */
int dw_file_header_check(const uint8_t *in, enum dw_file_kind kind, uint64_t serial, uint32_t level,
                         uint64_t slice);

#define DW_FILE_NAME_BYTES 72
void dw_file_name(char out[DW_FILE_NAME_BYTES], enum dw_file_kind kind, uint64_t serial,
                  uint32_t level, uint64_t slice);
/* Is it the name of a partition file? */
bool dw_file_name_parse(const char *name, enum dw_file_kind *kind, uint64_t *serial,
                        uint32_t *level, uint64_t *slice);

/* ------------------------------------------------------------------ slices
 * Slices widen with distance, as the slots of the timing wheel do, by 4 bits of due time a level:
 *
 *   level    0        1         2       3       4        5        6       7
 *   slice    65.5 s   17.5 min  4.7 h   3.1 d   49.7 d   2.2 y    35 y    557 y
 *
 * A record's level is given by the highest bit in which its due time differs from the clock, so at
 * most 16 slices a level are in use. Some time before the clock reaches a slice (a quarter of its
 * width), what is due in it goes to finer slices instead: the same rule as if the clock stood at
 * the slice's beginning. A partition whose slice is not used any more by this rule is split. */

#define DW_LEVELS 8u

static inline unsigned dw_level_shift(uint32_t level) {
    return 16 + 4 * level;
}

/* The slice for a record due then; overdue ones go where those due now go. */
void dw_place(uint64_t clock_ms, uint64_t due, uint32_t *level, uint64_t *slice);

/* Does dw_place() put nothing more into this slice, because its time is near or past? */
bool dw_slice_is_near(uint64_t clock_ms, uint32_t level, uint64_t slice);

/* Has its last millisecond passed? */
bool dw_slice_is_past(uint64_t clock_ms, uint32_t level, uint64_t slice);

/* ----------------------------------------------------------------- streams
 * One append-only file and the bytes that are to be written to it. The writer appends to `active`;
 * a flush makes that `writing`, which it writes with no lock held. The lock guards the pointers;
 * bytes of a buffer that a reader can know of are never changed, so a reader takes a reference
 * under the lock and reads without it. */

struct dw_buf {
    uint64_t base; /* where it begins in the file */
    size_t fill;   /* the writer's */
    size_t capacity;
    uint32_t refs; /* guarded by the lock */
    uint8_t bytes[];
};

struct dw_stream {
    struct dw_file file;
    uint64_t written; /* bytes in the file; guarded by the lock */
    uint64_t synced;  /* of these, durable; guarded by the lock */
    struct dw_buf *writing;
    struct dw_buf *active;
    struct dw_buf *spare; /* the writer's: one that was written, for the next */
    uint32_t spare_ticks; /* since it was */
    bool created;         /* there is a file of that name; guarded by the lock */
};

void dw_stream_init(struct dw_stream *stream);

/* Writer, lock not held: makes room for `bytes` more. DW_OK, DW_ENOMEM */
int dw_stream_reserve(struct dw_stream *stream, const struct dw_alloc *alloc, pthread_mutex_t *lock,
                      size_t bytes);

/* Writer: the next `bytes`, for which there is room, to be filled in. */
uint8_t *dw_stream_put(struct dw_stream *stream, size_t bytes);

/* Writer: its length with all that was appended. */
uint64_t dw_stream_length(const struct dw_stream *stream);

/* Writer: takes back what was appended since it had this length; no flush came between. */
void dw_stream_truncate(struct dw_stream *stream, uint64_t length);

/* Writer: bytes not yet written. */
uint64_t dw_stream_buffered(const struct dw_stream *stream);

/* Writer, lock not held: writes what is buffered; after a failure it still is. *flushed: bytes.
 * 0, or an errno. */
int dw_stream_flush(struct dw_stream *stream, const struct dw_alloc *alloc, struct dw_files *files,
                    const char *name, uint64_t *flushed);

/* Writer: a tick has passed. A spare buffer that was not used lately, for the caller to free, or
 * NULL. */
struct dw_buf *dw_stream_tick(struct dw_stream *stream);

/* Lock held: a reference to the buffer with the bytes from `off` on, NULL if they are in the
 * file. */
struct dw_buf *dw_stream_buf_locked(const struct dw_stream *stream, uint64_t off);

/* Lock held: gives up a reference; true if it was the last, and the caller is to free it. */
bool dw_buf_unref_locked(struct dw_buf *buf);

/* ------------------------------------------------------------------ states */

enum dw_partition_state {
    DW_PARTITION_OPEN,    /* records are appended to it until it is full */
    DW_PARTITION_SEALED,  /* no more are: it is moved, is to empty itself, or is not whole */
    DW_PARTITION_DAMAGED, /* sealed, and its files are damaged: move what is live out of it */
    DW_PARTITION_SUSPECT, /* sealed, and a write to it failed: what the disk has of it is unknown.
                             Move what is live out of it; no checkpoint names it */
    DW_PARTITION_STUCK,   /* sealed, and moving left what is damaged: not to be moved again */
    DW_PARTITION_STUCK_SUSPECT, /* both */
    DW_PARTITION_RETIRED,       /* nothing is live in it: to be unlinked */
};
#define DW_PARTITION_STATES 7

/* What happens to a partition. */
enum dw_partition_event {
    DW_PARTITION_SEAL,
    DW_PARTITION_FIND_DAMAGE,
    DW_PARTITION_FAIL_WRITE,
    DW_PARTITION_GIVE_UP, /* moving */
    DW_PARTITION_RETIRE,
};
#define DW_PARTITION_EVENTS 5

/* The state that comes after; the table of them is in dw_partition.c. */
enum dw_partition_state dw_partition_after(enum dw_partition_state state,
                                           enum dw_partition_event event);

/* --------------------------------------------------------------- partition */

struct dw_partition {
    uint64_t serial;
    uint64_t slice;
    uint32_t level;
    uint32_t number; /* dw_entry.part of what is in it */

    struct dw_stream rec;
    struct dw_stream idx;

    /* Guarded by the store's lock; the writer alone changes it. */
    enum dw_partition_state state;

    /* Guarded by the store's lock. */
    uint64_t live;       /* records */
    uint64_t live_bytes; /* of these in .rec */
    uint64_t named;      /* number of the last checkpoint that names it, 0: none */
    uint32_t pins;       /* readers and checkpoints that may use its files */
    uint32_t corrupt;    /* records that could not be read, so that the log is not flooded */
    uint32_t pause_ms;   /* until what could not be read is tried again; doubles, */
    uint64_t pause_end;  /* and when that is */

    /* The writer's. */
    uint64_t rec_mark, idx_mark; /* lengths to go back to if the present call fails */
    uint64_t records;            /* all that were ever appended */
    uint64_t retimed;            /* index entries in place of earlier ones, as far as is known */
    uint64_t added;              /* records appended by the present call */
    uint64_t added_bytes;
    uint32_t dead_expected; /* records that the present call makes dead */
    bool marked;            /* by the present call */
    uint32_t move_pause_ms; /* what could not be read when it was moved is tried again, */
    uint64_t move_after;    /* and when */
};

/* A fresh one, its file headers buffered. NULL: no memory. */
struct dw_partition *dw_partition_new(const struct dw_alloc *alloc, uint64_t serial, uint32_t level,
                                      uint64_t slice);
/* One that the manifest names, its files as they are. NULL: no memory. */
struct dw_partition *dw_partition_named(const struct dw_alloc *alloc, uint64_t serial,
                                        uint32_t level, uint64_t slice, uint64_t rec_bytes,
                                        uint64_t idx_bytes);

/* Any thread: the errno of an fsync of it that failed, 0 if none has. */
static inline int dw_partition_failed(const struct dw_partition *partition) {
    const int failed = dw_file_failed(&partition->rec.file);
    return failed != 0 ? failed : dw_file_failed(&partition->idx.file);
}

/* Writer, lock held: something has happened to it. */
static inline void dw_partition_note_locked(struct dw_partition *partition,
                                            enum dw_partition_event event) {
    partition->state = dw_partition_after(partition->state, event);
}

/* These: writer, or lock held. */
static inline bool dw_partition_is_open(const struct dw_partition *partition) {
    return partition->state == DW_PARTITION_OPEN;
}
static inline bool dw_partition_is_retired(const struct dw_partition *partition) {
    return partition->state == DW_PARTITION_RETIRED;
}
static inline bool dw_partition_is_suspect(const struct dw_partition *partition) {
    return partition->state == DW_PARTITION_SUSPECT ||
           partition->state == DW_PARTITION_STUCK_SUSPECT;
}
static inline bool dw_partition_is_stuck(const struct dw_partition *partition) {
    return partition->state == DW_PARTITION_STUCK || partition->state == DW_PARTITION_STUCK_SUSPECT;
}
/* Must what is live be moved out of it, as its files are not to be relied on? */
static inline bool dw_partition_must_move(const struct dw_partition *partition) {
    return partition->state == DW_PARTITION_DAMAGED || partition->state == DW_PARTITION_SUSPECT;
}

/* The name of one of its files: `name', filled in. */
static inline const char *dw_partition_file_name(const struct dw_partition *partition,
                                                 enum dw_file_kind kind,
                                                 char name[DW_FILE_NAME_BYTES]) {
    dw_file_name(name, kind, partition->serial, partition->level, partition->slice);
    return name;
}

/* Frees it and its buffers; its descriptors are closed already. */
void dw_partition_free(const struct dw_alloc *alloc, struct dw_partition *partition);
/* Frees its buffers alone. */
void dw_partition_empty(const struct dw_alloc *alloc, struct dw_partition *partition);

/* Writer: makes room for one record of that length and its index entry. */
int dw_partition_reserve(struct dw_partition *partition, const struct dw_alloc *alloc,
                         pthread_mutex_t *lock, uint32_t length);

/* Writer: appends a record, given whole or as header and body, and its index entry; there is room.
 * Where it begins in .rec, in units of 8 bytes. */
uint32_t dw_partition_append(struct dw_partition *partition, const struct dw_rec_header *header,
                             const void *body);

/* Writer: gives a live record in it another due time where it is: its index entry once more, the
 * last of which is right. There is room for one. */
void dw_partition_retime(struct dw_partition *partition, const struct dw_entry *entry,
                         uint64_t due);

/* Writer: makes room for n more dead records. */
int dw_partition_reserve_dead(struct dw_partition *partition, const struct dw_alloc *alloc,
                              pthread_mutex_t *lock, uint32_t n);

/* Writer: notes that the record that begins there is dead; there is room. */
void dw_partition_dead(struct dw_partition *partition, uint32_t off);

#endif

/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_FETCH_H
#define DW_FETCH_H

#include "dw_store_internal.h"

/* Reading records beside the writer: what dw_take.c, dw_lookup.c, dw_list.c and dw_keep_aside.c
 * have in common. Each fetch is its thread's own.
 *
 * Under the lock, references to at most DW_FETCH_MAX records are noted: where each is, with the
 * partition pinned and, if it is not yet in the file, its buffer. Then, without the lock, they are
 * read in the order in which they lie, neighbours together, into an arena of bounded size, checked,
 * and handed out in the order in which they were asked for. A record may meanwhile be settled or
 * moved; what was noted stays readable until it is unpinned.
 *
 * A record is corrupt only if it was read, twice, and is not what was written, or its file ends
 * before it. What cannot be read is tried again later, after pauses that each of the files has of
 * its own, since a bad place on a disk says nothing of others. */

enum {
    DW_FETCH_MAX = 256,
    DW_FETCH_BYTES = 256 * 1024, /* no more of records at a time, but at least one */
};

/* What became of one that is wanted. */
enum dw_fate {
    DW_FATE_OPEN,       /* not read yet */
    DW_FATE_THERE,      /* at `bytes`, header checked */
    DW_FATE_DIRECT,     /* to be read where it goes */
    DW_FATE_CORRUPT,    /* is not what was written */
    DW_FATE_UNREADABLE, /* an error, `err` */
    DW_FATE_SCARCE,     /* no descriptor or memory now: nothing can be read */
    DW_FATE_LEFT,       /* not tried, after too many others */
};

/* One record that is wanted. */
struct dw_wanted {
    struct dw_record record; /* due as far as known: the entry's */
    struct dw_rec_header header;
    struct dw_partition *partition;
    struct dw_buf *buf; /* NULL: in the file */
    uint64_t off;
    const uint8_t *bytes;
    enum dw_fate fate;
    int err;
};

/* Those that are read together. */
struct dw_fetch {
    struct dw_store *store;
    struct dw_wanted *wanted;
    uint16_t *order; /* of wanted, as they lie in the files */
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

/* For at most max_n records, of which DW_FETCH_MAX at a time. DW_OK, DW_ENOMEM; to be freed either
 * way. */
int dw_fetch_new(struct dw_store *store, struct dw_fetch *fetch, uint32_t max_n);
void dw_fetch_free(struct dw_fetch *fetch);

/* Notes where entry k's record is, and pins it. */
void dw_fetch_add_locked(struct dw_fetch *fetch, uint32_t k);
/* Lock not held: gives up what was noted. */
void dw_fetch_clear(struct dw_fetch *fetch);

/* Lock not held: reads all that was noted but for long records' bodies. DW_OK, DW_ENOMEM */
int dw_fetch_read(struct dw_fetch *fetch);
/* Lock not held: hands out one record that was read, or says what keeps it from it: DW_OK,
 * DW_ENOMEM, DW_EIO, DW_EACCES. */
int dw_fetch_hand_out(struct dw_fetch *fetch, struct dw_wanted *wanted, const struct dw_sink *sink);

/* The parts of that. The descriptor of the partition's record file, pinned until another is asked
 * for; -1, and fetch->fd_err. */
int dw_fetch_descriptor(struct dw_fetch *fetch, struct dw_partition *partition);
/* Reads from it: 0, an errno, or DW_TOO_SHORT. */
int dw_fetch_file(struct dw_fetch *fetch, struct dw_partition *partition, void *to, size_t bytes,
                  uint64_t off);
/* Is that the header of the record that is wanted? Notes which. */
void dw_fetch_check(struct dw_wanted *wanted, const uint8_t *bytes);

/* ------------------------------------------------------------- record files
 * Lock not held; with the partition pinned, or by the writer. */

/* No errno: the file ends before. */
#define DW_TOO_SHORT (-1)

/* The descriptor of the partition's record file, pinned until dw_files_release(); -1 with errno. */
int dw_rec_file_acquire(struct dw_store *store, struct dw_partition *partition);
/* Reads from it: 0, an errno, or DW_TOO_SHORT, and then what it does not have is zeros. From the
 * disk if it is read `again`. */
int dw_rec_file_read(struct dw_store *store, int fd, void *to, size_t bytes, uint64_t off,
                     bool again);

#endif

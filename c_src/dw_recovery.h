/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_RECOVERY_H
#define DW_RECOVERY_H

#include "dw_store_internal.h"

/* What opening a store is made of: dw_recovery.c, the whole, and dw_recovery_files.c, the files of
 * one partition. All of it is the opening thread's own: nobody else has the store yet. */

#define DW_CHUNK_ENTRIES 4096u        /* of an index file, read at once */
#define DW_VIEW_BYTES ((size_t)65536) /* of a record file, read at once */

enum { DW_LISTED_REC = 1, DW_LISTED_IDX = 2 };

/* A record that the index files, or the records themselves, say is live. */
struct dw_found {
    uint64_t id;
    uint32_t k;
    uint32_t rebuilt; /* not from an undamaged index */
};

struct dw_opening {
    struct dw_store *store;
    struct dw_manifest manifest;
    struct dw_recovery report;
    struct dw_found *found;
    size_t count;
    size_t capacity;
    uint64_t first_due;
    uint64_t max_serial;
    uint8_t *listed; /* files of each partition that the directory has, by DW_LISTED_* */
    bool damaged;    /* not all indexes were whole */
    uint8_t *chunk;  /* of index entries */
    uint8_t *view;   /* of a record file */
};

/* Opens the files of a partition that the manifest names, cuts them to what it names, and adds what
 * is live in it. `listed`: which of them the directory has. DW_OK, or what keeps the store from
 * being opened. */
int dw_read_partition(struct dw_opening *opening, const struct dw_manifest_part *named,
                      uint8_t listed, struct dw_partition *partition);

/* What keeps the store from being opened: a call failed, or there is other than there was. It is
 * logged, and made into an error. */
int dw_refuse(const struct dw_store *store, const struct dw_partition *partition,
              enum dw_file_kind kind, const char *what, int err);

#endif

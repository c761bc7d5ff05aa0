/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_BATCH_H
#define DW_BATCH_H

#include <stddef.h>
#include <stdint.h>

/* A walk over the records of a batch that dw_batch_check() or dw_batch_check_keyed() (dw_store.h,
 * which has the format) has passed. Any thread; the batch stays the caller's. */

#define DW_BATCH_HEADER 24u
#define DW_BATCH_MAX 65535u

/* What becomes of records that are pending under a record's key, those before it in its batch
 * included. */
enum dw_on_key {
    DW_KEEP = 0,    /* they stay, and it is inserted */
    DW_REPLACE = 1, /* they go, and it is inserted */
    DW_DROP = 2,    /* they stay, and it is inserted if there are none */
    DW_CANCEL = 3,  /* they go, and it is not a message */
    DW_RELEASE = 4, /* they are due at base_ms, unless they are before, and it is not a message */
};

struct dw_batch_record {
    const uint8_t *body;
    uint64_t due; /* at most DW_DUE_MAX */
    uint64_t key_hash;
    uint32_t length;
    uint16_t encoding;
    enum dw_on_key on_key;
};

/* The record at `batch` + *pos; moves *pos to the next. */
void dw_batch_next(const void *batch, size_t *pos, uint64_t base_ms, struct dw_batch_record *out);

#endif

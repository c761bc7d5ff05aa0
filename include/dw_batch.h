/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_BATCH_H
#define DW_BATCH_H

#include <stddef.h>
#include <stdint.h>

/* A walk over the records of a batch that dw_batch_check() (dw_store.h, which has the format) has
 * passed. */

#define DW_BATCH_HEADER 24u
#define DW_BATCH_MAX 65535u

struct dw_batch_record {
    const uint8_t *body;
    uint64_t due; /* at most DW_DUE_MAX */
    uint64_t key_hash;
    uint32_t length;
    uint16_t encoding;
};

/* The record at `batch` + *pos; moves *pos to the next. */
void dw_batch_next(const void *batch, size_t *pos, uint64_t base_ms, struct dw_batch_record *out);

#endif

/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_ORIGIN_H
#define DW_ORIGIN_H

#include "dw_alloc.h"

#include <stddef.h>
#include <stdint.h>

/* The due times that postponed entries had before: 8 bytes an entry number, in blocks of 4,096
 * numbers that exist only while one of theirs is postponed. One thread at a time. */

struct dw_origin_block;

struct dw_origins {
    const struct dw_alloc *alloc;
    struct dw_origin_block **blocks;
    uint32_t capacity; /* of blocks */
    uint32_t held;
    uint32_t count; /* entries that something is noted for */
};

void dw_origins_init(struct dw_origins *origins, const struct dw_alloc *alloc);
void dw_origins_free(struct dw_origins *origins);

/* The due time noted for entry k, or `otherwise`. */
uint64_t dw_origin_get(const struct dw_origins *origins, uint32_t k, uint64_t otherwise);
/* Notes it, unless one is noted. DW_OK, DW_ENOMEM */
int dw_origin_note(struct dw_origins *origins, uint32_t k, uint64_t due);
void dw_origin_forget(struct dw_origins *origins, uint32_t k);

size_t dw_origins_bytes(const struct dw_origins *origins);

#endif

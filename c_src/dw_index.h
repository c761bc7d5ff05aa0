/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_INDEX_H
#define DW_INDEX_H

#include "dw_slab.h"

/* A hash index over slab entries: 64-byte buckets of 12 one-byte tags and 12 entry numbers,
 * growing by splitting one bucket at a time (linear hashing, Litwin 1980), never all at once.
 * What does not fit a bucket goes into nodes of 32 bytes. Some 6 to 7 bytes an entry; it shrinks
 * again as entries go. One thread at a time. */

typedef struct dw_index dw_index;

enum dw_index_field {
    DW_BY_ID,  /* by entry.id, unique */
    DW_BY_KEY, /* by entry.key_hash, any number of entries each */
};

dw_index *dw_index_new(const struct dw_alloc *alloc, const dw_slab *slab,
                       enum dw_index_field field); /* NULL: no memory */
void dw_index_free(dw_index *index);

int dw_index_put(dw_index *index, uint32_t k); /* DW_OK, DW_ENOMEM; k must not be in it */
uint32_t dw_index_find(const dw_index *index, uint64_t value); /* an entry with it, or DW_NIL */
void dw_index_del(dw_index *index, uint32_t k);                /* k must be in it */

/* All entries with `value`, in no particular order: at most max numbers into out, how many there
 * are in all as the answer. */
uint64_t dw_index_all(const dw_index *index, uint64_t value, uint32_t *out, uint64_t max);

uint64_t dw_index_count(const dw_index *index);
size_t dw_index_bytes(const dw_index *index);
const char *dw_index_check(const dw_index *index); /* NULL, or what is wrong; for tests */

#endif

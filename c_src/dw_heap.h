/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_HEAP_H
#define DW_HEAP_H

#include "dw_slab.h"

/* A binary heap by (due, id) for the few entries that arrive when the wheel's time has passed
 * their due: overdue at insertion, or after the clock was stepped back. One thread at a time. */

typedef struct dw_heap dw_heap;

dw_heap *dw_heap_new(const struct dw_alloc *alloc, dw_slab *slab); /* NULL: no memory */
void dw_heap_free(dw_heap *heap);

int dw_heap_push(dw_heap *heap, uint32_t k);    /* DW_OK (state becomes DW_LATE), DW_ENOMEM */
uint32_t dw_heap_top(dw_heap *heap);            /* the least live entry, or DW_NIL */
void dw_heap_pop(dw_heap *heap);                /* removes the top; state becomes DW_TAKEN */
void dw_heap_cancel(dw_heap *heap, uint32_t k); /* k is DW_LATE: it will not come out, and the heap
                                                   gives it back to the slab, now or later */
uint64_t dw_heap_count(const dw_heap *heap);    /* live entries */
size_t dw_heap_bytes(const dw_heap *heap);      /* memory held, bytes */
const char *dw_heap_check(const dw_heap *heap); /* NULL, or what is wrong; for tests */

#endif

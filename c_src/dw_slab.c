/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_slab.h"

#include "dw_invariant.h"

#include <string.h>

/* Entries lie in segments of 65,536, but the first 65,536 in pieces of 1,024, so that a store with
 * few messages takes tens of KiB and not 2 MiB. A free entry's id is the number of the next free
 * one; numbers never handed out are those from `limit` on, and their memory is untouched. */

#define PIECE_BITS 10u
#define SEGMENT_BITS 16u
#define PIECE_ENTRIES (1u << PIECE_BITS)
#define SEGMENT_ENTRIES (1u << SEGMENT_BITS)
#define PIECES (SEGMENT_ENTRIES / PIECE_ENTRIES)
#define SEGMENTS_AT_FIRST 16u

_Static_assert(sizeof(struct dw_entry) == 32, "two entries a cache line");

struct dw_slab {
    struct dw_alloc alloc;
    uint32_t used;
    uint32_t limit;
    uint32_t free; /* first of the free list, or DW_NIL */
    uint32_t segments_max;
    struct dw_entry **segment; /* of the entries from SEGMENT_ENTRIES on */
    size_t bytes;
    struct dw_entry *none; /* what an entry is taken for that is not there, as cannot be */
    struct dw_entry *piece[PIECES];
    struct dw_entry nothing;
};

dw_slab *dw_slab_new(const struct dw_alloc *alloc) {
    dw_slab *slab = dw_get(alloc, sizeof *slab);
    if (slab == NULL)
        return NULL;
    memset(slab, 0, sizeof *slab);
    slab->alloc = *alloc;
    slab->free = DW_NIL;
    slab->bytes = sizeof *slab;
    slab->none = &slab->nothing;
    return slab;
}

void dw_slab_free(dw_slab *slab) {
    if (slab == NULL)
        return;
    const struct dw_alloc alloc = slab->alloc;
    for (uint32_t i = 0; i < PIECES; i++)
        dw_release(&alloc, slab->piece[i]);
    for (uint32_t i = 0; i < slab->segments_max; i++)
        dw_release(&alloc, slab->segment[i]);
    dw_release(&alloc, slab->segment);
    dw_release(&alloc, slab);
}

static inline struct dw_entry *at(const dw_slab *slab, uint32_t k) {
    if (k < SEGMENT_ENTRIES)
        return &slab->piece[k >> PIECE_BITS][k & (PIECE_ENTRIES - 1)];
    return &slab->segment[(k >> SEGMENT_BITS) - 1][k & (SEGMENT_ENTRIES - 1)];
}

struct dw_entry *dw_slab_at(const dw_slab *slab, uint32_t k) {
    if (!DW_INVARIANT(k < slab->limit)) {
        *slab->none = (struct dw_entry){.state = DW_FREE, .part = DW_PART_MAX};
        return slab->none;
    }
    return at(slab, k);
}

static struct dw_entry *get_entries(dw_slab *slab, uint32_t n) {
    struct dw_entry *entries = dw_get(&slab->alloc, n * sizeof *entries);
    if (entries != NULL)
        slab->bytes += n * sizeof *entries;
    return entries;
}

static int grow_table(dw_slab *slab, uint32_t at_least) {
    const uint32_t before = slab->segments_max;
    struct dw_entry **table = dw_get_longer(&slab->alloc, slab->segment, &slab->segments_max,
                                            SEGMENTS_AT_FIRST, at_least, sizeof *table);
    if (table == NULL)
        return DW_ENOMEM;
    slab->segment = table;
    slab->bytes += (slab->segments_max - before) * sizeof *table;
    return DW_OK;
}

/* Makes sure that there is memory for entry k, the next never handed out. */
static int reserve(dw_slab *slab, uint32_t k) {
    if (k < SEGMENT_ENTRIES) {
        struct dw_entry **piece = &slab->piece[k >> PIECE_BITS];
        if (*piece == NULL)
            *piece = get_entries(slab, PIECE_ENTRIES);
        return *piece == NULL ? DW_ENOMEM : DW_OK;
    }
    uint32_t s = (k >> SEGMENT_BITS) - 1;
    if (s >= slab->segments_max && grow_table(slab, s + 1) != DW_OK)
        return DW_ENOMEM;
    if (slab->segment[s] == NULL)
        slab->segment[s] = get_entries(slab, SEGMENT_ENTRIES);
    return slab->segment[s] == NULL ? DW_ENOMEM : DW_OK;
}

uint32_t dw_slab_get(dw_slab *slab) {
    uint32_t k = slab->free;
    if (k != DW_NIL) {
        slab->free = (uint32_t)at(slab, k)->id;
    } else {
        k = slab->limit;
        if (k == DW_NIL - 1 || reserve(slab, k) != DW_OK)
            return DW_NIL;
        slab->limit++;
    }
    slab->used++;
    *at(slab, k) = (struct dw_entry){.state = DW_WAITING};
    return k;
}

void dw_slab_put(dw_slab *slab, uint32_t k) {
    struct dw_entry *e = dw_slab_at(slab, k);
    if (!DW_INVARIANT(e->state != DW_FREE))
        return;
    e->state = DW_FREE;
    e->id = slab->free;
    slab->free = k;
    slab->used--;
}

uint32_t dw_slab_used(const dw_slab *slab) {
    return slab->used;
}

uint32_t dw_slab_limit(const dw_slab *slab) {
    return slab->limit;
}

size_t dw_slab_bytes(const dw_slab *slab) {
    return slab->bytes;
}

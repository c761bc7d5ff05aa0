/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_SLAB_H
#define DW_SLAB_H

#include "dw_alloc.h"
#include "dw_error.h"

#include <stdint.h>

/* The slab: one 32-byte entry a pending message, addressed by a 32-bit number
 * that stays the same for the entry's life. Entries live in segments of 65,536
 * (2 MiB; the first of them in pieces of 32 KiB) that are never moved, so growth
 * costs one allocation and no copy. */

#define DW_NIL UINT32_MAX                    /* no entry */
#define DW_NEVER UINT64_MAX                  /* no time */
#define DW_DUE_MAX ((UINT64_C(1) << 48) - 1) /* ms since the epoch; the year 10889 */
#define DW_PART_MAX 4095u                    /* partition numbers are 0..4094; 4095 is none */

enum dw_state {
    DW_FREE = 0,     /* on the free list */
    DW_WAITING = 1,  /* referenced by the wheel */
    DW_LATE = 2,     /* referenced by the heap of late arrivals */
    DW_TAKEN = 3,    /* handed out by take, not yet settled */
    DW_DEAD = 4,     /* cancelled or settled, still referenced by wheel or heap */
    DW_STRANDED = 5, /* taken, to be handed out again, and there was no memory to queue it */
};

struct dw_entry {
    uint64_t due : 48;  /* ms since the epoch at which it comes out next */
    uint64_t part : 12; /* partition that holds its record */
    uint64_t state : 4; /* enum dw_state */
    uint64_t id;        /* Raft index << 16 | position in the Raft entry; unique */
    uint64_t key_hash;  /* hash of the publisher's key, 0 if it has none */
    uint32_t off;       /* where its record begins in the partition's file, in units of 8 bytes */
    uint32_t len;       /* its body's length in bytes */
};

typedef struct dw_slab dw_slab;

dw_slab *dw_slab_new(const struct dw_alloc *alloc); /* NULL: no memory */
void dw_slab_free(dw_slab *slab);

/* A fresh entry's number, all fields zero but state DW_WAITING; DW_NIL if there is no memory
 * (or 2^32-2 are in use). Numbers are reused, the last freed first. */
uint32_t dw_slab_get(dw_slab *slab);

/* Gives entry k back: its state becomes DW_FREE. */
void dw_slab_put(dw_slab *slab, uint32_t k);

/* Entry k, which must be one handed out (or DW_DEAD). The address is stable until dw_slab_put. */
struct dw_entry *dw_slab_at(const dw_slab *slab, uint32_t k);

uint32_t dw_slab_used(const dw_slab *slab);  /* entries not free */
uint32_t dw_slab_limit(const dw_slab *slab); /* all numbers handed out so far are below this */
size_t dw_slab_bytes(const dw_slab *slab);   /* memory held, bytes */

#endif

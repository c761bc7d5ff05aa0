/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_WHEEL_H
#define DW_WHEEL_H

#include "dw_slab.h"

#include <stdbool.h>

/* A hierarchical timing wheel over the slab's entries: 48 bits of milliseconds,
 * 8 bits a level, with look-ahead so that no single call does long work.
 *
 * The wheel keeps references {low 32 bits of due, entry number}, in chunks. It owns an entry's
 * state while that is DW_WAITING; an entry cancelled in the wheel is DW_DEAD until the wheel meets
 * its reference, and the wheel then gives it back to the slab.
 *
 * Order: by due; within one millisecond in the order of insertion.
 * One thread at a time. */

typedef struct dw_wheel dw_wheel;

/* A wheel whose time is now_ms (at most DW_DUE_MAX). NULL: no memory. */
dw_wheel *dw_wheel_new(const struct dw_alloc *alloc, dw_slab *slab, uint64_t now_ms);
void dw_wheel_free(dw_wheel *wheel); /* the slab and its entries stay as they are */

/* The wheel's own time: every live entry in it is due at this time or later. It only moves in
 * dw_wheel_peek, and never backwards. */
uint64_t dw_wheel_now(const dw_wheel *wheel);

/* Inserts entry k at its due time. DW_ELATE if due is before dw_wheel_now(); DW_ENOMEM. On either
 * nothing has changed; else the entry's state becomes DW_WAITING. O(1), no long step. */
int dw_wheel_insert(dw_wheel *wheel, uint32_t k);

/* Cancels entry k, which must be DW_WAITING: it will not come out. O(1) amortised; references to
 * dead entries are bounded by the live ones plus a constant. */
void dw_wheel_cancel(dw_wheel *wheel, uint32_t k);

enum dw_peek {
    DW_PEEK_NONE = 0,  /* nothing is due at now_ms or before */
    DW_PEEK_ENTRY = 1, /* *k is the next one */
    DW_PEEK_AGAIN = 2, /* the budget ran out first, or there was no memory; call again */
};

/* Moves the wheel's time towards now_ms until an entry is due, and shows it without removing it.
 * Visits at most `budget` references (at least 1); *k is set for DW_PEEK_ENTRY only. An earlier
 * now_ms than the wheel's time shows nothing that is due after now_ms. */
enum dw_peek dw_wheel_peek(dw_wheel *wheel, uint64_t now_ms, uint32_t budget, uint32_t *k);

/* Removes what dw_wheel_peek has just shown: the caller owns the entry, whose state becomes
 * DW_TAKEN. Nothing may come between the two calls. */
void dw_wheel_pop(dw_wheel *wheel);

/* Look-ahead and compaction work of at most `budget` references (62 if it is less) that does not
 * move the wheel's time; true if there is more. Calling it is never needed for correctness, only to
 * spread work. */
bool dw_wheel_work(dw_wheel *wheel, uint32_t budget);

/* The due time of the earliest live entry, DW_NEVER if there is none. Exact, also with only far
 * entries and after cancels; bounded work a call (see dw_wheel.c for the bound and how it is met).
 */
uint64_t dw_wheel_next(dw_wheel *wheel);

/* The same with work of at most `budget` references (62 at least). If it is not known by then, a
 * time at or before it, never after: and the next call, or dw_wheel_work, goes on from there. */
uint64_t dw_wheel_next_within(dw_wheel *wheel, uint32_t budget);

uint64_t dw_wheel_count(const dw_wheel *wheel); /* live entries */
size_t dw_wheel_bytes(const dw_wheel *wheel);   /* memory held, bytes */

/* Pending by time to due, coarse: out[i] counts live entries whose distance from the wheel's time
 * is in [2^i, 2^(i+1)) ms, out[0] also those at 0; within one level's slot width of the truth,
 * their sum exact. Constant time (a few thousand counters), whatever the number of entries. */
void dw_wheel_histogram(const dw_wheel *wheel, uint64_t out[48]);

/* Walks everything and checks every invariant; NULL, or what is wrong. For tests. */
const char *dw_wheel_check(const dw_wheel *wheel);

#endif

/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_BUDGET_H
#define DW_BUDGET_H

#include "dw_alloc.h"

#include <stdbool.h>
#include <stdint.h>

/* What all stores of a process share: how many file descriptors they keep open, and how much of
 * what they hold in memory they could not write. Whoever opens stores makes one and gives it to
 * each (dw_config.budget); it is counted, and every store has a reference.
 *
 * Any call from any thread. */

typedef struct dw_budget dw_budget;

struct dw_budget_use {
    uint32_t limit;           /* file descriptors that may be kept open */
    uint32_t open;            /* that are */
    uint32_t failing;         /* stores whose files could not be written at the last try */
    uint64_t unwritten;       /* bytes that these hold in memory */
    uint64_t failed_writes;   /* tries that failed, ever */
    uint64_t lost_on_closing; /* files of which a sync failed, ever */
};

dw_budget *dw_budget_new(const struct dw_alloc *alloc, uint32_t limit); /* NULL: no memory */
void dw_budget_keep(dw_budget *budget);
void dw_budget_drop(dw_budget *budget);

/* One more for a descriptor that the caller opens beside the stores', if none of theirs must be
 * closed that is in use; false otherwise. To be given back when it is closed. May take as long as
 * to sync a file. */
bool dw_budget_borrow(dw_budget *budget);
void dw_budget_give_back(dw_budget *budget);

/* May be less than what is open: then files are closed as others are opened. */
void dw_budget_limit(dw_budget *budget, uint32_t limit);
void dw_budget_use(dw_budget *budget, struct dw_budget_use *out);

#endif

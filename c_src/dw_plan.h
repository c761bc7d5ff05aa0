/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_PLAN_H
#define DW_PLAN_H

#include "dw_store_internal.h"

/* What a keyed batch comes to, found out by the writer before anything is changed. A plan is its
 * maker's own; it stays right as long as the writer changes nothing. */

/* What becomes of a record of the batch. */
enum dw_fate_of_record { DW_INSERTED, DW_LEFT_OUT, DW_INSERTED_DUE };

struct dw_plan {
    uint8_t *fates;        /* one a record of the batch; DUE: at base_ms, if it is not before */
    uint32_t *gone;        /* entries that go: first those replaced, then those cancelled */
    size_t gone_count;     /* of these */
    size_t replaced_count; /* of these */
    uint64_t *released;    /* ids of those that are due at base_ms from then on */
    size_t released_count;
    struct dw_keyed in_batch; /* what became of records of the batch itself */
};

/* Writer, lock not held. DW_OK; DW_ENOMEM, with nothing to free. */
int dw_plan_make(struct dw_store *store, const void *batch, uint32_t count, uint64_t base_ms,
                 struct dw_plan *plan);
void dw_plan_free(struct dw_store *store, struct dw_plan *plan);

#endif

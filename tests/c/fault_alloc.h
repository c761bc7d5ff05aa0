/* SPDX-License-Identifier: MPL-2.0 */
#ifndef FAULT_ALLOC_H
#define FAULT_ALLOC_H

#include "dw_alloc.h"

#include <stdbool.h>
#include <stdint.h>

/* An allocator for tests: counts calls, blocks and bytes, and fails when told to. Pass &f.alloc to
 * what is tested. What is given is filled with junk, and junked again when released. Not for
 * several threads. */
struct fault_alloc {
    struct dw_alloc alloc;
    uint64_t calls;   /* of get, the failed ones too */
    uint64_t failed;  /* calls that were made to fail */
    uint64_t fail_at; /* the number of the call that fails, counted from 1; 0: none */
    bool fail_on;     /* all calls after that one fail too */
    uint64_t blocks;  /* held now */
    uint64_t bytes;   /* held now, as asked for */
    uint64_t peak;    /* the most bytes ever held */
};

void fault_alloc_init(struct fault_alloc *f);

/* The n-th get from now fails, n >= 1, and with `on` all that follow; 0: none fails. */
void fault_alloc_fail(struct fault_alloc *f, uint64_t n, bool on);

/* Fails the cmocka test unless all that was given was released. */
void fault_alloc_check_released(const struct fault_alloc *f);

#endif

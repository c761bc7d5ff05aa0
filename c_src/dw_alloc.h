/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_ALLOC_H
#define DW_ALLOC_H

#include <stddef.h>

/* The allocator that every object of the delay wheel draws from. Any call may
 * return NULL; whoever asked then answers DW_ENOMEM and is left as it was.
 * release(NULL) is allowed. Alignment is that of malloc. */
struct dw_alloc {
    void *(*get)(void *ctx, size_t bytes);
    void (*release)(void *ctx, void *p);
    void *ctx;
};

/* malloc and free. */
extern const struct dw_alloc dw_alloc_libc;

static inline void *dw_get(const struct dw_alloc *a, size_t bytes) {
    return a->get(a->ctx, bytes);
}

static inline void dw_release(const struct dw_alloc *a, void *p) {
    a->release(a->ctx, p);
}

#endif

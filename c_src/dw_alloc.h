/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_ALLOC_H
#define DW_ALLOC_H

#include <stddef.h>
#include <stdint.h>

/* The allocator that every object of the delay wheel draws from. Any call may
 * return NULL; whoever asked then answers DW_ENOMEM and is left as it was.
 * release(NULL) is allowed. Alignment is that of malloc. Any thread may call it at any time. */
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

/* A table of elements of `bytes` each, with at least `least` of them: twice as long as the old one,
 * or more, or `first` long. It begins with what the old one has, which is released, and has zeros
 * behind that; *length is its length. NULL: no memory, and the old one is as it was. */
void *dw_get_longer(const struct dw_alloc *a, void *old, uint32_t *length, uint32_t first,
                    uint32_t least, size_t bytes);

#endif

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_alloc.h"

#include <stdlib.h>

static void *libc_get(void *ctx, size_t bytes) {
    (void)ctx;
    return malloc(bytes);
}

static void libc_release(void *ctx, void *p) {
    (void)ctx;
    free(p);
}

const struct dw_alloc dw_alloc_libc = {.get = libc_get, .release = libc_release, .ctx = NULL};

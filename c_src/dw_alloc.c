/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_alloc.h"

#include <stdlib.h>
#include <string.h>

/* The allocator where no other is given, and tables that grow, whatever theirs is. */

static void *libc_get(void *ctx, size_t bytes) {
    (void)ctx;
    return malloc(bytes);
}

static void libc_release(void *ctx, void *p) {
    (void)ctx;
    free(p);
}

const struct dw_alloc dw_alloc_libc = {.get = libc_get, .release = libc_release, .ctx = NULL};

void *dw_get_longer(const struct dw_alloc *a, void *old, uint32_t *length, uint32_t first,
                    uint32_t least, size_t bytes) {
    uint32_t longer = *length == 0 ? first : *length;
    while (longer < least) {
        longer *= 2;
    }
    void *table = dw_get(a, longer * bytes);
    if (table == NULL) {
        return NULL;
    }
    if (*length > 0) {
        memcpy(table, old, *length * bytes);
    }
    memset((char *)table + *length * bytes, 0, (longer - *length) * bytes);
    dw_release(a, old);
    *length = longer;
    return table;
}

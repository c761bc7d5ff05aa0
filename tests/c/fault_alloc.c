/* SPDX-License-Identifier: MPL-2.0 */
#include "fault_alloc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define JUNK 0xa5
#define MAGIC UINT64_C(0x64775f6661756c74)

/* Before each block: 16 bytes, so that its alignment is malloc's. */
struct header {
    uint64_t magic;
    uint64_t bytes;
};

static void *get(void *ctx, size_t bytes) {
    struct fault_alloc *f = ctx;
    f->calls++;
    if (f->fail_at != 0 && (f->calls == f->fail_at || (f->fail_on && f->calls > f->fail_at))) {
        f->failed++;
        return NULL;
    }
    struct header *h = malloc(sizeof *h + bytes);
    if (h == NULL)
        return NULL;
    *h = (struct header){.magic = MAGIC, .bytes = bytes};
    f->blocks++;
    f->bytes += bytes;
    if (f->peak < f->bytes)
        f->peak = f->bytes;
    return memset(h + 1, JUNK, bytes);
}

static void release(void *ctx, void *p) {
    struct fault_alloc *f = ctx;
    if (p == NULL)
        return;
    struct header *h = (struct header *)p - 1;
    assert_true(h->magic == MAGIC);
    assert_true(f->blocks > 0);
    f->blocks--;
    f->bytes -= h->bytes;
    memset(h, JUNK, sizeof *h + h->bytes);
    free(h);
}

void fault_alloc_init(struct fault_alloc *f) {
    *f = (struct fault_alloc){.alloc = {.get = get, .release = release, .ctx = f}};
}

void fault_alloc_fail(struct fault_alloc *f, uint64_t n, bool on) {
    f->fail_at = n == 0 ? 0 : f->calls + n;
    f->fail_on = on;
}

void fault_alloc_check_released(const struct fault_alloc *f) {
    assert_int_equal(f->blocks, 0);
    assert_int_equal(f->bytes, 0);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_nif.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#ifndef __SANITIZE_ADDRESS__

/* The memory of every store, asked for and given back by any thread. It owns nothing but the list
 * of blocks that the system did not take back.
 *
 * Small blocks come from the VM's allocator. Larger ones, which are nearly all of a store's memory
 * and come in few sizes, are mapped one by one: what is given back leaves the process at once. With
 * 3 M messages, the VM's allocator took 56 to 58 bytes of resident memory each for 49 asked for,
 * and kept 120 MB after the store was closed; malloc 51 and 59 MB; this 51 and 8 MB. It costs 0.1
 * us a message. In front of each block is where it really begins. */
#define ALIGNMENT 16 /* malloc's; the VM's is 8 */
#define MAPPED_FROM 32768
#define MAPPED_OFFSET 64 /* a cache line, as some blocks are made of such */

struct origin {
    void *block;
    size_t mapped; /* bytes; 0: the VM's */
};
_Static_assert(sizeof(struct origin) <= ALIGNMENT, "it must fit in front of a block");

static void *get(void *ctx, size_t bytes) {
    struct origin origin = {0};
    uintptr_t at;
    (void)ctx;
    if (bytes > SIZE_MAX / 2) {
        return NULL;
    }
    if (bytes >= MAPPED_FROM) {
        origin.mapped = bytes + MAPPED_OFFSET;
        origin.block =
            mmap(NULL, origin.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (origin.block == MAP_FAILED) {
            return NULL;
        }
        at = (uintptr_t)origin.block + MAPPED_OFFSET;
    } else {
        origin.block = enif_alloc(bytes + 2 * ALIGNMENT);
        if (origin.block == NULL) {
            return NULL;
        }
        at = ((uintptr_t)origin.block + 2 * ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1);
    }
    memcpy((void *)(at - sizeof origin), &origin, sizeof origin);
    return (void *)at;
}

/* Blocks that the system did not take back, as it cannot split a mapping when a process has too
 * many: they are tried again with each that follows, and hold one page until then. */
static struct {
    atomic_flag busy;
    void *first; /* begins with the next one, and its length */
} unmapped = {.busy = ATOMIC_FLAG_INIT};

struct kept_block {
    void *next;
    size_t mapped;
};

static void unmap(void *block, size_t mapped) {
    const bool given = munmap(block, mapped) == 0;
    if (given && __atomic_load_n(&unmapped.first, __ATOMIC_RELAXED) == NULL) {
        return;
    }
    while (atomic_flag_test_and_set_explicit(&unmapped.busy, memory_order_acquire)) {
    }
    if (!given) {
        (void)madvise(block, mapped, MADV_DONTNEED);
        *(struct kept_block *)block = (struct kept_block){unmapped.first, mapped};
        __atomic_store_n(&unmapped.first, block, __ATOMIC_RELAXED);
    } else if (unmapped.first != NULL) {
        const struct kept_block first = *(struct kept_block *)unmapped.first;
        if (munmap(unmapped.first, first.mapped) == 0) {
            __atomic_store_n(&unmapped.first, first.next, __ATOMIC_RELAXED);
        }
    }
    atomic_flag_clear_explicit(&unmapped.busy, memory_order_release);
}

static void release(void *ctx, void *p) {
    (void)ctx;
    if (p == NULL) {
        return;
    }
    struct origin origin;
    memcpy(&origin, (char *)p - sizeof origin, sizeof origin);
    if (origin.mapped > 0) {
        unmap(origin.block, origin.mapped);
    } else {
        enif_free(origin.block);
    }
}

const struct dw_alloc nif_alloc = {get, release, NULL};

#endif

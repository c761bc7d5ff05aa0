/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_origin.h"

#include "dw_error.h"

#include <string.h>

/* A table of blocks, by entry number. It owns the blocks, and gives each back when nothing is noted
 * in it. Its owner's lock guards it. */

enum { BLOCK = 4096, BLOCKS_MIN = 16 };

struct dw_origin_block {
    uint32_t used;
    uint64_t due_plus_1[BLOCK]; /* 0: none */
};

void dw_origins_init(struct dw_origins *origins, const struct dw_alloc *alloc) {
    *origins = (struct dw_origins){.alloc = alloc};
}

void dw_origins_free(struct dw_origins *origins) {
    for (uint32_t i = 0; i < origins->capacity; i++) {
        dw_release(origins->alloc, origins->blocks[i]);
    }
    dw_release(origins->alloc, origins->blocks);
    dw_origins_init(origins, origins->alloc);
}

static struct dw_origin_block *block_of(const struct dw_origins *origins, uint32_t k) {
    return k / BLOCK < origins->capacity ? origins->blocks[k / BLOCK] : NULL;
}

uint64_t dw_origin_get(const struct dw_origins *origins, uint32_t k, uint64_t otherwise) {
    const struct dw_origin_block *block = block_of(origins, k);
    return block != NULL && block->due_plus_1[k % BLOCK] != 0 ? block->due_plus_1[k % BLOCK] - 1
                                                              : otherwise;
}

static int grow(struct dw_origins *origins, uint32_t number) {
    struct dw_origin_block **blocks =
        dw_get_longer(origins->alloc, origins->blocks, &origins->capacity, BLOCKS_MIN, number + 1,
                      sizeof *blocks);
    if (blocks == NULL) {
        return DW_ENOMEM;
    }
    origins->blocks = blocks;
    return DW_OK;
}

int dw_origin_note(struct dw_origins *origins, uint32_t k, uint64_t due) {
    uint32_t number = k / BLOCK;
    if (number >= origins->capacity && grow(origins, number) != DW_OK) {
        return DW_ENOMEM;
    }
    struct dw_origin_block *block = origins->blocks[number];
    if (block == NULL) {
        block = dw_get(origins->alloc, sizeof *block);
        if (block == NULL) {
            return DW_ENOMEM;
        }
        memset(block, 0, sizeof *block);
        origins->blocks[number] = block;
        origins->held++;
    }
    if (block->due_plus_1[k % BLOCK] == 0) {
        block->due_plus_1[k % BLOCK] = due + 1;
        block->used++;
        origins->count++;
    }
    return DW_OK;
}

void dw_origin_forget(struct dw_origins *origins, uint32_t k) {
    struct dw_origin_block *block = block_of(origins, k);
    if (block == NULL || block->due_plus_1[k % BLOCK] == 0) {
        return;
    }
    block->due_plus_1[k % BLOCK] = 0;
    origins->count--;
    if (--block->used == 0) {
        dw_release(origins->alloc, block);
        origins->blocks[k / BLOCK] = NULL;
        origins->held--;
    }
}

size_t dw_origins_bytes(const struct dw_origins *origins) {
    return origins->capacity * sizeof *origins->blocks +
           origins->held * sizeof(struct dw_origin_block);
}

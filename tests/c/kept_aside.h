/* SPDX-License-Identifier: MPL-2.0 */
#ifndef KEPT_ASIDE_H
#define KEPT_ASIDE_H

#include "dw_partition.h"

/* What the file CORRUPT of a store has, read by its description alone. */
struct kept {
    uint64_t id, due, key_hash, off;
    uint32_t length, there;
    char name[DW_FILE_NAME_BYTES];
    const uint8_t *bytes;
};

/* The entries in these bytes, at most `max`: how many. */
unsigned read_kept(const uint8_t *p, size_t size, struct kept *out, unsigned max);

/* Those in the directory, 0 if there is no such file. `bytes`: `size` for the file, which is
 * smaller. */
unsigned read_kept_of(const char *dir, uint8_t *bytes, size_t size, struct kept *out, unsigned max);

#endif

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_batch.h"

#include "dw_le.h"
#include "dw_slab.h"
#include "dw_store.h"

#include <stdbool.h>

/* Checking batches, which come from clients by way of Raft's log, and walking over those that were
 * found good. It owns nothing, and runs in any thread. */

enum { FLAG_ABSOLUTE = 1, ON_KEY_SHIFT = 1, ON_KEY_MASK = 7 };

/* What flags a keyed batch of that version may have. */
static unsigned keyed_flags(enum dw_keyed_version version) {
    const unsigned on_key = version == DW_KEYED_1 ? DW_CANCEL : ON_KEY_MASK;
    return FLAG_ABSOLUTE | on_key << ON_KEY_SHIFT;
}

static enum dw_on_key on_key(const uint8_t *header) {
    return (enum dw_on_key)(dw_le16(header + 4) >> ON_KEY_SHIFT & ON_KEY_MASK);
}

/* What a record's length and key have to be, by what it does with its key. */
static bool fits(const uint8_t *header, enum dw_on_key on) {
    const bool empty = dw_le32(header) == 0;
    const bool keyed = dw_le64(header + 16) != 0;
    return on <= DW_RELEASE && empty == (on == DW_CANCEL || on == DW_RELEASE) &&
           (keyed || on == DW_KEEP);
}

static int check(const void *batch, size_t bytes, uint32_t max_record_bytes, unsigned known_flags,
                 uint32_t *count) {
    const uint8_t *p = batch;
    uint32_t n = 0;
    *count = 0;
    while (bytes > 0) {
        if (bytes < DW_BATCH_HEADER || n == DW_BATCH_MAX) {
            return DW_EINVAL;
        }
        uint32_t length = dw_le32(p);
        if ((dw_le16(p + 4) & ~known_flags) != 0 || !fits(p, on_key(p))) {
            return DW_EINVAL;
        }
        if (length > max_record_bytes) {
            return DW_ETOOBIG;
        }
        if (length > bytes - DW_BATCH_HEADER) {
            return DW_EINVAL;
        }
        p += DW_BATCH_HEADER + length;
        bytes -= DW_BATCH_HEADER + (size_t)length;
        n++;
    }
    if (n == 0) {
        return DW_EINVAL;
    }
    *count = n;
    return DW_OK;
}

int dw_batch_check(const void *batch, size_t bytes, uint32_t max_record_bytes, uint32_t *count) {
    return check(batch, bytes, max_record_bytes, FLAG_ABSOLUTE, count);
}

int dw_batch_check_keyed(const void *batch, size_t bytes, uint32_t max_record_bytes,
                         enum dw_keyed_version version, uint32_t *count) {
    return check(batch, bytes, max_record_bytes, keyed_flags(version), count);
}

void dw_batch_next(const void *batch, size_t *pos, uint64_t base_ms, struct dw_batch_record *out) {
    const uint8_t *p = (const uint8_t *)batch + *pos;
    uint64_t when = dw_le64(p + 8);
    out->length = dw_le32(p);
    out->encoding = dw_le16(p + 6);
    out->key_hash = dw_le64(p + 16);
    out->on_key = on_key(p);
    out->body = p + DW_BATCH_HEADER;
    if ((dw_le16(p + 4) & FLAG_ABSOLUTE) == 0) {
        when = when > DW_DUE_MAX || base_ms > DW_DUE_MAX ? DW_DUE_MAX : base_ms + when;
    }
    out->due = when > DW_DUE_MAX ? DW_DUE_MAX : when;
    *pos += DW_BATCH_HEADER + (size_t)out->length;
}

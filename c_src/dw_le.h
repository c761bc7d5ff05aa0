/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_LE_H
#define DW_LE_H

#include <stdint.h>

/* Little-endian numbers at any address, as the file formats and batches have them. Compilers make
 * one load or store of each on a little-endian machine. */

static inline uint16_t dw_le16(const void *p) {
    const uint8_t *b = p;
    return (uint16_t)(b[0] | b[1] << 8);
}

static inline uint32_t dw_le32(const void *p) {
    const uint8_t *b = p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static inline uint64_t dw_le64(const void *p) {
    const uint8_t *b = p;
    return (uint64_t)dw_le32(b) | (uint64_t)dw_le32(b + 4) << 32;
}

static inline void dw_le16_put(void *p, uint16_t v) {
    uint8_t *b = p;
    b[0] = (uint8_t)v;
    b[1] = (uint8_t)(v >> 8);
}

static inline void dw_le32_put(void *p, uint32_t v) {
    uint8_t *b = p;
    b[0] = (uint8_t)v;
    b[1] = (uint8_t)(v >> 8);
    b[2] = (uint8_t)(v >> 16);
    b[3] = (uint8_t)(v >> 24);
}

static inline void dw_le64_put(void *p, uint64_t v) {
    uint8_t *b = p;
    dw_le32_put(b, (uint32_t)v);
    dw_le32_put(b + 4, (uint32_t)(v >> 32));
}

#endif

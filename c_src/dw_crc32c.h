/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_CRC32C_H
#define DW_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `bytes` bytes at p, continuing from `crc`
 * (0 to begin). Uses the processor's instruction where it has one, else a table. Any thread. */
uint32_t dw_crc32c(uint32_t crc, const void *p, size_t bytes);

/* The same by the table, whatever the processor has; for tests. */
uint32_t dw_crc32c_by_table(uint32_t crc, const void *p, size_t bytes);

#endif

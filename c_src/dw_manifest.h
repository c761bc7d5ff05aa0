/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_MANIFEST_H
#define DW_MANIFEST_H

#include "dw_alloc.h"
#include "dw_io.h"

/* The manifest names what a checkpoint is made of: which partition files, and how many bytes of
 * each. Bytes beyond do not belong to it. It is written to MANIFEST.tmp, fsynced, renamed to
 * MANIFEST, and the directory is fsynced.
 *
 * File MANIFEST, little-endian, 48 bytes and 64 a partition:
 *
 *    0  8  "DWHMAN\r\n"
 *    8  4  version of the format, 1
 *   12  4  CRC-32C of the whole file but these four bytes
 *   16  8  applied: the Raft index of the checkpoint
 *   24  8  the serial number that the next partition gets, at least
 *   32  4  partitions
 *   36 12  0
 *   then for each partition, by ascending serial number:
 *    0  8  serial number
 *    8  4  level
 *   12  4  0
 *   16  8  slice
 *   24  8  bytes of the record file
 *   32  8  bytes of the index file
 *   40  8  live records
 *   48  8  bytes of these in the record file
 *   56  8  0
 *
 * The first 16 bytes keep their meaning in every later version.
 *
 * One thread at a time for a directory, with no lock held: the calls wait for files. */

#define DW_MANIFEST_NAME "MANIFEST"
#define DW_MANIFEST_TMP "MANIFEST.tmp"

struct dw_manifest_part {
    uint64_t serial;
    uint64_t slice;
    uint32_t level;
    uint64_t rec_bytes;
    uint64_t idx_bytes;
    uint64_t live;
    uint64_t live_bytes;
};

struct dw_manifest {
    uint64_t applied;
    uint64_t next_serial;
    uint32_t count;
    struct dw_manifest_part *parts; /* by ascending serial number */
};

/* Reads it from directory `dirfd` into memory of `alloc`. DW_OK, DW_ENOENT (there is none),
 * DW_ENOMEM, DW_EIO, DW_EACCES, DW_ECORRUPT, DW_EVERSION */
int dw_manifest_read(const struct dw_io *io, const struct dw_alloc *alloc, int dirfd,
                     struct dw_manifest *out);

/* Writes it, durably. DW_OK, DW_ENOMEM, DW_EIO, DW_ENOSPC, DW_EACCES; after a failure the old one
 * or the new one is in place. */
int dw_manifest_write(const struct dw_io *io, const struct dw_alloc *alloc, int dirfd,
                      const struct dw_manifest *manifest);

void dw_manifest_free(const struct dw_alloc *alloc, struct dw_manifest *manifest);

/* The partition with this serial number, NULL if it is not named. */
const struct dw_manifest_part *dw_manifest_find(const struct dw_manifest *manifest,
                                                uint64_t serial);

#endif

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_manifest.h"

#include "dw_crc32c.h"
#include "dw_le.h"
#include "dw_partition.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* The manifest as a whole, to memory and to the directory: whoever has it owns it. No lock is held;
 * one thread at a time for a directory. Whatever fails, there is one whole manifest: the old one or
 * the new one. */

enum { HEADER = 48, ENTRY = 64, VERSION = 1, COUNT_MAX = 1 << 16 };

static const uint8_t magic[8] = {'D', 'W', 'H', 'M', 'A', 'N', '\r', '\n'};

static uint32_t crc_of(const uint8_t *p, size_t bytes) {
    return dw_crc32c(dw_crc32c(0, p, 12), p + 16, bytes - 16);
}

static bool is_sane(const struct dw_manifest_part *part) {
    return part->level < DW_LEVELS && part->slice <= DW_DUE_MAX >> dw_level_shift(part->level) &&
           part->rec_bytes >= DW_FILE_HEADER && part->rec_bytes <= DW_PARTITION_BYTES_MAX &&
           part->idx_bytes >= DW_FILE_HEADER;
}

static int decode(const struct dw_alloc *alloc, const uint8_t *p, size_t bytes,
                  struct dw_manifest *out) {
    if (bytes < HEADER || memcmp(p, magic, sizeof magic) != 0 ||
        dw_le32(p + 12) != crc_of(p, bytes)) {
        return DW_ECORRUPT;
    }
    if (dw_le32(p + 8) != VERSION) {
        return DW_EVERSION;
    }
    uint32_t count = dw_le32(p + 32);
    if (count > COUNT_MAX || bytes != HEADER + (size_t)count * ENTRY) {
        return DW_ECORRUPT;
    }
    struct dw_manifest_part *parts = dw_get(alloc, (count + (size_t)1) * sizeof *parts);
    if (parts == NULL) {
        return DW_ENOMEM;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *e = p + HEADER + (size_t)i * ENTRY;
        parts[i] = (struct dw_manifest_part){
            .serial = dw_le64(e),
            .level = dw_le32(e + 8),
            .slice = dw_le64(e + 16),
            .rec_bytes = dw_le64(e + 24),
            .idx_bytes = dw_le64(e + 32),
            .live = dw_le64(e + 40),
            .live_bytes = dw_le64(e + 48),
        };
        if (!is_sane(&parts[i]) || (i > 0 && parts[i].serial <= parts[i - 1].serial)) {
            dw_release(alloc, parts);
            return DW_ECORRUPT;
        }
    }
    out->applied = dw_le64(p + 16);
    out->next_serial = dw_le64(p + 24);
    out->count = count;
    out->parts = parts;
    return DW_OK;
}

/* It is corrupt only if it was read, and again. */
static int read_twice(const struct dw_io *io, const struct dw_alloc *alloc, int fd, uint8_t *p,
                      size_t bytes, struct dw_manifest *out) {
    int result = DW_ECORRUPT;
    for (int i = 0; result == DW_ECORRUPT && i < 2; i++) {
        if (i > 0) {
            dw_io_forget(io, fd, 0, bytes);
        }
        const int err = dw_io_read_all(io, fd, p, bytes, 0);
        result = err != 0 ? dw_io_error(err) : decode(alloc, p, bytes, out);
    }
    return result;
}

int dw_manifest_read(const struct dw_io *io, const struct dw_alloc *alloc, int dirfd,
                     struct dw_manifest *out) {
    *out = (struct dw_manifest){0};
    int fd = dw_io_open(io, dirfd, DW_MANIFEST_NAME, O_RDONLY);
    if (fd < 0) {
        return errno == ENOENT ? DW_ENOENT : dw_io_error(errno);
    }
    int result;
    uint8_t *bytes = NULL;
    struct stat st;
    if (io->fstat(fd, &st) != 0) {
        result = dw_io_error(errno);
    } else if (st.st_size > HEADER + (off_t)COUNT_MAX * ENTRY) {
        result = DW_ECORRUPT;
    } else if ((bytes = dw_get(alloc, (size_t)st.st_size + 1)) == NULL) {
        result = DW_ENOMEM;
    } else {
        result = read_twice(io, alloc, fd, bytes, (size_t)st.st_size, out);
    }
    dw_release(alloc, bytes);
    io->close(fd);
    return result;
}

static int write_tmp(const struct dw_io *io, int dirfd, const uint8_t *p, size_t bytes) {
    int fd = dw_io_open(io, dirfd, DW_MANIFEST_TMP, O_WRONLY | O_CREAT | O_TRUNC);
    if (fd < 0) {
        return -1;
    }
    int result = dw_io_write(io, fd, p, bytes, 0);
    if (result == 0) {
        result = io->fsync(fd);
    }
    int err = errno;
    io->close(fd);
    errno = err;
    return result;
}

int dw_manifest_write(const struct dw_io *io, const struct dw_alloc *alloc, int dirfd,
                      const struct dw_manifest *manifest) {
    size_t bytes = HEADER + (size_t)manifest->count * ENTRY;
    uint8_t *p = dw_get(alloc, bytes);
    if (p == NULL) {
        return DW_ENOMEM;
    }
    memset(p, 0, bytes);
    memcpy(p, magic, sizeof magic);
    dw_le32_put(p + 8, VERSION);
    dw_le64_put(p + 16, manifest->applied);
    dw_le64_put(p + 24, manifest->next_serial);
    dw_le32_put(p + 32, manifest->count);
    for (uint32_t i = 0; i < manifest->count; i++) {
        const struct dw_manifest_part *part = &manifest->parts[i];
        uint8_t *e = p + HEADER + (size_t)i * ENTRY;
        dw_le64_put(e, part->serial);
        dw_le32_put(e + 8, part->level);
        dw_le64_put(e + 16, part->slice);
        dw_le64_put(e + 24, part->rec_bytes);
        dw_le64_put(e + 32, part->idx_bytes);
        dw_le64_put(e + 40, part->live);
        dw_le64_put(e + 48, part->live_bytes);
    }
    dw_le32_put(p + 12, crc_of(p, bytes));
    int result = DW_OK;
    if (write_tmp(io, dirfd, p, bytes) != 0 ||
        io->renameat(dirfd, DW_MANIFEST_TMP, dirfd, DW_MANIFEST_NAME) != 0 ||
        io->fsync(dirfd) != 0) {
        result = dw_io_error(errno);
    }
    dw_release(alloc, p);
    return result;
}

void dw_manifest_free(const struct dw_alloc *alloc, struct dw_manifest *manifest) {
    dw_release(alloc, manifest->parts);
    *manifest = (struct dw_manifest){0};
}

const struct dw_manifest_part *dw_manifest_find(const struct dw_manifest *manifest,
                                                uint64_t serial) {
    uint32_t low = 0;
    uint32_t high = manifest->count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (manifest->parts[mid].serial < serial) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low < manifest->count && manifest->parts[low].serial == serial ? &manifest->parts[low]
                                                                          : NULL;
}

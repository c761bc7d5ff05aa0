/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* Snapshots: what is in one, whether it is whole, and putting one in a store's place.
 *
 * No store of the directory is open meanwhile (dw_lease.c sees to it), so there is nothing to lock.
 * Whatever fails, the directory is then without a checkpoint or has a whole one. */

static int read_manifest_of(const struct dw_io *io, const struct dw_alloc *alloc, const char *dir,
                            int *dirfd, struct dw_manifest *manifest) {
    *dirfd = dw_io_open_dir(io, dir, 0);
    if (*dirfd < 0) {
        return errno == ENOENT ? DW_ENOENT : dw_io_error(errno);
    }
    int result = dw_manifest_read(io, alloc, *dirfd, manifest);
    if (result != DW_OK) {
        io->close(*dirfd);
        *dirfd = -1;
    }
    return result;
}

int dw_store_peek_applied(const char *dir, uint64_t *applied) {
    int dirfd;
    struct dw_manifest manifest = {0};
    *applied = 0;
    int result = read_manifest_of(&dw_io_posix, &dw_alloc_libc, dir, &dirfd, &manifest);
    if (result == DW_ENOENT) {
        return DW_OK;
    }
    if (result == DW_OK) {
        *applied = manifest.applied;
        dw_io_posix.close(dirfd);
        dw_manifest_free(&dw_alloc_libc, &manifest);
    }
    return result;
}

/* The length of a file of a snapshot. DW_ECORRUPT if it is missing or shorter than named. */
static int snapshot_file(const struct dw_io *io, int dirfd, const char *name, uint64_t named,
                         uint64_t *size) {
    int fd = dw_io_open(io, dirfd, name, O_RDONLY);
    if (fd < 0) {
        return errno == ENOENT ? DW_ECORRUPT : dw_io_error(errno);
    }
    struct stat st;
    int result = DW_OK;
    if (io->fstat(fd, &st) != 0) {
        result = dw_io_error(errno);
    } else {
        *size = (uint64_t)st.st_size;
        result = *size < named ? DW_ECORRUPT : DW_OK;
    }
    io->close(fd);
    return result;
}

/* Calls `each` for every file that the manifest names, until one fails. */
static int each_file(const struct dw_manifest *manifest,
                     int (*each)(void *arg, const char *name, uint64_t bytes), void *arg) {
    for (uint32_t i = 0; i < manifest->count; i++) {
        const struct dw_manifest_part *part = &manifest->parts[i];
        char name[DW_FILE_NAME_BYTES];
        dw_file_name(name, DW_FILE_REC, part->serial, part->level, part->slice);
        int result = each(arg, name, part->rec_bytes);
        if (result == DW_OK) {
            dw_file_name(name, DW_FILE_IDX, part->serial, part->level, part->slice);
            result = each(arg, name, part->idx_bytes);
        }
        if (result != DW_OK) {
            return result;
        }
    }
    return DW_OK;
}

struct restoring {
    const struct dw_io *io;
    const struct dw_alloc *alloc;
    int from;
    int to;
    int err;
};

static int check_one(void *arg, const char *name, uint64_t bytes) {
    struct restoring *restoring = arg;
    uint64_t size;
    return snapshot_file(restoring->io, restoring->from, name, bytes, &size);
}

int dw_validate_with(const char *snapshot_dir, uint64_t *applied, const struct dw_io *io,
                     const struct dw_alloc *alloc) {
    struct restoring restoring = {.io = io, .alloc = alloc};
    struct dw_manifest manifest = {0};
    *applied = 0;
    int result = read_manifest_of(io, alloc, snapshot_dir, &restoring.from, &manifest);
    if (result != DW_OK) {
        return result;
    }
    result = each_file(&manifest, check_one, &restoring);
    if (result == DW_OK) {
        *applied = manifest.applied;
    }
    io->close(restoring.from);
    dw_manifest_free(alloc, &manifest);
    return result;
}

int dw_store_validate(const char *snapshot_dir, uint64_t *applied) {
    return dw_validate_with(snapshot_dir, applied, &dw_io_posix, &dw_alloc_libc);
}

static void remove_one(void *arg, const char *name) {
    struct restoring *restoring = arg;
    enum dw_file_kind kind;
    uint64_t serial, slice;
    uint32_t level;
    if ((dw_file_name_parse(name, &kind, &serial, &level, &slice) ||
         strcmp(name, DW_MANIFEST_TMP) == 0) &&
        restoring->io->unlinkat(restoring->to, name, 0) != 0) {
        restoring->err = errno;
    }
}

/* A file longer than named is copied, not shared: another snapshot may name more of it, and what
 * the restored store appends must not change that. */
static int restore_one(void *arg, const char *name, uint64_t bytes) {
    struct restoring *restoring = arg;
    const struct dw_io *io = restoring->io;
    uint64_t size;
    int result = snapshot_file(io, restoring->from, name, bytes, &size);
    if (result != DW_OK) {
        return result;
    }
    result = dw_io_clone(io, restoring->alloc, restoring->from, restoring->to, name, bytes,
                         size > bytes);
    if (result != DW_OK) {
        return result;
    }
    int fd = dw_io_open(io, restoring->to, name, O_RDWR);
    if (fd < 0) {
        return dw_io_error(errno);
    }
    if (io->fdatasync(fd) != 0) {
        result = dw_io_error(errno);
    }
    io->close(fd);
    return result;
}

/* The manifest goes first and comes back last: whatever fails between leaves a directory without a
 * checkpoint, never one that names what is not there. */
static int restore(struct restoring *restoring, const struct dw_manifest *manifest) {
    const struct dw_io *io = restoring->io;
    int result = each_file(manifest, check_one, restoring);
    if (result != DW_OK) {
        return result;
    }
    if ((io->unlinkat(restoring->to, DW_MANIFEST_NAME, 0) != 0 && errno != ENOENT) ||
        io->fsync(restoring->to) != 0 ||
        dw_io_list(io, restoring->to, remove_one, restoring) != 0) {
        return dw_io_error(errno);
    }
    if (restoring->err != 0) {
        return dw_io_error(restoring->err);
    }
    result = each_file(manifest, restore_one, restoring);
    if (result == DW_OK && io->fsync(restoring->to) != 0) {
        result = dw_io_error(errno);
    }
    if (result == DW_OK) {
        result = dw_manifest_write(io, restoring->alloc, restoring->to, manifest);
    }
    return result;
}

int dw_restore_with(const char *dir, const char *snapshot_dir, const struct dw_io *io,
                    const struct dw_alloc *alloc) {
    struct restoring restoring = {.io = io, .alloc = alloc};
    struct dw_manifest manifest = {0};
    int result = read_manifest_of(io, alloc, snapshot_dir, &restoring.from, &manifest);
    if (result != DW_OK) {
        return result;
    }
    restoring.to = dw_io_open_dir(io, dir, 1);
    if (restoring.to < 0) {
        result = dw_io_error(errno);
    } else {
        result = restore(&restoring, &manifest);
        io->close(restoring.to);
    }
    io->close(restoring.from);
    dw_manifest_free(alloc, &manifest);
    return result;
}

int dw_store_restore(const char *dir, const char *snapshot_dir) {
    return dw_restore_with(dir, snapshot_dir, &dw_io_posix, &dw_alloc_libc);
}

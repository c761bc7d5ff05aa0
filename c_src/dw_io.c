/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_io.h"

#include "dw_store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* System calls by way of a table of them, with EINTR and short counts dealt with. It owns but this:
 * each thread's errno of its last call that failed. Any thread, with no lock held. */

_Static_assert(sizeof(off_t) == 8, "files may be larger than 2 GiB");

static int posix_openat(int dirfd, const char *path, int flags, mode_t mode) {
    return openat(dirfd, path, flags, mode);
}

const struct dw_io dw_io_posix = {
    .openat = posix_openat,
    .close = close,
    .pread = pread,
    .pwrite = pwrite,
    .fstat = fstat,
    .ftruncate = ftruncate,
    .fdatasync = fdatasync,
    .fsync = fsync,
    .mkdir = mkdir,
    .renameat = renameat,
    .linkat = linkat,
    .unlinkat = unlinkat,
    .fdopendir = fdopendir,
    .readdir = readdir,
    .closedir = closedir,
    .fadvise = posix_fadvise,
};

static _Thread_local int last_errno;

int dw_store_errno(void) {
    return last_errno;
}

int dw_io_error(int err) {
    last_errno = err;
    switch (err) {
    case ENOSPC:
    case EDQUOT:
        return DW_ENOSPC;
    case EACCES:
    case EPERM:
    case EROFS:
        return DW_EACCES;
    default:
        return DW_EIO;
    }
}

int dw_io_open(const struct dw_io *io, int dirfd, const char *path, int flags) {
    int fd;
    do {
        fd = io->openat(dirfd, path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

static int open_dir(const struct dw_io *io, int dirfd, const char *path) {
    int fd;
    do {
        fd = io->openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

int dw_io_open_dir(const struct dw_io *io, const char *path, int make) {
    if (make && io->mkdir(path, 0700) != 0 && errno != EEXIST) {
        return -1;
    }
    const int fd = open_dir(io, AT_FDCWD, path);
    if (fd < 0 || !make) {
        return fd;
    }
    /* Also if it was there: whoever made it may have failed at this, or died before it. */
    const int parent = open_dir(io, fd, "..");
    const int err = parent < 0 || io->fsync(parent) != 0 ? errno : 0;
    if (parent >= 0) {
        io->close(parent);
    }
    if (err != 0) {
        io->close(fd);
        errno = err;
        return -1;
    }
    return fd;
}

ssize_t dw_io_read(const struct dw_io *io, int fd, void *buf, size_t bytes, uint64_t off) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = io->pread(fd, (char *)buf + done, bytes - done, (off_t)(off + done));
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -1;
        }
        if (n == 0) {
            break;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int dw_io_read_all(const struct dw_io *io, int fd, void *buf, size_t bytes, uint64_t off) {
    ssize_t n = dw_io_read(io, fd, buf, bytes, off);
    if (n < 0) {
        return errno;
    }
    return (size_t)n == bytes ? 0 : EIO;
}

enum { PAGE_BYTES = 4096 };

/* Pages are let go of whole. */
void dw_io_forget(const struct dw_io *io, int fd, uint64_t off, size_t bytes) {
    const uint64_t from = off & ~(uint64_t)(PAGE_BYTES - 1);
    const uint64_t end = (off + bytes + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
    (void)io->fadvise(fd, (off_t)from, (off_t)(end - from), POSIX_FADV_DONTNEED);
}

int dw_io_write(const struct dw_io *io, int fd, const void *buf, size_t bytes, uint64_t off) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = io->pwrite(fd, (const char *)buf + done, bytes - done, (off_t)(off + done));
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -1;
        }
        if (n == 0) {
            errno = EIO;
            return -1;
        }
        done += (size_t)n;
    }
    return 0;
}

int dw_io_list(const struct dw_io *io, int dirfd, void (*each)(void *arg, const char *name),
               void *arg) {
    int fd = io->openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0) {
        return -1;
    }
    DIR *dir = io->fdopendir(fd);
    if (dir == NULL) {
        int err = errno;
        io->close(fd);
        errno = err;
        return -1;
    }
    int err = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = io->readdir(dir);
        if (entry == NULL) {
            err = errno;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            each(arg, entry->d_name);
        }
    }
    io->closedir(dir);
    errno = err;
    return err == 0 ? 0 : -1;
}

enum { COPY_BYTES = 256 * 1024 };

static int copy_bytes(const struct dw_io *io, int in, int out, uint64_t length, char *buf) {
    for (uint64_t off = 0; off < length;) {
        size_t want = length - off < COPY_BYTES ? (size_t)(length - off) : (size_t)COPY_BYTES;
        ssize_t n = dw_io_read(io, in, buf, want, off);
        if (n < 0) {
            return -1;
        }
        if (n == 0) {
            errno = EIO;
            return -1;
        }
        if (dw_io_write(io, out, buf, (size_t)n, off) != 0) {
            return -1;
        }
        off += (uint64_t)n;
    }
    return io->fdatasync(out);
}

static int copy_file(const struct dw_io *io, const struct dw_alloc *alloc, int from, int to,
                     const char *name, uint64_t length) {
    char *buf = dw_get(alloc, COPY_BYTES);
    if (buf == NULL) {
        return DW_ENOMEM;
    }
    int in = dw_io_open(io, from, name, O_RDONLY);
    int out = in < 0 ? -1 : dw_io_open(io, to, name, O_WRONLY | O_CREAT | O_EXCL);
    const int copied = out < 0 ? -1 : copy_bytes(io, in, out, length, buf);
    const int result = copied == 0 ? DW_OK : dw_io_error(errno);
    if (out >= 0) {
        io->close(out);
    }
    if (in >= 0) {
        io->close(in);
    }
    dw_release(alloc, buf);
    return result;
}

int dw_io_clone(const struct dw_io *io, const struct dw_alloc *alloc, int from, int to,
                const char *name, uint64_t length, int copy) {
    if (io->unlinkat(to, name, 0) != 0 && errno != ENOENT) {
        return dw_io_error(errno);
    }
    if (!copy) {
        if (io->linkat(from, name, to, name, 0) == 0) {
            return DW_OK;
        }
        if (errno != EXDEV && errno != EPERM && errno != EMLINK && errno != EOPNOTSUPP) {
            return dw_io_error(errno);
        }
    }
    return copy_file(io, alloc, from, to, name, length);
}

/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_IO_H
#define DW_IO_H

#include "dw_alloc.h"
#include "dw_error.h"

#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* Every system call of the store, so that tests can fail each of them. Contract as that of the
 * calls they are named for; EINTR and short counts are dealt with by the functions below. Any
 * thread, with no lock held: each may wait for the disk. */
struct dw_io {
    int (*openat)(int dirfd, const char *path, int flags, mode_t mode);
    int (*close)(int fd);
    ssize_t (*pread)(int fd, void *buf, size_t bytes, off_t off);
    ssize_t (*pwrite)(int fd, const void *buf, size_t bytes, off_t off);
    int (*fstat)(int fd, struct stat *st);
    int (*ftruncate)(int fd, off_t length);
    int (*fdatasync)(int fd);
    int (*fsync)(int fd);
    int (*mkdir)(const char *path, mode_t mode);
    int (*renameat)(int olddirfd, const char *oldpath, int newdirfd, const char *newpath);
    int (*linkat)(int olddirfd, const char *oldpath, int newdirfd, const char *newpath, int flags);
    int (*unlinkat)(int dirfd, const char *path, int flags);
    DIR *(*fdopendir)(int fd);
    struct dirent *(*readdir)(DIR *dir);
    int (*closedir)(DIR *dir);
    int (*fadvise)(int fd, off_t off, off_t bytes, int advice); /* an errno, as the call itself */
};

extern const struct dw_io dw_io_posix;

/* The dw_error for `err`, an errno; remembers it for dw_store_errno() in this thread. */
int dw_io_error(int err);

/* Opens with O_CLOEXEC and O_NOFOLLOW, mode 0600: a descriptor, or -1 and errno. */
int dw_io_open(const struct dw_io *io, int dirfd, const char *path, int flags);

/* Opens directory `path`; with `make` it is made with mode 0700 if it is missing, and durable in
 * its parent then. A descriptor, or -1 and errno. */
int dw_io_open_dir(const struct dw_io *io, const char *path, int make);

/* Reads until `bytes` are there or the file ends: the count, or -1 and errno. */
ssize_t dw_io_read(const struct dw_io *io, int fd, void *buf, size_t bytes, uint64_t off);

/* Reads exactly that much: 0, or an errno, EIO too if the file ends before. */
int dw_io_read_all(const struct dw_io *io, int fd, void *buf, size_t bytes, uint64_t off);

/* What has been read from there comes from the disk the next time, as far as the system allows:
 * what fails its checksum is read twice. */
void dw_io_forget(const struct dw_io *io, int fd, uint64_t off, size_t bytes);

/* Writes all: 0, or -1 and errno, with an unknown part of it written. */
int dw_io_write(const struct dw_io *io, int fd, const void *buf, size_t bytes, uint64_t off);

/* Calls each(arg, name) for every name in the directory but . and .. : 0, or -1 and errno. `each`
 * may unlink the name. */
int dw_io_list(const struct dw_io *io, int dirfd, void (*each)(void *arg, const char *name),
               void *arg);

/* Makes `name` of directory `from` appear in directory `to`, replacing what is there, with its
 * first `length` bytes at least: a hard link, or where that cannot be, or if `copy` is set, a
 * durable copy of exactly `length` bytes. DW_OK, DW_ENOMEM, DW_EIO, DW_ENOSPC, DW_EACCES */
int dw_io_clone(const struct dw_io *io, const struct dw_alloc *alloc, int from, int to,
                const char *name, uint64_t length, int copy);

#endif

/* SPDX-License-Identifier: MPL-2.0 */
#include "fault_io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FDS = 1024, FILES = 1 << 18 };

static struct {
    unsigned kinds;
    uint64_t fail_at;
    bool fail_on;
    int err;
    uint64_t counted;
    uint64_t failed;
    unsigned name_kinds;
    char name_part[128];
    int name_err;
    char bad_part[128];
    uint64_t bad_from, bad_end;
    int bad_err;
    uint64_t flip_at, flip_count, flipped;
    bool flip_on;
    size_t short_bytes;
    bool interrupt;
    char fd_name[FDS][128];
} fault;

/* A file of the tracked directory. The directory's names as they are durable are hard links in
 * `durable_dir`, beside it. */
struct synced {
    ino_t inode;
    uint64_t bytes;
    uint64_t lost_from, lost_to; /* never written to the disk, whatever is synced */
};

static struct {
    bool on;
    bool lose_on_close;
    char dir[PATH_MAX / 2];
    char durable_dir[PATH_MAX / 2];
    dev_t device;
    ino_t inode;
    struct synced files[FILES];
    unsigned count;
} track;

static void must(bool ok, const char *what) {
    if (!ok) {
        perror(what);
        abort();
    }
}

void fault_io_reset(void) {
    memset(&fault, 0, sizeof fault);
    memset(&track, 0, sizeof track);
}

void fault_io_fail(unsigned kinds, uint64_t n, bool on, int err) {
    fault.kinds = kinds;
    fault.fail_at = n;
    fault.fail_on = on;
    fault.err = err;
    fault.counted = 0;
    fault.failed = 0;
}

uint64_t fault_io_counted(void) {
    return fault.counted;
}

uint64_t fault_io_failed(void) {
    return fault.failed;
}

void fault_io_fail_name(unsigned kinds, const char *part, int err) {
    fault.name_kinds = part != NULL ? kinds : 0;
    fault.name_err = err;
    snprintf(fault.name_part, sizeof fault.name_part, "%s", part != NULL ? part : "");
}

void fault_io_bad_place(const char *part, uint64_t from, uint64_t end, int err) {
    snprintf(fault.bad_part, sizeof fault.bad_part, "%s", part != NULL ? part : "");
    fault.bad_from = from;
    fault.bad_end = part != NULL ? end : 0;
    fault.bad_err = err;
}

void fault_io_flip(uint64_t n, bool on) {
    fault.flip_at = n;
    fault.flip_on = on;
    fault.flip_count = 0;
    fault.flipped = 0;
}

uint64_t fault_io_flipped(void) {
    return fault.flipped;
}

void fault_io_short(size_t bytes) {
    fault.short_bytes = bytes;
}

/* How many of the bytes this call is to do; 0: it is interrupted. */
static size_t shortened(size_t bytes) {
    if (fault.short_bytes == 0 || bytes == 0) {
        return bytes;
    }
    fault.interrupt = !fault.interrupt;
    if (fault.interrupt) {
        errno = EINTR;
        return 0;
    }
    return bytes < fault.short_bytes ? bytes : fault.short_bytes;
}

static const char *name_of(int fd) {
    return fd >= 0 && fd < FDS ? fault.fd_name[fd] : "";
}

/* Is this call to fail? */
static bool fails(enum fault_call kind, const char *name) {
    if ((fault.name_kinds & kind) != 0 && strstr(name, fault.name_part) != NULL) {
        fault.failed++;
        errno = fault.name_err;
        return true;
    }
    if ((fault.kinds & kind) == 0) {
        return false;
    }
    fault.counted++;
    if (fault.fail_at == 0 || fault.counted < fault.fail_at ||
        (fault.counted > fault.fail_at && !fault.fail_on)) {
        return false;
    }
    fault.failed++;
    errno = fault.err;
    return true;
}

/* ---------------------------------------------------------------- tracking */

static void copy_names(const char *from, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    DIR *dir = opendir(to);
    must(dir != NULL, to);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] != '.') {
            snprintf(old, sizeof old, "%s/%s", to, entry->d_name);
            must(unlink(old) == 0, old);
        }
    }
    closedir(dir);
    dir = opendir(from);
    must(dir != NULL, from);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        snprintf(old, sizeof old, "%s/%s", from, entry->d_name);
        struct stat st;
        if (stat(old, &st) == 0 && S_ISREG(st.st_mode)) {
            snprintf(new, sizeof new, "%s/%s", to, entry->d_name);
            must(link(old, new) == 0, new);
        }
    }
    closedir(dir);
}

/* Where it is noted, or is to be. */
static struct synced *noted(ino_t inode) {
    uint64_t at = inode * UINT64_C(0x9E3779B97F4A7C15) >> 46;
    while (track.files[at].inode != 0 && track.files[at].inode != inode) {
        at = (at + 1) % FILES;
    }
    return &track.files[at];
}

static void note_synced(ino_t inode, uint64_t bytes) {
    struct synced *synced = noted(inode);
    if (synced->inode == 0) {
        must(++track.count < FILES / 2, "too many files");
    }
    if (bytes == 0) {
        *synced = (struct synced){.inode = inode};
    }
    synced->inode = inode;
    synced->bytes = bytes;
}

/* What the file has unsynced is lost. */
static void lose_unsynced(int fd) {
    struct stat st;
    if (!track.on || fstat(fd, &st) != 0 || st.st_dev != track.device || !S_ISREG(st.st_mode)) {
        return;
    }
    struct synced *synced = noted(st.st_ino);
    const uint64_t size = (uint64_t)st.st_size;
    if (synced->inode != 0 && synced->bytes < size) {
        if (synced->lost_from == synced->lost_to) {
            synced->lost_from = synced->bytes;
        }
        synced->lost_to = size;
    }
}

/* Bytes that are written again are to be synced again. */
static void written_again(int fd, uint64_t from, uint64_t to) {
    struct stat st;
    if (!track.on || fstat(fd, &st) != 0 || st.st_dev != track.device) {
        return;
    }
    struct synced *synced = noted(st.st_ino);
    if (synced->inode == 0 || synced->lost_from == synced->lost_to) {
        return;
    }
    if (from <= synced->lost_from && to > synced->lost_from) {
        synced->lost_from = to < synced->lost_to ? to : synced->lost_to;
    } else if (from < synced->lost_to && to >= synced->lost_to) {
        synced->lost_to = from;
    }
}

static void cut_off(int fd, uint64_t length) {
    struct stat st;
    if (!track.on || fstat(fd, &st) != 0 || st.st_dev != track.device) {
        return;
    }
    struct synced *synced = noted(st.st_ino);
    synced->bytes = synced->bytes < length ? synced->bytes : length;
    synced->lost_to = synced->lost_to < length ? synced->lost_to : length;
    synced->lost_from = synced->lost_from < synced->lost_to ? synced->lost_from : synced->lost_to;
}

void fault_io_lose_on_close(bool lose) {
    track.lose_on_close = lose;
}

static uint64_t synced_bytes(ino_t inode) {
    return noted(inode)->bytes;
}

static void note_all_synced(const char *path) {
    DIR *dir = opendir(path);
    must(dir != NULL, path);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char name[PATH_MAX];
        struct stat st;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (stat(name, &st) == 0 && S_ISREG(st.st_mode)) {
            note_synced(st.st_ino, (uint64_t)st.st_size);
        }
    }
    closedir(dir);
}

void fault_io_track(const char *dir) {
    struct stat st;
    snprintf(track.dir, sizeof track.dir, "%s", dir);
    snprintf(track.durable_dir, sizeof track.durable_dir, "%s.durable", dir);
    must(mkdir(track.durable_dir, 0700) == 0 || errno == EEXIST, track.durable_dir);
    must(stat(dir, &st) == 0, dir);
    track.device = st.st_dev;
    track.inode = st.st_ino;
    /* All that is there counts as synced from here on; what was known before is of files that are
     * gone. */
    if (track.count > FILES / 4) {
        memset(track.files, 0, sizeof track.files);
        track.count = 0;
    }
    copy_names(track.dir, track.durable_dir);
    note_all_synced(track.dir);
    track.on = true;
}

static void track_sync(int fd) {
    struct stat st;
    if (!track.on || fstat(fd, &st) != 0 || st.st_dev != track.device) {
        return;
    }
    if (S_ISDIR(st.st_mode)) {
        if (st.st_ino == track.inode) {
            copy_names(track.dir, track.durable_dir);
        }
    } else {
        note_synced(st.st_ino, (uint64_t)st.st_size);
    }
}

static uint64_t draw(uint64_t *random) {
    if (*random == 0) {
        return 0;
    }
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random;
}

/* Copies a file but for some of what was not synced. */
static void cut_file(const char *from, const char *to, uint64_t *random) {
    int in = open(from, O_RDONLY);
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    must(in >= 0 && out >= 0, to);
    struct stat st;
    must(fstat(in, &st) == 0, from);
    const uint64_t size = (uint64_t)st.st_size;
    uint64_t synced = synced_bytes(st.st_ino);
    synced = synced < size ? synced : size;
    const uint64_t kept = synced + draw(random) % (size - synced + 1);
    char *bytes = malloc((size_t)size + 1);
    must(bytes != NULL && pread(in, bytes, (size_t)size, 0) == (ssize_t)size, from);
    const struct synced *lost = noted(st.st_ino);
    for (uint64_t i = lost->lost_from; i < lost->lost_to && i < size; i++) {
        bytes[i] = 0;
    }
    const bool junk = draw(random) % 2 == 1;
    for (uint64_t i = kept; i < size; i++) {
        bytes[i] = (char)draw(random);
    }
    const uint64_t length = junk ? size : kept;
    must(pwrite(out, bytes, (size_t)length, 0) == (ssize_t)length, to);
    free(bytes);
    close(in);
    close(out);
}

static void cut_names(const char *from, const char *to, const char *beside, bool durable,
                      uint64_t *random) {
    DIR *dir = opendir(from);
    must(dir != NULL, from);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char path[PATH_MAX], other[PATH_MAX];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", from, entry->d_name);
        if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) {
            continue;
        }
        snprintf(other, sizeof other, "%s/%s", beside, entry->d_name);
        struct stat there;
        const bool taken = stat(other, &there) == 0;
        /* A rename is atomic: of a name that stands for another file by now, one is there. */
        const bool kept = durable ? taken || draw(random) % 2 == 0
                                  : !(taken && there.st_ino == st.st_ino) && draw(random) % 2 == 1;
        if (kept) {
            snprintf(other, sizeof other, "%s/%s", to, entry->d_name);
            cut_file(path, other, random);
        }
    }
    closedir(dir);
}

void fault_io_power_cut(const char *to, uint64_t random) {
    must(mkdir(to, 0700) == 0, to);
    cut_names(track.durable_dir, to, track.dir, true, &random);
    cut_names(track.dir, to, track.durable_dir, false, &random);
}

/* ------------------------------------------------------------------- calls */

static int fault_openat(int dirfd, const char *path, int flags, mode_t mode) {
    if (fails(FAULT_OPEN, path)) {
        return -1;
    }
    int fd = openat(dirfd, path, flags, mode);
    if (fd >= 0 && fd < FDS) {
        snprintf(fault.fd_name[fd], sizeof fault.fd_name[fd], "%s", path);
    }
    struct stat st;
    if (track.on && fd >= 0 && (flags & O_CREAT) != 0 && fstat(fd, &st) == 0 && st.st_size == 0) {
        note_synced(st.st_ino, 0);
    }
    return fd;
}

static int fault_close(int fd) {
    const bool failing = fails(FAULT_CLOSE, name_of(fd));
    const int err = errno;
    if (track.lose_on_close) {
        lose_unsynced(fd);
    }
    if (fd >= 0 && fd < FDS) {
        fault.fd_name[fd][0] = '\0';
    }
    const int result = close(fd);
    errno = failing ? err : errno;
    return failing ? -1 : result;
}

static ssize_t fault_pread(int fd, void *buf, size_t bytes, off_t off) {
    if (fails(FAULT_PREAD, name_of(fd))) {
        return -1;
    }
    if (fault.bad_end > 0 && (uint64_t)off < fault.bad_end &&
        (uint64_t)off + bytes > fault.bad_from && strstr(name_of(fd), fault.bad_part) != NULL) {
        errno = fault.bad_err;
        return -1;
    }
    const size_t some = shortened(bytes);
    const ssize_t n = some == 0 && bytes > 0 ? -1 : pread(fd, buf, some, off);
    if (n > 0 && fault.flip_at > 0 &&
        (++fault.flip_count == fault.flip_at ||
         (fault.flip_on && fault.flip_count > fault.flip_at))) {
        fault.flipped++;
        ((uint8_t *)buf)[n / 2] ^= 0x40;
    }
    return n;
}

static ssize_t fault_pwrite(int fd, const void *buf, size_t bytes, off_t off) {
    if (fails(FAULT_PWRITE, name_of(fd))) {
        int err = errno;
        must(pwrite(fd, buf, bytes / 2, off) >= 0, "pwrite");
        errno = err;
        return -1;
    }
    const size_t some = shortened(bytes);
    written_again(fd, (uint64_t)off, (uint64_t)off + some);
    return some == 0 && bytes > 0 ? -1 : pwrite(fd, buf, some, off);
}

static int fault_fstat(int fd, struct stat *st) {
    return fails(FAULT_FSTAT, name_of(fd)) ? -1 : fstat(fd, st);
}

static int fault_ftruncate(int fd, off_t length) {
    if (fails(FAULT_FTRUNCATE, name_of(fd))) {
        return -1;
    }
    cut_off(fd, (uint64_t)length);
    return ftruncate(fd, length);
}

/* Nothing is ever truly synced: what counts is what was asked for. */
static int fault_fdatasync(int fd) {
    if (fails(FAULT_FDATASYNC, name_of(fd))) {
        const int err = errno;
        lose_unsynced(fd);
        errno = err;
        return -1;
    }
    track_sync(fd);
    return 0;
}

static int fault_fsync(int fd) {
    if (fails(FAULT_FSYNC, name_of(fd))) {
        const int err = errno;
        lose_unsynced(fd);
        errno = err;
        return -1;
    }
    track_sync(fd);
    return 0;
}

static int fault_mkdir(const char *path, mode_t mode) {
    return fails(FAULT_MKDIR, path) ? -1 : mkdir(path, mode);
}

static int fault_renameat(int olddirfd, const char *oldpath, int newdirfd, const char *newpath) {
    return fails(FAULT_RENAME, oldpath) ? -1 : renameat(olddirfd, oldpath, newdirfd, newpath);
}

static int fault_linkat(int olddirfd, const char *oldpath, int newdirfd, const char *newpath,
                        int flags) {
    return fails(FAULT_LINK, oldpath) ? -1 : linkat(olddirfd, oldpath, newdirfd, newpath, flags);
}

static int fault_unlinkat(int dirfd, const char *path, int flags) {
    return fails(FAULT_UNLINK, path) ? -1 : unlinkat(dirfd, path, flags);
}

static DIR *fault_fdopendir(int fd) {
    return fails(FAULT_LIST, name_of(fd)) ? NULL : fdopendir(fd);
}

static struct dirent *fault_readdir(DIR *dir) {
    return fails(FAULT_LIST, "") ? NULL : readdir(dir);
}

static int fault_fadvise(int fd, off_t off, off_t bytes, int advice) {
    return fails(FAULT_ADVISE, name_of(fd)) ? errno : posix_fadvise(fd, off, bytes, advice);
}

const struct dw_io fault_io = {
    .openat = fault_openat,
    .close = fault_close,
    .pread = fault_pread,
    .pwrite = fault_pwrite,
    .fstat = fault_fstat,
    .ftruncate = fault_ftruncate,
    .fdatasync = fault_fdatasync,
    .fsync = fault_fsync,
    .mkdir = fault_mkdir,
    .renameat = fault_renameat,
    .linkat = fault_linkat,
    .unlinkat = fault_unlinkat,
    .fdopendir = fault_fdopendir,
    .readdir = fault_readdir,
    .closedir = closedir,
    .fadvise = fault_fadvise,
};

/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_FILES_H
#define DW_FILES_H

#include "dw_budget.h"
#include "dw_io.h"

#include <pthread.h>
#include <stdbool.h>

/* The file descriptors of one store, out of a budget that it may share with others: files are
 * opened when they are first needed, the directory too, and the one not used for longest, of
 * whichever store, is closed when there are too many, or when the system has no more. A file in use
 * is pinned, and so never closed under its user; if all are pinned, the limit is passed for as long
 * as that lasts. Time, in the owner's ticks, closes those that nobody needs any more.
 *
 * What was written is synced before its descriptor is closed, as the system tells of a failed
 * write-back only those who had the file open. If that fails, the file says so for as long as it
 * is: a second sync would succeed without what was lost.
 *
 * The budget's lock guards everything here; no system call is made while it is held. The owner's
 * lock may be held where that is not excluded. */

struct dw_files;

struct dw_file {
    struct dw_files *files;        /* NULL: never opened */
    struct dw_file *newer, *older; /* of the store's, in order of use, while open */
    struct dw_file *newer_of_all, *older_of_all;
    uint64_t used;    /* tick of the last use */
    uint64_t written; /* how often */
    uint64_t synced;  /* of these writes, durable */
    int fd;           /* -1: not open */
    int failed;       /* errno of a sync that failed; also read without the lock */
    uint32_t pins;
    bool syncing;
};

struct dw_files {
    const struct dw_io *io;
    pthread_mutex_t *lock; /* the owner's */
    dw_budget *budget;     /* a reference of its own */
    const char *path;      /* of the directory */
    struct dw_file dir;
    dev_t device; /* of the directory when it was first opened; inode 0: it was not */
    ino_t inode;
    uint32_t open; /* also read without the lock */
    uint64_t tick;
    uint64_t unwritten; /* the owner's share in the budget's */
    bool failing;
    struct dw_file *newest, *oldest;
};

/* `path` stays the caller's. Takes a reference to the budget. */
void dw_files_init(struct dw_files *files, const struct dw_io *io, pthread_mutex_t *lock,
                   dw_budget *budget, const char *path);
/* Gives that up; all is closed. */
void dw_files_end(struct dw_files *files);
void dw_file_init(struct dw_file *file);

/* Owner's lock not held: opens `name` if need be (with O_CREAT if `create`) and pins it. The
 * descriptor, which stays valid until dw_files_release(), or -1 and errno. */
int dw_files_acquire(struct dw_files *files, struct dw_file *file, const char *name, int create);
/* The same for the directory; ESTALE if another one is in its place. Released as &files->dir. */
int dw_files_dir(struct dw_files *files);
void dw_files_release(struct dw_file *file);
/* It is pinned, and something of a write to it was done. */
void dw_files_wrote(struct dw_file *file);

/* The directory's descriptor `fd`, which is open, is one of these from now on. 0, or an errno with
 * `fd` still the caller's. */
int dw_files_give_dir(struct dw_files *files, int fd);

/* Owner's lock not held: makes what was written durable. 0, or the errno of the first such call
 * that failed for this file. */
int dw_files_sync(struct dw_files *files, struct dw_file *file);
static inline int dw_file_failed(const struct dw_file *file) {
    return __atomic_load_n(&file->failed, __ATOMIC_RELAXED);
}

/* Owner's lock not held: closes the file, which nobody can acquire any more, as it is. */
void dw_files_forget(struct dw_file *file);
/* The same for all. */
void dw_files_close(struct dw_files *files);
/* Owner's lock not held: a tick has passed; closes files not used in the last `ticks`. */
void dw_files_close_idle(struct dw_files *files, uint64_t ticks);

/* Owner's lock not held: an error of a call that was to open something else. If the system has no
 * descriptor left and one of ours can be closed, it is, and true: try again. */
bool dw_files_make_room(struct dw_files *files, int error);

/* Says how much the owner holds that it could not write, or that it can write. */
void dw_files_unwritten(struct dw_files *files, bool failing, uint64_t bytes);
/* A try to write has failed. */
void dw_files_write_failed(struct dw_files *files);

#endif

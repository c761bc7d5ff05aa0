/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_FILES_H
#define DW_FILES_H

#include "dw_io.h"

#include <pthread.h>

/* The file descriptors of one store: files are opened when they are first needed, and the one not
 * used for longest is closed when there are too many. A file in use is pinned, and so never closed
 * under its user; if all are pinned, the limit is passed for as long as that lasts. Time, in the
 * owner's ticks, closes those that nobody needs any more.
 *
 * The owner's lock guards everything here; no system call is made while it is held. */

struct dw_file {
    struct dw_file *newer, *older; /* in order of use, while open */
    uint64_t used;                 /* tick of the last use */
    int fd;                        /* -1: not open */
    uint32_t pins;
};

struct dw_files {
    const struct dw_io *io;
    pthread_mutex_t *lock;
    int dirfd;
    uint32_t max;
    uint32_t open;
    uint64_t tick;
    struct dw_file *newest, *oldest;
};

void dw_files_init(struct dw_files *files, const struct dw_io *io, pthread_mutex_t *lock, int dirfd,
                   uint32_t max);
void dw_file_init(struct dw_file *file);

/* Lock not held: opens `name` if need be (with O_CREAT if `create`) and pins it. The descriptor,
 * which stays valid until dw_files_release(), or -1 and errno. */
int dw_files_acquire(struct dw_files *files, struct dw_file *file, const char *name, int create);

/* Lock held. */
void dw_files_release(struct dw_file *file);

/* Lock held: takes the descriptor of an unpinned file for the caller to close, -1 if not open. */
int dw_files_detach(struct dw_files *files, struct dw_file *file);

/* Lock held: the descriptor, for the caller to close, of an unpinned file not used in the last
 * `ticks`; -1 if there is none. */
int dw_files_idle(struct dw_files *files, uint64_t ticks);

#endif

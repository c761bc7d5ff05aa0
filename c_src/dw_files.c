/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_files.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>

void dw_files_init(struct dw_files *files, const struct dw_io *io, pthread_mutex_t *lock, int dirfd,
                   uint32_t max) {
    *files = (struct dw_files){.io = io, .lock = lock, .dirfd = dirfd, .max = max};
}

void dw_file_init(struct dw_file *file) {
    *file = (struct dw_file){.fd = -1};
}

static void take_out(struct dw_files *files, struct dw_file *file) {
    *(file->newer != NULL ? &file->newer->older : &files->newest) = file->older;
    *(file->older != NULL ? &file->older->newer : &files->oldest) = file->newer;
    file->newer = NULL;
    file->older = NULL;
}

static void put_first(struct dw_files *files, struct dw_file *file) {
    file->newer = NULL;
    file->older = files->newest;
    *(files->newest != NULL ? &files->newest->newer : &files->oldest) = file;
    files->newest = file;
}

int dw_files_detach(struct dw_files *files, struct dw_file *file) {
    assert(file->pins == 0);
    int fd = file->fd;
    if (fd >= 0) {
        take_out(files, file);
        files->open--;
        file->fd = -1;
    }
    return fd;
}

/* The descriptor of the unpinned file that was not used for longest, -1 if there is room. */
static int evict(struct dw_files *files) {
    if (files->open < files->max) {
        return -1;
    }
    for (struct dw_file *file = files->oldest; file != NULL; file = file->newer) {
        if (file->pins == 0) {
            return dw_files_detach(files, file);
        }
    }
    return -1;
}

int dw_files_idle(struct dw_files *files, uint64_t ticks) {
    for (struct dw_file *file = files->oldest; file != NULL; file = file->newer) {
        if (file->used + ticks > files->tick) {
            return -1;
        }
        if (file->pins == 0) {
            return dw_files_detach(files, file);
        }
    }
    return -1;
}

int dw_files_acquire(struct dw_files *files, struct dw_file *file, const char *name, int create) {
    pthread_mutex_lock(files->lock);
    if (file->fd >= 0) {
        file->pins++;
        file->used = files->tick;
        if (files->newest != file) {
            take_out(files, file);
            put_first(files, file);
        }
        int fd = file->fd;
        pthread_mutex_unlock(files->lock);
        return fd;
    }
    int evicted = evict(files);
    pthread_mutex_unlock(files->lock);
    if (evicted >= 0) {
        files->io->close(evicted);
    }
    int fd = dw_io_open(files->io, files->dirfd, name, O_RDWR | (create ? O_CREAT : 0));
    if (fd < 0) {
        return -1;
    }
    int spare = -1;
    pthread_mutex_lock(files->lock);
    if (file->fd >= 0) {
        /* Another thread was faster. */
        spare = fd;
        fd = file->fd;
    } else {
        file->fd = fd;
        files->open++;
        put_first(files, file);
    }
    file->pins++;
    file->used = files->tick;
    pthread_mutex_unlock(files->lock);
    if (spare >= 0) {
        files->io->close(spare);
    }
    return fd;
}

void dw_files_release(struct dw_file *file) {
    assert(file->pins > 0);
    file->pins--;
}

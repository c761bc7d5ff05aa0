/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_files.h"

#include "dw_invariant.h"

#include <errno.h>
#include <fcntl.h>

/* Two lists, both by last use: a store's files, for closing the idle ones, and all open files of
 * the budget, for closing one of whichever store when there are too many. The budget's lock guards
 * both; what ends in _locked needs that one, and those of them that make system calls let go of it
 * meanwhile. */

/* Files looked at for one that needs no sync before it is closed. */
enum { SEEN_MAX = 64, TRIES_MAX = 16 };

struct dw_budget {
    const struct dw_alloc *alloc;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a file was unpinned, or a sync has ended */
    uint32_t refs;
    struct dw_budget_use use;
    struct dw_file *newest, *oldest;
};

/* ------------------------------------------------------------------ budget */

dw_budget *dw_budget_new(const struct dw_alloc *alloc, uint32_t limit) {
    dw_budget *budget = dw_get(alloc, sizeof *budget);
    if (budget == NULL) {
        return NULL;
    }
    *budget = (dw_budget){.alloc = alloc, .refs = 1, .use.limit = limit};
    if (pthread_mutex_init(&budget->lock, NULL) != 0) {
        dw_release(alloc, budget);
        return NULL;
    }
    if (pthread_cond_init(&budget->changed, NULL) != 0) {
        pthread_mutex_destroy(&budget->lock);
        dw_release(alloc, budget);
        return NULL;
    }
    return budget;
}

void dw_budget_keep(dw_budget *budget) {
    pthread_mutex_lock(&budget->lock);
    budget->refs++;
    pthread_mutex_unlock(&budget->lock);
}

void dw_budget_drop(dw_budget *budget) {
    pthread_mutex_lock(&budget->lock);
    const bool last = --budget->refs == 0;
    pthread_mutex_unlock(&budget->lock);
    if (last) {
        pthread_cond_destroy(&budget->changed);
        pthread_mutex_destroy(&budget->lock);
        dw_release(budget->alloc, budget);
    }
}

void dw_budget_limit(dw_budget *budget, uint32_t limit) {
    pthread_mutex_lock(&budget->lock);
    budget->use.limit = limit;
    pthread_mutex_unlock(&budget->lock);
}

void dw_budget_use(dw_budget *budget, struct dw_budget_use *out) {
    pthread_mutex_lock(&budget->lock);
    *out = budget->use;
    pthread_mutex_unlock(&budget->lock);
}

/* ------------------------------------------------------------------- lists */

void dw_files_init(struct dw_files *files, const struct dw_io *io, pthread_mutex_t *lock,
                   dw_budget *budget, const char *path) {
    *files = (struct dw_files){.io = io, .lock = lock, .budget = budget, .path = path};
    dw_file_init(&files->dir);
    dw_budget_keep(budget);
}

void dw_files_end(struct dw_files *files) {
    dw_files_unwritten(files, false, 0);
    dw_budget_drop(files->budget);
}

void dw_file_init(struct dw_file *file) {
    *file = (struct dw_file){.fd = -1};
}

static void take_out_locked(struct dw_file *file) {
    struct dw_files *files = file->files;
    dw_budget *budget = files->budget;
    *(file->newer != NULL ? &file->newer->older : &files->newest) = file->older;
    *(file->older != NULL ? &file->older->newer : &files->oldest) = file->newer;
    *(file->newer_of_all != NULL ? &file->newer_of_all->older_of_all : &budget->newest) =
        file->older_of_all;
    *(file->older_of_all != NULL ? &file->older_of_all->newer_of_all : &budget->oldest) =
        file->newer_of_all;
}

static void put_first_locked(struct dw_file *file) {
    struct dw_files *files = file->files;
    dw_budget *budget = files->budget;
    file->newer = NULL;
    file->older = files->newest;
    *(files->newest != NULL ? &files->newest->newer : &files->oldest) = file;
    files->newest = file;
    file->newer_of_all = NULL;
    file->older_of_all = budget->newest;
    *(budget->newest != NULL ? &budget->newest->newer_of_all : &budget->oldest) = file;
    budget->newest = file;
}

static void add_locked(struct dw_files *files, struct dw_file *file, int fd) {
    file->files = files;
    file->fd = fd;
    __atomic_store_n(&files->open, files->open + 1, __ATOMIC_RELAXED);
    put_first_locked(file);
}

/* The descriptor, which the caller is to close. It counts until then. */
static int detach_locked(struct dw_file *file) {
    struct dw_files *files = file->files;
    const int fd = file->fd;
    take_out_locked(file);
    file->fd = -1;
    __atomic_store_n(&files->open, files->open - 1, __ATOMIC_RELAXED);
    return fd;
}

static void pin_locked(struct dw_file *file) {
    file->pins++;
    file->used = file->files->tick;
    if (file->files->newest != file || file->files->budget->newest != file) {
        take_out_locked(file);
        put_first_locked(file);
    }
}

static void unpin_locked(struct dw_file *file) {
    file->pins = DW_INVARIANT(file->pins > 0) ? file->pins - 1 : 0;
    if (file->pins == 0) {
        pthread_cond_broadcast(&file->files->budget->changed);
    }
}

/* ----------------------------------------------------------- sync and close
 * The lock is let go of for the system calls. */

static bool needs_sync_locked(const struct dw_file *file) {
    return file->written != file->synced && file->failed == 0;
}

/* The file is open and pinned by the caller. One sync at a time: of two, one alone hears of an
 * error. */
static void sync_pinned_locked(struct dw_file *file) {
    dw_budget *budget = file->files->budget;
    const struct dw_io *io = file->files->io;
    while (file->syncing) {
        pthread_cond_wait(&budget->changed, &budget->lock);
    }
    if (!needs_sync_locked(file)) {
        return;
    }
    const uint64_t written = file->written;
    const int fd = file->fd;
    file->syncing = true;
    pthread_mutex_unlock(&budget->lock);
    int err;
    do {
        err = io->fdatasync(fd) == 0 ? 0 : errno;
    } while (err == EINTR);
    pthread_mutex_lock(&budget->lock);
    file->syncing = false;
    if (err == 0) {
        file->synced = written;
    } else {
        budget->use.lost_on_closing++;
        __atomic_store_n(&file->failed, err, __ATOMIC_RELAXED);
    }
    pthread_cond_broadcast(&budget->changed);
}

static void close_detached_locked(dw_budget *budget, const struct dw_io *io, int fd) {
    pthread_mutex_unlock(&budget->lock);
    io->close(fd); /* what was written is durable or given up: there is nothing left to fail */
    pthread_mutex_lock(&budget->lock);
    budget->use.open--;
}

/* Syncs and closes an unpinned file, unless somebody comes to need it meanwhile. */
static void sync_and_close_locked(struct dw_file *file) {
    dw_budget *budget = file->files->budget;
    const struct dw_io *io = file->files->io;
    if (needs_sync_locked(file)) {
        file->pins++;
        sync_pinned_locked(file);
        unpin_locked(file);
    }
    if (file->pins == 0 && file->fd >= 0 && !needs_sync_locked(file)) {
        close_detached_locked(budget, io, detach_locked(file));
    }
}

/* Closes the file that was not used for longest, or a little less long if that saves a sync. False:
 * all are in use. */
static bool close_one_locked(dw_budget *budget) {
    struct dw_file *victim = NULL;
    uint32_t seen = 0;
    for (struct dw_file *file = budget->oldest; file != NULL && seen < SEEN_MAX;
         file = file->newer_of_all) {
        if (file->pins > 0) {
            continue;
        }
        seen++;
        if (!needs_sync_locked(file)) {
            victim = file;
            break;
        }
        victim = victim == NULL ? file : victim;
    }
    if (victim == NULL) {
        return false;
    }
    sync_and_close_locked(victim);
    return true;
}

bool dw_files_make_room(struct dw_files *files, int error) {
    if (error != EMFILE && error != ENFILE) {
        return false;
    }
    pthread_mutex_lock(&files->budget->lock);
    const bool made = close_one_locked(files->budget);
    pthread_mutex_unlock(&files->budget->lock);
    return made;
}

bool dw_budget_borrow(dw_budget *budget) {
    pthread_mutex_lock(&budget->lock);
    while (budget->use.open >= budget->use.limit && close_one_locked(budget)) {
    }
    const bool one = budget->use.open < budget->use.limit;
    budget->use.open += one ? 1 : 0;
    pthread_mutex_unlock(&budget->lock);
    return one;
}

void dw_budget_give_back(dw_budget *budget) {
    pthread_mutex_lock(&budget->lock);
    budget->use.open -= DW_INVARIANT(budget->use.open > 0) ? 1 : 0;
    pthread_mutex_unlock(&budget->lock);
    /* It is no store's, as this is no call of one. */
    dw_broken_forget();
}

/* Opens with a descriptor out of the budget: it, or -1 and errno. */
static int open_counted(dw_budget *budget, const struct dw_io *io, int dirfd, const char *name,
                        int flags) {
    for (int tries = 0;; tries++) {
        pthread_mutex_lock(&budget->lock);
        while (budget->use.open >= budget->use.limit && close_one_locked(budget)) {
        }
        budget->use.open++;
        pthread_mutex_unlock(&budget->lock);
        const int fd = dw_io_open(io, dirfd, name, flags);
        if (fd >= 0) {
            return fd;
        }
        const int err = errno;
        pthread_mutex_lock(&budget->lock);
        budget->use.open--;
        const bool again =
            (err == EMFILE || err == ENFILE) && tries < TRIES_MAX && close_one_locked(budget);
        pthread_mutex_unlock(&budget->lock);
        if (!again) {
            errno = err;
            return -1;
        }
    }
}

/* ------------------------------------------------------------------- files */

/* Pins it if it is open: its descriptor, or -1. */
static int pin_open(struct dw_files *files, struct dw_file *file) {
    pthread_mutex_lock(&files->budget->lock);
    const int fd = file->fd;
    if (fd >= 0) {
        pin_locked(file);
    }
    pthread_mutex_unlock(&files->budget->lock);
    return fd;
}

/* What was just opened is the file's, unless another thread was faster. Pinned. */
static int pin_opened(struct dw_files *files, struct dw_file *file, int fd) {
    dw_budget *budget = files->budget;
    pthread_mutex_lock(&budget->lock);
    int spare = -1;
    if (file->fd >= 0) {
        spare = fd;
    } else {
        add_locked(files, file, fd);
    }
    pin_locked(file);
    fd = file->fd;
    if (spare >= 0) {
        close_detached_locked(budget, files->io, spare);
    }
    pthread_mutex_unlock(&budget->lock);
    return fd;
}

int dw_files_acquire(struct dw_files *files, struct dw_file *file, const char *name, int create) {
    if (dw_broken_note() != NULL) {
        errno = EIO;
        return -1;
    }
    int fd = pin_open(files, file);
    if (fd >= 0) {
        return fd;
    }
    const int dirfd = dw_files_dir(files);
    if (dirfd < 0) {
        return -1;
    }
    fd = open_counted(files->budget, files->io, dirfd, name, O_RDWR | (create ? O_CREAT : 0));
    const int err = errno;
    dw_files_release(&files->dir);
    errno = err;
    return fd < 0 ? -1 : pin_opened(files, file, fd);
}

/* Is it the directory that it was? 0, or an errno. */
static int check_dir(struct dw_files *files, int fd) {
    struct stat st;
    if (files->io->fstat(fd, &st) != 0) {
        return errno;
    }
    pthread_mutex_lock(&files->budget->lock);
    if (files->inode == 0) {
        files->device = st.st_dev;
        files->inode = st.st_ino;
    }
    const bool same = files->device == st.st_dev && files->inode == st.st_ino;
    pthread_mutex_unlock(&files->budget->lock);
    return same ? 0 : ESTALE;
}

int dw_files_dir(struct dw_files *files) {
    int fd = pin_open(files, &files->dir);
    if (fd >= 0) {
        return fd;
    }
    fd = open_counted(files->budget, files->io, AT_FDCWD, files->path, O_RDONLY | O_DIRECTORY);
    if (fd < 0) {
        return -1;
    }
    const int err = check_dir(files, fd);
    if (err != 0) {
        pthread_mutex_lock(&files->budget->lock);
        close_detached_locked(files->budget, files->io, fd);
        pthread_mutex_unlock(&files->budget->lock);
        errno = err;
        return -1;
    }
    return pin_opened(files, &files->dir, fd);
}

int dw_files_give_dir(struct dw_files *files, int fd) {
    const int err = check_dir(files, fd);
    if (err == 0) {
        pthread_mutex_lock(&files->budget->lock);
        files->budget->use.open++;
        add_locked(files, &files->dir, fd);
        pthread_mutex_unlock(&files->budget->lock);
    }
    return err;
}

void dw_files_release(struct dw_file *file) {
    pthread_mutex_t *lock = &file->files->budget->lock;
    pthread_mutex_lock(lock);
    unpin_locked(file);
    pthread_mutex_unlock(lock);
}

void dw_files_wrote(struct dw_file *file) {
    pthread_mutex_t *lock = &file->files->budget->lock;
    pthread_mutex_lock(lock);
    file->written++;
    pthread_mutex_unlock(lock);
}

int dw_files_sync(struct dw_files *files, struct dw_file *file) {
    pthread_mutex_lock(&files->budget->lock);
    if (needs_sync_locked(file)) {
        /* What needs one is open. */
        file->pins++;
        sync_pinned_locked(file);
        unpin_locked(file);
    }
    const int err = file->failed;
    pthread_mutex_unlock(&files->budget->lock);
    return err;
}

/* Waits until nobody uses it, and closes it. */
static void close_unused_locked(struct dw_file *file) {
    dw_budget *budget = file->files->budget;
    while (file->pins > 0) {
        pthread_cond_wait(&budget->changed, &budget->lock);
    }
    if (file->fd >= 0) {
        close_detached_locked(budget, file->files->io, detach_locked(file));
    }
}

void dw_files_forget(struct dw_file *file) {
    if (file->files != NULL) {
        dw_budget *budget = file->files->budget;
        pthread_mutex_lock(&budget->lock);
        close_unused_locked(file);
        pthread_mutex_unlock(&budget->lock);
    }
}

void dw_files_close(struct dw_files *files) {
    pthread_mutex_lock(&files->budget->lock);
    while (files->newest != NULL) {
        close_unused_locked(files->newest);
    }
    pthread_mutex_unlock(&files->budget->lock);
}

void dw_files_close_idle(struct dw_files *files, uint64_t ticks) {
    pthread_mutex_lock(&files->budget->lock);
    files->tick++;
    for (;;) {
        struct dw_file *file = files->oldest;
        while (file != NULL && file->pins > 0) {
            file = file->newer;
        }
        if (file == NULL || file->used + ticks > files->tick) {
            break;
        }
        sync_and_close_locked(file);
    }
    pthread_mutex_unlock(&files->budget->lock);
}

/* ------------------------------------------------------- what is not written */

void dw_files_unwritten(struct dw_files *files, bool failing, uint64_t bytes) {
    if (!failing && !files->failing) {
        return;
    }
    struct dw_budget_use *use = &files->budget->use;
    pthread_mutex_lock(&files->budget->lock);
    use->failing = use->failing - files->failing + failing;
    use->unwritten = use->unwritten - files->unwritten + (failing ? bytes : 0);
    files->failing = failing;
    files->unwritten = failing ? bytes : 0;
    pthread_mutex_unlock(&files->budget->lock);
}

void dw_files_write_failed(struct dw_files *files) {
    pthread_mutex_lock(&files->budget->lock);
    files->budget->use.failed_writes++;
    pthread_mutex_unlock(&files->budget->lock);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_lease.h"

#include "dw_io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

/* Longer than other files are, as it is one structure: what opens, fences, restores and ends has
 * its locks and counts in common.
 *
 * How a lease ends. `refs` counts who can name it. At 0 it is ending: put on a list that a thread
 * of its own works through, closing the store and then, if still nobody names it, taking the lease
 * off its directory and freeing it. Until then the directory's list still shows it, so that an
 * opening which comes meanwhile finds it, takes a reference (refs may go from 0 to 1: what is
 * listed is never freed without the lock), and waits for its closing as for any other's.
 *
 * Locks, in this order: directory.opening (held over an opening, files and all), lease.closing
 * (held over a closing), leases.lock (a few instructions). */

#define FOREIGN_LOCK_WAIT_MS 2000
#define FOREIGN_LOCK_STEP_MS 10

struct directory {
    struct directory *next;
    dw_lease *open; /* its leases, closed ones too while somebody names them */
    unsigned users; /* leases, and openings under way */
    pthread_mutex_t opening;
    char path[];
};

/* A directory that is locked for all stores below it. */
struct root {
    struct root *next;
    unsigned users; /* its claim, and the stores that are open */
    int fd;
    char path[];
};

struct dw_lease {
    dw_lease *next; /* of its directory */
    dw_lease *next_ending;
    dw_leases *leases;
    struct directory *directory;
    unsigned refs;
    bool ending;
    pthread_mutex_t closing;
    atomic_bool closed;
    atomic_bool writing;
    int lock_fd; /* -1: the file system has no locks, it was given back, or `root` has it */
    struct root *root;
    dw_store *store;
    void *log_ctx;
    dw_checkpoint *checkpoint; /* NULL: none is begun */
    uint64_t number;           /* of the last one begun */
    bool checkpoint_busy;      /* it is being begun or finished */
};

struct dw_leases {
    const struct dw_alloc *alloc;
    pthread_mutex_t lock;
    unsigned refs; /* its owners, its leases, and the thread that ends them */
    struct directory *directories;
    dw_budget *budget;
    bool (*is_gone)(void); /* NULL: whoever calls stays */
    struct root *root;     /* what is claimed at present */
    struct root *roots;    /* and those that stores still use */
    dw_lease *ending;
    bool reaping;
};

dw_leases *dw_leases_new(const struct dw_alloc *alloc) {
    dw_leases *leases = dw_get(alloc, sizeof *leases);
    if (leases == NULL) {
        return NULL;
    }
    *leases = (dw_leases){.alloc = alloc, .refs = 1};
    leases->budget = dw_budget_new(alloc, UINT32_MAX);
    if (leases->budget == NULL || pthread_mutex_init(&leases->lock, NULL) != 0) {
        if (leases->budget != NULL) {
            dw_budget_drop(leases->budget);
        }
        dw_release(alloc, leases);
        return NULL;
    }
    return leases;
}

dw_budget *dw_leases_budget(const dw_leases *leases) {
    return leases->budget;
}

void dw_leases_ask(dw_leases *leases, bool (*is_gone)(void)) {
    leases->is_gone = is_gone;
}

void dw_leases_keep(dw_leases *leases) {
    pthread_mutex_lock(&leases->lock);
    ++leases->refs;
    pthread_mutex_unlock(&leases->lock);
}

void dw_leases_drop(dw_leases *leases) {
    pthread_mutex_lock(&leases->lock);
    bool last = --leases->refs == 0;
    pthread_mutex_unlock(&leases->lock);
    if (last) {
        dw_leases_give_back(leases);
        dw_budget_drop(leases->budget);
        pthread_mutex_destroy(&leases->lock);
        dw_release(leases->alloc, leases);
    }
}

/* ------------------------------------------------------------------ directories */

/* Makes `dir`, durably, if it is missing, and gives its one true name. */
static int true_path(const char *dir, char path[PATH_MAX], int *os_error) {
    if (realpath(dir, path) == NULL) {
        int fd = errno == ENOENT ? dw_io_open_dir(&dw_io_posix, dir, 1) : -1;
        int result = fd < 0 ? dw_io_error(errno) : DW_OK;
        if (fd >= 0) {
            close(fd);
            if (realpath(dir, path) == NULL) {
                result = dw_io_error(errno);
            }
        }
        *os_error = dw_store_errno();
        return result;
    }
    return DW_OK;
}

static struct directory *directory_use(dw_leases *leases, const char *path) {
    pthread_mutex_lock(&leases->lock);
    struct directory *d = leases->directories;
    while (d != NULL && strcmp(d->path, path) != 0) {
        d = d->next;
    }
    if (d == NULL) {
        size_t length = strlen(path) + 1;
        d = dw_get(leases->alloc, sizeof *d + length);
        if (d != NULL && pthread_mutex_init(&d->opening, NULL) != 0) {
            dw_release(leases->alloc, d);
            d = NULL;
        }
        if (d != NULL) {
            d->open = NULL;
            d->users = 0;
            memcpy(d->path, path, length);
            d->next = leases->directories;
            leases->directories = d;
        }
    }
    if (d != NULL) {
        ++d->users;
    }
    pthread_mutex_unlock(&leases->lock);
    return d;
}

/* With leases->lock held. */
static void directory_leave_locked(dw_leases *leases, struct directory *d) {
    if (--d->users > 0) {
        return;
    }
    struct directory **at = &leases->directories;
    while (*at != d) {
        at = &(*at)->next;
    }
    *at = d->next;
    pthread_mutex_destroy(&d->opening);
    dw_release(leases->alloc, d);
}

static void directory_leave(dw_leases *leases, struct directory *d) {
    pthread_mutex_lock(&leases->lock);
    directory_leave_locked(leases, d);
    pthread_mutex_unlock(&leases->lock);
}

/* Closes whatever is open there. With d->opening held, so nothing new comes. */
static void directory_fence(dw_leases *leases, struct directory *d) {
    for (;;) {
        pthread_mutex_lock(&leases->lock);
        dw_lease *lease = d->open;
        while (lease != NULL && atomic_load(&lease->closed)) {
            lease = lease->next;
        }
        if (lease != NULL) {
            ++lease->refs;
        }
        pthread_mutex_unlock(&leases->lock);
        if (lease == NULL) {
            return;
        }
        dw_lease_close(lease);
        dw_lease_drop(lease);
    }
}

/* Takes the directory's lock against other processes. A lock that goes away by itself is waited
 * for: that of a process which is just ending, or of another copy of this library in this one. */
static int directory_lock(const char *path, int *fd, int *os_error) {
    *fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0) {
        *os_error = errno;
        return dw_io_error(errno);
    }
    for (int waited = 0; flock(*fd, LOCK_EX | LOCK_NB) != 0; waited += FOREIGN_LOCK_STEP_MS) {
        int why = errno;
        if (why == EINTR) {
            continue;
        }
        if (why != EWOULDBLOCK || waited >= FOREIGN_LOCK_WAIT_MS) {
            close(*fd);
            *fd = -1;
            *os_error = why;
            return why == EWOULDBLOCK ? DW_EACCES : DW_OK;
        }
        nanosleep(&(struct timespec){.tv_nsec = FOREIGN_LOCK_STEP_MS * 1000000L}, NULL);
    }
    return DW_OK;
}

/* With leases->lock held: the descriptor that the caller is to close, or -1. */
static int root_leave_locked(dw_leases *leases, struct root *root) {
    if (--root->users > 0) {
        return -1;
    }
    struct root **at = &leases->roots;
    while (*at != root) {
        at = &(*at)->next;
    }
    *at = root->next;
    const int fd = root->fd;
    dw_release(leases->alloc, root);
    return fd;
}

static void root_leave(dw_leases *leases, struct root *root) {
    pthread_mutex_lock(&leases->lock);
    const int fd = root_leave_locked(leases, root);
    pthread_mutex_unlock(&leases->lock);
    if (fd >= 0) {
        close(fd);
    }
}

/* What is claimed, if `path` is below it; to be left. */
static struct root *root_use(dw_leases *leases, const char *path) {
    pthread_mutex_lock(&leases->lock);
    struct root *root = leases->root;
    const size_t length = root == NULL ? 0 : strlen(root->path);
    if (root != NULL && strncmp(path, root->path, length) == 0 && path[length] == '/') {
        root->users++;
    } else {
        root = NULL;
    }
    pthread_mutex_unlock(&leases->lock);
    return root;
}

int dw_leases_claim(dw_leases *leases, const char *dir, int *os_error) {
    char path[PATH_MAX];
    if (realpath(dir, path) == NULL) {
        *os_error = errno;
        return dw_io_error(errno);
    }
    pthread_mutex_lock(&leases->lock);
    const bool same = leases->root != NULL && strcmp(leases->root->path, path) == 0;
    pthread_mutex_unlock(&leases->lock);
    if (same) {
        return DW_OK;
    }
    dw_leases_give_back(leases);
    const size_t length = strlen(path) + 1;
    struct root *root = dw_get(leases->alloc, sizeof *root + length);
    if (root == NULL) {
        return DW_ENOMEM;
    }
    *root = (struct root){.users = 1};
    memcpy(root->path, path, length);
    /* Stores that an earlier claim was for may still have it. */
    pthread_mutex_lock(&leases->lock);
    for (struct root *other = leases->roots; other != NULL; other = other->next) {
        if (strcmp(other->path, path) == 0) {
            other->users++;
            leases->root = other;
        }
    }
    const bool kept = leases->root != NULL;
    pthread_mutex_unlock(&leases->lock);
    int result = kept ? DW_OK : directory_lock(path, &root->fd, os_error);
    if (kept || result != DW_OK) {
        dw_release(leases->alloc, root);
        return result;
    }
    pthread_mutex_lock(&leases->lock);
    root->next = leases->roots;
    leases->roots = root;
    leases->root = root;
    pthread_mutex_unlock(&leases->lock);
    return DW_OK;
}

void dw_leases_give_back(dw_leases *leases) {
    pthread_mutex_lock(&leases->lock);
    struct root *root = leases->root;
    leases->root = NULL;
    const int fd = root == NULL ? -1 : root_leave_locked(leases, root);
    pthread_mutex_unlock(&leases->lock);
    if (fd >= 0) {
        close(fd);
    }
}

/* ----------------------------------------------------------------------- leases */

dw_store *dw_lease_store(const dw_lease *lease) {
    return lease->store;
}

bool dw_lease_closed(const dw_lease *lease) {
    return atomic_load(&lease->closed);
}

void dw_lease_close(dw_lease *lease) {
    pthread_mutex_lock(&lease->closing);
    if (!atomic_load(&lease->closed)) {
        dw_store_close(lease->store);
        if (lease->lock_fd >= 0) {
            close(lease->lock_fd);
            lease->lock_fd = -1;
        }
        if (lease->root != NULL) {
            root_leave(lease->leases, lease->root);
            lease->root = NULL;
        }
        atomic_store(&lease->closed, true);
    }
    pthread_mutex_unlock(&lease->closing);
}

/* Nobody names it and it is on no list. */
static void lease_free(dw_lease *lease) {
    const struct dw_alloc *alloc = lease->leases->alloc;
    dw_checkpoint_release(lease->checkpoint);
    dw_store_release(lease->store);
    if (lease->log_ctx != NULL) {
        dw_release(alloc, lease->log_ctx);
    }
    pthread_mutex_destroy(&lease->closing);
    dw_release(alloc, lease);
}

static void *reap(void *arg) {
    dw_leases *leases = arg;
    pthread_mutex_lock(&leases->lock);
    while (leases->ending != NULL) {
        dw_lease *lease = leases->ending;
        leases->ending = lease->next_ending;
        lease->ending = false;
        ++lease->refs;
        pthread_mutex_unlock(&leases->lock);

        dw_lease_close(lease);

        pthread_mutex_lock(&leases->lock);
        if (--lease->refs > 0) {
            continue; /* an opening has it; its drop puts it there again */
        }
        dw_lease **at = &lease->directory->open;
        while (*at != lease) {
            at = &(*at)->next;
        }
        *at = lease->next;
        directory_leave_locked(leases, lease->directory);
        pthread_mutex_unlock(&leases->lock);
        lease_free(lease);
        dw_leases_drop(leases);
        pthread_mutex_lock(&leases->lock);
    }
    leases->reaping = false;
    pthread_mutex_unlock(&leases->lock);
    dw_leases_drop(leases);
    return NULL;
}

/* Signals are the Erlang VM's business: the thread gets none. */
static int start_reaping(dw_leases *leases) {
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    if (pthread_attr_init(&attributes) != 0) {
        return -1;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) ||
                 pthread_create(&thread, &attributes, reap, leases);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return failed ? -1 : 0;
}

void dw_lease_keep(dw_lease *lease) {
    pthread_mutex_lock(&lease->leases->lock);
    ++lease->refs;
    pthread_mutex_unlock(&lease->leases->lock);
}

void dw_lease_drop(dw_lease *lease) {
    dw_leases *leases = lease->leases;
    bool start = false;
    pthread_mutex_lock(&leases->lock);
    if (--lease->refs == 0 && !lease->ending) {
        lease->ending = true;
        lease->next_ending = leases->ending;
        leases->ending = lease;
        if (!leases->reaping) {
            leases->reaping = start = true;
            ++leases->refs;
        }
    }
    pthread_mutex_unlock(&leases->lock);
    if (start && start_reaping(leases) != 0) {
        reap(leases); /* no thread to be had: late is better than never */
    }
}

/* With the directory's opening lock, and everything in it closed. */
static int lease_make_locked(dw_leases *leases, struct directory *d, const struct dw_config *config,
                             dw_lease **out, struct dw_recovery *report, int *os_error) {
    dw_lease *lease = dw_get(leases->alloc, sizeof *lease);
    if (lease == NULL) {
        return DW_ENOMEM;
    }
    *lease = (dw_lease){
        .leases = leases, .directory = d, .refs = 1, .lock_fd = -1, .log_ctx = config->log_ctx};
    if (pthread_mutex_init(&lease->closing, NULL) != 0) {
        dw_release(leases->alloc, lease);
        return DW_ENOMEM;
    }
    lease->root = root_use(leases, d->path);
    int result = lease->root != NULL ? DW_OK : directory_lock(d->path, &lease->lock_fd, os_error);
    if (result == DW_OK) {
        result = dw_store_open(d->path, config, &lease->store, report);
        *os_error = dw_store_errno();
    }
    if (result != DW_OK) {
        if (lease->lock_fd >= 0) {
            close(lease->lock_fd);
        }
        if (lease->root != NULL) {
            root_leave(leases, lease->root);
        }
        pthread_mutex_destroy(&lease->closing);
        dw_release(leases->alloc, lease);
        return result;
    }
    pthread_mutex_lock(&leases->lock);
    ++leases->refs;
    lease->next = d->open;
    d->open = lease;
    pthread_mutex_unlock(&leases->lock);
    *out = lease;
    return DW_OK;
}

/* A caller that has gone must not fence: its successor may have opened meanwhile. */
static int fence_locked(dw_leases *leases, struct directory *d) {
    if (leases->is_gone != NULL && leases->is_gone()) {
        return DW_ECLOSED;
    }
    directory_fence(leases, d);
    return DW_OK;
}

int dw_lease_open(dw_leases *leases, const char *dir, const struct dw_config *config,
                  dw_lease **out, struct dw_recovery *report, int *os_error) {
    char path[PATH_MAX];
    struct directory *d = NULL;
    int result = true_path(dir, path, os_error);
    if (result == DW_OK && (d = directory_use(leases, path)) == NULL) {
        result = DW_ENOMEM;
    }
    if (result == DW_OK) {
        pthread_mutex_lock(&d->opening);
        result = fence_locked(leases, d);
        if (result == DW_OK) {
            result = lease_make_locked(leases, d, config, out, report, os_error);
        }
        pthread_mutex_unlock(&d->opening);
        if (result != DW_OK) {
            directory_leave(leases, d);
        }
    }
    if (result != DW_OK && config->log_ctx != NULL) {
        dw_release(leases->alloc, config->log_ctx);
    }
    return result;
}

static int restore_locked(dw_leases *leases, struct directory *d, const char *snapshot_dir,
                          int *os_error) {
    int fd = -1;
    struct root *root = root_use(leases, d->path);
    int result = root != NULL ? DW_OK : directory_lock(d->path, &fd, os_error);
    if (result == DW_OK) {
        result = dw_store_restore(d->path, snapshot_dir);
        *os_error = dw_store_errno();
    }
    if (fd >= 0) {
        close(fd);
    }
    if (root != NULL) {
        root_leave(leases, root);
    }
    return result;
}

int dw_lease_restore(dw_leases *leases, const char *dir, const char *snapshot_dir, int *os_error) {
    char path[PATH_MAX];
    int result = true_path(dir, path, os_error);
    if (result != DW_OK) {
        return result;
    }
    struct directory *d = directory_use(leases, path);
    if (d == NULL) {
        return DW_ENOMEM;
    }
    pthread_mutex_lock(&d->opening);
    result = fence_locked(leases, d);
    if (result == DW_OK) {
        result = restore_locked(leases, d, snapshot_dir, os_error);
    }
    pthread_mutex_unlock(&d->opening);
    directory_leave(leases, d);
    return result;
}

bool dw_lease_write_begin(dw_lease *lease) {
    return !atomic_exchange_explicit(&lease->writing, true, memory_order_acquire);
}

void dw_lease_write_end(dw_lease *lease) {
    atomic_store_explicit(&lease->writing, false, memory_order_release);
}

/* ------------------------------------------------------------------ checkpoints */

int dw_lease_checkpoint(dw_lease *lease, uint64_t *number, uint64_t *applied, int *os_error) {
    dw_leases *leases = lease->leases;
    pthread_mutex_lock(&leases->lock);
    bool busy = lease->checkpoint_busy;
    dw_checkpoint *older = busy ? NULL : lease->checkpoint;
    if (!busy) {
        lease->checkpoint_busy = true;
        lease->checkpoint = NULL;
    }
    pthread_mutex_unlock(&leases->lock);
    if (busy) {
        return DW_EBUSY;
    }
    dw_checkpoint_release(older);
    dw_checkpoint *checkpoint = NULL;
    int result = dw_store_checkpoint(lease->store, &checkpoint);
    if (result == DW_OK) {
        *applied = dw_checkpoint_applied(checkpoint);
    } else {
        *os_error = dw_store_errno();
    }
    pthread_mutex_lock(&leases->lock);
    lease->checkpoint_busy = false;
    if (result == DW_OK) {
        lease->checkpoint = checkpoint;
        *number = ++lease->number;
    }
    pthread_mutex_unlock(&leases->lock);
    return result;
}

int dw_lease_finish(dw_lease *lease, uint64_t number, const char *snapshot_dir, int *os_error) {
    dw_leases *leases = lease->leases;
    dw_checkpoint *checkpoint = NULL;
    int result = DW_OK;
    pthread_mutex_lock(&leases->lock);
    if (number != lease->number || (lease->checkpoint == NULL && !lease->checkpoint_busy)) {
        result = DW_ENOENT;
    } else if (lease->checkpoint_busy) {
        result = DW_EBUSY;
    } else {
        lease->checkpoint_busy = true;
        checkpoint = lease->checkpoint;
        lease->checkpoint = NULL;
    }
    pthread_mutex_unlock(&leases->lock);
    if (result != DW_OK) {
        return result;
    }
    result = dw_checkpoint_finish(checkpoint, snapshot_dir);
    if (result != DW_OK) {
        *os_error = dw_store_errno();
    }
    dw_checkpoint_release(checkpoint);
    pthread_mutex_lock(&leases->lock);
    lease->checkpoint_busy = false;
    pthread_mutex_unlock(&leases->lock);
    return result;
}

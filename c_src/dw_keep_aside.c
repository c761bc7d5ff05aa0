/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_fetch.h"

#include "dw_crc32c.h"
#include "dw_le.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Keeping damaged records aside, in the file DW_KEPT_NAME, before they are settled. One call at a
 * time; the file is its own, and durable when it returns. */

enum { KEPT_HEADER = 64, KEPT_UNIT = 8 };

/* Corrupt records on their way into the file. */
struct keeping {
    struct dw_fetch fetch; /* of one */
    uint64_t now_ms;
    struct dw_file file;
    int fd;
    uint64_t from; /* the file's length before; UINT64_MAX: not known */
    uint64_t end;  /* and now */
    uint32_t count;
};

static int open_kept(struct dw_store *store, struct keeping *keeping) {
    struct stat st;
    dw_file_init(&keeping->file);
    keeping->fd = dw_files_acquire(&store->files, &keeping->file, DW_KEPT_NAME, 1);
    if (keeping->fd < 0) {
        return dw_io_error(errno);
    }
    if (store->io->fstat(keeping->fd, &st) != 0) {
        keeping->from = UINT64_MAX;
        return dw_io_error(errno);
    }
    keeping->from = (uint64_t)st.st_size;
    keeping->end = (keeping->from + KEPT_UNIT - 1) / KEPT_UNIT * KEPT_UNIT;
    return DW_OK;
}

static int sync_kept(struct dw_store *store, const struct keeping *keeping) {
    if (store->io->fdatasync(keeping->fd) != 0) {
        return dw_io_error(errno);
    }
    /* Its name may be what an earlier call could not make durable. */
    if (keeping->from > 0 && store->kept_named) {
        return DW_OK;
    }
    const int dirfd = dw_files_dir(&store->files);
    if (dirfd < 0) {
        return dw_io_error(errno);
    }
    const int result = store->io->fsync(dirfd) == 0 ? DW_OK : dw_io_error(errno);
    store->kept_named = result == DW_OK;
    dw_files_release(&store->files.dir);
    return result;
}

static int close_kept(struct dw_store *store, struct keeping *keeping, int result) {
    if (result == DW_OK) {
        result = sync_kept(store, keeping);
    }
    if (keeping->fd >= 0) {
        /* What a failed call has left of it is passed over by whoever reads it; best is none. */
        if (result != DW_OK && keeping->from != UINT64_MAX) {
            (void)store->io->ftruncate(keeping->fd, (off_t)keeping->from);
        }
        dw_files_release(&keeping->file);
        dw_files_forget(&keeping->file);
    }
    return result;
}

static bool is_whole(const struct dw_wanted *wanted, const uint8_t *bytes, size_t there) {
    struct dw_rec_header header;
    return there == DW_REC_HEADER + (size_t)wanted->record.length &&
           dw_rec_decode(bytes, &header) && header.id == wanted->record.id &&
           header.length == wanted->record.length &&
           dw_crc32c(0, bytes + DW_REC_HEADER, header.length) == header.body_crc;
}

/* What there is of a record: its bytes, at most those that it should have, read once more if they
 * are not what was written. *there: how many. */
static int read_raw(struct dw_fetch *fetch, const struct dw_wanted *wanted, uint8_t *to,
                    size_t *there) {
    const struct dw_io *io = fetch->store->io;
    const size_t bytes = DW_REC_HEADER + (size_t)wanted->record.length;
    if (wanted->buf != NULL) {
        memcpy(to, wanted->buf->bytes + (wanted->off - wanted->buf->base), bytes);
        *there = bytes;
        return DW_OK;
    }
    const int fd = dw_fetch_descriptor(fetch, wanted->partition);
    if (fd < 0) {
        return dw_io_error(fetch->fd_err);
    }
    for (int i = 0; i < 2; i++) {
        if (i > 0) {
            dw_io_forget(io, fd, wanted->off, bytes);
        }
        const ssize_t n = dw_io_read(io, fd, to, bytes, wanted->off);
        if (n < 0) {
            return dw_io_error(errno);
        }
        *there = (size_t)n;
        if (is_whole(wanted, to, *there)) {
            break;
        }
    }
    return DW_OK;
}

static int write_kept(struct keeping *keeping, const struct dw_wanted *wanted, uint8_t *entry,
                      const char *name, size_t there) {
    static const uint8_t magic[4] = {'D', 'W', 'K', '1'};
    const size_t name_bytes = strlen(name);
    const size_t bytes = KEPT_HEADER + name_bytes + there;
    const size_t padded = (bytes + KEPT_UNIT - 1) / KEPT_UNIT * KEPT_UNIT;
    memset(entry, 0, KEPT_HEADER);
    memcpy(entry, magic, sizeof magic);
    dw_le64_put(entry + 8, keeping->now_ms);
    dw_le64_put(entry + 16, wanted->record.id);
    dw_le64_put(entry + 24, wanted->record.due);
    dw_le64_put(entry + 32, wanted->record.key_hash);
    dw_le64_put(entry + 40, wanted->off);
    dw_le32_put(entry + 48, wanted->record.length);
    dw_le32_put(entry + 52, (uint32_t)there);
    dw_le32_put(entry + 56, (uint32_t)name_bytes);
    memmove(entry + KEPT_HEADER + name_bytes, entry + KEPT_HEADER + DW_FILE_NAME_BYTES, there);
    memcpy(entry + KEPT_HEADER, name, name_bytes);
    memset(entry + bytes, 0, padded - bytes);
    dw_le32_put(entry + 4, dw_crc32c(0, entry + 8, bytes - 8));
    if (dw_io_write(keeping->fetch.store->io, keeping->fd, entry, padded, keeping->end) != 0) {
        return dw_io_error(errno);
    }
    keeping->end += padded;
    return DW_OK;
}

static int keep_one(struct keeping *keeping, bool *kept) {
    const struct dw_wanted *wanted = &keeping->fetch.wanted[0];
    const struct dw_alloc *alloc = keeping->fetch.store->alloc;
    const struct dw_partition *partition = wanted->partition;
    char name[DW_FILE_NAME_BYTES];
    dw_partition_file_name(partition, DW_FILE_REC, name);
    /* Where the bytes are read to there is room for the longest name before them. */
    uint8_t *entry = dw_get(alloc, KEPT_HEADER + DW_FILE_NAME_BYTES + DW_REC_HEADER +
                                       (size_t)wanted->record.length + KEPT_UNIT);
    size_t there = 0;
    if (entry == NULL) {
        return DW_ENOMEM;
    }
    int result =
        read_raw(&keeping->fetch, wanted, entry + KEPT_HEADER + DW_FILE_NAME_BYTES, &there);
    const bool whole = is_whole(wanted, entry + KEPT_HEADER + DW_FILE_NAME_BYTES, there);
    if (result == DW_OK && !whole) {
        result = write_kept(keeping, wanted, entry, name, there);
        *kept = result == DW_OK;
        keeping->count += *kept;
    }
    dw_release(alloc, entry);
    return result;
}

static int keep_all(struct keeping *keeping, const uint64_t *ids, uint32_t n, bool *kept) {
    struct dw_store *store = keeping->fetch.store;
    int result = DW_OK;
    for (uint32_t i = 0; result == DW_OK && i < n; i++) {
        dw_lock(store);
        const uint32_t k = dw_index_find(store->by_id, ids[i]);
        if (k != DW_NIL) {
            dw_fetch_add_locked(&keeping->fetch, k);
        }
        dw_unlock(store);
        if (k != DW_NIL) {
            result = keep_one(keeping, &kept[i]);
            dw_fetch_clear(&keeping->fetch);
        }
    }
    return result;
}

int dw_store_keep_aside(dw_store *store, uint64_t now_ms, const uint64_t *ids, uint32_t n,
                        bool *kept) {
    memset(kept, 0, n * sizeof *kept);
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (store->keeping) {
        return dw_leave(store, dw_io_error(EAGAIN));
    }
    store->keeping = true;
    dw_unlock(store);
    struct keeping keeping = {.now_ms = now_ms, .fd = -1};
    result = dw_fetch_new(store, &keeping.fetch, 1);
    if (result == DW_OK) {
        result = open_kept(store, &keeping);
        if (result == DW_OK) {
            result = keep_all(&keeping, ids, n, kept);
        }
        result = close_kept(store, &keeping, result);
    }
    dw_fetch_free(&keeping.fetch);
    if (result != DW_OK) {
        memset(kept, 0, n * sizeof *kept);
    } else if (keeping.count > 0) {
        dw_log(store, DW_LOG_ERROR,
               "%s/" DW_KEPT_NAME ": %" PRIu32 " damaged records are kept here", store->dir,
               keeping.count);
    }
    dw_lock(store);
    store->keeping = false;
    dw_publish_locked(store);
    return dw_leave(store, result);
}

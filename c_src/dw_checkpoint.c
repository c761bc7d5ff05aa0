/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* A checkpoint is a list of partitions and of how long their files were, taken by the writer at
 * one moment between two changes, after a flush. As files only grow, making it durable may take its
 * time beside further changes.
 *
 * Its partitions are pinned, and stay on disk until a later checkpoint that does without them is
 * durable: dw_partition.named says which one was the last to name it. */

struct dw_checkpoint {
    struct dw_store *store;
    uint64_t number;
    struct dw_manifest manifest;
    struct dw_partition **partitions; /* beside manifest.parts */
};

static bool is_named(const struct dw_partition *partition) {
    return partition != NULL && !dw_partition_is_retired(partition) && partition->live > 0;
}

/* By serial number, as the manifest has them. There are some hundreds, and mostly in order. */
static void sort_by_serial(struct dw_partition **partitions, uint32_t count) {
    for (uint32_t i = 1; i < count; i++) {
        struct dw_partition *partition = partitions[i];
        uint32_t j = i;
        for (; j > 0 && partitions[j - 1]->serial > partition->serial; j--) {
            partitions[j] = partitions[j - 1];
        }
        partitions[j] = partition;
    }
}

/* By the writer. */
static int capture_locked(struct dw_store *store, struct dw_checkpoint *checkpoint) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        struct dw_partition *partition = store->parts[i];
        if (is_named(partition)) {
            /* Of a file whose fsync failed nobody knows what is on the disk. Raft's log has it, and
             * is not to be cut until it was written again, from there if it cannot be read. */
            if (dw_partition_is_suspect(partition) || dw_partition_failed(partition) != 0) {
                return dw_io_error(EIO);
            }
            checkpoint->partitions[count++] = partition;
        }
    }
    sort_by_serial(checkpoint->partitions, count);
    checkpoint->number = ++store->checkpoint;
    checkpoint->manifest.applied = store->applied;
    checkpoint->manifest.next_serial = store->next_serial;
    checkpoint->manifest.count = count;
    for (uint32_t i = 0; i < count; i++) {
        struct dw_partition *partition = checkpoint->partitions[i];
        partition->pins++;
        partition->named = checkpoint->number;
        checkpoint->manifest.parts[i] = (struct dw_manifest_part){
            .serial = partition->serial,
            .slice = partition->slice,
            .level = partition->level,
            .rec_bytes = partition->rec.written,
            .idx_bytes = partition->idx.written,
            .live = partition->live,
            .live_bytes = partition->live_bytes,
        };
    }
    return DW_OK;
}

static void free_checkpoint(struct dw_checkpoint *checkpoint) {
    const struct dw_alloc *alloc = checkpoint->store->alloc;
    dw_release(alloc, checkpoint->partitions);
    dw_release(alloc, checkpoint->manifest.parts);
    dw_release(alloc, checkpoint);
}

static struct dw_checkpoint *new_checkpoint(struct dw_store *store) {
    struct dw_checkpoint *checkpoint = dw_get(store->alloc, sizeof *checkpoint);
    if (checkpoint == NULL) {
        return NULL;
    }
    const size_t most = store->parts_capacity;
    *checkpoint = (struct dw_checkpoint){
        .store = store,
        .partitions = dw_get(store->alloc, most * sizeof(struct dw_partition *)),
        .manifest.parts = dw_get(store->alloc, most * sizeof(struct dw_manifest_part)),
    };
    if (checkpoint->partitions == NULL || checkpoint->manifest.parts == NULL) {
        free_checkpoint(checkpoint);
        return NULL;
    }
    return checkpoint;
}

int dw_store_checkpoint(dw_store *store, dw_checkpoint **out) {
    *out = NULL;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    if (store->checkpointing) {
        return dw_leave(store, DW_EINVAL);
    }
    dw_unlock(store);
    result = dw_store_flush(store);
    struct dw_checkpoint *checkpoint = NULL;
    if (result == DW_OK && (checkpoint = new_checkpoint(store)) == NULL) {
        result = DW_ENOMEM;
    }
    dw_lock(store);
    if (result == DW_OK) {
        result = capture_locked(store, checkpoint);
    }
    if (result == DW_OK) {
        store->checkpointing = true;
        *out = checkpoint;
    }
    result = dw_leave(store, result);
    if (result != DW_OK && *out != NULL) {
        dw_checkpoint_release(checkpoint);
        *out = NULL;
    } else if (result != DW_OK && checkpoint != NULL) {
        free_checkpoint(checkpoint);
    }
    return result;
}

uint64_t dw_checkpoint_applied(const dw_checkpoint *checkpoint) {
    return checkpoint->manifest.applied;
}

/* ------------------------------------------------------------------ finish */

/* Makes the first `bytes` of a file durable. */
static int sync_stream(struct dw_store *store, struct dw_partition *partition,
                       struct dw_stream *stream, enum dw_file_kind kind, uint64_t bytes) {
    dw_lock(store);
    const bool durable = stream->synced >= bytes;
    dw_unlock(store);
    if (durable) {
        return DW_OK;
    }
    const int err = dw_files_sync(&store->files, &stream->file);
    if (err == 0) {
        dw_lock(store);
        stream->synced = bytes > stream->synced ? bytes : stream->synced;
        dw_unlock(store);
        return DW_OK;
    }
    char name[DW_FILE_NAME_BYTES];
    dw_partition_file_name(partition, kind, name);
    dw_log(store, DW_LOG_ERROR, "%s/%s: cannot be made durable: %s", store->dir, name,
           strerror(err));
    return dw_io_error(err);
}

static int sync_files(struct dw_checkpoint *checkpoint) {
    struct dw_store *store = checkpoint->store;
    for (uint32_t i = 0; i < checkpoint->manifest.count; i++) {
        struct dw_partition *partition = checkpoint->partitions[i];
        const struct dw_manifest_part *part = &checkpoint->manifest.parts[i];
        int result = sync_stream(store, partition, &partition->rec, DW_FILE_REC, part->rec_bytes);
        if (result == DW_OK) {
            result = sync_stream(store, partition, &partition->idx, DW_FILE_IDX, part->idx_bytes);
        }
        if (result != DW_OK) {
            return result;
        }
    }
    return DW_OK;
}

static int link_files(struct dw_checkpoint *checkpoint, int from, int to,
                      const struct dw_manifest_part *part) {
    struct dw_store *store = checkpoint->store;
    static const enum dw_file_kind kinds[2] = {DW_FILE_REC, DW_FILE_IDX};
    for (int i = 0; i < 2; i++) {
        char name[DW_FILE_NAME_BYTES];
        dw_file_name(name, kinds[i], part->serial, part->level, part->slice);
        int result = dw_io_clone(store->io, store->alloc, from, to, name,
                                 i == 0 ? part->rec_bytes : part->idx_bytes, 0);
        if (result != DW_OK) {
            return result;
        }
    }
    return DW_OK;
}

/* Links what the manifest names, and writes it there, last. */
static int fill_snapshot(struct dw_checkpoint *checkpoint, int from, int to) {
    struct dw_store *store = checkpoint->store;
    int result = DW_OK;
    for (uint32_t i = 0; result == DW_OK && i < checkpoint->manifest.count; i++) {
        result = link_files(checkpoint, from, to, &checkpoint->manifest.parts[i]);
    }
    if (result == DW_OK && store->io->fsync(to) != 0) {
        result = dw_io_error(errno);
    }
    if (result == DW_OK) {
        result = dw_manifest_write(store->io, store->alloc, to, &checkpoint->manifest);
    }
    return result;
}

static int make_snapshot(struct dw_checkpoint *checkpoint, int from, const char *snapshot_dir) {
    const struct dw_io *io = checkpoint->store->io;
    int to = dw_io_open_dir(io, snapshot_dir, 1);
    if (to < 0) {
        return dw_io_error(errno);
    }
    int result = fill_snapshot(checkpoint, from, to);
    io->close(to);
    return result;
}

static bool is_worth_retrying(struct dw_store *store, int result) {
    return result == DW_EIO && dw_files_make_room(&store->files, dw_store_errno());
}

static int finish(struct dw_checkpoint *checkpoint, int dirfd, const char *snapshot_dir) {
    struct dw_store *store = checkpoint->store;
    int result = sync_files(checkpoint);
    if (result == DW_OK && dw_broken_note() != NULL) {
        return DW_EBROKEN;
    }
    if (result == DW_OK && store->io->fsync(dirfd) != 0) {
        result = dw_io_error(errno);
    }
    if (result == DW_OK) {
        do {
            result = dw_manifest_write(store->io, store->alloc, dirfd, &checkpoint->manifest);
        } while (is_worth_retrying(store, result));
    }
    if (result != DW_OK) {
        return result;
    }
    dw_lock(store);
    store->durable = checkpoint->number;
    store->durable_applied = checkpoint->manifest.applied;
    dw_unlock(store);
    if (snapshot_dir != NULL) {
        do {
            result = make_snapshot(checkpoint, dirfd, snapshot_dir);
        } while (is_worth_retrying(store, result));
    }
    dw_reap(store);
    return result;
}

int dw_checkpoint_finish(dw_checkpoint *checkpoint, const char *snapshot_dir) {
    struct dw_store *store = checkpoint->store;
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    const int dirfd = dw_files_dir(&store->files);
    if (dirfd < 0) {
        result = dw_io_error(errno);
    } else {
        result = finish(checkpoint, dirfd, snapshot_dir);
        dw_files_release(&store->files.dir);
    }
    dw_lock(store);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

void dw_checkpoint_release(dw_checkpoint *checkpoint) {
    if (checkpoint == NULL) {
        return;
    }
    struct dw_store *store = checkpoint->store;
    dw_lock(store);
    for (uint32_t i = 0; i < checkpoint->manifest.count; i++) {
        checkpoint->partitions[i]->pins--;
    }
    store->checkpointing = false;
    dw_unlock(store);
    free_checkpoint(checkpoint);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_store_internal.h"

#include <errno.h>
#include <string.h>

/* Writing out what is buffered, by the writer and without the lock. Nothing is lost by a failure:
 * what could not be written stays buffered and is tried again. What may have been written in part,
 * or not at all (EIO), makes its partition suspect. */

int dw_flush_partition(struct dw_store *store, struct dw_partition *partition) {
    struct dw_stream *streams[2] = {&partition->rec, &partition->idx};
    int result = DW_OK;
    for (int i = 0; i < 2; i++) {
        char name[DW_FILE_NAME_BYTES];
        dw_partition_file_name(partition, i == 0 ? DW_FILE_REC : DW_FILE_IDX, name);
        uint64_t flushed;
        int err = dw_stream_flush(streams[i], store->alloc, &store->files, name, &flushed);
        dw_lock(store);
        store->buffered -= flushed;
        if (err == EIO) {
            dw_partition_note_locked(partition, DW_PARTITION_FAIL_WRITE);
        }
        dw_unlock(store);
        if (err != 0 && result == DW_OK) {
            result = dw_io_error(err);
        }
    }
    return result;
}

/* Says in the log when writing begins to fail and when it goes on, at most once a minute. */
static void note_written(struct dw_store *store, int err) {
    enum { EACH_MS = 60000 };
    dw_lock(store);
    const uint64_t now_ms = store->clock;
    const uint64_t buffered = store->buffered;
    store->write_error = err;
    dw_unlock(store);
    if (err != 0) {
        dw_files_write_failed(&store->files);
    }
    if (err != 0 && !store->write_said &&
        (store->write_logged == 0 || now_ms - store->write_logged >= EACH_MS)) {
        store->write_said = true;
        store->write_logged = now_ms;
        dw_log(store, DW_LOG_ERROR,
               "%s: cannot be written to: %s; what is delayed is kept in memory and in Raft's log, "
               "and tried again",
               store->dir, strerror(err));
    } else if (err == 0 && store->write_said && buffered == 0) {
        store->write_said = false;
        dw_log(store, DW_LOG_INFO, "%s: is written to again", store->dir);
    }
}

int dw_flush_all(struct dw_store *store) {
    int result = DW_OK;
    int err = 0;
    store->disk_full = false;
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        dw_lock(store);
        struct dw_partition *partition = store->parts[i];
        bool skip = partition == NULL || dw_partition_is_retired(partition);
        dw_unlock(store);
        if (!skip &&
            (dw_stream_buffered(&partition->rec) > 0 || dw_stream_buffered(&partition->idx) > 0)) {
            int failed = dw_flush_partition(store, partition);
            if (failed == DW_ENOSPC) {
                store->disk_full = true;
            }
            if (result == DW_OK && failed != DW_OK) {
                result = failed;
                err = dw_store_errno();
            }
        }
    }
    note_written(store, err);
    return result == DW_OK ? DW_OK : dw_io_error(err);
}

int dw_store_flush(dw_store *store) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    result = dw_flush_all(store);
    dw_reap(store);
    dw_lock(store);
    dw_publish_locked(store);
    return dw_leave(store, result);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_recovery.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

/* Opening a store.
 *
 * What the manifest names is a consistent cut: every partition's index file up to its named length
 * says what was added to it and what was dead at that checkpoint. So recovery reads the index files
 * and not the records, and sorts what it finds by id, since the wheel keeps the order in which
 * entries of one millisecond are inserted.
 *
 * A failed system call says nothing of what is on the disk: the store is not opened then. Only what
 * was read, and once more, and is not what was written is damaged; and a file is missing only if
 * the directory does not list it either.
 *
 * Where an index file is damaged, its good entries count, and the records are read for what they
 * leave out. Then records come back whose being dead stood in the damaged part: settled ones are
 * delivered again, and of moved ones there are two. Of two records with one id, the one in an
 * undamaged index is right, else the one with the later Raft index. The partition is then moved
 * into fresh ones by dw_store_maintain(). An index whose entries are all good, but which has other
 * records than the manifest says, is not to be trusted with either: the store is not opened.
 *
 * Cutting a file that is also a snapshot's: the file in a snapshot may be the very same (a hard
 * link), but every snapshot of a file names at most the length that the store's manifest names.
 * A snapshot is made after the manifest of the same checkpoint, and lengths only grow within one
 * opening; an opening starts from the manifest's length; and dw_store_restore() shares a file with
 * the snapshot only if it is exactly as long as named, that is if no other snapshot names more. */

int dw_refuse(const struct dw_store *store, const struct dw_partition *partition,
              enum dw_file_kind kind, const char *what, int err) {
    char name[DW_FILE_NAME_BYTES];
    dw_log(store, DW_LOG_ERROR, "%s/%s: cannot be %s: %s", store->dir,
           dw_partition_file_name(partition, kind, name), what, strerror(err));
    return dw_io_error(err);
}

static int read_partitions(struct dw_opening *opening) {
    struct dw_store *store = opening->store;
    if (opening->manifest.count > DW_PART_MAX) {
        return DW_EFULL;
    }
    int result = dw_grow_parts(store, opening->manifest.count + 1);
    for (uint32_t i = 0; result == DW_OK && i < opening->manifest.count; i++) {
        const struct dw_manifest_part *named = &opening->manifest.parts[i];
        struct dw_partition *partition =
            dw_partition_named(store->alloc, named->serial, named->level, named->slice,
                               named->rec_bytes, named->idx_bytes);
        if (partition == NULL) {
            return DW_ENOMEM;
        }
        partition->number = i;
        partition->named = store->durable;
        store->parts[i] = partition;
        store->parts_used++;
        store->total_bytes += named->rec_bytes + named->idx_bytes;
        store->rec_bytes += named->rec_bytes - DW_FILE_HEADER;
        result = dw_read_partition(opening, named, opening->listed[i], partition);
    }
    return result;
}

/* ----------------------------------------------------------- sort and build
 * Natural merge sort: a partition's records are in order but where some were moved into it, so
 * there are few runs. */

static size_t run_end(const struct dw_found *found, size_t from, size_t count) {
    size_t end = from;
    while (end < count && (end == from || found[end - 1].id <= found[end].id)) {
        end++;
    }
    return end;
}

static void merge(const struct dw_found *in, size_t from, size_t mid, size_t end,
                  struct dw_found *out) {
    size_t left = from;
    size_t right = mid;
    for (size_t i = from; i < end; i++) {
        if (left < mid && (right == end || in[left].id <= in[right].id)) {
            out[i] = in[left++];
        } else {
            out[i] = in[right++];
        }
    }
}

static int sort_found(struct dw_opening *opening) {
    const size_t count = opening->count;
    if (run_end(opening->found, 0, count) == count) {
        return DW_OK;
    }
    struct dw_found *spare = dw_get(opening->store->alloc, count * sizeof *spare);
    if (spare == NULL) {
        return DW_ENOMEM;
    }
    for (size_t runs = 2; runs > 1;) {
        runs = 0;
        for (size_t from = 0; from < count; runs++) {
            const size_t mid = run_end(opening->found, from, count);
            const size_t end = run_end(opening->found, mid, count);
            merge(opening->found, from, mid, end, spare);
            from = end;
        }
        struct dw_found *sorted = spare;
        spare = opening->found;
        opening->found = sorted;
    }
    dw_release(opening->store->alloc, spare);
    opening->capacity = count;
    return DW_OK;
}

/* The Raft index in the record of entry k, 0 if the record is damaged or missing. */
static int record_index(struct dw_opening *opening, uint32_t k, uint64_t *index) {
    struct dw_store *store = opening->store;
    const struct dw_entry *entry = dw_slab_at(store->slab, k);
    struct dw_partition *partition = dw_part_of_locked(store, entry);
    const uint64_t off = (uint64_t)entry->off * DW_REC_UNIT;
    char name[DW_FILE_NAME_BYTES];
    *index = 0;
    int fd = dw_io_open(store->io, store->dirfd,
                        dw_partition_file_name(partition, DW_FILE_REC, name), O_RDONLY);
    if (fd < 0) {
        return errno == ENOENT && (opening->listed[entry->part] & DW_LISTED_REC) == 0
                   ? DW_OK
                   : dw_refuse(store, partition, DW_FILE_REC, "opened", errno);
    }
    int result = DW_OK;
    struct stat st;
    struct dw_rec_header header;
    uint8_t bytes[DW_REC_HEADER];
    if (store->io->fstat(fd, &st) != 0) {
        result = dw_refuse(store, partition, DW_FILE_REC, "read", errno);
    }
    for (int i = 0; result == DW_OK && (uint64_t)st.st_size >= off + sizeof bytes && i < 2; i++) {
        if (i > 0) {
            dw_io_forget(store->io, fd, off, sizeof bytes);
        }
        const int err = dw_io_read_all(store->io, fd, bytes, sizeof bytes, off);
        if (err != 0) {
            result = dw_refuse(store, partition, DW_FILE_REC, "read", err);
        } else if (dw_rec_decode(bytes, &header)) {
            *index = header.index;
            break;
        }
    }
    store->io->close(fd);
    return result;
}

static bool is_damaged(const struct dw_opening *opening, const struct dw_entry *entry) {
    return dw_part_of_locked(opening->store, entry)->state == DW_PARTITION_DAMAGED;
}

/* Of two entries of one id, whether the first, which stands before the other, is right. */
static int is_better(struct dw_opening *opening, const struct dw_found *a, const struct dw_found *b,
                     bool *better) {
    const struct dw_entry *first = dw_slab_at(opening->store->slab, a->k);
    const struct dw_entry *second = dw_slab_at(opening->store->slab, b->k);
    if (first->part == second->part && first->off == second->off) {
        *better = false; /* one record, given another due time where it is */
        return DW_OK;
    }
    if (a->rebuilt != b->rebuilt) {
        *better = b->rebuilt;
        return DW_OK;
    }
    /* What a damaged index has may have been moved away, which it has lost. */
    const bool damaged = is_damaged(opening, first);
    if (damaged != is_damaged(opening, second)) {
        *better = !damaged;
        return DW_OK;
    }
    uint64_t index_a, index_b = 0;
    int result = record_index(opening, a->k, &index_a);
    if (result == DW_OK) {
        result = record_index(opening, b->k, &index_b);
    }
    *better = index_a >= index_b;
    return result;
}

static int drop_duplicates(struct dw_opening *opening) {
    size_t kept = 0;
    for (size_t i = 0; i < opening->count; i++) {
        const struct dw_found *found = &opening->found[i];
        struct dw_found *last = kept > 0 ? &opening->found[kept - 1] : NULL;
        if (last == NULL || last->id != found->id) {
            opening->found[kept++] = *found;
            continue;
        }
        bool better;
        int result = is_better(opening, last, found, &better);
        if (result != DW_OK) {
            return result;
        }
        dw_slab_put(opening->store->slab, better ? found->k : last->k);
        *last = better ? *last : *found;
    }
    opening->count = kept;
    return DW_OK;
}

/* Where no index was damaged, there are as many messages as there were. */
static int check_count(const struct dw_opening *opening) {
    uint64_t named = 0;
    for (uint32_t i = 0; i < opening->manifest.count; i++) {
        named += opening->manifest.parts[i].live;
    }
    if (!opening->damaged && opening->count != named) {
        dw_log(opening->store, DW_LOG_ERROR,
               "%s: its indexes have %zu messages, not %" PRIu64 " as the manifest says",
               opening->store->dir, opening->count, named);
        return DW_ECORRUPT;
    }
    return DW_OK;
}

static int build(struct dw_opening *opening, uint64_t now_ms) {
    struct dw_store *store = opening->store;
    const uint64_t start = opening->first_due < now_ms ? opening->first_due : now_ms;
    store->wheel = dw_wheel_new(store->alloc, store->slab, start);
    store->heap = dw_heap_new(store->alloc, store->slab);
    if (store->wheel == NULL || store->heap == NULL) {
        return DW_ENOMEM;
    }
    for (size_t i = 0; i < opening->count; i++) {
        const uint32_t k = opening->found[i].k;
        const struct dw_entry *entry = dw_slab_at(store->slab, k);
        const uint64_t bytes = dw_rec_bytes(entry->len);
        struct dw_partition *partition = dw_part_of_locked(store, entry);
        if (dw_index_put(store->by_id, k) != DW_OK ||
            (entry->key_hash != 0 && dw_index_put(store->by_key, k) != DW_OK) ||
            dw_schedule_locked(store, k) != DW_OK) {
            return DW_ENOMEM;
        }
        store->digest += dw_digest_of_locked(store, k, entry);
        partition->live++;
        partition->live_bytes += bytes;
        store->live_bytes += bytes;
        store->pending++;
        store->pending_bytes += entry->len;
    }
    for (uint32_t i = 0; i < store->parts_capacity; i++) {
        if (store->parts[i] != NULL) {
            dw_retire_if_empty_locked(store, store->parts[i]);
        }
    }
    dw_applied_locked(store, opening->manifest.applied);
    return DW_OK;
}

/* --------------------------------------------------------------- directory */

static void clean(void *arg, const char *name) {
    struct dw_opening *opening = arg;
    struct dw_store *store = opening->store;
    enum dw_file_kind kind;
    uint64_t serial, slice;
    uint32_t level;
    if (dw_file_name_parse(name, &kind, &serial, &level, &slice)) {
        if (serial > opening->max_serial) {
            opening->max_serial = serial;
        }
        const struct dw_manifest_part *named = dw_manifest_find(&opening->manifest, serial);
        if (named != NULL && named->level == level && named->slice == slice) {
            opening->listed[named - opening->manifest.parts] |=
                kind == DW_FILE_REC ? DW_LISTED_REC : DW_LISTED_IDX;
            return;
        }
    } else if (strcmp(name, DW_MANIFEST_TMP) != 0) {
        return;
    }
    if (store->io->unlinkat(store->dirfd, name, 0) != 0) {
        dw_log(store, DW_LOG_WARNING, "%s/%s: belongs to no checkpoint, but cannot be removed: %s",
               store->dir, name, strerror(errno));
    }
}

static void see_manifest(void *arg, const char *name) {
    bool *seen = arg;
    *seen = *seen || strcmp(name, DW_MANIFEST_NAME) == 0;
}

/* DW_ENOENT: there is no checkpoint, which the directory's list confirms, as everything else that
 * is in it is removed then. */
static int read_manifest(struct dw_opening *opening) {
    struct dw_store *store = opening->store;
    bool seen = false;
    int result = dw_manifest_read(store->io, store->alloc, store->dirfd, &opening->manifest);
    if (result == DW_ENOENT) {
        if (dw_io_list(store->io, store->dirfd, see_manifest, &seen) != 0) {
            return dw_io_error(errno);
        }
        return seen ? dw_io_error(EIO) : DW_ENOENT;
    }
    return result;
}

static int open_store(struct dw_opening *opening, const char *dir, uint64_t now_ms) {
    struct dw_store *store = opening->store;
    store->dirfd = dw_io_open_dir(store->io, dir, 1);
    if (store->dirfd < 0) {
        return dw_io_error(errno);
    }
    int result = read_manifest(opening);
    if (result != DW_OK && result != DW_ENOENT) {
        return result;
    }
    opening->listed = dw_get(store->alloc, opening->manifest.count + (size_t)1);
    if (opening->listed == NULL) {
        return DW_ENOMEM;
    }
    memset(opening->listed, 0, opening->manifest.count + (size_t)1);
    /* The manifest may have been renamed by a process that did not live to sync the directory. It
     * must be durable before what only an older one names is removed. */
    if (store->io->fsync(store->dirfd) != 0 ||
        dw_io_list(store->io, store->dirfd, clean, opening) != 0) {
        return dw_io_error(errno);
    }
    store->durable = result == DW_OK ? 1 : 0;
    store->checkpoint = store->durable;
    store->durable_applied = opening->manifest.applied;
    store->next_serial = opening->manifest.next_serial > opening->max_serial
                             ? opening->manifest.next_serial
                             : opening->max_serial + 1;
    result = read_partitions(opening);
    if (result == DW_OK) {
        result = sort_found(opening);
    }
    if (result == DW_OK) {
        result = drop_duplicates(opening);
    }
    if (result == DW_OK) {
        result = check_count(opening);
    }
    if (result == DW_OK) {
        result = build(opening, now_ms);
    }
    return result;
}

static struct dw_store *new_store(const char *dir, const struct dw_config *config) {
    const struct dw_alloc *alloc = config->alloc != NULL ? config->alloc : &dw_alloc_libc;
    struct dw_store *store = dw_get(alloc, sizeof *store);
    if (store == NULL) {
        return NULL;
    }
    *store = (struct dw_store){
        .alloc = alloc,
        .io = config->io != NULL ? config->io : &dw_io_posix,
        .log = config->log,
        .log_ctx = config->log_ctx,
        .dirfd = -1,
        .max_record_bytes = config->max_record_bytes,
        .partition_bytes = config->partition_bytes != 0 ? config->partition_bytes : 1 << 30,
        .split_bytes = config->split_bytes != 0 ? config->split_bytes : 8 << 20,
        .clock = config->now_ms,
    };
    pthread_mutex_init(&store->turn, NULL);
    pthread_mutex_init(&store->lock, NULL);
    pthread_cond_init(&store->idle, NULL);
    ck_sequence_init(&store->sequence);
    dw_origins_init(&store->origins, alloc);
    dw_origins_init(&store->unread, alloc);
    dw_stream_init(&store->nowhere.rec);
    dw_stream_init(&store->nowhere.idx);
    const size_t bytes = strlen(dir) + 1;
    store->dir = dw_get(alloc, bytes);
    dw_budget *budget =
        config->budget != NULL ? config->budget : dw_budget_new(alloc, config->max_open_files);
    if (budget != NULL) {
        dw_files_init(&store->files, store->io, &store->lock, budget, store->dir);
    }
    if (budget != NULL && config->budget == NULL) {
        dw_budget_drop(budget);
    }
    store->slab = dw_slab_new(alloc);
    if (store->slab != NULL) {
        store->by_id = dw_index_new(alloc, store->slab, DW_BY_ID);
        store->by_key = dw_index_new(alloc, store->slab, DW_BY_KEY);
    }
    if (budget == NULL || store->dir == NULL || store->by_id == NULL || store->by_key == NULL) {
        dw_store_free(store);
        return NULL;
    }
    memcpy(store->dir, dir, bytes);
    return store;
}

static bool config_is_valid(const struct dw_config *config) {
    return config->now_ms <= DW_DUE_MAX && config->max_record_bytes >= 1 &&
           config->max_record_bytes <= INT32_MAX && config->max_open_files >= 8 &&
           config->max_open_files <= 4096 && config->partition_bytes <= DW_PARTITION_BYTES_MAX / 2;
}

int dw_store_open(const char *dir, const struct dw_config *config, dw_store **out,
                  struct dw_recovery *report) {
    *out = NULL;
    *report = (struct dw_recovery){0};
    if (!config_is_valid(config)) {
        return DW_EINVAL;
    }
    struct dw_store *store = new_store(dir, config);
    if (store == NULL) {
        return DW_ENOMEM;
    }
    const struct dw_alloc *alloc = store->alloc;
    struct dw_opening opening = {
        .store = store,
        .first_due = DW_NEVER,
        .chunk = dw_get(alloc, DW_CHUNK_ENTRIES * DW_IDX_ENTRY),
        .view = dw_get(alloc, DW_VIEW_BYTES),
    };
    int result = opening.chunk != NULL && opening.view != NULL
                     ? open_store(&opening, dir, config->now_ms)
                     : DW_ENOMEM;
    if (result == DW_OK) {
        const int err = dw_files_give_dir(&store->files, store->dirfd);
        result = err == 0 ? DW_OK : dw_io_error(err);
        store->dirfd = err == 0 ? -1 : store->dirfd;
    }
    if (result == DW_OK) {
        dw_publish_locked(store);
    }
    if (dw_broken_note() != NULL) {
        dw_log(store, DW_LOG_ERROR,
               "%s: the store is not opened, as something that must hold does not: %s", store->dir,
               dw_broken_note());
        dw_broken_forget();
        result = DW_EBROKEN;
    }
    dw_release(alloc, opening.found);
    dw_release(alloc, opening.chunk);
    dw_release(alloc, opening.view);
    dw_release(alloc, opening.listed);
    dw_manifest_free(alloc, &opening.manifest);
    if (result != DW_OK) {
        dw_log(store, DW_LOG_ERROR, "%s: the store is not opened: %s", store->dir,
               result == DW_EIO || result == DW_ENOSPC || result == DW_EACCES
                   ? strerror(dw_store_errno())
                   : dw_strerror(result));
        if (store->dirfd >= 0) {
            store->io->close(store->dirfd);
        }
        dw_files_close(&store->files);
        dw_store_free(store);
        return result;
    }
    opening.report.applied = store->applied;
    opening.report.pending = store->pending;
    opening.report.partitions = store->parts_used - store->retired;
    *report = opening.report;
    *out = store;
    return DW_OK;
}

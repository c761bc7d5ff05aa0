/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_STORE_INTERNAL_H
#define DW_STORE_INTERNAL_H

#include "dw_digest.h"
#include "dw_heap.h"
#include "dw_index.h"
#include "dw_invariant.h"
#include "dw_manifest.h"
#include "dw_origin.h"
#include "dw_partition.h"
#include "dw_store.h"
#include "dw_wheel.h"

#include <ck_sequence.h>
#include <errno.h>

/* What the parts of the store share.
 *
 *   dw_store.c            life, lock, figures
 *   dw_entries.c          what is pending: into and out of indexes, wheel and heap
 *   dw_partition_table.c  which partitions there are, and where a record goes
 *   dw_writer.c           insert, settle          dw_plan.c      what a keyed batch comes to
 *   dw_reschedule.c       another due time        dw_purge.c     nothing any more
 *   dw_flush.c            buffers to files        dw_checkpoint.c
 *   dw_move.c             upkeep
 *   dw_recovery.c         opening                 dw_restore.c   from a snapshot
 *   dw_fetch.c            reading records beside the writer, for:
 *     dw_take.c           what is due
 *     dw_lookup.c         by id and by key
 *     dw_list.c           by due time             dw_keep_aside.c   damaged ones
 *   dw_store_check.c      does it all agree
 *
 * The lock guards everything but what is marked as the writer's. The indexes and the partitions'
 * appending ends are changed by the writer alone, under the lock where others look at them, so the
 * writer itself may read those without it. What ends in _locked is called with the lock held, and
 * returns with it; while a store is being opened nobody else has it, and no lock is needed. */

/* Calls that visit many entries let go of the lock after this many. */
#define DW_LOCK_STEP 1024u

/* dw_entry.part for none; also the mask of that field. */
#define DW_PART_NONE 4095u

#define DW_TARGETS 16u
#define DW_STAT_WORDS (sizeof(struct dw_stat) / sizeof(uint64_t))

struct dw_store {
    /* Who waits for the lock holds `turn`, so that a call which lets go of the lock between two
     * steps does not have it again before the one that waits. */
    pthread_mutex_t turn;
    pthread_mutex_t lock;
    pthread_cond_t idle; /* ops fell to 0 */
    uint32_t ops;        /* calls under way that let go of the lock */
    unsigned closed;     /* one of STORE_..., also read without the lock */

    const struct dw_alloc *alloc;
    const struct dw_io *io;
    void (*log)(void *ctx, enum dw_level level, const char *message);
    void *log_ctx;
    char *dir;
    int dirfd; /* while it is being opened */
    uint32_t max_record_bytes;
    uint64_t partition_bytes;
    uint64_t split_bytes;
    struct dw_files files;

    dw_slab *slab;
    dw_wheel *wheel;
    dw_heap *heap;
    dw_index *by_id;
    dw_index *by_key;
    struct dw_origins origins;
    struct dw_origins unread; /* entries whose record could not be read when it was last tried */

    struct dw_partition **parts; /* by number, NULL: free */
    struct dw_partition nowhere; /* where an entry is whose partition is not there, as cannot be */
    uint32_t parts_capacity;
    uint32_t parts_used;
    uint32_t retired; /* of these, waiting to be unlinked */

    uint64_t clock; /* as the last take or maintain had it; decides where records are put */
    uint64_t applied;
    uint64_t applied_digest; /* as it was when that had been */
    uint64_t digest;         /* of what is in the indexes now, in the middle of a change also */
    uint64_t pending;
    uint64_t pending_bytes;
    uint64_t taken;
    uint64_t stranded;
    uint64_t stranded_due; /* no later than the first of these */
    uint64_t corrupt_records;
    uint64_t read_errors;
    bool keeping;         /* corrupt records are being kept aside */
    bool kept_named;      /* who is doing that: the name of their file is durable */
    uint64_t total_bytes; /* of all files, buffers included */
    uint64_t rec_bytes;   /* of records in these */
    uint64_t live_bytes;  /* of these, pending */
    uint64_t buffered;
    int write_error; /* errno, when the buffers were last written; 0 */

    uint64_t checkpoint; /* number of the last one begun */
    uint64_t durable;    /* number of the last one that is durable */
    uint64_t durable_applied;
    bool checkpointing;

    /* The writer's. */
    struct dw_partition *target[DW_LEVELS][DW_TARGETS]; /* where records are appended, by slice */
    struct dw_partition **marked;                       /* by the present call */
    uint32_t marked_count;
    uint64_t next_serial;
    bool disk_full;              /* when the buffers were last written */
    uint64_t write_logged;       /* when it was last said that they cannot be, ms; 0: never */
    bool write_said;             /* and it was not yet said that they can */
    struct dw_partition *moving; /* what maintain moves records out of */
    uint64_t moving_off;
    int moving_err; /* errno of what could not be read of it */
    void *scratch;
    size_t scratch_bytes;

    ck_sequence_t sequence; /* of `published`, a struct dw_stat */
    uint64_t published[DW_STAT_WORDS];
};

enum { STORE_OPEN, STORE_CLOSED, STORE_BROKEN };

/* ------------------------------------------------------------------ dw_store.c */

/* Why it cannot be used: DW_ECLOSED, DW_EBROKEN; or DW_OK. */
int dw_closed_error(const struct dw_store *store);
/* Takes the lock for a call: DW_OK with the lock held, or that error without. */
int dw_enter(struct dw_store *store);
/* The same for a call that tells the time, which is the store's clock from then on. */
int dw_enter_at(struct dw_store *store, uint64_t now_ms);
/* Ends it: lock held before, not after. Answers `result', or DW_EBROKEN if the call met a broken
 * invariant: then the store is of no use any more. */
int dw_leave(struct dw_store *store, int result);
static inline void dw_lock(struct dw_store *store) {
    pthread_mutex_lock(&store->turn);
    pthread_mutex_lock(&store->lock);
    pthread_mutex_unlock(&store->turn);
}
static inline void dw_unlock(struct dw_store *store) {
    pthread_mutex_unlock(&store->lock);
}
/* Lets go of the lock for a moment. */
void dw_yield_locked(struct dw_store *store);
/* Does that now and then; i counts what was done. */
static inline void dw_yield_each_locked(struct dw_store *store, size_t i) {
    if (i % DW_LOCK_STEP == DW_LOCK_STEP - 1) {
        dw_yield_locked(store);
    }
}

/* Shows the present numbers to dw_store_stat(). */
void dw_publish_locked(struct dw_store *store);

void dw_log(const struct dw_store *store, enum dw_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Writer: memory of at least that size until the next such call, NULL if there is none. */
void *dw_scratch(struct dw_store *store, size_t bytes);

/* Frees what is pending, in memory; any of them may be NULL. */
void dw_free_pending(dw_slab *slab, dw_wheel *wheel, dw_heap *heap, dw_index *by_id,
                     dw_index *by_key);

/* Frees a store whose descriptors are closed. */
void dw_store_free(struct dw_store *store);

/* Is this errno one of the process or the system being short of something? */
static inline bool dw_is_scarcity(int err) {
    return err == EMFILE || err == ENFILE || err == ENOMEM;
}

/* ---------------------------------------------------------------- dw_entries.c */

uint64_t dw_next_due_locked(struct dw_store *store);
/* When entry k is due, as inserted or rescheduled, whenever it comes out. */
static inline uint64_t dw_due_of_locked(const struct dw_store *store, uint32_t k,
                                        const struct dw_entry *entry) {
    return store->origins.count == 0 ? entry->due : dw_origin_get(&store->origins, k, entry->due);
}
/* What entry k adds to the digest. */
static inline uint64_t dw_digest_of_locked(const struct dw_store *store, uint32_t k,
                                           const struct dw_entry *entry) {
    const uint64_t due = dw_due_of_locked(store, k, entry);
    return dw_digest_of(entry->id, due, entry->key_hash, entry->len);
}
/* Writer: the change with this Raft index is whole. */
static inline void dw_applied_locked(struct dw_store *store, uint64_t index) {
    store->applied = index;
    store->applied_digest = store->digest;
}
/* Puts entry k, in neither, into the wheel or the heap. DW_OK, DW_ENOMEM */
int dw_schedule_locked(struct dw_store *store, uint32_t k);
/* Makes an entry like that one, with what it says of the record, in the indexes and in wheel or
 * heap. DW_OK, DW_ENOMEM, DW_EFULL */
int dw_link_entry_locked(struct dw_store *store, const struct dw_entry *like);
/* Takes entry k out of the indexes. */
void dw_unlink_entry_locked(struct dw_store *store, uint32_t k);
/* Lets go of an entry in no index, whatever its state. */
void dw_drop_entry_locked(struct dw_store *store, uint32_t k);
/* A taken entry is handed out again at its due time. DW_OK, DW_ENOMEM */
int dw_requeue_locked(struct dw_store *store, uint32_t k);
/* Lock not held: the same for all entries in that state, a step at a time. */
int dw_requeue_all(struct dw_store *store, uint32_t state);

/* -------------------------------------------------------- dw_partition_table.c */

/* Where the entry's record is. */
static inline struct dw_partition *dw_part_of_locked(struct dw_store *store,
                                                     const struct dw_entry *entry) {
    struct dw_partition *partition =
        entry->part < store->parts_capacity ? store->parts[entry->part] : NULL;
    return DW_INVARIANT(partition != NULL) ? partition : &store->nowhere;
}

/* Writer: a table of partitions with room for `capacity`. DW_OK, DW_ENOMEM */
int dw_grow_parts(struct dw_store *store, uint32_t capacity);
/* Writer, lock not held: the partition where a record goes, made if need be. DW_OK, DW_ENOMEM,
 * DW_EFULL */
int dw_find_target(struct dw_store *store, uint64_t clock_ms, uint64_t due,
                   struct dw_partition **out);
/* Writer: the partition is about to be appended to; notes what to go back to. */
void dw_mark_unmarked(struct dw_store *store, struct dw_partition *partition);
static inline void dw_mark_partition(struct dw_store *store, struct dw_partition *partition) {
    if (!partition->marked) {
        dw_mark_unmarked(store, partition);
    }
}
/* Writer, lock not held: room for the notes of all records that marked partitions expect to become
 * dead. DW_OK, DW_ENOMEM */
int dw_reserve_dead(struct dw_store *store);
/* Writer: the record of entry k is no longer live where it is now; there is room to note it. Only
 * the partition's side of it. */
void dw_record_dead_locked(struct dw_store *store, uint32_t k);
/* Writer: what was appended counts, and partitions left empty are retired. */
void dw_commit_locked(struct dw_store *store);
/* Writer: takes back what was appended since they were marked. */
void dw_rollback(struct dw_store *store);
/* Writer: retires it if nothing is live in it and it is not worth keeping. */
void dw_retire_if_empty_locked(struct dw_store *store, struct dw_partition *partition);
/* Writer: nothing is live in any; all are retired. */
void dw_retire_all_locked(struct dw_store *store);
/* Lock not held, between enter and leave: unlinks what no manifest needs. */
void dw_reap(struct dw_store *store);

/* -------------------------------------------------------------- dw_reschedule.c */

/* Writer, lock not held: gives pending record `id` another due time, at most DW_DUE_MAX. Its record
 * stays where it is, and is not looked at. DW_OK, DW_ENOENT, DW_ENOMEM, DW_EFULL (of entries) */
int dw_retime(struct dw_store *store, uint64_t id, uint64_t due);

/* ------------------------------------------------------------------ dw_flush.c */

/* Writer, lock not held: writes the buffers of one partition. DW_OK or the first error. */
int dw_flush_partition(struct dw_store *store, struct dw_partition *partition);
/* Writer, lock not held: the same for all; DW_OK or the first error. */
int dw_flush_all(struct dw_store *store);

/* ---------------------------------------------------------------- dw_restore.c */

/* dw_store_restore() and dw_store_validate() with the given system calls and allocator. */
int dw_restore_with(const char *dir, const char *snapshot_dir, const struct dw_io *io,
                    const struct dw_alloc *alloc);
int dw_validate_with(const char *snapshot_dir, uint64_t *applied, const struct dw_io *io,
                     const struct dw_alloc *alloc);

#endif

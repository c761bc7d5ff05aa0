/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_STORE_H
#define DW_STORE_H

#include "dw_alloc.h"
#include "dw_budget.h"
#include "dw_error.h"
#include "dw_slab.h" /* DW_DUE_MAX, DW_NEVER */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The delay store: the messages pending on one delayed exchange, on one replica.
 *
 * Write once, read once in due order, delete. Records live in append-only partition files, one
 * partition a slice of due time; in memory there are a wheel, an id index and a key index over
 * 32-byte entries, about 50 bytes a pending message whatever its size.
 *
 * Raft's log stands in front of the store and replays what a crash took, so nothing here is
 * fsynced but by a checkpoint. Every change carries the Raft index that it comes from; one at or
 * below dw_store_applied() is a no-op that answers as if it had found nothing to do.
 *
 * Threads: the calls under "writer" come from one thread at a time (they may move between
 * threads). Those under "anyone" may come from any thread at any time until dw_store_release().
 * The store takes its own lock, for bounded work in memory only: no call holds it over a system
 * call. A call that may read, write or fsync a file is marked [I/O].
 *
 * Times are ms since the epoch, at most DW_DUE_MAX; the store never reads a clock. */

typedef struct dw_store dw_store;

enum dw_level { DW_LOG_INFO, DW_LOG_WARNING, DW_LOG_ERROR };

/* System calls, so that tests can fail each of them. Same contract as the calls they are named
 * for: -1 and errno on failure. */
struct dw_io;
extern const struct dw_io dw_io_posix;

struct dw_config {
    uint64_t now_ms;              /* the wheel begins here, or at what is due before */
    uint32_t max_record_bytes;    /* a larger body is DW_ETOOBIG; 1 to 2^31-1 */
    uint32_t max_open_files;      /* file descriptors kept open, 8 to 4096, */
    dw_budget *budget;            /* unless stores share them; NULL: a budget of its own */
    uint64_t partition_bytes;     /* a longer record file is followed by another; at most 16 GiB,
                                     0: 1 GiB */
    uint64_t split_bytes;         /* a coarse partition with less pending is left as it is, and so
                                     is an eighth of it of garbage; 0: 8 MiB */
    const struct dw_alloc *alloc; /* NULL: dw_alloc_libc */
    const struct dw_io *io;       /* NULL: dw_io_posix */
    /* Told of what an operator should know (recovery, corruption: file and offset). May be NULL.
     * Called from any thread that calls the store, never with the store's lock held. */
    void (*log)(void *ctx, enum dw_level level, const char *message);
    void *log_ctx;
};

struct dw_recovery {
    uint64_t applied;         /* Raft index that the store is at; 0: it is new */
    uint64_t pending;         /* messages */
    uint64_t corrupt_records; /* reported and skipped */
    uint64_t cut_bytes;       /* cut from the tails of files: Raft's log has them */
    uint32_t rebuilt_indexes; /* partitions whose index file was rebuilt from the records */
    uint32_t partitions;
};

/* Opens the store in directory `dir` (made if missing, mode 0700), at its last durable checkpoint.
 * Files that the checkpoint does not name are removed, longer ones are cut to what it names.
 * [I/O] DW_OK, DW_ENOMEM, DW_EIO, DW_EACCES, DW_EVERSION, DW_EINVAL;
 * DW_ECORRUPT if the manifest itself is damaged (dw_store_restore() from a snapshot then), or an
 * index says other than the manifest. Nothing that cannot be read now is taken for damaged or gone:
 * after any error what is on the disk is as good as before, and opening may be tried again. */
int dw_store_open(const char *dir, const struct dw_config *config, dw_store **out,
                  struct dw_recovery *report);

/* The Raft index of the last durable checkpoint in `dir`, 0 if there is none. Opens nothing.
 * [I/O] DW_OK, DW_ENOMEM, DW_EIO, DW_EACCES, DW_ECORRUPT, DW_EVERSION */
int dw_store_peek_applied(const char *dir, uint64_t *applied);

/* Replaces whatever is in `dir` by the checkpoint in `snapshot_dir` (hard links, or copies across
 * file systems and of what has grown since). The store must not be open. A failure after the first
 * change leaves `dir` without a checkpoint.
 * [I/O] DW_OK, DW_ENOENT (no checkpoint there), DW_ENOMEM, DW_EIO, DW_ENOSPC, DW_EACCES,
 * DW_ECORRUPT, DW_EVERSION */
int dw_store_restore(const char *dir, const char *snapshot_dir);

/* Checks the checkpoint in `snapshot_dir` without opening it: manifest whole, every file there and
 * at least as long as named.
 * [I/O] DW_OK, DW_ENOENT (no checkpoint there), DW_ENOMEM, DW_EIO, DW_EACCES, DW_ECORRUPT,
 * DW_EVERSION */
int dw_store_validate(const char *snapshot_dir, uint64_t *applied);

/* Stops all use: what is under way ends first, every later call answers DW_ECLOSED. Buffers not
 * yet written are dropped (Raft's log has them). From any thread, any number of times. */
void dw_store_close(dw_store *store);

/* Frees the memory. After dw_store_close(), once no thread can call any more. NULL is allowed. */
void dw_store_release(dw_store *store);

/* -------------------------------------------------------------------- writer
 * A batch, as it stands in a Raft entry (little-endian, no padding, 1 to 65,535 records):
 *
 *   u32 length      of the body in bytes, at least 1
 *   u16 flags       bit 0: `when` is absolute; others 0
 *   u16 encoding    the caller's; stored and given back
 *   u64 when        ms of delay after base_ms, or ms since the epoch
 *   u64 key_hash    0: no key
 *   body
 *
 * due = base_ms + when, or when; cut to DW_DUE_MAX. A record's id is index << 16 | its position. */

struct dw_inserted {
    uint32_t count;    /* records */
    uint64_t bytes;    /* of their bodies */
    uint64_t next_due; /* of the whole store now, DW_NEVER if nothing is pending */
    uint64_t buffered; /* bytes waiting for dw_store_flush() */
};

/* Inserts a batch, all of it or nothing. Memory only.
 * DW_OK, DW_ENOMEM, DW_EFULL, DW_ETOOBIG, DW_EINVAL (a malformed batch), DW_ECLOSED */
int dw_store_insert(dw_store *store, uint64_t index, uint64_t base_ms, const void *batch,
                    size_t bytes, struct dw_inserted *out);

/* Checks a batch as insert would, without a store. */
int dw_batch_check(const void *batch, size_t bytes, uint32_t max_record_bytes, uint32_t *count);

/* A keyed batch is one in which further flags say what a record does with its key:
 *
 *   bits 1 to 3 of `flags`   0 keep, 1 replace, 2 drop, 3 cancel, and in version 2 of such batches
 *                            4 release (enum dw_on_key, dw_batch.h)
 *
 * Records take effect in their order: each sees what those before it in the batch have left. With
 * any of these but 0 the key hash is not 0. A cancel and a release have a length of 0, no body and
 * no use for `when` and `encoding`; all others have a length of at least 1. */

enum dw_keyed_version { DW_KEYED_1 = 1, DW_KEYED_2 = 2 };

struct dw_keyed {
    struct dw_inserted inserted; /* what the batch has left pending of itself */
    uint64_t cancelled;          /* messages that went by cancels, */
    uint64_t replaced;           /* and by replacements; of both, not those */
    uint64_t taken;              /* that went likewise, but had been handed out before */
    uint64_t dropped;            /* messages of the batch that were not inserted */
    uint64_t released;           /* messages that were due later, and are now at base_ms */
};

/* Inserts a keyed batch and removes what it cancels and replaces: all of it or nothing. What goes
 * is removed from the store in whatever state it is; how much of it was taken is this opening's
 * own affair, and the only thing in the answer that is. What it releases is given its new time
 * first; one that was taken stays taken. Memory only.
 * DW_OK, DW_ENOMEM, DW_EFULL, DW_ETOOBIG, DW_EINVAL (a malformed batch), DW_ECLOSED; after
 * DW_ENOMEM some may be released: open the store again. */
int dw_store_insert_keyed(dw_store *store, uint64_t index, uint64_t base_ms, const void *batch,
                          size_t bytes, enum dw_keyed_version version, struct dw_keyed *out);

/* Checks a keyed batch as insert_keyed would, without a store. */
int dw_batch_check_keyed(const void *batch, size_t bytes, uint32_t max_record_bytes,
                         enum dw_keyed_version version, uint32_t *count);

/* Removes the records with these ids, in whatever state, delivered or cancelled; ids that are not
 * there are passed over. *removed: how many were there. Memory only.
 * DW_OK, DW_ENOMEM (nothing changed), DW_ECLOSED */
int dw_store_settle(dw_store *store, uint64_t index, const uint64_t *ids, size_t n,
                    uint64_t *removed);

struct dw_id_due {
    uint64_t id;
    uint64_t due;
};

/* The same for those of these ids that are due, as inserted or rescheduled and never as postponed,
 * at the time given with them; others are passed over. So what was released before it was given
 * another due time is not taken for what is to be released then. Memory only.
 * DW_OK, DW_ENOMEM (nothing changed), DW_ECLOSED */
int dw_store_settle_due(dw_store *store, uint64_t index, const struct dw_id_due *released, size_t n,
                        uint64_t *removed);

/* The same for those that are due at that time or before: what was given an earlier time after it
 * was released has been released for that, too. */
int dw_store_settle_due_by(dw_store *store, uint64_t index, const struct dw_id_due *released,
                           size_t n, uint64_t *removed);

/* Removes all that is pending, in whatever state: so many records, of which so many were taken.
 * What it takes does not grow with their number; their files are unlinked when a checkpoint is
 * durable. Memory only. DW_OK, DW_ENOMEM (nothing changed), DW_ECLOSED */
int dw_store_purge(dw_store *store, uint64_t index, uint64_t *removed, uint64_t *taken);

/* Gives pending record `id` a new due time, where it is: its record is neither read nor written.
 * One that was taken stays taken. Memory only. DW_OK, DW_ENOENT, DW_ENOMEM, DW_EFULL (of entries),
 * DW_ECLOSED */
int dw_store_reschedule(dw_store *store, uint64_t index, uint64_t id, uint64_t due);

/* The same for many under one index; *moved: how many were there.
 * Memory only. DW_OK, DW_ENOMEM, DW_EFULL (some may have moved: open the store again), DW_ECLOSED
 */
int dw_store_reschedule_many(dw_store *store, uint64_t index, const struct dw_id_due *dues,
                             size_t n, uint64_t *moved);

/* Notes that `index` was applied and concerned the store in nothing. */
void dw_store_note(dw_store *store, uint64_t index);

/* Writes the buffers to the partition files (no fsync). On failure they are kept, and the next
 * call tries again, as does dw_store_maintain(); dw_stat.write_error says so meanwhile, and the
 * log, when it begins and ends. [I/O] DW_OK, DW_EIO, DW_ENOSPC, DW_EACCES, DW_ECLOSED */
int dw_store_flush(dw_store *store);

/* One step of upkeep, of at most some max_bytes of record bodies: splits a coarse partition whose
 * time nears, rewrites one that is more than half dead, or that has several times as many other due
 * times as records, looks ahead in the wheel, closes files that were not used for 60 calls. *more:
 * call again soon. [I/O] as dw_store_flush(), DW_ENOMEM, DW_EFULL */
int dw_store_maintain(dw_store *store, uint64_t now_ms, size_t max_bytes, bool *more);

typedef struct dw_checkpoint dw_checkpoint;

/* Begins a checkpoint of everything up to dw_store_applied(): flushes, and notes which files and
 * how much of each make it up. One at a time (a second answers DW_EINVAL). After a failed fsync of
 * a file there is none (DW_EIO) until dw_store_maintain() has moved what is pending out of it.
 * [I/O] as dw_store_flush(), DW_ENOMEM, DW_EINVAL */
int dw_store_checkpoint(dw_store *store, dw_checkpoint **out);
uint64_t dw_checkpoint_applied(const dw_checkpoint *checkpoint);

/* Anyone: fsyncs the files and the directory, writes the manifest and renames it into place; then,
 * if snapshot_dir is not NULL, hard-links the files there and writes the manifest there, last,
 * likewise fsynced. After it the store can be opened at this index again. Partitions with nothing
 * pending are unlinked only once a durable manifest does without them.
 * After a failure it may be tried again.
 * [I/O] DW_OK, DW_ENOMEM, DW_EIO, DW_ENOSPC, DW_EACCES, DW_ECLOSED */
int dw_checkpoint_finish(dw_checkpoint *checkpoint, const char *snapshot_dir);

/* Ends it, finished or not, and frees it. NULL is allowed. Before dw_store_release(). */
void dw_checkpoint_release(dw_checkpoint *checkpoint);

/* -------------------------------------------------------------------- anyone */

struct dw_record {
    uint64_t id;
    uint64_t due; /* as inserted or rescheduled, never the time of a retry */
    uint64_t key_hash;
    uint32_t length; /* of the body, bytes */
    uint16_t encoding;
};

/* Where take, read and page put what they find. */
struct dw_sink {
    /* Memory for the body of a record of r->length bytes, which the store then fills; NULL: no
     * memory, and the record stays pending. May be asked for again for the same record. */
    void *(*body)(void *ctx, const struct dw_record *r);
    /* The body given out last is whole. */
    void (*done)(void *ctx, const struct dw_record *r);
    /* The record was read, twice, and is not what was written (r->id, due, key_hash, length as far
     * as known); `file` and `offset` say where it is. It is handed out all the same: keep it aside,
     * and settle it to be rid of it. The memory from body(), if it was asked for, is not used. */
    void (*corrupt)(void *ctx, const struct dw_record *r, const char *file, uint64_t offset);
    void *ctx;
};

/* Takes the next records due at now_ms or before, in (due, id) order: at most max_n of them, and
 * no further one once max_bytes of bodies are reached (at least one). They stay pending, but are
 * not handed out again until dw_store_postpone() or dw_store_untake(). *next_due: of what is left
 * to hand out, DW_NEVER if nothing; at or before now_ms: call again. Never early. A record that
 * cannot be read is logged, and tried again after a second, and after longer, up to half a minute,
 * the longer that of its file goes on.
 * [I/O] DW_OK, DW_ENOMEM, DW_EIO (no descriptors or memory for reading), DW_ECLOSED; on an error
 * what was not handed out stays. */
int dw_store_take(dw_store *store, uint64_t now_ms, uint32_t max_n, uint64_t max_bytes,
                  const struct dw_sink *sink, uint64_t *next_due);

/* Where corrupt records are kept, in the store's directory: entries, each padded with zeros to a
 * multiple of 8 bytes, little-endian as everything:
 *
 *    0  4  "DWK1"
 *    4  4  CRC-32C of bytes 8 to the entry's end, without the padding
 *    8  8  when it was kept, ms since the epoch
 *   16  8  id
 *   24  8  due, ms since the epoch
 *   32  8  key hash
 *   40  8  where the record begins in its file
 *   48  4  length that its body should have
 *   52  4  bytes that could be read, of a header of 48 (dw_partition.h) and the body
 *   56  2  bytes of the file's name
 *   58  6  0
 *   64     the file's name, then what could be read
 *
 * One that was kept and then not settled may be there again. What fails its checksum is to be
 * passed over, 8 bytes at a time. */
#define DW_KEPT_NAME "CORRUPT"

/* Keeps those of n ids aside, durably, that are pending and corrupt: kept[i] says which. One caller
 * at a time (another: DW_EIO, EAGAIN).
 * [I/O] DW_OK, DW_ENOMEM, DW_EIO, DW_ENOSPC, DW_EACCES, DW_ECLOSED; on an error none is kept, and
 * they may be kept twice by the next call. */
int dw_store_keep_aside(dw_store *store, uint64_t now_ms, const uint64_t *ids, uint32_t n,
                        bool *kept);

/* Hands record `id`, taken before, out again at `until`. For this opening of the store only.
 * DW_OK, DW_ENOENT (gone, or not taken), DW_ENOMEM, DW_ECLOSED */
int dw_store_postpone(dw_store *store, uint64_t id, uint64_t until);

/* The same for many, each until the time given with it; those that are not taken are passed over.
 * DW_OK, DW_ENOMEM (some may be postponed), DW_ECLOSED */
int dw_store_postpone_many(dw_store *store, const struct dw_id_due *untils, size_t n);

/* Makes everything taken be handed out again, at its due time: for a reader that starts afresh.
 * DW_OK, DW_ENOMEM (some may remain taken), DW_ECLOSED */
int dw_store_untake(dw_store *store);

/* When the next record is to be handed out; DW_NEVER if none. Exact. */
uint64_t dw_store_next_due(dw_store *store);

/* The Raft index of the last change. */
uint64_t dw_store_applied(dw_store *store);

struct dw_stat {
    uint64_t pending;       /* messages, those taken included */
    uint64_t pending_bytes; /* of their bodies */
    uint64_t taken;         /* handed out, not yet settled */
    uint64_t next_due;      /* DW_NEVER if none */
    uint64_t applied;
    /* Of (id, due as inserted or rescheduled, key_hash, length) of all that was pending when
     * `applied` had been, whatever was done of that since: two stores at the same index have the
     * same one if, and but for a chance of 2^-64 only if, they hold the same (dw_digest.h). */
    uint64_t digest;
    uint64_t checkpoint_applied; /* the last durable checkpoint's */
    uint64_t buffered;           /* bytes waiting for dw_store_flush() */
    uint64_t file_bytes;         /* in partition files */
    uint64_t dead_bytes;         /* of these, of records no longer pending */
    uint64_t memory_bytes;       /* held by wheel, indexes, slab and buffers */
    uint64_t corrupt_records;    /* met since the store was opened */
    uint64_t unreadable;         /* messages whose record could not be read when last tried */
    uint64_t read_errors;        /* such tries since the store was opened */
    uint32_t partitions;
    uint32_t open_files;
    uint32_t write_error;   /* errno of the last try to write, if it failed; 0 */
    uint32_t full;          /* 1: take no more messages in, a limit of the store is near; 0 */
    uint64_t histogram[48]; /* as dw_wheel_histogram() */
};

/* A store is full with this many messages or partitions, of which there can be 2^32 - 2 and 4,095:
 * what is under way, and what is moved, still has room. */
#define DW_FULL_MESSAGES (UINT32_MAX - (1u << 24))
#define DW_FULL_PARTITIONS 3071u

/* O(1), without the store's lock (a sequence lock over a copy that the other calls publish).
 * DW_OK, DW_ECLOSED (*out as it was last) */
int dw_store_stat(dw_store *store, struct dw_stat *out);

/* Shows pending record `id`, body included; a corrupt one comes through sink->corrupt.
 * [I/O] DW_OK, DW_ENOENT, DW_ENOMEM, DW_EIO, DW_EACCES, DW_ECLOSED */
int dw_store_read(dw_store *store, uint64_t id, const struct dw_sink *sink);

/* Shows those of n ids that are pending and can be read, in the order given, as dw_store_read(),
 * until max_bytes of bodies (at least one record) have been; *seen: how many ids were looked at.
 * [I/O] DW_OK, DW_ENOMEM, DW_ECLOSED */
int dw_store_read_many(dw_store *store, const uint64_t *ids, uint32_t n, uint64_t max_bytes,
                       const struct dw_sink *sink, uint32_t *seen);

/* The first max_n pending records after the cursor (after_due, after_id), in (due, id) order,
 * without bodies: length, encoding and so on as in out[]. *n: how many. (0, 0) begins. Records that
 * come and go meanwhile may be shown or not; what stays throughout is shown exactly once.
 * Visits every entry, in steps that let go of the lock. The encoding of a record that cannot be
 * read is shown as 0. [I/O] DW_OK, DW_ENOMEM, DW_ECLOSED */
int dw_store_page(dw_store *store, uint64_t after_due, uint64_t after_id, struct dw_record *out,
                  uint32_t max_n, uint32_t *n);

/* The same from memory alone, all encodings 0; or, with `back`, the last max_n pending records
 * before the cursor (due, id), the last one first: (DW_DUE_MAX, 2^64 - 1) begins. DW_OK, DW_ENOMEM,
 * DW_ECLOSED */
int dw_store_places(dw_store *store, uint64_t due, uint64_t id, bool back, struct dw_record *out,
                    uint32_t max_n, uint32_t *n);

/* How many records, and bytes of bodies, are pending that are due from from_due to to_due, both
 * included. Visits every entry, in steps that let go of the lock. DW_OK, DW_ECLOSED */
int dw_store_count(dw_store *store, uint64_t from_due, uint64_t to_due, uint64_t *count,
                   uint64_t *bytes);

/* How many pending records are due until each of n bounds (included; ascending, none twice) and
 * after the one before: counts[0] to counts[n - 1], and in counts[n] those after the last. Visits
 * every entry once, in steps that let go of the lock. DW_OK, DW_ECLOSED */
int dw_store_count_until(dw_store *store, const uint64_t *bounds, uint32_t n, uint64_t *counts);

/* The ids of at most max pending records with this key hash; *n: how many there are in all.
 * DW_OK, DW_ENOMEM, DW_ECLOSED */
int dw_store_find(dw_store *store, uint64_t key_hash, uint64_t *ids, uint32_t max, uint64_t *n);

/* errno behind the last DW_EIO, DW_ENOSPC or DW_EACCES that this thread got. */
int dw_store_errno(void);

/* Walks everything in memory and checks every invariant; NULL, or what is wrong. For tests, not
 * beside a writer. */
const char *dw_store_check(dw_store *store);

#endif

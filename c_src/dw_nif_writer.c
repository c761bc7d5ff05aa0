/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_nif.h"

#include "dw_batch.h"
#include "dw_le.h"

/* The writer's calls, which change a store, and its checkpoints. The Ra server makes them one after
 * the other; who else would is told `busy'. Those that are cheap for a small argument run at once
 * and make themselves a dirty job for one that is not. */

/* What runs on a normal scheduler. A record costs some 0.5 to 1 us, an id as much, and the bytes of
 * 64 KiB some 10 us, so a call takes a fraction of a millisecond, on a busy machine too. */
#define SMALL_BATCH_BYTES 65536
#define SMALL_BATCH_RECORDS 256
#define SMALL_IDS 256

struct insertion {
    dw_lease *lease;
    uint64_t index, base;
    ErlNifBinary batch;
};

static bool get_insertion(ErlNifEnv *env, const ERL_NIF_TERM argv[], struct insertion *in) {
    return nif_get_lease(env, argv[0], &in->lease) && nif_get_index(env, argv[1], &in->index) &&
           nif_get_time(env, argv[2], &in->base) && enif_inspect_binary(env, argv[3], &in->batch);
}

static ERL_NIF_TERM inserted_term(ErlNifEnv *env, const struct dw_inserted *in) {
    return enif_make_tuple5(env, nif_atoms.ok, nif_number(env, in->count),
                            nif_number(env, in->bytes), nif_time(env, in->next_due),
                            nif_number(env, in->buffered));
}

/* insert(Store, Index, BaseMs, Batch) */
static ERL_NIF_TERM insert_batch(ErlNifEnv *env, const ERL_NIF_TERM argv[], bool at_once) {
    struct insertion to;
    if (!get_insertion(env, argv, &to)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(to.lease)) {
        return nif_failure(env, DW_EBUSY, 0);
    }
    struct dw_inserted in = {0};
    ErlNifTime began = at_once ? enif_monotonic_time(ERL_NIF_NSEC) : 0;
    int result = dw_store_insert(dw_lease_store(to.lease), to.index, to.base, to.batch.data,
                                 to.batch.size, &in);
    dw_lease_write_end(to.lease);
    if (at_once) {
        nif_spent(env, began);
    }
    return result == DW_OK ? inserted_term(env, &in) : nif_store_failure(env, result);
}

static ERL_NIF_TERM insert_dirty(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return insert_batch(env, argv, false);
}

static bool longer_than(ErlNifEnv *env, ERL_NIF_TERM term, size_t bytes) {
    ErlNifBinary binary;
    return enif_inspect_binary(env, term, &binary) && binary.size > bytes;
}

/* Any binary: it need not be a well-formed batch. */
static bool many_records(ErlNifEnv *env, ERL_NIF_TERM term) {
    ErlNifBinary batch;
    unsigned n = 0;
    if (enif_inspect_binary(env, term, &batch)) {
        for (size_t at = 0; n <= SMALL_BATCH_RECORDS && at + DW_BATCH_HEADER <= batch.size; ++n) {
            at += DW_BATCH_HEADER + (size_t)dw_le32(batch.data + at);
        }
    }
    return n > SMALL_BATCH_RECORDS;
}

ERL_NIF_TERM nif_insert(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    if (longer_than(env, argv[3], SMALL_BATCH_BYTES) || many_records(env, argv[3])) {
        return enif_schedule_nif(env, "insert", ERL_NIF_DIRTY_JOB_CPU_BOUND, insert_dirty, argc,
                                 argv);
    }
    return insert_batch(env, argv, true);
}

static bool get_keyed_version(ErlNifEnv *env, ERL_NIF_TERM term, enum dw_keyed_version *out) {
    uint64_t version;
    if (!nif_get_number(env, term, DW_KEYED_1, DW_KEYED_2, &version)) {
        return false;
    }
    *out = (enum dw_keyed_version)version;
    return true;
}

/* insert_keyed(Store, Index, BaseMs, Batch, Version). One record may remove or release any number.
 */
ERL_NIF_TERM nif_insert_keyed(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    struct insertion to;
    enum dw_keyed_version version;
    (void)argc;
    if (!get_insertion(env, argv, &to) || !get_keyed_version(env, argv[4], &version)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(to.lease)) {
        return nif_failure(env, DW_EBUSY, 0);
    }
    struct dw_keyed in = {0};
    int result = dw_store_insert_keyed(dw_lease_store(to.lease), to.index, to.base, to.batch.data,
                                       to.batch.size, version, &in);
    dw_lease_write_end(to.lease);
    if (result != DW_OK) {
        return nif_store_failure(env, result);
    }
    static const char *const names[] = {"cancelled", "replaced", "taken", "dropped", "released"};
    ERL_NIF_TERM values[] = {nif_number(env, in.cancelled), nif_number(env, in.replaced),
                             nif_number(env, in.taken), nif_number(env, in.dropped),
                             nif_number(env, in.released)};
    return enif_make_tuple3(env, nif_atoms.ok, inserted_term(env, &in.inserted),
                            nif_map(env, names, values, sizeof names / sizeof *names));
}

/* check_batch(Batch, MaxRecordBytes) */
static ERL_NIF_TERM check(ErlNifEnv *env, const ERL_NIF_TERM argv[], bool at_once) {
    ErlNifBinary batch;
    uint64_t max_record;
    uint32_t count = 0;
    if (!enif_inspect_binary(env, argv[0], &batch) ||
        !nif_get_number(env, argv[1], 1, INT32_MAX, &max_record)) {
        return enif_make_badarg(env);
    }
    ErlNifTime began = at_once ? enif_monotonic_time(ERL_NIF_NSEC) : 0;
    int result = dw_batch_check(batch.data, batch.size, (uint32_t)max_record, &count);
    if (at_once) {
        nif_spent(env, began);
    }
    return result == DW_OK ? nif_ok2(env, nif_number(env, count)) : nif_store_failure(env, result);
}

static ERL_NIF_TERM check_dirty(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return check(env, argv, false);
}

ERL_NIF_TERM nif_check_batch(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    if (longer_than(env, argv[0], SMALL_BATCH_BYTES)) {
        return enif_schedule_nif(env, "check_batch", ERL_NIF_DIRTY_JOB_CPU_BOUND, check_dirty, argc,
                                 argv);
    }
    return check(env, argv, true);
}

/* check_keyed_batch(Batch, MaxRecordBytes, Version) */
ERL_NIF_TERM nif_check_keyed_batch(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    ErlNifBinary batch;
    uint64_t max_record;
    enum dw_keyed_version version;
    uint32_t count = 0;
    (void)argc;
    if (!enif_inspect_binary(env, argv[0], &batch) ||
        !nif_get_number(env, argv[1], 1, INT32_MAX, &max_record) ||
        !get_keyed_version(env, argv[2], &version)) {
        return enif_make_badarg(env);
    }
    int result =
        dw_batch_check_keyed(batch.data, batch.size, (uint32_t)max_record, version, &count);
    return result == DW_OK ? nif_ok2(env, nif_number(env, count)) : nif_store_failure(env, result);
}

_Static_assert(sizeof(struct dw_id_due) == 2 * sizeof(uint64_t), "as it lies in a binary");

/* Which of those that it is given settle removes. */
enum settling { SETTLE_ALL, SETTLE_DUE, SETTLE_DUE_BY };

/* Bytes of one of what it is given. */
static size_t settled_bytes(enum settling which) {
    return which == SETTLE_ALL ? sizeof(uint64_t) : sizeof(struct dw_id_due);
}

static int settle_which(dw_store *store, uint64_t index, const uint64_t *ids, size_t n,
                        enum settling which, uint64_t *removed) {
    const void *released = ids;
    switch (which) {
    case SETTLE_DUE:
        return dw_store_settle_due(store, index, released, n / 2, removed);
    case SETTLE_DUE_BY:
        return dw_store_settle_due_by(store, index, released, n / 2, removed);
    default:
        return dw_store_settle(store, index, ids, n, removed);
    }
}

/* settle(Store, Index, Ids), settle_due(Store, Index, Released), settle_due_by(...) */
static ERL_NIF_TERM settle(ErlNifEnv *env, const ERL_NIF_TERM argv[], enum settling which,
                           bool at_once) {
    dw_lease *lease;
    uint64_t index, removed = 0;
    ErlNifBinary binary;
    if (!nif_get_lease(env, argv[0], &lease) || !nif_get_index(env, argv[1], &index) ||
        !enif_inspect_binary(env, argv[2], &binary) || binary.size % settled_bytes(which) != 0) {
        return enif_make_badarg(env);
    }
    ErlNifTime began = at_once ? enif_monotonic_time(ERL_NIF_NSEC) : 0;
    uint64_t *copy;
    size_t n;
    const uint64_t *ids = nif_get_ids(&binary, &copy, &n);
    if (ids == NULL && n > 0) {
        return nif_failure(env, DW_ENOMEM, 0);
    }
    int result = DW_EBUSY;
    if (dw_lease_write_begin(lease)) {
        result = settle_which(dw_lease_store(lease), index, ids, n, which, &removed);
        dw_lease_write_end(lease);
    }
    enif_free(copy);
    if (at_once) {
        nif_spent(env, began);
    }
    return result == DW_OK ? nif_ok2(env, nif_number(env, removed))
                           : nif_store_failure(env, result);
}

static ERL_NIF_TERM settle_dirty(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return settle(env, argv, SETTLE_ALL, false);
}

static ERL_NIF_TERM settle_due_dirty(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return settle(env, argv, SETTLE_DUE, false);
}

static ERL_NIF_TERM settle_due_by_dirty(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return settle(env, argv, SETTLE_DUE_BY, false);
}

ERL_NIF_TERM nif_settle(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    if (longer_than(env, argv[2], SMALL_IDS * settled_bytes(SETTLE_ALL))) {
        return enif_schedule_nif(env, "settle", ERL_NIF_DIRTY_JOB_CPU_BOUND, settle_dirty, argc,
                                 argv);
    }
    return settle(env, argv, SETTLE_ALL, true);
}

ERL_NIF_TERM nif_settle_due(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    if (longer_than(env, argv[2], SMALL_IDS * settled_bytes(SETTLE_DUE))) {
        return enif_schedule_nif(env, "settle_due", ERL_NIF_DIRTY_JOB_CPU_BOUND, settle_due_dirty,
                                 argc, argv);
    }
    return settle(env, argv, SETTLE_DUE, true);
}

ERL_NIF_TERM nif_settle_due_by(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    if (longer_than(env, argv[2], SMALL_IDS * settled_bytes(SETTLE_DUE_BY))) {
        return enif_schedule_nif(env, "settle_due_by", ERL_NIF_DIRTY_JOB_CPU_BOUND,
                                 settle_due_by_dirty, argc, argv);
    }
    return settle(env, argv, SETTLE_DUE_BY, true);
}

/* purge(Store, Index) */
ERL_NIF_TERM nif_purge(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    uint64_t index, removed, taken;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease) || !nif_get_index(env, argv[1], &index)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(lease)) {
        return nif_failure(env, DW_EBUSY, 0);
    }
    int result = dw_store_purge(dw_lease_store(lease), index, &removed, &taken);
    dw_lease_write_end(lease);
    if (result != DW_OK) {
        return nif_store_failure(env, result);
    }
    return enif_make_tuple3(env, nif_atoms.ok, nif_number(env, removed), nif_number(env, taken));
}

/* reschedule(Store, Index, Id, Due) */
ERL_NIF_TERM nif_reschedule(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    uint64_t index, id, due;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease) || !nif_get_index(env, argv[1], &index) ||
        !nif_get_id(env, argv[2], &id) || !nif_get_time(env, argv[3], &due)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(lease)) {
        return nif_failure(env, DW_EBUSY, 0);
    }
    int result = dw_store_reschedule(dw_lease_store(lease), index, id, due);
    dw_lease_write_end(lease);
    return nif_ok_or_failure(env, result);
}

/* reschedule_many(Store, Index, <<Id:64/little, Due:64/little, ...>>) */
ERL_NIF_TERM nif_reschedule_many(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    uint64_t index, moved = 0;
    ErlNifBinary binary;
    struct dw_id_due *dues = NULL;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease) || !nif_get_index(env, argv[1], &index) ||
        !enif_inspect_binary(env, argv[2], &binary) || binary.size % sizeof *dues != 0) {
        return enif_make_badarg(env);
    }
    const size_t n = binary.size / sizeof *dues;
    if (n > 0 && (dues = enif_alloc(n * sizeof *dues)) == NULL) {
        return nif_failure(env, DW_ENOMEM, 0);
    }
    for (size_t i = 0; i < n; ++i) {
        const uint8_t *pair = binary.data + i * sizeof *dues;
        dues[i] = (struct dw_id_due){.id = dw_le64(pair), .due = dw_le64(pair + 8)};
    }
    int result = DW_EBUSY;
    if (dw_lease_write_begin(lease)) {
        result = dw_store_reschedule_many(dw_lease_store(lease), index, dues, n, &moved);
        dw_lease_write_end(lease);
    }
    enif_free(dues);
    return result == DW_OK ? nif_ok2(env, nif_number(env, moved)) : nif_store_failure(env, result);
}

/* note(Store, Index) */
ERL_NIF_TERM nif_note(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    uint64_t index;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease) || !nif_get_index(env, argv[1], &index)) {
        return enif_make_badarg(env);
    }
    if (dw_lease_closed(lease)) {
        return nif_failure(env, DW_ECLOSED, 0);
    }
    if (!dw_lease_write_begin(lease)) {
        return nif_failure(env, DW_EBUSY, 0);
    }
    dw_store_note(dw_lease_store(lease), index);
    dw_lease_write_end(lease);
    return nif_atoms.ok;
}

ERL_NIF_TERM nif_flush(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(lease)) {
        return nif_failure(env, DW_EBUSY, 0);
    }
    int result = dw_store_flush(dw_lease_store(lease));
    dw_lease_write_end(lease);
    return nif_ok_or_failure(env, result);
}

/* maintain(Store, Now, MaxBytes) */
ERL_NIF_TERM nif_maintain(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    uint64_t now, max_bytes;
    bool more = false;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease) || !nif_get_time(env, argv[1], &now) ||
        !nif_get_number(env, argv[2], 1, SIZE_MAX, &max_bytes)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(lease)) {
        return nif_failure(env, DW_EBUSY, 0);
    }
    int result = dw_store_maintain(dw_lease_store(lease), now, max_bytes, &more);
    dw_lease_write_end(lease);
    return result == DW_OK ? nif_ok2(env, more ? nif_atoms.more : nif_atoms.done)
                           : nif_store_failure(env, result);
}

ERL_NIF_TERM nif_checkpoint(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    struct nif_module *module = enif_priv_data(env);
    dw_lease *lease;
    uint64_t which, applied;
    int os_error = 0;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(lease)) {
        return nif_failure(env, DW_EBUSY, 0);
    }
    int result = dw_lease_checkpoint(lease, &which, &applied, &os_error);
    dw_lease_write_end(lease);
    if (result != DW_OK) {
        return nif_failure(env, result, os_error);
    }
    struct nif_checkpoint *object = enif_alloc_resource(module->checkpoint_type, sizeof *object);
    if (object == NULL) {
        return nif_failure(env, DW_ENOMEM, 0); /* the next checkpoint takes this one's place */
    }
    *object = (struct nif_checkpoint){module, lease, which};
    nif_object_made(module);
    dw_lease_keep(lease);
    ERL_NIF_TERM term = enif_make_resource(env, object);
    enif_release_resource(object);
    return enif_make_tuple3(env, nif_atoms.ok, term, nif_number(env, applied));
}

/* finish(Checkpoint, SnapshotDir | none) */
ERL_NIF_TERM nif_finish(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct nif_module *module = enif_priv_data(env);
    char dir[PATH_MAX];
    void *p;
    int os_error = 0;
    (void)argc;
    bool snapshot = nif_get_path(env, argv[1], dir);
    if (!enif_get_resource(env, argv[0], module->checkpoint_type, &p) ||
        !(snapshot || enif_is_identical(argv[1], nif_atoms.none))) {
        return enif_make_badarg(env);
    }
    const struct nif_checkpoint *object = p;
    nif_calling = env;
    int result = dw_lease_finish(object->lease, object->number, snapshot ? dir : NULL, &os_error);
    return result == DW_OK ? nif_atoms.ok : nif_failure(env, result, os_error);
}

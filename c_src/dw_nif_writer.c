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

static bool get_checked(ErlNifEnv *env, const ERL_NIF_TERM argv[], ErlNifBinary *batch,
                        uint32_t *max_record) {
    uint64_t most;
    if (!enif_inspect_binary(env, argv[0], batch) ||
        !nif_get_number(env, argv[1], 1, INT32_MAX, &most)) {
        return false;
    }
    *max_record = (uint32_t)most;
    return true;
}

static ERL_NIF_TERM checked_term(ErlNifEnv *env, int result, uint32_t count) {
    return result == DW_OK ? nif_ok2(env, nif_number(env, count)) : nif_store_failure(env, result);
}

/* check_batch(Batch, MaxRecordBytes) */
static ERL_NIF_TERM check(ErlNifEnv *env, const ERL_NIF_TERM argv[], bool at_once) {
    ErlNifBinary batch;
    uint32_t max_record, count = 0;
    if (!get_checked(env, argv, &batch, &max_record)) {
        return enif_make_badarg(env);
    }
    ErlNifTime began = at_once ? enif_monotonic_time(ERL_NIF_NSEC) : 0;
    int result = dw_batch_check(batch.data, batch.size, max_record, &count);
    if (at_once) {
        nif_spent(env, began);
    }
    return checked_term(env, result, count);
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
    enum dw_keyed_version version;
    uint32_t max_record, count = 0;
    (void)argc;
    if (!get_checked(env, argv, &batch, &max_record) ||
        !get_keyed_version(env, argv[2], &version)) {
        return enif_make_badarg(env);
    }
    return checked_term(env,
                        dw_batch_check_keyed(batch.data, batch.size, max_record, version, &count),
                        count);
}

_Static_assert(sizeof(struct dw_id_due) == 2 * sizeof(uint64_t), "as it lies in a binary");

/* Changes of listed messages: their ids, or ids and due times. */
enum listed { LISTED_SETTLE, LISTED_SETTLE_DUE, LISTED_SETTLE_DUE_BY, LISTED_RESCHEDULE };

static const char *const listed_names[] = {"settle", "settle_due", "settle_due_by",
                                           "reschedule_many"};

/* Bytes of one of what it is given. */
static size_t listed_bytes(enum listed change) {
    return change == LISTED_SETTLE ? sizeof(uint64_t) : sizeof(struct dw_id_due);
}

static int change_listed(dw_store *store, uint64_t index, const uint64_t *words, size_t n,
                         enum listed change, uint64_t *changed) {
    const void *dues = words;
    switch (change) {
    case LISTED_SETTLE_DUE:
        return dw_store_settle_due(store, index, dues, n / 2, changed);
    case LISTED_SETTLE_DUE_BY:
        return dw_store_settle_due_by(store, index, dues, n / 2, changed);
    case LISTED_RESCHEDULE:
        return dw_store_reschedule_many(store, index, dues, n / 2, changed);
    default:
        return dw_store_settle(store, index, words, n, changed);
    }
}

/* change(Store, Index, Listed) */
static ERL_NIF_TERM listed(ErlNifEnv *env, const ERL_NIF_TERM argv[], enum listed change,
                           bool at_once) {
    dw_lease *lease;
    uint64_t index, changed = 0;
    ErlNifBinary binary;
    if (!nif_get_lease(env, argv[0], &lease) || !nif_get_index(env, argv[1], &index) ||
        !enif_inspect_binary(env, argv[2], &binary) || binary.size % listed_bytes(change) != 0) {
        return enif_make_badarg(env);
    }
    ErlNifTime began = at_once ? enif_monotonic_time(ERL_NIF_NSEC) : 0;
    uint64_t *copy;
    size_t n;
    const uint64_t *words = nif_get_ids(&binary, &copy, &n);
    if (words == NULL && n > 0) {
        return nif_failure(env, DW_ENOMEM, 0);
    }
    int result = DW_EBUSY;
    if (dw_lease_write_begin(lease)) {
        result = change_listed(dw_lease_store(lease), index, words, n, change, &changed);
        dw_lease_write_end(lease);
    }
    enif_free(copy);
    if (at_once) {
        nif_spent(env, began);
    }
    return result == DW_OK ? nif_ok2(env, nif_number(env, changed))
                           : nif_store_failure(env, result);
}

/* The same, with which change it is behind the others. */
static ERL_NIF_TERM listed_dirty(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    unsigned change = 0;
    return argc == 4 && enif_get_uint(env, argv[3], &change)
               ? listed(env, argv, (enum listed)change, false)
               : enif_make_badarg(env);
}

static ERL_NIF_TERM listed_soon(ErlNifEnv *env, const ERL_NIF_TERM argv[], enum listed change) {
    if (longer_than(env, argv[2], SMALL_IDS * listed_bytes(change))) {
        const ERL_NIF_TERM all[] = {argv[0], argv[1], argv[2], enif_make_uint(env, change)};
        return enif_schedule_nif(env, listed_names[change], ERL_NIF_DIRTY_JOB_CPU_BOUND,
                                 listed_dirty, 4, all);
    }
    return listed(env, argv, change, true);
}

/* settle(Store, Index, <<Id:64/little, ...>>) */
ERL_NIF_TERM nif_settle(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return listed_soon(env, argv, LISTED_SETTLE);
}

/* settle_due(Store, Index, <<Id:64/little, Due:64/little, ...>>) */
ERL_NIF_TERM nif_settle_due(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return listed_soon(env, argv, LISTED_SETTLE_DUE);
}

/* settle_due_by(Store, Index, <<Id:64/little, Due:64/little, ...>>) */
ERL_NIF_TERM nif_settle_due_by(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return listed_soon(env, argv, LISTED_SETTLE_DUE_BY);
}

/* reschedule_many(Store, Index, <<Id:64/little, Due:64/little, ...>>) */
ERL_NIF_TERM nif_reschedule_many(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return listed_soon(env, argv, LISTED_RESCHEDULE);
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

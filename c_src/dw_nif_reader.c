/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_nif.h"

/* The calls that anyone may make beside the writer: the dispatcher's, operators', figures. */

/* What take and read build their terms with. Each body is a binary of its own, so that a message
 * which is kept for long keeps only itself. Terms go straight into the process's heap: nothing can
 * fail between a record's coming out and its being in the list. */
struct collector {
    ErlNifEnv *env;
    ERL_NIF_TERM list; /* newest first */
    uint64_t count;
    bool alone; /* `large` is not yet a term */
    ErlNifBinary large;
    ERL_NIF_TERM body;
};

#define LARGEST_HEAP_BINARY 64

static void collector_forget(struct collector *c) {
    if (c->alone) {
        enif_release_binary(&c->large);
        c->alone = false;
    }
}

static void *collector_body(void *ctx, const struct dw_record *r) {
    struct collector *c = ctx;
    collector_forget(c);
    if (r->length <= LARGEST_HEAP_BINARY) {
        return enif_make_new_binary(c->env, r->length, &c->body);
    }
    if (!enif_alloc_binary(r->length, &c->large)) {
        return NULL;
    }
    c->alone = true;
    return c->large.data;
}

static ERL_NIF_TERM collector_take_body(struct collector *c) {
    if (c->alone) {
        c->alone = false;
        c->body = enif_make_binary(c->env, &c->large);
    }
    return c->body;
}

static void collector_add(struct collector *c, ERL_NIF_TERM term) {
    c->list = enif_make_list_cell(c->env, term, c->list);
    ++c->count;
}

static void take_done(void *ctx, const struct dw_record *r) {
    struct collector *c = ctx;
    collector_add(c, enif_make_tuple4(c->env, nif_number(c->env, r->id), nif_number(c->env, r->due),
                                      nif_number(c->env, r->encoding), collector_take_body(c)));
}

static void take_corrupt(void *ctx, const struct dw_record *r, const char *file, uint64_t offset) {
    struct collector *c = ctx;
    collector_forget(c);
    collector_add(c, enif_make_tuple5(c->env, nif_atoms.corrupt, nif_number(c->env, r->id),
                                      nif_number(c->env, r->due), nif_text(c->env, file),
                                      nif_number(c->env, offset)));
}

/* take(Store, Now, MaxN, MaxBytes). An error after some records have come out is left for the next
 * call to meet: these must reach the caller. */
ERL_NIF_TERM nif_take(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t now, max_n, max_bytes, next_due = DW_NEVER;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !nif_get_time(env, argv[1], &now) ||
        !nif_get_number(env, argv[2], 1, NIF_LIST_MAX, &max_n) ||
        !nif_get_number(env, argv[3], 1, UINT64_MAX, &max_bytes)) {
        return enif_make_badarg(env);
    }
    struct collector c = {.env = env, .list = enif_make_list(env, 0)};
    struct dw_sink sink = {collector_body, take_done, take_corrupt, &c};
    int result = dw_store_take(store, now, (uint32_t)max_n, max_bytes, &sink, &next_due);
    collector_forget(&c);
    if (result != DW_OK) {
        if (c.count == 0) {
            return nif_store_failure(env, result);
        }
        next_due = now;
    }
    ERL_NIF_TERM list;
    enif_make_reverse_list(env, c.list, &list);
    return enif_make_tuple3(env, nif_atoms.ok, list, nif_time(env, next_due));
}

/* keep_aside(Store, Now, Ids) */
ERL_NIF_TERM nif_keep_aside(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t now;
    ErlNifBinary binary;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !nif_get_time(env, argv[1], &now) ||
        !enif_inspect_binary(env, argv[2], &binary) || binary.size % sizeof(uint64_t) != 0 ||
        binary.size / sizeof(uint64_t) < 1 || binary.size / sizeof(uint64_t) > NIF_LIST_MAX) {
        return enif_make_badarg(env);
    }
    uint64_t *copy;
    size_t n;
    const uint64_t *ids = nif_get_ids(&binary, &copy, &n);
    bool *kept = ids == NULL ? NULL : enif_alloc(n * sizeof *kept);
    if (kept == NULL) {
        enif_free(copy);
        return nif_failure(env, DW_ENOMEM, 0);
    }
    int result = dw_store_keep_aside(store, now, ids, (uint32_t)n, kept);
    ERL_NIF_TERM list = enif_make_list(env, 0);
    for (size_t i = n; result == DW_OK && i > 0; --i) {
        if (kept[i - 1]) {
            list = enif_make_list_cell(env, nif_number(env, ids[i - 1]), list);
        }
    }
    enif_free(kept);
    enif_free(copy);
    return result == DW_OK ? nif_ok2(env, list) : nif_store_failure(env, result);
}

/* postpone(Store, Id, Until) */
ERL_NIF_TERM nif_postpone(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t id, until;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !nif_get_id(env, argv[1], &id) ||
        !nif_get_time(env, argv[2], &until)) {
        return enif_make_badarg(env);
    }
    return nif_ok_or_failure(env, dw_store_postpone(store, id, until));
}

/* postpone_many(Store, <<Id:64/little, Until:64/little, ...>>) */
ERL_NIF_TERM nif_postpone_many(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    ErlNifBinary binary;
    uint64_t *copy;
    size_t n;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !enif_inspect_binary(env, argv[1], &binary) ||
        binary.size % sizeof(struct dw_id_due) != 0) {
        return enif_make_badarg(env);
    }
    const void *untils = nif_get_ids(&binary, &copy, &n);
    if (untils == NULL && n > 0) {
        return nif_failure(env, DW_ENOMEM, 0);
    }
    int result = dw_store_postpone_many(store, untils, n / 2);
    enif_free(copy);
    return nif_ok_or_failure(env, result);
}

ERL_NIF_TERM nif_untake(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store)) {
        return enif_make_badarg(env);
    }
    return nif_ok_or_failure(env, dw_store_untake(store));
}

ERL_NIF_TERM nif_next_due(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    if (dw_lease_closed(lease)) {
        return nif_failure(env, DW_ECLOSED, 0);
    }
    return nif_time(env, dw_store_next_due(dw_lease_store(lease)));
}

ERL_NIF_TERM nif_applied(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    if (dw_lease_closed(lease)) {
        return nif_failure(env, DW_ECLOSED, 0);
    }
    return nif_number(env, dw_store_applied(dw_lease_store(lease)));
}

ERL_NIF_TERM nif_stat(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    struct dw_stat s;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store)) {
        return enif_make_badarg(env);
    }
    int result = dw_store_stat(store, &s);
    if (result != DW_OK) {
        return nif_store_failure(env, result);
    }
    enum { N = sizeof s.histogram / sizeof *s.histogram };
    ERL_NIF_TERM counts[N];
    for (size_t i = 0; i < N; ++i) {
        counts[i] = nif_number(env, s.histogram[i]);
    }
    static const char *const names[] = {
        "pending",      "pending_bytes",   "taken",      "next_due",   "applied",
        "buffered",     "file_bytes",      "dead_bytes", "partitions", "checkpoint_applied",
        "memory_bytes", "corrupt_records", "open_files", "histogram",  "unreadable",
        "read_errors",  "write_error",     "full",       "digest"};
    ERL_NIF_TERM values[] = {nif_number(env, s.pending),
                             nif_number(env, s.pending_bytes),
                             nif_number(env, s.taken),
                             nif_time(env, s.next_due),
                             nif_number(env, s.applied),
                             nif_number(env, s.buffered),
                             nif_number(env, s.file_bytes),
                             nif_number(env, s.dead_bytes),
                             nif_number(env, s.partitions),
                             nif_number(env, s.checkpoint_applied),
                             nif_number(env, s.memory_bytes),
                             nif_number(env, s.corrupt_records),
                             nif_number(env, s.open_files),
                             enif_make_list_from_array(env, counts, N),
                             nif_number(env, s.unreadable),
                             nif_number(env, s.read_errors),
                             s.write_error == 0 ? nif_atoms.none
                                                : nif_errno_atom(env, (int)s.write_error),
                             s.full ? nif_atoms.true_ : nif_atoms.false_,
                             nif_number(env, s.digest)};
    return nif_map(env, names, values, sizeof names / sizeof *names);
}

static ERL_NIF_TERM record_map(ErlNifEnv *env, const struct dw_record *r, ERL_NIF_TERM *body) {
    ERL_NIF_TERM keys[] = {nif_atoms.id,     nif_atoms.due,      nif_atoms.key_hash,
                           nif_atoms.length, nif_atoms.encoding, nif_atoms.body};
    ERL_NIF_TERM values[] = {nif_number(env, r->id),
                             nif_number(env, r->due),
                             nif_number(env, r->key_hash),
                             nif_number(env, r->length),
                             nif_number(env, r->encoding),
                             body == NULL ? nif_atoms.undefined : *body};
    ERL_NIF_TERM map;
    enif_make_map_from_arrays(env, keys, values, body == NULL ? 5 : 6, &map);
    return map;
}

static void read_done(void *ctx, const struct dw_record *r) {
    struct collector *c = ctx;
    ERL_NIF_TERM body = collector_take_body(c);
    collector_add(c, nif_ok2(c->env, record_map(c->env, r, &body)));
}

static void read_corrupt(void *ctx, const struct dw_record *r, const char *file, uint64_t offset) {
    struct collector *c = ctx;
    (void)r;
    collector_forget(c);
    collector_add(c, nif_error(c->env,
                               enif_make_tuple3(c->env, nif_atoms.corrupt, nif_text(c->env, file),
                                                nif_number(c->env, offset))));
}

/* read(Store, Id) */
ERL_NIF_TERM nif_read(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t id;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !nif_get_id(env, argv[1], &id)) {
        return enif_make_badarg(env);
    }
    struct collector c = {.env = env, .list = enif_make_list(env, 0)};
    struct dw_sink sink = {collector_body, read_done, read_corrupt, &c};
    int result = dw_store_read(store, id, &sink);
    collector_forget(&c);
    ERL_NIF_TERM answer, rest;
    if (enif_get_list_cell(env, c.list, &answer, &rest)) {
        return answer;
    }
    return nif_store_failure(env, result == DW_OK ? DW_ENOENT : result);
}

static void read_many_done(void *ctx, const struct dw_record *r) {
    struct collector *c = ctx;
    ERL_NIF_TERM body = collector_take_body(c);
    collector_add(c, record_map(c->env, r, &body));
}

/* Left to read/2, which tells more. */
static void read_many_corrupt(void *ctx, const struct dw_record *r, const char *file,
                              uint64_t offset) {
    struct collector *c = ctx;
    (void)r;
    (void)file;
    (void)offset;
    collector_forget(c);
}

/* read_many(Store, Ids, MaxBytes) */
ERL_NIF_TERM nif_read_many(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    ErlNifBinary binary;
    uint64_t max_bytes;
    uint64_t *copy;
    size_t n;
    uint32_t seen = 0;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !enif_inspect_binary(env, argv[1], &binary) ||
        binary.size % sizeof(uint64_t) != 0 || binary.size / sizeof(uint64_t) < 1 ||
        binary.size / sizeof(uint64_t) > NIF_LIST_MAX ||
        !nif_get_number(env, argv[2], 1, UINT64_MAX, &max_bytes)) {
        return enif_make_badarg(env);
    }
    const uint64_t *ids = nif_get_ids(&binary, &copy, &n);
    if (ids == NULL) {
        return nif_failure(env, DW_ENOMEM, 0);
    }
    struct collector c = {.env = env, .list = enif_make_list(env, 0)};
    struct dw_sink sink = {collector_body, read_many_done, read_many_corrupt, &c};
    int result = dw_store_read_many(store, ids, (uint32_t)n, max_bytes, &sink, &seen);
    collector_forget(&c);
    enif_free(copy);
    if (result != DW_OK) {
        return nif_store_failure(env, result);
    }
    ERL_NIF_TERM list;
    enif_make_reverse_list(env, c.list, &list);
    return enif_make_tuple3(env, nif_atoms.ok, list, nif_number(env, seen));
}

/* page(Store, {Due, Id}, MaxN) */
ERL_NIF_TERM nif_page(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    const ERL_NIF_TERM *cursor;
    int arity;
    uint64_t due, id, max_n;
    uint32_t n = 0;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !enif_get_tuple(env, argv[1], &arity, &cursor) ||
        arity != 2 || !nif_get_time(env, cursor[0], &due) || !nif_get_id(env, cursor[1], &id) ||
        !nif_get_number(env, argv[2], 1, NIF_LIST_MAX, &max_n)) {
        return enif_make_badarg(env);
    }
    struct dw_record *records = enif_alloc(max_n * sizeof *records);
    if (records == NULL) {
        return nif_failure(env, DW_ENOMEM, 0);
    }
    int result = dw_store_page(store, due, id, records, (uint32_t)max_n, &n);
    ERL_NIF_TERM list = enif_make_list(env, 0);
    while (result == DW_OK && n > 0) {
        --n;
        list = enif_make_list_cell(env, record_map(env, &records[n], NULL), list);
    }
    enif_free(records);
    return result == DW_OK ? nif_ok2(env, list) : nif_store_failure(env, result);
}

/* places_nif(Store, {Due, Id}, Back, MaxN) */
ERL_NIF_TERM nif_places(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    const ERL_NIF_TERM *cursor;
    int arity;
    uint64_t due, id, back, max_n;
    uint32_t n = 0;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !enif_get_tuple(env, argv[1], &arity, &cursor) ||
        arity != 2 || !nif_get_time(env, cursor[0], &due) || !nif_get_id(env, cursor[1], &id) ||
        !nif_get_number(env, argv[2], 0, 1, &back) ||
        !nif_get_number(env, argv[3], 1, NIF_PLACES_MAX, &max_n)) {
        return enif_make_badarg(env);
    }
    struct dw_record *records = enif_alloc(max_n * sizeof *records);
    if (records == NULL) {
        return nif_failure(env, DW_ENOMEM, 0);
    }
    int result = dw_store_places(store, due, id, back == 1, records, (uint32_t)max_n, &n);
    ERL_NIF_TERM list = enif_make_list(env, 0);
    while (result == DW_OK && n > 0) {
        const struct dw_record *r = &records[--n];
        list = enif_make_list_cell(env,
                                   enif_make_tuple3(env, nif_number(env, r->due),
                                                    nif_number(env, r->id),
                                                    nif_number(env, r->length)),
                                   list);
    }
    enif_free(records);
    return result == DW_OK ? nif_ok2(env, list) : nif_store_failure(env, result);
}

/* count(Store, FromDue, ToDue) */
ERL_NIF_TERM nif_count(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t from, to, records, bytes;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !nif_get_time(env, argv[1], &from) ||
        !nif_get_time(env, argv[2], &to)) {
        return enif_make_badarg(env);
    }
    int result = dw_store_count(store, from, to, &records, &bytes);
    if (result != DW_OK) {
        return nif_store_failure(env, result);
    }
    return enif_make_tuple3(env, nif_atoms.ok, nif_number(env, records), nif_number(env, bytes));
}

/* count_until(Store, [Due]) */
ERL_NIF_TERM nif_count_until(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    enum { MAX = 64 };
    dw_store *store;
    uint64_t bounds[MAX], counts[MAX + 1];
    unsigned n;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !enif_get_list_length(env, argv[1], &n) ||
        n > MAX) {
        return enif_make_badarg(env);
    }
    ERL_NIF_TERM head, tail = argv[1];
    for (unsigned i = 0; enif_get_list_cell(env, tail, &head, &tail); ++i) {
        if (!nif_get_time(env, head, &bounds[i]) || (i > 0 && bounds[i] <= bounds[i - 1])) {
            return enif_make_badarg(env);
        }
    }
    int result = dw_store_count_until(store, bounds, n, counts);
    if (result != DW_OK) {
        return nif_store_failure(env, result);
    }
    ERL_NIF_TERM list = enif_make_list(env, 0);
    for (unsigned i = n + 1; i > 0; --i) {
        list = enif_make_list_cell(env, nif_number(env, counts[i - 1]), list);
    }
    return nif_ok2(env, list);
}

/* find(Store, KeyHash, Max) */
ERL_NIF_TERM nif_find(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t key_hash, max_n, total = 0;
    (void)argc;
    if (!nif_get_store(env, argv[0], &store) || !nif_get_id(env, argv[1], &key_hash) ||
        !nif_get_number(env, argv[2], 1, NIF_LIST_MAX, &max_n)) {
        return enif_make_badarg(env);
    }
    uint64_t *ids = enif_alloc(max_n * sizeof *ids);
    if (ids == NULL) {
        return nif_failure(env, DW_ENOMEM, 0);
    }
    int result = dw_store_find(store, key_hash, ids, (uint32_t)max_n, &total);
    ERL_NIF_TERM list = enif_make_list(env, 0);
    for (uint64_t n = total < max_n ? total : max_n; result == DW_OK && n > 0; --n) {
        list = enif_make_list_cell(env, nif_number(env, ids[n - 1]), list);
    }
    enif_free(ids);
    if (result != DW_OK) {
        return nif_store_failure(env, result);
    }
    return enif_make_tuple3(env, nif_atoms.ok, list, nif_number(env, total));
}

/* SPDX-License-Identifier: MPL-2.0 */

/* The delay store's calls as native functions of the Erlang module rabbit_delay_store, which
 * documents them. Nothing is decided here: arguments are checked (badarg), the store is called, and
 * what it says is made into terms.
 *
 * Schedulers. What may touch a file is a dirty I/O job; what may visit many entries, a dirty CPU
 * job; the rest runs at once. insert, settle and check_batch run at once when their argument is
 * small and make themselves a dirty job when it is not.
 *
 * Lifetime. A store and a checkpoint are resources, each with a reference to a lease (dw_lease.h),
 * which is what a destructor gives up. The table of leases lives as long as the VM: a handle may
 * outlive the module's instance that made it, and the next instance must find what it has open. For
 * that, and because the thread that ends leases may run at any time, the library is linked so that
 * it stays mapped (-z nodelete). An upgrade to the same build takes the handles over; one to
 * another build, whose structures may differ, is refused while there are any. */

#include "dw_batch.h"
#include "dw_io.h"
#include "dw_le.h"
#include "dw_lease.h"

#include <erl_nif.h>

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* What runs on a normal scheduler. A record costs some 0.5 to 1 us, an id as much, and the bytes of
 * 64 KiB some 10 us, so a call takes a fraction of a millisecond, on a busy machine too. */
#define SMALL_BATCH_BYTES 65536
#define SMALL_BATCH_RECORDS 256
#define SMALL_IDS 256

#define INDEX_MAX ((UINT64_C(1) << 48) - 1) /* an id is index << 16 | position */
#define LIST_MAX 65535                      /* elements that one call may ask for */
#define PARTITION_MAX (UINT64_C(16) << 30)
#define BUILD_MAX 64

struct module {
    atomic_uint refs; /* instances of the module, and objects */
    atomic_uint objects;
    dw_leases *leases;
    ErlNifResourceType *store_type;
    ErlNifResourceType *checkpoint_type;
    size_t build_length;
    unsigned char build[BUILD_MAX]; /* which library this is: what the Erlang side says */
};

struct store_object {
    struct module *module;
    dw_lease *lease; /* NULL: opening it failed */
};

struct checkpoint_object {
    struct module *module;
    dw_lease *lease;
    uint64_t number;
};

/* Where the log's messages are sent from: the environment of the call that this thread is in, NULL
 * in a thread that is not the VM's. */
static __thread ErlNifEnv *calling;

static struct {
    ERL_NIF_TERM ok, error, true_, false_, unknown, undefined, none, infinity, more, done, corrupt,
        busy;
    ERL_NIF_TERM tag, info, warning, error_level;
    ERL_NIF_TERM id, due, key_hash, length, encoding, body;
} atoms;

/* --------------------------------------------------------------------- memory */

/* The address sanitizer sees what malloc gives, and only that. */
#ifdef __SANITIZE_ADDRESS__
#define ALLOCATOR (&dw_alloc_libc)
#else

/* Small blocks come from the VM's allocator. Larger ones, which are nearly all of a store's memory
 * and come in few sizes, are mapped one by one: what is given back leaves the process at once. With
 * 3 M messages, the VM's allocator took 56 to 58 bytes of resident memory each for 49 asked for,
 * and kept 120 MB after the store was closed; malloc 51 and 59 MB; this 51 and 8 MB. It costs 0.1
 * us a message. In front of each block is where it really begins. */
#define ALIGNMENT 16 /* malloc's; the VM's is 8 */
#define MAPPED_FROM 32768
#define MAPPED_OFFSET 64 /* a cache line, as some blocks are made of such */

struct origin {
    void *block;
    size_t mapped; /* bytes; 0: the VM's */
};
_Static_assert(sizeof(struct origin) <= ALIGNMENT, "it must fit in front of a block");

static void *get(void *ctx, size_t bytes) {
    struct origin origin = {0};
    uintptr_t at;
    (void)ctx;
    if (bytes > SIZE_MAX / 2) {
        return NULL;
    }
    if (bytes >= MAPPED_FROM) {
        origin.mapped = bytes + MAPPED_OFFSET;
        origin.block =
            mmap(NULL, origin.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (origin.block == MAP_FAILED) {
            return NULL;
        }
        at = (uintptr_t)origin.block + MAPPED_OFFSET;
    } else {
        origin.block = enif_alloc(bytes + 2 * ALIGNMENT);
        if (origin.block == NULL) {
            return NULL;
        }
        at = ((uintptr_t)origin.block + 2 * ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1);
    }
    memcpy((void *)(at - sizeof origin), &origin, sizeof origin);
    return (void *)at;
}

/* Blocks that the system did not take back, as it cannot split a mapping when a process has too
 * many: they are tried again with each that follows, and hold one page until then. */
static struct {
    atomic_flag busy;
    void *first; /* begins with the next one, and its length */
} unmapped = {.busy = ATOMIC_FLAG_INIT};

struct kept_block {
    void *next;
    size_t mapped;
};

static void unmap(void *block, size_t mapped) {
    const bool given = munmap(block, mapped) == 0;
    if (given && __atomic_load_n(&unmapped.first, __ATOMIC_RELAXED) == NULL) {
        return;
    }
    while (atomic_flag_test_and_set_explicit(&unmapped.busy, memory_order_acquire)) {
    }
    if (!given) {
        (void)madvise(block, mapped, MADV_DONTNEED);
        *(struct kept_block *)block = (struct kept_block){unmapped.first, mapped};
        __atomic_store_n(&unmapped.first, block, __ATOMIC_RELAXED);
    } else if (unmapped.first != NULL) {
        const struct kept_block first = *(struct kept_block *)unmapped.first;
        if (munmap(unmapped.first, first.mapped) == 0) {
            __atomic_store_n(&unmapped.first, first.next, __ATOMIC_RELAXED);
        }
    }
    atomic_flag_clear_explicit(&unmapped.busy, memory_order_release);
}

static void release(void *ctx, void *p) {
    (void)ctx;
    if (p == NULL) {
        return;
    }
    struct origin origin;
    memcpy(&origin, (char *)p - sizeof origin, sizeof origin);
    if (origin.mapped > 0) {
        unmap(origin.block, origin.mapped);
    } else {
        enif_free(origin.block);
    }
}

static const struct dw_alloc own = {get, release, NULL};
#define ALLOCATOR (&own)

#endif

/* ---------------------------------------------------------------------- terms */

static ERL_NIF_TERM error(ErlNifEnv *env, ERL_NIF_TERM reason) {
    return enif_make_tuple2(env, atoms.error, reason);
}

static ERL_NIF_TERM errno_atom(ErlNifEnv *env, int number) {
    char name[32] = "unknown";
    const char *known = strerrorname_np(number);
    if (known != NULL && strlen(known) < sizeof name) {
        size_t i = 0;
        for (; known[i] != '\0'; ++i) {
            name[i] = (char)tolower((unsigned char)known[i]);
        }
        name[i] = '\0';
    }
    return enif_make_atom(env, name);
}

static ERL_NIF_TERM failure(ErlNifEnv *env, int result, int os_error) {
    if (result == DW_EBUSY) {
        return error(env, atoms.busy);
    }
    ERL_NIF_TERM reason = enif_make_atom(env, dw_strerror(result));
    if (result == DW_EIO || result == DW_ENOSPC || result == DW_EACCES) {
        reason = enif_make_tuple2(env, reason, errno_atom(env, os_error));
    }
    return error(env, reason);
}

static ERL_NIF_TERM store_failure(ErlNifEnv *env, int result) {
    return failure(env, result, dw_store_errno());
}

static ERL_NIF_TERM ok_or_failure(ErlNifEnv *env, int result) {
    return result == DW_OK ? atoms.ok : store_failure(env, result);
}

static ERL_NIF_TERM ok2(ErlNifEnv *env, ERL_NIF_TERM value) {
    return enif_make_tuple2(env, atoms.ok, value);
}

static ERL_NIF_TERM number(ErlNifEnv *env, uint64_t n) {
    return enif_make_uint64(env, n);
}

static ERL_NIF_TERM time_term(ErlNifEnv *env, uint64_t ms) {
    return ms == DW_NEVER ? atoms.infinity : enif_make_uint64(env, ms);
}

static ERL_NIF_TERM text(ErlNifEnv *env, const char *bytes) {
    ERL_NIF_TERM term;
    size_t length = strlen(bytes);
    memcpy(enif_make_new_binary(env, length, &term), bytes, length);
    return term;
}

static bool get_number(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t least, uint64_t most,
                       uint64_t *n) {
    ErlNifUInt64 value;
    if (!enif_get_uint64(env, term, &value) || value < least || value > most) {
        return false;
    }
    *n = value;
    return true;
}

static bool get_time(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t *ms) {
    return get_number(env, term, 0, DW_DUE_MAX, ms);
}

static bool get_index(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t *index) {
    return get_number(env, term, 0, INDEX_MAX, index);
}

static bool get_id(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t *id) {
    return get_number(env, term, 0, UINT64_MAX, id);
}

static bool get_path(ErlNifEnv *env, ERL_NIF_TERM term, char path[PATH_MAX]) {
    ErlNifBinary name;
    if (!enif_inspect_binary(env, term, &name) || name.size == 0 || name.size >= PATH_MAX ||
        memchr(name.data, 0, name.size) != NULL) {
        return false;
    }
    memcpy(path, name.data, name.size);
    path[name.size] = '\0';
    return true;
}

static bool get_lease(ErlNifEnv *env, ERL_NIF_TERM term, dw_lease **lease) {
    const struct module *module = enif_priv_data(env);
    void *object;
    if (!enif_get_resource(env, term, module->store_type, &object)) {
        return false;
    }
    *lease = ((struct store_object *)object)->lease;
    calling = env;
    return true;
}

static bool get_store(ErlNifEnv *env, ERL_NIF_TERM term, dw_store **store) {
    dw_lease *lease;
    if (!get_lease(env, term, &lease)) {
        return false;
    }
    *store = dw_lease_store(lease);
    return true;
}

/* Tells the scheduler how much of a process's turn (1 ms) has gone since `began`. */
static void spent(ErlNifEnv *env, ErlNifTime began) {
    ErlNifTime percent = (enif_monotonic_time(ERL_NIF_NSEC) - began) / 10000;
    if (percent > 0) {
        enif_consume_timeslice(env, percent > 100 ? 100 : (int)percent);
    }
}

/* ------------------------------------------------------------------------ log */

struct log_context {
    ErlNifPid pid;
};

static void log_to_process(void *ctx, enum dw_level level, const char *message) {
    struct log_context *log = ctx;
    ErlNifEnv *env = enif_alloc_env();
    if (env == NULL) {
        return;
    }
    ERL_NIF_TERM level_atom = level == DW_LOG_INFO      ? atoms.info
                              : level == DW_LOG_WARNING ? atoms.warning
                                                        : atoms.error_level;
    enif_send(calling, &log->pid, env,
              enif_make_tuple3(env, atoms.tag, level_atom, text(env, message)));
    enif_free_env(env);
}

/* -------------------------------------------------------------- open and close */

static void module_drop(struct module *module) {
    if (atomic_fetch_sub(&module->refs, 1) == 1) {
        dw_leases_drop(module->leases);
        enif_free(module);
    }
}

static void object_made(struct module *module) {
    atomic_fetch_add(&module->refs, 1);
    atomic_fetch_add(&module->objects, 1);
}

static void object_gone(struct module *module) {
    atomic_fetch_sub(&module->objects, 1);
    module_drop(module);
}

static void store_destroyed(ErlNifEnv *env, void *p) {
    struct store_object *object = p;
    (void)env;
    calling = NULL;
    if (object->lease != NULL) {
        dw_lease_drop(object->lease);
    }
    object_gone(object->module);
}

static void checkpoint_destroyed(ErlNifEnv *env, void *p) {
    struct checkpoint_object *object = p;
    (void)env;
    calling = NULL;
    dw_lease_drop(object->lease);
    object_gone(object->module);
}

static ERL_NIF_TERM map_of(ErlNifEnv *env, const char *const names[], ERL_NIF_TERM values[],
                           size_t n) {
    ERL_NIF_TERM keys[32], map;
    for (size_t i = 0; i < n; ++i) {
        keys[i] = enif_make_atom(env, names[i]);
    }
    enif_make_map_from_arrays(env, keys, values, n, &map);
    return map;
}

/* open(Dir, Now, MaxRecordBytes, MaxOpenFiles, PartitionBytes, SplitBytes, LogPid | undefined);
 * MaxOpenFiles 0: out of the budget that stores share. */
static ERL_NIF_TERM store_open(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    struct module *module = enif_priv_data(env);
    char dir[PATH_MAX];
    uint64_t now, max_record, max_files, partition_bytes, split_bytes;
    ErlNifPid pid;
    bool logs = enif_get_local_pid(env, argv[6], &pid) != 0;
    (void)argc;
    if (!get_path(env, argv[0], dir) || !get_time(env, argv[1], &now) ||
        !get_number(env, argv[2], 1, INT32_MAX, &max_record) ||
        !(get_number(env, argv[3], 0, 0, &max_files) ||
          get_number(env, argv[3], 8, 4096, &max_files)) ||
        !get_number(env, argv[4], 1, PARTITION_MAX, &partition_bytes) ||
        !get_number(env, argv[5], 1, PARTITION_MAX, &split_bytes) ||
        !(logs || enif_is_identical(argv[6], atoms.undefined))) {
        return enif_make_badarg(env);
    }
    struct store_object *object = enif_alloc_resource(module->store_type, sizeof *object);
    if (object == NULL) {
        return failure(env, DW_ENOMEM, 0);
    }
    *object = (struct store_object){.module = module};
    object_made(module);
    ERL_NIF_TERM term = enif_make_resource(env, object);
    enif_release_resource(object);

    struct dw_config config = {.now_ms = now,
                               .max_record_bytes = (uint32_t)max_record,
                               .max_open_files = max_files == 0 ? 8 : (uint32_t)max_files,
                               .budget = max_files == 0 ? dw_leases_budget(module->leases) : NULL,
                               .partition_bytes = partition_bytes,
                               .split_bytes = split_bytes,
                               .alloc = ALLOCATOR};
    if (logs) {
        struct log_context *log = dw_get(ALLOCATOR, sizeof *log);
        if (log == NULL) {
            return failure(env, DW_ENOMEM, 0);
        }
        log->pid = pid;
        config.log = log_to_process;
        config.log_ctx = log;
    }
    struct dw_recovery found = {0};
    int os_error = 0;
    calling = env;
    int result = dw_lease_open(module->leases, dir, &config, &object->lease, &found, &os_error);
    if (result != DW_OK) {
        return failure(env, result, os_error);
    }
    static const char *const names[] = {"applied",   "pending",         "corrupt_records",
                                        "cut_bytes", "rebuilt_indexes", "partitions"};
    ERL_NIF_TERM values[] = {number(env, found.applied),         number(env, found.pending),
                             number(env, found.corrupt_records), number(env, found.cut_bytes),
                             number(env, found.rebuilt_indexes), number(env, found.partitions)};
    return enif_make_tuple3(env, atoms.ok, term,
                            map_of(env, names, values, sizeof names / sizeof *names));
}

static ERL_NIF_TERM store_close(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    (void)argc;
    if (!get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    dw_lease_close(lease);
    return atoms.ok;
}

static ERL_NIF_TERM peek_applied(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    char dir[PATH_MAX];
    uint64_t applied = 0;
    (void)argc;
    if (!get_path(env, argv[0], dir)) {
        return enif_make_badarg(env);
    }
    calling = env;
    int result = dw_store_peek_applied(dir, &applied);
    return result == DW_OK ? ok2(env, number(env, applied)) : store_failure(env, result);
}

static ERL_NIF_TERM restore(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct module *module = enif_priv_data(env);
    char dir[PATH_MAX], snapshot[PATH_MAX];
    (void)argc;
    if (!get_path(env, argv[0], dir) || !get_path(env, argv[1], snapshot)) {
        return enif_make_badarg(env);
    }
    int os_error = 0;
    calling = env;
    int result = dw_lease_restore(module->leases, dir, snapshot, &os_error);
    return result == DW_OK ? atoms.ok : failure(env, result, os_error);
}

static ERL_NIF_TERM validate(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    char snapshot[PATH_MAX];
    uint64_t applied = 0;
    (void)argc;
    if (!get_path(env, argv[0], snapshot)) {
        return enif_make_badarg(env);
    }
    calling = env;
    int result = dw_store_validate(snapshot, &applied);
    return result == DW_OK ? ok2(env, number(env, applied)) : store_failure(env, result);
}

/* --------------------------------------------------------------------- writer */

struct insertion {
    dw_lease *lease;
    uint64_t index, base;
    ErlNifBinary batch;
};

static bool get_insertion(ErlNifEnv *env, const ERL_NIF_TERM argv[], struct insertion *in) {
    return get_lease(env, argv[0], &in->lease) && get_index(env, argv[1], &in->index) &&
           get_time(env, argv[2], &in->base) && enif_inspect_binary(env, argv[3], &in->batch);
}

static ERL_NIF_TERM inserted_term(ErlNifEnv *env, const struct dw_inserted *in) {
    return enif_make_tuple5(env, atoms.ok, number(env, in->count), number(env, in->bytes),
                            time_term(env, in->next_due), number(env, in->buffered));
}

/* insert(Store, Index, BaseMs, Batch) */
static ERL_NIF_TERM insert_batch(ErlNifEnv *env, const ERL_NIF_TERM argv[], bool at_once) {
    struct insertion to;
    if (!get_insertion(env, argv, &to)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(to.lease)) {
        return failure(env, DW_EBUSY, 0);
    }
    struct dw_inserted in = {0};
    ErlNifTime began = at_once ? enif_monotonic_time(ERL_NIF_NSEC) : 0;
    int result = dw_store_insert(dw_lease_store(to.lease), to.index, to.base, to.batch.data,
                                 to.batch.size, &in);
    dw_lease_write_end(to.lease);
    if (at_once) {
        spent(env, began);
    }
    return result == DW_OK ? inserted_term(env, &in) : store_failure(env, result);
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

static ERL_NIF_TERM insert(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    if (longer_than(env, argv[3], SMALL_BATCH_BYTES) || many_records(env, argv[3])) {
        return enif_schedule_nif(env, "insert", ERL_NIF_DIRTY_JOB_CPU_BOUND, insert_dirty, argc,
                                 argv);
    }
    return insert_batch(env, argv, true);
}

/* insert_keyed(Store, Index, BaseMs, Batch). One record may remove any number. */
static ERL_NIF_TERM insert_keyed(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    struct insertion to;
    (void)argc;
    if (!get_insertion(env, argv, &to)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(to.lease)) {
        return failure(env, DW_EBUSY, 0);
    }
    struct dw_keyed in = {0};
    int result = dw_store_insert_keyed(dw_lease_store(to.lease), to.index, to.base, to.batch.data,
                                       to.batch.size, &in);
    dw_lease_write_end(to.lease);
    if (result != DW_OK) {
        return store_failure(env, result);
    }
    static const char *const names[] = {"cancelled", "replaced", "taken", "dropped"};
    ERL_NIF_TERM values[] = {number(env, in.cancelled), number(env, in.replaced),
                             number(env, in.taken), number(env, in.dropped)};
    return enif_make_tuple3(env, atoms.ok, inserted_term(env, &in.inserted),
                            map_of(env, names, values, sizeof names / sizeof *names));
}

typedef int check_of_batch(const void *batch, size_t bytes, uint32_t max_record_bytes,
                           uint32_t *count);

/* check_batch(Batch, MaxRecordBytes) */
static ERL_NIF_TERM check(ErlNifEnv *env, const ERL_NIF_TERM argv[], check_of_batch *how,
                          bool at_once) {
    ErlNifBinary batch;
    uint64_t max_record;
    uint32_t count = 0;
    if (!enif_inspect_binary(env, argv[0], &batch) ||
        !get_number(env, argv[1], 1, INT32_MAX, &max_record)) {
        return enif_make_badarg(env);
    }
    ErlNifTime began = at_once ? enif_monotonic_time(ERL_NIF_NSEC) : 0;
    int result = how(batch.data, batch.size, (uint32_t)max_record, &count);
    if (at_once) {
        spent(env, began);
    }
    return result == DW_OK ? ok2(env, number(env, count)) : store_failure(env, result);
}

static ERL_NIF_TERM check_dirty(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return check(env, argv, dw_batch_check, false);
}

static ERL_NIF_TERM check_batch(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    if (longer_than(env, argv[0], SMALL_BATCH_BYTES)) {
        return enif_schedule_nif(env, "check_batch", ERL_NIF_DIRTY_JOB_CPU_BOUND, check_dirty, argc,
                                 argv);
    }
    return check(env, argv, dw_batch_check, true);
}

/* check_keyed_batch(Batch, MaxRecordBytes) */
static ERL_NIF_TERM check_keyed_batch(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return check(env, argv, dw_batch_check_keyed, false);
}

/* The ids in a binary, which lie there as little-endian 64-bit numbers at any address. `copy` is
 * what to release afterwards, or NULL. */
static const uint64_t *ids_in(const ErlNifBinary *binary, uint64_t **copy, size_t *n) {
    *n = binary->size / sizeof(uint64_t);
    *copy = NULL;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if ((uintptr_t)binary->data % sizeof(uint64_t) == 0) {
        return (const uint64_t *)(const void *)binary->data;
    }
#endif
    uint64_t *ids = enif_alloc(*n * sizeof *ids);
    if (ids == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < *n; ++i) {
        ids[i] = dw_le64(binary->data + i * sizeof *ids);
    }
    *copy = ids;
    return ids;
}

/* settle(Store, Index, Ids) */
static ERL_NIF_TERM settle_ids(ErlNifEnv *env, const ERL_NIF_TERM argv[], bool at_once) {
    dw_lease *lease;
    uint64_t index, removed = 0;
    ErlNifBinary binary;
    if (!get_lease(env, argv[0], &lease) || !get_index(env, argv[1], &index) ||
        !enif_inspect_binary(env, argv[2], &binary) || binary.size % sizeof(uint64_t) != 0) {
        return enif_make_badarg(env);
    }
    ErlNifTime began = at_once ? enif_monotonic_time(ERL_NIF_NSEC) : 0;
    uint64_t *copy;
    size_t n;
    const uint64_t *ids = ids_in(&binary, &copy, &n);
    if (ids == NULL && n > 0) {
        return failure(env, DW_ENOMEM, 0);
    }
    int result = DW_EBUSY;
    if (dw_lease_write_begin(lease)) {
        result = dw_store_settle(dw_lease_store(lease), index, ids, n, &removed);
        dw_lease_write_end(lease);
    }
    enif_free(copy);
    if (at_once) {
        spent(env, began);
    }
    return result == DW_OK ? ok2(env, number(env, removed)) : store_failure(env, result);
}

static ERL_NIF_TERM settle_dirty(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return settle_ids(env, argv, false);
}

static ERL_NIF_TERM settle(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    if (longer_than(env, argv[2], SMALL_IDS * sizeof(uint64_t))) {
        return enif_schedule_nif(env, "settle", ERL_NIF_DIRTY_JOB_CPU_BOUND, settle_dirty, argc,
                                 argv);
    }
    return settle_ids(env, argv, true);
}

/* reschedule(Store, Index, Id, Due) */
static ERL_NIF_TERM reschedule(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    uint64_t index, id, due;
    (void)argc;
    if (!get_lease(env, argv[0], &lease) || !get_index(env, argv[1], &index) ||
        !get_id(env, argv[2], &id) || !get_time(env, argv[3], &due)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(lease)) {
        return failure(env, DW_EBUSY, 0);
    }
    int result = dw_store_reschedule(dw_lease_store(lease), index, id, due);
    dw_lease_write_end(lease);
    return ok_or_failure(env, result);
}

/* reschedule_many(Store, Index, <<Id:64/little, Due:64/little, ...>>) */
static ERL_NIF_TERM reschedule_many(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    uint64_t index, moved = 0;
    ErlNifBinary binary;
    struct dw_new_due *dues = NULL;
    (void)argc;
    if (!get_lease(env, argv[0], &lease) || !get_index(env, argv[1], &index) ||
        !enif_inspect_binary(env, argv[2], &binary) || binary.size % sizeof *dues != 0) {
        return enif_make_badarg(env);
    }
    const size_t n = binary.size / sizeof *dues;
    if (n > 0 && (dues = enif_alloc(n * sizeof *dues)) == NULL) {
        return failure(env, DW_ENOMEM, 0);
    }
    for (size_t i = 0; i < n; ++i) {
        const uint8_t *pair = binary.data + i * sizeof *dues;
        dues[i] = (struct dw_new_due){.id = dw_le64(pair), .due = dw_le64(pair + 8)};
    }
    int result = DW_EBUSY;
    if (dw_lease_write_begin(lease)) {
        result = dw_store_reschedule_many(dw_lease_store(lease), index, dues, n, &moved);
        dw_lease_write_end(lease);
    }
    enif_free(dues);
    return result == DW_OK ? ok2(env, number(env, moved)) : store_failure(env, result);
}

/* note(Store, Index) */
static ERL_NIF_TERM note(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    uint64_t index;
    (void)argc;
    if (!get_lease(env, argv[0], &lease) || !get_index(env, argv[1], &index)) {
        return enif_make_badarg(env);
    }
    if (dw_lease_closed(lease)) {
        return failure(env, DW_ECLOSED, 0);
    }
    if (!dw_lease_write_begin(lease)) {
        return failure(env, DW_EBUSY, 0);
    }
    dw_store_note(dw_lease_store(lease), index);
    dw_lease_write_end(lease);
    return atoms.ok;
}

static ERL_NIF_TERM flush(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    (void)argc;
    if (!get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(lease)) {
        return failure(env, DW_EBUSY, 0);
    }
    int result = dw_store_flush(dw_lease_store(lease));
    dw_lease_write_end(lease);
    return ok_or_failure(env, result);
}

/* maintain(Store, Now, MaxBytes) */
static ERL_NIF_TERM maintain(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    uint64_t now, max_bytes;
    bool more = false;
    (void)argc;
    if (!get_lease(env, argv[0], &lease) || !get_time(env, argv[1], &now) ||
        !get_number(env, argv[2], 1, SIZE_MAX, &max_bytes)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(lease)) {
        return failure(env, DW_EBUSY, 0);
    }
    int result = dw_store_maintain(dw_lease_store(lease), now, max_bytes, &more);
    dw_lease_write_end(lease);
    return result == DW_OK ? ok2(env, more ? atoms.more : atoms.done) : store_failure(env, result);
}

static ERL_NIF_TERM checkpoint(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    struct module *module = enif_priv_data(env);
    dw_lease *lease;
    uint64_t which, applied;
    int os_error = 0;
    (void)argc;
    if (!get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    if (!dw_lease_write_begin(lease)) {
        return failure(env, DW_EBUSY, 0);
    }
    int result = dw_lease_checkpoint(lease, &which, &applied, &os_error);
    dw_lease_write_end(lease);
    if (result != DW_OK) {
        return failure(env, result, os_error);
    }
    struct checkpoint_object *object = enif_alloc_resource(module->checkpoint_type, sizeof *object);
    if (object == NULL) {
        return failure(env, DW_ENOMEM, 0); /* the next checkpoint takes this one's place */
    }
    *object = (struct checkpoint_object){module, lease, which};
    object_made(module);
    dw_lease_keep(lease);
    ERL_NIF_TERM term = enif_make_resource(env, object);
    enif_release_resource(object);
    return enif_make_tuple3(env, atoms.ok, term, number(env, applied));
}

/* finish(Checkpoint, SnapshotDir | none) */
static ERL_NIF_TERM finish(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct module *module = enif_priv_data(env);
    char dir[PATH_MAX];
    void *p;
    int os_error = 0;
    (void)argc;
    bool snapshot = get_path(env, argv[1], dir);
    if (!enif_get_resource(env, argv[0], module->checkpoint_type, &p) ||
        !(snapshot || enif_is_identical(argv[1], atoms.none))) {
        return enif_make_badarg(env);
    }
    const struct checkpoint_object *object = p;
    calling = env;
    int result = dw_lease_finish(object->lease, object->number, snapshot ? dir : NULL, &os_error);
    return result == DW_OK ? atoms.ok : failure(env, result, os_error);
}

/* --------------------------------------------------------------------- anyone */

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
    collector_add(c, enif_make_tuple4(c->env, number(c->env, r->id), number(c->env, r->due),
                                      number(c->env, r->encoding), collector_take_body(c)));
}

static void take_corrupt(void *ctx, const struct dw_record *r, const char *file, uint64_t offset) {
    struct collector *c = ctx;
    collector_forget(c);
    collector_add(c, enif_make_tuple5(c->env, atoms.corrupt, number(c->env, r->id),
                                      number(c->env, r->due), text(c->env, file),
                                      number(c->env, offset)));
}

/* take(Store, Now, MaxN, MaxBytes). An error after some records have come out is left for the next
 * call to meet: these must reach the caller. */
static ERL_NIF_TERM take(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t now, max_n, max_bytes, next_due = DW_NEVER;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !get_time(env, argv[1], &now) ||
        !get_number(env, argv[2], 1, LIST_MAX, &max_n) ||
        !get_number(env, argv[3], 1, UINT64_MAX, &max_bytes)) {
        return enif_make_badarg(env);
    }
    struct collector c = {.env = env, .list = enif_make_list(env, 0)};
    struct dw_sink sink = {collector_body, take_done, take_corrupt, &c};
    int result = dw_store_take(store, now, (uint32_t)max_n, max_bytes, &sink, &next_due);
    collector_forget(&c);
    if (result != DW_OK) {
        if (c.count == 0) {
            return store_failure(env, result);
        }
        next_due = now;
    }
    ERL_NIF_TERM list;
    enif_make_reverse_list(env, c.list, &list);
    return enif_make_tuple3(env, atoms.ok, list, time_term(env, next_due));
}

/* keep_aside(Store, Now, Ids) */
static ERL_NIF_TERM keep_aside(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t now;
    ErlNifBinary binary;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !get_time(env, argv[1], &now) ||
        !enif_inspect_binary(env, argv[2], &binary) || binary.size % sizeof(uint64_t) != 0 ||
        binary.size / sizeof(uint64_t) < 1 || binary.size / sizeof(uint64_t) > LIST_MAX) {
        return enif_make_badarg(env);
    }
    uint64_t *copy;
    size_t n;
    const uint64_t *ids = ids_in(&binary, &copy, &n);
    bool *kept = ids == NULL ? NULL : enif_alloc(n * sizeof *kept);
    if (kept == NULL) {
        enif_free(copy);
        return failure(env, DW_ENOMEM, 0);
    }
    int result = dw_store_keep_aside(store, now, ids, (uint32_t)n, kept);
    ERL_NIF_TERM list = enif_make_list(env, 0);
    for (size_t i = n; result == DW_OK && i > 0; --i) {
        if (kept[i - 1]) {
            list = enif_make_list_cell(env, number(env, ids[i - 1]), list);
        }
    }
    enif_free(kept);
    enif_free(copy);
    return result == DW_OK ? ok2(env, list) : store_failure(env, result);
}

/* postpone(Store, Id, Until) */
static ERL_NIF_TERM postpone(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t id, until;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !get_id(env, argv[1], &id) ||
        !get_time(env, argv[2], &until)) {
        return enif_make_badarg(env);
    }
    return ok_or_failure(env, dw_store_postpone(store, id, until));
}

static ERL_NIF_TERM untake(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    (void)argc;
    if (!get_store(env, argv[0], &store)) {
        return enif_make_badarg(env);
    }
    return ok_or_failure(env, dw_store_untake(store));
}

static ERL_NIF_TERM next_due(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    (void)argc;
    if (!get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    if (dw_lease_closed(lease)) {
        return failure(env, DW_ECLOSED, 0);
    }
    return time_term(env, dw_store_next_due(dw_lease_store(lease)));
}

static ERL_NIF_TERM applied(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    (void)argc;
    if (!get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    if (dw_lease_closed(lease)) {
        return failure(env, DW_ECLOSED, 0);
    }
    return number(env, dw_store_applied(dw_lease_store(lease)));
}

static ERL_NIF_TERM statistics(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    struct dw_stat s;
    (void)argc;
    if (!get_store(env, argv[0], &store)) {
        return enif_make_badarg(env);
    }
    int result = dw_store_stat(store, &s);
    if (result != DW_OK) {
        return store_failure(env, result);
    }
    enum { N = sizeof s.histogram / sizeof *s.histogram };
    ERL_NIF_TERM counts[N];
    for (size_t i = 0; i < N; ++i) {
        counts[i] = number(env, s.histogram[i]);
    }
    static const char *const names[] = {
        "pending",      "pending_bytes",   "taken",      "next_due",   "applied",
        "buffered",     "file_bytes",      "dead_bytes", "partitions", "checkpoint_applied",
        "memory_bytes", "corrupt_records", "open_files", "histogram",  "unreadable",
        "read_errors",  "write_error",     "full"};
    ERL_NIF_TERM values[] = {number(env, s.pending),
                             number(env, s.pending_bytes),
                             number(env, s.taken),
                             time_term(env, s.next_due),
                             number(env, s.applied),
                             number(env, s.buffered),
                             number(env, s.file_bytes),
                             number(env, s.dead_bytes),
                             number(env, s.partitions),
                             number(env, s.checkpoint_applied),
                             number(env, s.memory_bytes),
                             number(env, s.corrupt_records),
                             number(env, s.open_files),
                             enif_make_list_from_array(env, counts, N),
                             number(env, s.unreadable),
                             number(env, s.read_errors),
                             s.write_error == 0 ? atoms.none : errno_atom(env, (int)s.write_error),
                             s.full ? atoms.true_ : atoms.false_};
    return map_of(env, names, values, sizeof names / sizeof *names);
}

static ERL_NIF_TERM record_map(ErlNifEnv *env, const struct dw_record *r, ERL_NIF_TERM *body) {
    ERL_NIF_TERM keys[] = {atoms.id,     atoms.due,      atoms.key_hash,
                           atoms.length, atoms.encoding, atoms.body};
    ERL_NIF_TERM values[] = {number(env, r->id),       number(env, r->due),
                             number(env, r->key_hash), number(env, r->length),
                             number(env, r->encoding), body == NULL ? atoms.undefined : *body};
    ERL_NIF_TERM map;
    enif_make_map_from_arrays(env, keys, values, body == NULL ? 5 : 6, &map);
    return map;
}

static void read_done(void *ctx, const struct dw_record *r) {
    struct collector *c = ctx;
    ERL_NIF_TERM body = collector_take_body(c);
    collector_add(c, ok2(c->env, record_map(c->env, r, &body)));
}

static void read_corrupt(void *ctx, const struct dw_record *r, const char *file, uint64_t offset) {
    struct collector *c = ctx;
    (void)r;
    collector_forget(c);
    collector_add(c, error(c->env, enif_make_tuple3(c->env, atoms.corrupt, text(c->env, file),
                                                    number(c->env, offset))));
}

/* read(Store, Id) */
static ERL_NIF_TERM store_read(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t id;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !get_id(env, argv[1], &id)) {
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
    return store_failure(env, result == DW_OK ? DW_ENOENT : result);
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
static ERL_NIF_TERM read_many(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    ErlNifBinary binary;
    uint64_t max_bytes;
    uint64_t *copy;
    size_t n;
    uint32_t seen = 0;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !enif_inspect_binary(env, argv[1], &binary) ||
        binary.size % sizeof(uint64_t) != 0 || binary.size / sizeof(uint64_t) < 1 ||
        binary.size / sizeof(uint64_t) > LIST_MAX ||
        !get_number(env, argv[2], 1, UINT64_MAX, &max_bytes)) {
        return enif_make_badarg(env);
    }
    const uint64_t *ids = ids_in(&binary, &copy, &n);
    if (ids == NULL) {
        return failure(env, DW_ENOMEM, 0);
    }
    struct collector c = {.env = env, .list = enif_make_list(env, 0)};
    struct dw_sink sink = {collector_body, read_many_done, read_many_corrupt, &c};
    int result = dw_store_read_many(store, ids, (uint32_t)n, max_bytes, &sink, &seen);
    collector_forget(&c);
    enif_free(copy);
    if (result != DW_OK) {
        return store_failure(env, result);
    }
    ERL_NIF_TERM list;
    enif_make_reverse_list(env, c.list, &list);
    return enif_make_tuple3(env, atoms.ok, list, number(env, seen));
}

/* page(Store, {Due, Id}, MaxN) */
static ERL_NIF_TERM page(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    const ERL_NIF_TERM *cursor;
    int arity;
    uint64_t due, id, max_n;
    uint32_t n = 0;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !enif_get_tuple(env, argv[1], &arity, &cursor) ||
        arity != 2 || !get_time(env, cursor[0], &due) || !get_id(env, cursor[1], &id) ||
        !get_number(env, argv[2], 1, LIST_MAX, &max_n)) {
        return enif_make_badarg(env);
    }
    struct dw_record *records = enif_alloc(max_n * sizeof *records);
    if (records == NULL) {
        return failure(env, DW_ENOMEM, 0);
    }
    int result = dw_store_page(store, due, id, records, (uint32_t)max_n, &n);
    ERL_NIF_TERM list = enif_make_list(env, 0);
    while (result == DW_OK && n > 0) {
        --n;
        list = enif_make_list_cell(env, record_map(env, &records[n], NULL), list);
    }
    enif_free(records);
    return result == DW_OK ? ok2(env, list) : store_failure(env, result);
}

/* places_nif(Store, {Due, Id}, Back, MaxN) */
static ERL_NIF_TERM places(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    const ERL_NIF_TERM *cursor;
    int arity;
    uint64_t due, id, back, max_n;
    uint32_t n = 0;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !enif_get_tuple(env, argv[1], &arity, &cursor) ||
        arity != 2 || !get_time(env, cursor[0], &due) || !get_id(env, cursor[1], &id) ||
        !get_number(env, argv[2], 0, 1, &back) || !get_number(env, argv[3], 1, LIST_MAX, &max_n)) {
        return enif_make_badarg(env);
    }
    struct dw_record *records = enif_alloc(max_n * sizeof *records);
    if (records == NULL) {
        return failure(env, DW_ENOMEM, 0);
    }
    int result = dw_store_places(store, due, id, back == 1, records, (uint32_t)max_n, &n);
    ERL_NIF_TERM list = enif_make_list(env, 0);
    while (result == DW_OK && n > 0) {
        const struct dw_record *r = &records[--n];
        list = enif_make_list_cell(
            env,
            enif_make_tuple3(env, number(env, r->due), number(env, r->id), number(env, r->length)),
            list);
    }
    enif_free(records);
    return result == DW_OK ? ok2(env, list) : store_failure(env, result);
}

/* count(Store, FromDue, ToDue) */
static ERL_NIF_TERM count(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t from, to, records, bytes;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !get_time(env, argv[1], &from) ||
        !get_time(env, argv[2], &to)) {
        return enif_make_badarg(env);
    }
    int result = dw_store_count(store, from, to, &records, &bytes);
    if (result != DW_OK) {
        return store_failure(env, result);
    }
    return enif_make_tuple3(env, atoms.ok, number(env, records), number(env, bytes));
}

/* count_until(Store, [Due]) */
static ERL_NIF_TERM count_until(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    enum { MAX = 64 };
    dw_store *store;
    uint64_t bounds[MAX], counts[MAX + 1];
    unsigned n;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !enif_get_list_length(env, argv[1], &n) || n > MAX) {
        return enif_make_badarg(env);
    }
    ERL_NIF_TERM head, tail = argv[1];
    for (unsigned i = 0; enif_get_list_cell(env, tail, &head, &tail); ++i) {
        if (!get_time(env, head, &bounds[i]) || (i > 0 && bounds[i] <= bounds[i - 1])) {
            return enif_make_badarg(env);
        }
    }
    int result = dw_store_count_until(store, bounds, n, counts);
    if (result != DW_OK) {
        return store_failure(env, result);
    }
    ERL_NIF_TERM list = enif_make_list(env, 0);
    for (unsigned i = n + 1; i > 0; --i) {
        list = enif_make_list_cell(env, number(env, counts[i - 1]), list);
    }
    return ok2(env, list);
}

/* find(Store, KeyHash, Max) */
static ERL_NIF_TERM find(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_store *store;
    uint64_t key_hash, max_n, total = 0;
    (void)argc;
    if (!get_store(env, argv[0], &store) || !get_id(env, argv[1], &key_hash) ||
        !get_number(env, argv[2], 1, LIST_MAX, &max_n)) {
        return enif_make_badarg(env);
    }
    uint64_t *ids = enif_alloc(max_n * sizeof *ids);
    if (ids == NULL) {
        return failure(env, DW_ENOMEM, 0);
    }
    int result = dw_store_find(store, key_hash, ids, (uint32_t)max_n, &total);
    ERL_NIF_TERM list = enif_make_list(env, 0);
    for (uint64_t n = total < max_n ? total : max_n; result == DW_OK && n > 0; --n) {
        list = enif_make_list_cell(env, number(env, ids[n - 1]), list);
    }
    enif_free(ids);
    if (result != DW_OK) {
        return store_failure(env, result);
    }
    return enif_make_tuple3(env, atoms.ok, list, number(env, total));
}

/* disk_free(Dir): what this user may still write there. */
static ERL_NIF_TERM disk_free(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    char dir[PATH_MAX];
    struct statvfs s;
    (void)argc;
    if (!get_path(env, argv[0], dir)) {
        return enif_make_badarg(env);
    }
    if (statvfs(dir, &s) != 0) {
        return store_failure(env, dw_io_error(errno));
    }
    uint64_t blocks = geteuid() == 0 ? s.f_bfree : s.f_bavail;
    return ok2(env, number(env, blocks * s.f_frsize));
}

/* ------------------------------------------------------------ what stores share */

/* claim(Dir): see dw_leases_claim(). */
static ERL_NIF_TERM claim(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct module *module = enif_priv_data(env);
    char dir[PATH_MAX];
    int os_error = 0;
    (void)argc;
    if (!get_path(env, argv[0], dir)) {
        return enif_make_badarg(env);
    }
    int result = dw_leases_claim(module->leases, dir, &os_error);
    return result == DW_OK ? atoms.ok : failure(env, result, os_error);
}

static ERL_NIF_TERM give_back(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct module *module = enif_priv_data(env);
    (void)argc;
    (void)argv;
    dw_leases_give_back(module->leases);
    return atoms.ok;
}

static ERL_NIF_TERM limit_open_files(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct module *module = enif_priv_data(env);
    uint64_t limit;
    (void)argc;
    if (!get_number(env, argv[0], 1, UINT32_MAX, &limit)) {
        return enif_make_badarg(env);
    }
    dw_budget_limit(dw_leases_budget(module->leases), (uint32_t)limit);
    return atoms.ok;
}

static ERL_NIF_TERM shared(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct module *module = enif_priv_data(env);
    struct dw_budget_use use;
    (void)argc;
    (void)argv;
    dw_budget_use(dw_leases_budget(module->leases), &use);
    static const char *const names[] = {"open_files", "max_open_files", "failing",
                                        "unwritten",  "failed_writes",  "failed_syncs"};
    ERL_NIF_TERM values[] = {number(env, use.open),          number(env, use.limit),
                             number(env, use.failing),       number(env, use.unwritten),
                             number(env, use.failed_writes), number(env, use.lost_on_closing)};
    return map_of(env, names, values, sizeof names / sizeof *names);
}

/* descriptors(): {Used, Limit} of this process of the operating system, or `unknown'. */
static ERL_NIF_TERM descriptors(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    struct rlimit limit;
    uint64_t used = 0;
    (void)argc;
    (void)argv;
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL) {
        /* For want of one, all are used. */
        const bool none = errno == EMFILE;
        if (!none || getrlimit(RLIMIT_NOFILE, &limit) != 0) {
            return atoms.unknown;
        }
        return enif_make_tuple2(env, number(env, limit.rlim_cur), number(env, limit.rlim_cur));
    }
    while (readdir(dir) != NULL) {
        used++;
    }
    closedir(dir);
    if (used < 3 || getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return atoms.unknown;
    }
    /* ., .. and the directory's own are not counted. */
    return enif_make_tuple2(env, number(env, used - 3), number(env, limit.rlim_cur));
}

/* --------------------------------------------------------------------- loading */

static void make_atoms(ErlNifEnv *env) {
    atoms.ok = enif_make_atom(env, "ok");
    atoms.error = enif_make_atom(env, "error");
    atoms.true_ = enif_make_atom(env, "true");
    atoms.false_ = enif_make_atom(env, "false");
    atoms.unknown = enif_make_atom(env, "unknown");
    atoms.undefined = enif_make_atom(env, "undefined");
    atoms.none = enif_make_atom(env, "none");
    atoms.infinity = enif_make_atom(env, "infinity");
    atoms.more = enif_make_atom(env, "more");
    atoms.done = enif_make_atom(env, "done");
    atoms.corrupt = enif_make_atom(env, "corrupt");
    atoms.busy = enif_make_atom(env, "busy");
    atoms.tag = enif_make_atom(env, "rabbit_delay_store");
    atoms.info = enif_make_atom(env, "info");
    atoms.warning = enif_make_atom(env, "warning");
    atoms.error_level = atoms.error;
    atoms.id = enif_make_atom(env, "id");
    atoms.due = enif_make_atom(env, "due");
    atoms.key_hash = enif_make_atom(env, "key_hash");
    atoms.length = enif_make_atom(env, "length");
    atoms.encoding = enif_make_atom(env, "encoding");
    atoms.body = enif_make_atom(env, "body");
}

static bool open_types(ErlNifEnv *env, struct module *module) {
    ErlNifResourceFlags flags = ERL_NIF_RT_CREATE | ERL_NIF_RT_TAKEOVER;
    ErlNifResourceType *store_type =
        enif_open_resource_type(env, NULL, "store", store_destroyed, flags, NULL);
    ErlNifResourceType *checkpoint_type =
        enif_open_resource_type(env, NULL, "checkpoint", checkpoint_destroyed, flags, NULL);
    if (store_type == NULL || checkpoint_type == NULL) {
        return false;
    }
    module->store_type = store_type;
    module->checkpoint_type = checkpoint_type;
    return true;
}

/* One for the life of the VM, whichever instances of the module come and go. */
static dw_leases *the_leases;

static struct module *module_new(const ErlNifBinary *build) {
    if (the_leases == NULL) {
        the_leases = dw_leases_new(ALLOCATOR);
    }
    struct module *module = the_leases == NULL ? NULL : enif_alloc(sizeof *module);
    if (module == NULL) {
        return NULL;
    }
    *module = (struct module){.leases = the_leases, .build_length = build->size};
    atomic_init(&module->refs, 1);
    atomic_init(&module->objects, 0);
    memcpy(module->build, build->data, build->size);
    dw_leases_keep(the_leases);
    return module;
}

static bool get_build(ErlNifEnv *env, ERL_NIF_TERM info, ErlNifBinary *build) {
    return enif_inspect_binary(env, info, build) && build->size > 0 && build->size <= BUILD_MAX;
}

static int load(ErlNifEnv *env, void **priv, ERL_NIF_TERM info) {
    ErlNifBinary build;
    struct module *module;
    if (!get_build(env, info, &build) || (module = module_new(&build)) == NULL) {
        return 1;
    }
    make_atoms(env);
    if (!open_types(env, module)) {
        module_drop(module);
        return 1;
    }
    *priv = module;
    return 0;
}

static int upgrade(ErlNifEnv *env, void **priv, void **old_priv, ERL_NIF_TERM info) {
    ErlNifBinary build;
    struct module *older = *old_priv;
    if (!get_build(env, info, &build)) {
        return 1;
    }
    bool same =
        build.size == older->build_length && memcmp(build.data, older->build, build.size) == 0;
    if (!same) {
        return atomic_load(&older->objects) > 0 ? 1 : load(env, priv, info);
    }
    make_atoms(env);
    if (!open_types(env, older)) {
        return 1;
    }
    atomic_fetch_add(&older->refs, 1);
    *priv = older;
    return 0;
}

static void unload(ErlNifEnv *env, void *priv) {
    (void)env;
    module_drop(priv);
}

static ErlNifFunc functions[] = {
    {"open_nif", 7, store_open, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"close", 1, store_close, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"peek_applied_nif", 1, peek_applied, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"restore_nif", 2, restore, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"validate_nif", 1, validate, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"insert_nif", 4, insert, 0},
    {"insert_keyed_nif", 4, insert_keyed, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"check_batch_nif", 2, check_batch, 0},
    {"check_keyed_batch_nif", 2, check_keyed_batch, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"settle", 3, settle, 0},
    {"reschedule", 4, reschedule, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"reschedule_many", 3, reschedule_many, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"note", 2, note, 0},
    {"flush", 1, flush, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"maintain", 3, maintain, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"checkpoint", 1, checkpoint, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"finish_nif", 2, finish, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"take", 4, take, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"keep_aside", 3, keep_aside, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"postpone", 3, postpone, 0},
    {"untake", 1, untake, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"next_due", 1, next_due, 0},
    {"applied", 1, applied, 0},
    {"stat", 1, statistics, 0},
    {"read", 2, store_read, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"read_many", 3, read_many, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"page", 3, page, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"places_nif", 4, places, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"count", 3, count, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"count_until", 2, count_until, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"find", 3, find, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"claim_nif", 1, claim, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"give_back", 0, give_back, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"limit_open_files", 1, limit_open_files, 0},
    {"shared", 0, shared, 0},
    {"descriptors", 0, descriptors, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"disk_free_nif", 1, disk_free, ERL_NIF_DIRTY_JOB_IO_BOUND},
};

ERL_NIF_INIT(rabbit_delay_store, functions, load, NULL, upgrade, unload)

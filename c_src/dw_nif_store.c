/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_nif.h"

#include "dw_io.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* The calls that open and close stores, restore them, and tell of what stores share: leases,
 * descriptors, disk space. All that touch a file are dirty I/O jobs. */

#define PARTITION_MAX (UINT64_C(16) << 30)

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
    ERL_NIF_TERM level_atom = level == DW_LOG_INFO      ? nif_atoms.info
                              : level == DW_LOG_WARNING ? nif_atoms.warning
                                                        : nif_atoms.error_level;
    enif_send(nif_calling, &log->pid, env,
              enif_make_tuple3(env, nif_atoms.tag, level_atom, nif_text(env, message)));
    enif_free_env(env);
}

/* -------------------------------------------------------------- open and close */

/* open(Dir, Now, MaxRecordBytes, MaxOpenFiles, PartitionBytes, SplitBytes, LogPid | undefined);
 * MaxOpenFiles 0: out of the budget that stores share. */
ERL_NIF_TERM nif_open(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    struct nif_module *module = enif_priv_data(env);
    char dir[PATH_MAX];
    uint64_t now, max_record, max_files, partition_bytes, split_bytes;
    ErlNifPid pid;
    bool logs = enif_get_local_pid(env, argv[6], &pid) != 0;
    (void)argc;
    if (!nif_get_path(env, argv[0], dir) || !nif_get_time(env, argv[1], &now) ||
        !nif_get_number(env, argv[2], 1, INT32_MAX, &max_record) ||
        !(nif_get_number(env, argv[3], 0, 0, &max_files) ||
          nif_get_number(env, argv[3], 8, 4096, &max_files)) ||
        !nif_get_number(env, argv[4], 1, PARTITION_MAX, &partition_bytes) ||
        !nif_get_number(env, argv[5], 1, PARTITION_MAX, &split_bytes) ||
        !(logs || enif_is_identical(argv[6], nif_atoms.undefined))) {
        return enif_make_badarg(env);
    }
    struct nif_store *object = enif_alloc_resource(module->store_type, sizeof *object);
    if (object == NULL) {
        return nif_failure(env, DW_ENOMEM, 0);
    }
    *object = (struct nif_store){.module = module};
    nif_object_made(module);
    ERL_NIF_TERM term = enif_make_resource(env, object);
    enif_release_resource(object);

    struct dw_config config = {.now_ms = now,
                               .max_record_bytes = (uint32_t)max_record,
                               .max_open_files = max_files == 0 ? 8 : (uint32_t)max_files,
                               .budget = max_files == 0 ? dw_leases_budget(module->leases) : NULL,
                               .partition_bytes = partition_bytes,
                               .split_bytes = split_bytes,
                               .alloc = NIF_ALLOC};
    if (logs) {
        struct log_context *log = dw_get(NIF_ALLOC, sizeof *log);
        if (log == NULL) {
            return nif_failure(env, DW_ENOMEM, 0);
        }
        log->pid = pid;
        config.log = log_to_process;
        config.log_ctx = log;
    }
    struct dw_recovery found = {0};
    int os_error = 0;
    nif_calling = env;
    int result = dw_lease_open(module->leases, dir, &config, &object->lease, &found, &os_error);
    if (result != DW_OK) {
        return nif_failure(env, result, os_error);
    }
    static const char *const names[] = {"applied",   "pending",         "corrupt_records",
                                        "cut_bytes", "rebuilt_indexes", "partitions"};
    ERL_NIF_TERM values[] = {nif_number(env, found.applied),
                             nif_number(env, found.pending),
                             nif_number(env, found.corrupt_records),
                             nif_number(env, found.cut_bytes),
                             nif_number(env, found.rebuilt_indexes),
                             nif_number(env, found.partitions)};
    return enif_make_tuple3(env, nif_atoms.ok, term,
                            nif_map(env, names, values, sizeof names / sizeof *names));
}

ERL_NIF_TERM nif_close(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    dw_lease *lease;
    (void)argc;
    if (!nif_get_lease(env, argv[0], &lease)) {
        return enif_make_badarg(env);
    }
    dw_lease_close(lease);
    return nif_atoms.ok;
}

ERL_NIF_TERM nif_peek_applied(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    char dir[PATH_MAX];
    uint64_t applied = 0;
    (void)argc;
    if (!nif_get_path(env, argv[0], dir)) {
        return enif_make_badarg(env);
    }
    nif_calling = env;
    int result = dw_store_peek_applied(dir, &applied);
    return result == DW_OK ? nif_ok2(env, nif_number(env, applied))
                           : nif_store_failure(env, result);
}

ERL_NIF_TERM nif_restore(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct nif_module *module = enif_priv_data(env);
    char dir[PATH_MAX], snapshot[PATH_MAX];
    (void)argc;
    if (!nif_get_path(env, argv[0], dir) || !nif_get_path(env, argv[1], snapshot)) {
        return enif_make_badarg(env);
    }
    int os_error = 0;
    nif_calling = env;
    int result = dw_lease_restore(module->leases, dir, snapshot, &os_error);
    return result == DW_OK ? nif_atoms.ok : nif_failure(env, result, os_error);
}

ERL_NIF_TERM nif_validate(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    char snapshot[PATH_MAX];
    uint64_t applied = 0;
    (void)argc;
    if (!nif_get_path(env, argv[0], snapshot)) {
        return enif_make_badarg(env);
    }
    nif_calling = env;
    int result = dw_store_validate(snapshot, &applied);
    return result == DW_OK ? nif_ok2(env, nif_number(env, applied))
                           : nif_store_failure(env, result);
}

/* ------------------------------------------------------------ what stores share */

/* claim(Dir): see dw_leases_claim(). */
ERL_NIF_TERM nif_claim(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct nif_module *module = enif_priv_data(env);
    char dir[PATH_MAX];
    int os_error = 0;
    (void)argc;
    if (!nif_get_path(env, argv[0], dir)) {
        return enif_make_badarg(env);
    }
    int result = dw_leases_claim(module->leases, dir, &os_error);
    return result == DW_OK ? nif_atoms.ok : nif_failure(env, result, os_error);
}

ERL_NIF_TERM nif_give_back(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct nif_module *module = enif_priv_data(env);
    (void)argc;
    (void)argv;
    dw_leases_give_back(module->leases);
    return nif_atoms.ok;
}

ERL_NIF_TERM nif_limit_open_files(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct nif_module *module = enif_priv_data(env);
    uint64_t limit;
    (void)argc;
    if (!nif_get_number(env, argv[0], 1, UINT32_MAX, &limit)) {
        return enif_make_badarg(env);
    }
    dw_budget_limit(dw_leases_budget(module->leases), (uint32_t)limit);
    return nif_atoms.ok;
}

/* borrow_open_file(): {ok, Borrowed}, until nobody refers to it; or `none'. */
ERL_NIF_TERM nif_borrow_open_file(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    struct nif_module *module = enif_priv_data(env);
    (void)argc;
    (void)argv;
    nif_calling = env;
    if (!dw_budget_borrow(dw_leases_budget(module->leases))) {
        return nif_atoms.none;
    }
    struct nif_borrowed *object = enif_alloc_resource(module->borrowed_type, sizeof *object);
    if (object == NULL) {
        dw_budget_give_back(dw_leases_budget(module->leases));
        return nif_atoms.none;
    }
    *object = (struct nif_borrowed){module};
    nif_object_made(module);
    ERL_NIF_TERM term = enif_make_resource(env, object);
    enif_release_resource(object);
    return nif_ok2(env, term);
}

ERL_NIF_TERM nif_shared(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    const struct nif_module *module = enif_priv_data(env);
    struct dw_budget_use use;
    (void)argc;
    (void)argv;
    dw_budget_use(dw_leases_budget(module->leases), &use);
    static const char *const names[] = {"open_files", "max_open_files", "failing",
                                        "unwritten",  "failed_writes",  "failed_syncs"};
    ERL_NIF_TERM values[] = {nif_number(env, use.open),
                             nif_number(env, use.limit),
                             nif_number(env, use.failing),
                             nif_number(env, use.unwritten),
                             nif_number(env, use.failed_writes),
                             nif_number(env, use.lost_on_closing)};
    return nif_map(env, names, values, sizeof names / sizeof *names);
}

/* descriptors(): {Used, Limit} of this process of the operating system, or `unknown'. */
ERL_NIF_TERM nif_descriptors(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    struct rlimit limit;
    uint64_t used = 0;
    (void)argc;
    (void)argv;
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL) {
        /* For want of one, all are used. */
        const bool none = errno == EMFILE;
        if (!none || getrlimit(RLIMIT_NOFILE, &limit) != 0) {
            return nif_atoms.unknown;
        }
        return enif_make_tuple2(env, nif_number(env, limit.rlim_cur),
                                nif_number(env, limit.rlim_cur));
    }
    while (readdir(dir) != NULL) {
        used++;
    }
    closedir(dir);
    if (used < 3 || getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return nif_atoms.unknown;
    }
    /* ., .. and the directory's own are not counted. */
    return enif_make_tuple2(env, nif_number(env, used - 3), nif_number(env, limit.rlim_cur));
}

/* disk_free(Dir): what this user may still write there. */
ERL_NIF_TERM nif_disk_free(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    char dir[PATH_MAX];
    struct statvfs s;
    (void)argc;
    if (!nif_get_path(env, argv[0], dir)) {
        return enif_make_badarg(env);
    }
    if (statvfs(dir, &s) != 0) {
        return nif_store_failure(env, dw_io_error(errno));
    }
    uint64_t blocks = geteuid() == 0 ? s.f_bfree : s.f_bavail;
    return nif_ok2(env, nif_number(env, blocks * s.f_frsize));
}

/* SPDX-License-Identifier: MPL-2.0 */

/* The delay store's calls as native functions of the Erlang module rabbit_delay_store, which
 * documents them. Nothing is decided here: arguments are checked (badarg), the store is called, and
 * what it says is made into terms.
 *
 * Schedulers. What may touch a file is a dirty I/O job; what may visit many entries, a dirty CPU
 * job; the rest runs at once. insert, check_batch, those that settle and reschedule_many run at
 * once when their argument is small and make themselves a dirty job when it is not.
 *
 * Lifetime. A store and a checkpoint are resources, each with a reference to a lease (dw_lease.h),
 * which is what a destructor gives up. The table of leases lives as long as the VM: a handle may
 * outlive the module's instance that made it, and the next instance must find what it has open. For
 * that, and because the thread that ends leases may run at any time, the library is linked so that
 * it stays mapped (-z nodelete). An upgrade to the same build takes the handles over; one to
 * another build, whose structures may differ, is refused while there are any. */

#include "dw_nif.h"

#include <string.h>

static void module_drop(struct nif_module *module) {
    if (atomic_fetch_sub(&module->refs, 1) == 1) {
        dw_leases_drop(module->leases);
        enif_free(module);
    }
}

void nif_object_made(struct nif_module *module) {
    atomic_fetch_add(&module->refs, 1);
    atomic_fetch_add(&module->objects, 1);
}

static void object_gone(struct nif_module *module) {
    atomic_fetch_sub(&module->objects, 1);
    module_drop(module);
}

static void store_destroyed(ErlNifEnv *env, void *p) {
    struct nif_store *object = p;
    (void)env;
    nif_calling = NULL;
    if (object->lease != NULL) {
        dw_lease_drop(object->lease);
    }
    object_gone(object->module);
}

static void checkpoint_destroyed(ErlNifEnv *env, void *p) {
    struct nif_checkpoint *object = p;
    (void)env;
    nif_calling = NULL;
    dw_lease_drop(object->lease);
    object_gone(object->module);
}

static void borrowed_destroyed(ErlNifEnv *env, void *p) {
    const struct nif_borrowed *object = p;
    (void)env;
    dw_budget_give_back(dw_leases_budget(object->module->leases));
    object_gone(object->module);
}

static bool open_types(ErlNifEnv *env, struct nif_module *module) {
    ErlNifResourceFlags flags = ERL_NIF_RT_CREATE | ERL_NIF_RT_TAKEOVER;
    ErlNifResourceType *store_type =
        enif_open_resource_type(env, NULL, "store", store_destroyed, flags, NULL);
    ErlNifResourceType *checkpoint_type =
        enif_open_resource_type(env, NULL, "checkpoint", checkpoint_destroyed, flags, NULL);
    ErlNifResourceType *borrowed_type =
        enif_open_resource_type(env, NULL, "borrowed", borrowed_destroyed, flags, NULL);
    if (store_type == NULL || checkpoint_type == NULL || borrowed_type == NULL) {
        return false;
    }
    module->store_type = store_type;
    module->checkpoint_type = checkpoint_type;
    module->borrowed_type = borrowed_type;
    return true;
}

/* One for the life of the VM, whichever instances of the module come and go. */
static dw_leases *the_leases;

static struct nif_module *module_new(const ErlNifBinary *build) {
    if (the_leases == NULL) {
        the_leases = dw_leases_new(NIF_ALLOC);
        if (the_leases != NULL) {
            dw_leases_ask(the_leases, nif_caller_is_gone);
        }
    }
    struct nif_module *module = the_leases == NULL ? NULL : enif_alloc(sizeof *module);
    if (module == NULL) {
        return NULL;
    }
    *module = (struct nif_module){.leases = the_leases, .build_length = build->size};
    atomic_init(&module->refs, 1);
    atomic_init(&module->objects, 0);
    memcpy(module->build, build->data, build->size);
    dw_leases_keep(the_leases);
    return module;
}

static bool get_build(ErlNifEnv *env, ERL_NIF_TERM info, ErlNifBinary *build) {
    return enif_inspect_binary(env, info, build) && build->size > 0 && build->size <= NIF_BUILD_MAX;
}

static int load(ErlNifEnv *env, void **priv, ERL_NIF_TERM info) {
    ErlNifBinary build;
    struct nif_module *module;
    if (!get_build(env, info, &build) || (module = module_new(&build)) == NULL) {
        return 1;
    }
    nif_make_atoms(env);
    if (!open_types(env, module)) {
        module_drop(module);
        return 1;
    }
    *priv = module;
    return 0;
}

static int upgrade(ErlNifEnv *env, void **priv, void **old_priv, ERL_NIF_TERM info) {
    ErlNifBinary build;
    struct nif_module *older = *old_priv;
    if (!get_build(env, info, &build)) {
        return 1;
    }
    bool same =
        build.size == older->build_length && memcmp(build.data, older->build, build.size) == 0;
    if (!same) {
        return atomic_load(&older->objects) > 0 ? 1 : load(env, priv, info);
    }
    nif_make_atoms(env);
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
    {"open_nif", 7, nif_open, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"close", 1, nif_close, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"peek_applied_nif", 1, nif_peek_applied, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"restore_nif", 2, nif_restore, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"validate_nif", 1, nif_validate, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"insert_nif", 4, nif_insert, 0},
    {"insert_keyed_nif", 5, nif_insert_keyed, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"check_batch_nif", 2, nif_check_batch, 0},
    {"check_keyed_batch_nif", 3, nif_check_keyed_batch, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"settle", 3, nif_settle, 0},
    {"settle_due", 3, nif_settle_due, 0},
    {"settle_due_by", 3, nif_settle_due_by, 0},
    {"purge", 2, nif_purge, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"reschedule", 4, nif_reschedule, 0},
    {"reschedule_many", 3, nif_reschedule_many, 0},
    {"note", 2, nif_note, 0},
    {"flush", 1, nif_flush, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"maintain", 3, nif_maintain, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"checkpoint", 1, nif_checkpoint, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"finish_nif", 2, nif_finish, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"take", 4, nif_take, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"keep_aside", 3, nif_keep_aside, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"postpone", 3, nif_postpone, 0},
    {"postpone_many", 2, nif_postpone_many, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"untake", 1, nif_untake, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"next_due", 1, nif_next_due, 0},
    {"applied", 1, nif_applied, 0},
    {"stat", 1, nif_stat, 0},
    {"read", 2, nif_read, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"read_many", 3, nif_read_many, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"page", 3, nif_page, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"places_nif", 4, nif_places, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"count", 3, nif_count, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"count_until", 2, nif_count_until, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"find", 3, nif_find, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"claim_nif", 1, nif_claim, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"give_back", 0, nif_give_back, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"limit_open_files", 1, nif_limit_open_files, 0},
    {"borrow_open_file", 0, nif_borrow_open_file, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"shared", 0, nif_shared, 0},
    {"descriptors", 0, nif_descriptors, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"disk_free_nif", 1, nif_disk_free, ERL_NIF_DIRTY_JOB_IO_BOUND},
};

ERL_NIF_INIT(rabbit_delay_store, functions, load, NULL, upgrade, unload)

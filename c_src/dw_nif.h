/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_NIF_H
#define DW_NIF_H

#include "dw_lease.h"

#include <erl_nif.h>

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What the parts of the Erlang side share: dw_nif.c (loading, and which call runs where),
 * dw_nif_terms.c (terms to C and back), dw_nif_alloc.c (memory), dw_nif_store.c (opening, closing,
 * what stores share), dw_nif_writer.c, dw_nif_reader.c.
 *
 * Each call runs in the thread of a scheduler, normal or dirty as the table in dw_nif.c says, and
 * has its arguments and its environment for itself; no lock is held between two calls. */

#define NIF_INDEX_MAX ((UINT64_C(1) << 48) - 1) /* an id is index << 16 | position */
#define NIF_PLACES_MAX 131072                   /* places that one call may ask for, */
#define NIF_LIST_MAX 65535                      /* elements that one call may ask for */
#define NIF_BUILD_MAX 64

struct nif_module {
    atomic_uint refs; /* instances of the module, and objects */
    atomic_uint objects;
    dw_leases *leases;
    ErlNifResourceType *store_type;
    ErlNifResourceType *checkpoint_type;
    ErlNifResourceType *borrowed_type;
    size_t build_length;
    unsigned char build[NIF_BUILD_MAX]; /* which library this is: what the Erlang side says */
};

struct nif_store {
    struct nif_module *module;
    dw_lease *lease; /* NULL: opening it failed */
};

struct nif_checkpoint {
    struct nif_module *module;
    dw_lease *lease;
    uint64_t number;
};

/* A file descriptor out of the budget that stores share. */
struct nif_borrowed {
    struct nif_module *module;
};

/* Where the log's messages are sent from: the environment of the call that this thread is in, NULL
 * in a thread that is not the VM's. */
extern __thread ErlNifEnv *nif_calling;
bool nif_caller_is_gone(void); /* killed, but for this call */

/* Made when the library is loaded, and never changed. */
extern struct nif_atoms {
    ERL_NIF_TERM ok, error, true_, false_, unknown, undefined, none, infinity, more, done, corrupt,
        busy;
    ERL_NIF_TERM tag, info, warning, error_level;
    ERL_NIF_TERM id, due, key_hash, length, encoding, body;
} nif_atoms;
void nif_make_atoms(ErlNifEnv *env);

/* A new term of a type of resource counts its module as used, until it is destroyed. */
void nif_object_made(struct nif_module *module);

/* ---------------------------------------------------------------------- memory
 * Any thread. The address sanitizer sees what malloc gives, and only that. */

#ifdef __SANITIZE_ADDRESS__
#define NIF_ALLOC (&dw_alloc_libc)
#else
extern const struct dw_alloc nif_alloc;
#define NIF_ALLOC (&nif_alloc)
#endif

/* ----------------------------------------------------------------------- terms */

static inline ERL_NIF_TERM nif_number(ErlNifEnv *env, uint64_t n) {
    return enif_make_uint64(env, n);
}

static inline ERL_NIF_TERM nif_ok2(ErlNifEnv *env, ERL_NIF_TERM value) {
    return enif_make_tuple2(env, nif_atoms.ok, value);
}

static inline ERL_NIF_TERM nif_error(ErlNifEnv *env, ERL_NIF_TERM reason) {
    return enif_make_tuple2(env, nif_atoms.error, reason);
}

ERL_NIF_TERM nif_time(ErlNifEnv *env, uint64_t ms); /* `infinity' for DW_NEVER */
ERL_NIF_TERM nif_text(ErlNifEnv *env, const char *bytes);
ERL_NIF_TERM nif_errno_atom(ErlNifEnv *env, int number);
ERL_NIF_TERM nif_map(ErlNifEnv *env, const char *const names[], ERL_NIF_TERM values[], size_t n);

/* {error, Reason} for a result other than DW_OK, with the errno where the system's is the cause. */
ERL_NIF_TERM nif_failure(ErlNifEnv *env, int result, int os_error);
/* The same, with the errno that the store has of this thread's last call. */
ERL_NIF_TERM nif_store_failure(ErlNifEnv *env, int result);
ERL_NIF_TERM nif_ok_or_failure(ErlNifEnv *env, int result);

/* What the caller gave; false: it is not that, and the call is a badarg. */
bool nif_get_number(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t least, uint64_t most, uint64_t *n);
bool nif_get_time(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t *ms);
bool nif_get_index(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t *index);
bool nif_get_id(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t *id);
bool nif_get_path(ErlNifEnv *env, ERL_NIF_TERM term, char path[PATH_MAX]);
/* These two also note which environment this thread's log messages are sent from. */
bool nif_get_lease(ErlNifEnv *env, ERL_NIF_TERM term, dw_lease **lease);
bool nif_get_store(ErlNifEnv *env, ERL_NIF_TERM term, dw_store **store);
/* The ids in a binary, which lie there as little-endian 64-bit numbers at any address; NULL: no
 * memory, or none in it. `copy` is what to release with enif_free() afterwards, or NULL. */
const uint64_t *nif_get_ids(const ErlNifBinary *binary, uint64_t **copy, size_t *n);

/* Tells the scheduler how much of a process's turn (1 ms) has gone since `began`. */
void nif_spent(ErlNifEnv *env, ErlNifTime began);

/* ----------------------------------------------------------------------- calls */

typedef ERL_NIF_TERM nif_call(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]);

/* dw_nif_store.c */
nif_call nif_open, nif_close, nif_peek_applied, nif_restore, nif_validate;
nif_call nif_claim, nif_give_back, nif_limit_open_files, nif_borrow_open_file, nif_shared,
    nif_descriptors, nif_disk_free;
/* dw_nif_writer.c */
nif_call nif_insert, nif_insert_keyed, nif_check_batch, nif_check_keyed_batch;
nif_call nif_settle, nif_settle_due, nif_settle_due_by, nif_purge, nif_reschedule,
    nif_reschedule_many, nif_note, nif_flush, nif_maintain;
nif_call nif_checkpoint, nif_finish;
/* dw_nif_reader.c */
nif_call nif_take, nif_keep_aside, nif_postpone, nif_postpone_many, nif_untake, nif_next_due,
    nif_applied, nif_stat;
nif_call nif_read, nif_read_many, nif_page, nif_places, nif_count, nif_count_until, nif_find;

#endif

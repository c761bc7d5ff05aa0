/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_nif.h"

#include "dw_errno.h"
#include "dw_le.h"

#include <string.h>

/* Erlang terms to C and back. It owns the atoms, which are made when the library is loaded; all
 * else is the calling process's own. Nothing here fails but for an argument that is not what it
 * should be, or for want of memory. */

struct nif_atoms nif_atoms;

__thread ErlNifEnv *nif_calling;

bool nif_caller_is_gone(void) {
    return !enif_is_current_process_alive(nif_calling);
}

void nif_make_atoms(ErlNifEnv *env) {
    nif_atoms.ok = enif_make_atom(env, "ok");
    nif_atoms.error = enif_make_atom(env, "error");
    nif_atoms.true_ = enif_make_atom(env, "true");
    nif_atoms.false_ = enif_make_atom(env, "false");
    nif_atoms.unknown = enif_make_atom(env, "unknown");
    nif_atoms.undefined = enif_make_atom(env, "undefined");
    nif_atoms.none = enif_make_atom(env, "none");
    nif_atoms.infinity = enif_make_atom(env, "infinity");
    nif_atoms.more = enif_make_atom(env, "more");
    nif_atoms.done = enif_make_atom(env, "done");
    nif_atoms.corrupt = enif_make_atom(env, "corrupt");
    nif_atoms.busy = enif_make_atom(env, "busy");
    nif_atoms.tag = enif_make_atom(env, "rabbit_delay_store");
    nif_atoms.info = enif_make_atom(env, "info");
    nif_atoms.warning = enif_make_atom(env, "warning");
    nif_atoms.error_level = nif_atoms.error;
    nif_atoms.id = enif_make_atom(env, "id");
    nif_atoms.due = enif_make_atom(env, "due");
    nif_atoms.key_hash = enif_make_atom(env, "key_hash");
    nif_atoms.length = enif_make_atom(env, "length");
    nif_atoms.encoding = enif_make_atom(env, "encoding");
    nif_atoms.body = enif_make_atom(env, "body");
}

/* ---------------------------------------------------------------------- to Erlang */

ERL_NIF_TERM nif_errno_atom(ErlNifEnv *env, int number) {
    return enif_make_atom(env, dw_errno_name(number));
}

ERL_NIF_TERM nif_failure(ErlNifEnv *env, int result, int os_error) {
    if (result == DW_EBUSY) {
        return nif_error(env, nif_atoms.busy);
    }
    ERL_NIF_TERM reason = enif_make_atom(env, dw_strerror(result));
    if (result == DW_EIO || result == DW_ENOSPC || result == DW_EACCES) {
        reason = enif_make_tuple2(env, reason, nif_errno_atom(env, os_error));
    }
    return nif_error(env, reason);
}

ERL_NIF_TERM nif_store_failure(ErlNifEnv *env, int result) {
    return nif_failure(env, result, dw_store_errno());
}

ERL_NIF_TERM nif_ok_or_failure(ErlNifEnv *env, int result) {
    return result == DW_OK ? nif_atoms.ok : nif_store_failure(env, result);
}

ERL_NIF_TERM nif_time(ErlNifEnv *env, uint64_t ms) {
    return ms == DW_NEVER ? nif_atoms.infinity : enif_make_uint64(env, ms);
}

ERL_NIF_TERM nif_text(ErlNifEnv *env, const char *bytes) {
    ERL_NIF_TERM term;
    size_t length = strlen(bytes);
    memcpy(enif_make_new_binary(env, length, &term), bytes, length);
    return term;
}

ERL_NIF_TERM nif_map(ErlNifEnv *env, const char *const names[], ERL_NIF_TERM values[], size_t n) {
    ERL_NIF_TERM keys[32], map;
    for (size_t i = 0; i < n; ++i) {
        keys[i] = enif_make_atom(env, names[i]);
    }
    enif_make_map_from_arrays(env, keys, values, n, &map);
    return map;
}

/* -------------------------------------------------------------------- from Erlang */

bool nif_get_number(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t least, uint64_t most, uint64_t *n) {
    ErlNifUInt64 value;
    if (!enif_get_uint64(env, term, &value) || value < least || value > most) {
        return false;
    }
    *n = value;
    return true;
}

bool nif_get_time(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t *ms) {
    return nif_get_number(env, term, 0, DW_DUE_MAX, ms);
}

bool nif_get_index(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t *index) {
    return nif_get_number(env, term, 0, NIF_INDEX_MAX, index);
}

bool nif_get_id(ErlNifEnv *env, ERL_NIF_TERM term, uint64_t *id) {
    return nif_get_number(env, term, 0, UINT64_MAX, id);
}

bool nif_get_path(ErlNifEnv *env, ERL_NIF_TERM term, char path[PATH_MAX]) {
    ErlNifBinary name;
    if (!enif_inspect_binary(env, term, &name) || name.size == 0 || name.size >= PATH_MAX ||
        memchr(name.data, 0, name.size) != NULL) {
        return false;
    }
    memcpy(path, name.data, name.size);
    path[name.size] = '\0';
    return true;
}

bool nif_get_lease(ErlNifEnv *env, ERL_NIF_TERM term, dw_lease **lease) {
    const struct nif_module *module = enif_priv_data(env);
    void *object;
    if (!enif_get_resource(env, term, module->store_type, &object)) {
        return false;
    }
    *lease = ((struct nif_store *)object)->lease;
    nif_calling = env;
    return true;
}

bool nif_get_store(ErlNifEnv *env, ERL_NIF_TERM term, dw_store **store) {
    dw_lease *lease;
    if (!nif_get_lease(env, term, &lease)) {
        return false;
    }
    *store = dw_lease_store(lease);
    return true;
}

const uint64_t *nif_get_ids(const ErlNifBinary *binary, uint64_t **copy, size_t *n) {
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

void nif_spent(ErlNifEnv *env, ErlNifTime began) {
    ErlNifTime percent = (enif_monotonic_time(ERL_NIF_NSEC) - began) / 10000;
    if (percent > 0) {
        enif_consume_timeslice(env, percent > 100 ? 100 : (int)percent);
    }
}

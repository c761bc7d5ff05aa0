/* SPDX-License-Identifier: MPL-2.0 */
/* A seam of the native library that test_broken_store.py has a broker load: all of it is compiled
 * with DW_TESTS but what is here, so that an invariant can be broken in the call that a test names.
 *
 * A file break-CALL in a store's directory has the next invariant that CALL looks at in that store
 * count as broken, once, and goes with it. What comes of that is as in a broker that found it so:
 * nothing ends the program (dw_invariant.c, without DW_TESTS). */
#undef DW_TESTS
#include "dw_invariant.c"

#include "dw_store_internal.h"

#include <limits.h>
#include <unistd.h>

static _Thread_local char armed[PATH_MAX]; /* the file, while the call is under way */

bool dw_invariant_seam(void);

bool dw_invariant_seam(void) {
    const bool breaks = armed[0] != '\0' && unlink(armed) == 0;
    armed[0] = '\0';
    return !breaks;
}

static void begin(const dw_store *store, const char *call) {
    const int n = snprintf(armed, sizeof armed, "%s/break-%s", store->dir, call);
    if (n < 0 || (size_t)n >= sizeof armed || access(armed, F_OK) != 0) {
        armed[0] = '\0';
    }
}

static int end(int result) {
    armed[0] = '\0';
    return result;
}

/* The linker has calls of the others go to these: --wrap. */
#define SEAM(call, parameters, arguments)                                                          \
    int __real_dw_store_##call parameters;                                                         \
    int __wrap_dw_store_##call parameters;                                                         \
    int __wrap_dw_store_##call parameters {                                                        \
        begin(store, #call);                                                                       \
        return end(__real_dw_store_##call arguments);                                              \
    }

SEAM(insert,
     (dw_store * store, uint64_t index, uint64_t base_ms, const void *batch, size_t bytes,
      struct dw_inserted *out),
     (store, index, base_ms, batch, bytes, out))
SEAM(settle_due_by,
     (dw_store * store, uint64_t index, const struct dw_id_due *released, size_t n,
      uint64_t *removed),
     (store, index, released, n, removed))
SEAM(take,
     (dw_store * store, uint64_t now_ms, uint32_t max_n, uint64_t max_bytes,
      const struct dw_sink *sink, uint64_t *next_due),
     (store, now_ms, max_n, max_bytes, sink, next_due))

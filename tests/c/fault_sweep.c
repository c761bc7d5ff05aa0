/* SPDX-License-Identifier: MPL-2.0 */
#include "fault_sweep.h"

#include "dw_error.h"
#include "dw_store.h"
#include "store_fixture.h"
#include "store_model.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { ERRNOS = 12 };

/* What each call can fail with, on one file system or another. */
static const struct {
    enum fault_call call;
    int errnos[ERRNOS];
} can_fail[] = {
    {FAULT_OPEN,
     {EMFILE, ENFILE, ENOMEM, EIO, EACCES, ESTALE, ETIMEDOUT, ENOSPC, EDQUOT, EROFS, ENXIO}},
    {FAULT_PREAD, {EIO, ESTALE, ETIMEDOUT, ENOMEM, EACCES, EBADMSG, ENXIO, EREMOTEIO, ENOTCONN}},
    {FAULT_FTRUNCATE, {EIO, EROFS, ENOSPC, EPERM, EINTR}},
    {FAULT_PWRITE, {ENOSPC, EIO, EDQUOT, EROFS, EFBIG, ESTALE, ETIMEDOUT, EACCES, EPERM, ENOMEM}},
    {FAULT_FSTAT, {EIO, ENOMEM, ESTALE, EOVERFLOW, EACCES}},
    {FAULT_FDATASYNC, {EIO, ENOSPC, EDQUOT, EROFS, ESTALE}},
    {FAULT_FSYNC, {EIO, ENOSPC, EDQUOT, EROFS, ESTALE}},
    {FAULT_MKDIR, {EACCES, ENOSPC, EROFS, EIO, EMLINK, EDQUOT, ENOMEM}},
    {FAULT_RENAME, {EIO, ENOSPC, EACCES, EROFS, EDQUOT, ESTALE}},
    {FAULT_LINK, {EIO, EXDEV, EMLINK, EPERM, ENOSPC, EACCES, EROFS, EDQUOT}},
    {FAULT_UNLINK, {EIO, EACCES, EROFS, EBUSY, EPERM, ESTALE}},
    {FAULT_LIST, {EIO, ENOMEM, EACCES, ESTALE}},
    {FAULT_CLOSE, {EIO, ENOSPC, EINTR}},
    {FAULT_ADVISE, {EINVAL, ESPIPE}},
};

void fault_arm(const struct fault *fault, struct fault_alloc *alloc) {
    if (fault->fired) {
        return;
    }
    if (fault->kind == FAULT_ALLOC) {
        fault_alloc_fail(alloc, fault->at, fault->on);
        alloc->calls = 0;
        alloc->fail_at = fault->at;
        alloc->failed = 0;
    } else if (fault->kind == FAULT_IO) {
        fault_io_fail(fault->calls, fault->at, fault->on, fault->err);
    }
}

/* Counts up to the one that fails over all operations of the scenario. */
bool fault_disarm(struct fault *fault, struct fault_alloc *alloc) {
    if (fault->fired || fault->kind == FAULT_NONE) {
        return false;
    }
    const uint64_t n = fault->kind == FAULT_ALLOC ? alloc->calls : fault_io_counted();
    fault->fired = fault->kind == FAULT_ALLOC ? alloc->failed > 0 : fault_io_failed() > 0;
    fault->at = fault->fired ? 0 : fault->at - n;
    fault_alloc_fail(alloc, 0, false);
    fault_io_fail(0, 0, false, 0);
    return fault->fired;
}

void fault_check(const struct fault *fault, int result) {
    if (fault->kind == FAULT_ALLOC) {
        assert_int_equal(result, DW_ENOMEM);
    } else {
        assert_int_equal(fault->kind, FAULT_IO);
        assert_true(result == DW_EIO || result == DW_ENOSPC || result == DW_EACCES);
        /* Where a sync has failed before, there is no errno of its own. */
        if ((fault->calls & FAULT_FDATASYNC) == 0 || dw_store_errno() != EIO) {
            assert_int_equal(dw_store_errno(), fault->err);
            assert_int_equal(dw_io_error(fault->err), result);
        }
    }
}

/* ------------------------------------------------------------------- sweep */

static uint64_t seed;
static struct fault last; /* said if a test fails */

void fault_seed(void) {
    const char *given = getenv("DW_FAULT_SEED");
    seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    seed = seed == 0 ? 1 : seed;
    print_message("seed %llu\n", (unsigned long long)seed);
}

static bool takes_all(void) {
    return fixture_rounds(100) >= 1000;
}

bool fault_is_drawn(unsigned of) {
    return takes_all() || model_random(&seed) % (fixture_rounds(100) < 100 ? 4 * of : of) == 0;
}

static void sweep(fault_run *run, const void *arg, struct fault fault, unsigned every) {
    const bool all = takes_all();
    const unsigned step = all ? 1 : fixture_rounds(100) < 100 ? 20 * every : every;
    for (unsigned way = 0; way < 4; way++) {
        if (!all && model_random(&seed) % 4 > 1) {
            continue;
        }
        fault.on = way % 2 == 1;
        fault.kill = way / 2 == 1;
        fault.at = 1 + (all ? 0 : model_random(&seed) % step);
        while (last = fault, run(arg, fault)) {
            fault.at += all ? 1 : 1 + model_random(&seed) % (2 * step - 1);
        }
    }
}

void fault_sweep_allocations(fault_run *run, const void *arg, unsigned every) {
    sweep(run, arg, (struct fault){.kind = FAULT_ALLOC}, every);
}

void fault_sweep_calls(fault_run *run, const void *arg, unsigned calls, unsigned every) {
    unsigned i = sizeof can_fail / sizeof *can_fail - 1, count = 0;
    while ((can_fail[i].call & calls) == 0) {
        i--;
    }
    while (count < ERRNOS && can_fail[i].errnos[count] != 0) {
        count++;
    }
    const unsigned first = takes_all() ? 0 : (unsigned)(model_random(&seed) % count);
    for (unsigned j = 0; j < (takes_all() || count < 2 ? count : 2); j++) {
        const int err = can_fail[i].errnos[(first + j) % count];
        sweep(run, arg, (struct fault){.kind = FAULT_IO, .calls = calls, .err = err}, every);
    }
}

int fault_say(void **state) {
    (void)state;
    if (last.at > 0) {
        print_message("last: kind %d, calls %#x, %s, %s, %s, number %llu\n", last.kind, last.calls,
                      strerror(last.err), last.on ? "from then on" : "once",
                      last.kill ? "then killed" : "then going on", (unsigned long long)last.at);
    }
    return 0;
}

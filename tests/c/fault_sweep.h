/* SPDX-License-Identifier: MPL-2.0 */
#ifndef FAULT_SWEEP_H
#define FAULT_SWEEP_H

#include "fault_alloc.h"
#include "fault_io.h"

/* A scenario run over and over, each time with another fault: an allocation that fails, or a system
 * call, with each errno that it can have, once or from then on until the operation has failed.
 *
 * All of it takes long: DW_TEST_ROUNDS=10. Otherwise places are drawn from a seed, which is
 * printed; DW_FAULT_SEED repeats it. */

enum fault_kind { FAULT_NONE, FAULT_ALLOC, FAULT_IO };

struct fault {
    enum fault_kind kind;
    unsigned calls; /* FAULT_IO: which */
    int err;
    bool on;     /* all that follow fail too, until the operation has failed */
    bool kill;   /* after that operation, or what it took to make it succeed, the process ends */
    uint64_t at; /* the call that fails */
    bool fired;
};

/* Before an operation: it may have the fault. And after it: true if it had. */
void fault_arm(const struct fault *fault, struct fault_alloc *alloc);
bool fault_disarm(struct fault *fault, struct fault_alloc *alloc);

/* Is that what an operation that had it answers? */
void fault_check(const struct fault *fault, int result);

/* Runs the scenario with that fault; false if it had no call of that number. */
typedef bool fault_run(const void *arg, struct fault fault);

void fault_seed(void);

/* Every place, or some that are drawn: one of every so many, with each way of going on. */
void fault_sweep_allocations(fault_run *run, const void *arg, unsigned every);
/* Of calls of these kinds. With every errno of the last kind in the long form, else two of them.
 */
void fault_sweep_calls(fault_run *run, const void *arg, unsigned calls, unsigned every);

/* One of so many, drawn; all in the long form. */
bool fault_is_drawn(unsigned of);

/* A teardown: says which fault was the last. */
int fault_say(void **state);

#endif

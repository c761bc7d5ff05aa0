/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_invariant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is noted of a broken invariant: each thread's own, until dw_broken_forget(). */

static _Thread_local char note[160];

#ifdef DW_TESTS

static _Thread_local unsigned long seen, break_at;

void dw_invariant_break(unsigned long n) {
    seen = 0;
    break_at = n;
}

unsigned long dw_invariants_seen(void) {
    return seen;
}

bool dw_invariant_seam(void) {
    return ++seen != break_at;
}

/* What follows from one that was broken on purpose may be broken, too. */
static bool is_meant(void) {
    return break_at != 0 && seen >= break_at;
}

#elif defined DW_TESTS_ABORT

static bool is_meant(void) {
    return false;
}

#endif

__attribute__((cold)) bool dw_broken(const char *holds, const char *file, int line) {
#if defined DW_TESTS || defined DW_TESTS_ABORT
    if (!is_meant()) {
        fprintf(stderr, "%s:%d: broken: %s\n", file, line, holds);
        abort();
    }
#endif
    if (note[0] == '\0') {
        const char *base = strrchr(file, '/');
        snprintf(note, sizeof note, "%s (%s:%d)", holds, base != NULL ? base + 1 : file, line);
    }
    return false;
}

const char *dw_broken_note(void) {
    return note[0] != '\0' ? note : NULL;
}

void dw_broken_forget(void) {
    note[0] = '\0';
}

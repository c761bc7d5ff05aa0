/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_INVARIANT_H
#define DW_INVARIANT_H

#include <stdbool.h>

/* What must hold, if this library and the memory that it has are sound. In its tests a broken
 * invariant ends the program. In a broker it is noted for the thread, and whoever finds it goes on
 * with something harmless: the call that is under way comes to its end, and then the store is
 * closed for good (dw_leave()), with DW_EBROKEN from then on. Nothing is written to its files
 * meanwhile.
 *
 *   if (!DW_INVARIANT(file->pins > 0)) {
 *       return;
 *   } */

#ifdef DW_TESTS
#define DW_INVARIANT(holds)                                                                        \
    (__builtin_expect((holds) && dw_invariant_seam(), 1) || dw_broken(#holds, __FILE__, __LINE__))
/* A seam: the n-th invariant that this thread looks at from now on counts as broken, and does not
 * end the program; 0: none. How many it has looked at since. */
void dw_invariant_break(unsigned long n);
unsigned long dw_invariants_seen(void);
bool dw_invariant_seam(void);
#else
#define DW_INVARIANT(holds)                                                                        \
    (__builtin_expect(!!(holds), 1) || dw_broken(#holds, __FILE__, __LINE__))
#endif

/* Notes it, if it is the first since the note was taken. Answers false. */
bool dw_broken(const char *holds, const char *file, int line);

/* The note of this thread, NULL if there is none; valid until the next one. */
const char *dw_broken_note(void);
void dw_broken_forget(void);

#endif

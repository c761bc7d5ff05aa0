/* SPDX-License-Identifier: MPL-2.0 */

/* Linked into every test program: with CASE in the environment only the tests run whose names match
 * it (* and ? stand for anything). */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

__attribute__((constructor)) static void filter(void) {
    const char *pattern = getenv("CASE");
    if (pattern != NULL && *pattern != '\0') {
        cmocka_set_test_filter(pattern);
    }
}

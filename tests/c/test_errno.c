/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_errno.h"

#include <ctype.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* The names of error numbers. */

static void test_names(void **state) {
    (void)state;
    assert_string_equal(dw_errno_name(ENOSPC), "enospc");
    assert_string_equal(dw_errno_name(EAGAIN), "eagain");
    assert_string_equal(dw_errno_name(EDQUOT), "edquot");
    assert_string_equal(dw_errno_name(EHWPOISON), "ehwpoison");
}

static void test_what_is_no_error_has_none(void **state) {
    (void)state;
    const int numbers[] = {0, -1, 41, 58, EHWPOISON + 1, 4096, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        assert_string_equal(dw_errno_name(numbers[i]), "unknown");
    }
}

/* Each is what the C library says, in small letters. */
static void test_they_are_those_of_the_library(void **state) {
    (void)state;
#if defined(__GLIBC__)
    for (int number = 1; number < 4096; number++) {
        const char *theirs = strerrorname_np(number), *ours = dw_errno_name(number);
        if (theirs == NULL) {
            assert_string_equal(ours, "unknown");
            continue;
        }
        assert_int_equal(strlen(ours), strlen(theirs));
        for (size_t i = 0; theirs[i] != 0; i++) {
            assert_int_equal(ours[i], tolower((unsigned char)theirs[i]));
        }
    }
#else
    skip();
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_what_is_no_error_has_none),
        cmocka_unit_test(test_they_are_those_of_the_library),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

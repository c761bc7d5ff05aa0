/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_error.h"
#include "dw_origin.h"
#include "fault_alloc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { MANY = 300000 };

static void test_notes(void **state) {
    struct fault_alloc alloc;
    struct dw_origins origins;
    (void)state;
    fault_alloc_init(&alloc);
    dw_origins_init(&origins, &alloc.alloc);
    assert_int_equal(dw_origin_get(&origins, 5, 99), 99);
    dw_origin_forget(&origins, 5);
    assert_int_equal(dw_origin_note(&origins, 5, 0), DW_OK);
    assert_int_equal(dw_origin_get(&origins, 5, 99), 0);
    /* The first one counts. */
    assert_int_equal(dw_origin_note(&origins, 5, 7), DW_OK);
    assert_int_equal(dw_origin_get(&origins, 5, 99), 0);
    assert_int_equal(dw_origin_get(&origins, 6, 99), 99);
    dw_origin_forget(&origins, 5);
    dw_origin_forget(&origins, 5);
    assert_int_equal(dw_origin_get(&origins, 5, 99), 99);
    dw_origins_free(&origins);
    fault_alloc_check_released(&alloc);
}

static void test_blocks_come_and_go(void **state) {
    struct fault_alloc alloc;
    struct dw_origins origins;
    (void)state;
    fault_alloc_init(&alloc);
    dw_origins_init(&origins, &alloc.alloc);
    for (uint32_t k = 0; k < MANY; k++) {
        assert_int_equal(dw_origin_note(&origins, k, 2 * k), DW_OK);
    }
    assert_int_equal(alloc.bytes, dw_origins_bytes(&origins));
    for (uint32_t k = 0; k < MANY; k++) {
        assert_int_equal(dw_origin_get(&origins, k, 1), 2 * k);
    }
    for (uint32_t k = 0; k < MANY - 1; k++) {
        dw_origin_forget(&origins, k);
    }
    assert_int_equal(dw_origin_get(&origins, MANY - 1, 1), 2 * (MANY - 1));
    assert_int_equal(alloc.bytes, dw_origins_bytes(&origins));
    assert_true(alloc.bytes < 40000);
    dw_origins_free(&origins);
    assert_int_equal(dw_origins_bytes(&origins), 0);
    fault_alloc_check_released(&alloc);
}

static void test_no_memory(void **state) {
    struct fault_alloc alloc;
    struct dw_origins origins;
    (void)state;
    fault_alloc_init(&alloc);
    dw_origins_init(&origins, &alloc.alloc);
    assert_int_equal(dw_origin_note(&origins, 1, 10), DW_OK);
    /* A longer table, and then a block, for a number far off. */
    for (uint64_t n = 1; n <= 2; n++) {
        fault_alloc_fail(&alloc, n, false);
        assert_int_equal(dw_origin_note(&origins, MANY, 20), DW_ENOMEM);
        assert_int_equal(dw_origin_get(&origins, MANY, 1), 1);
        assert_int_equal(dw_origin_get(&origins, 1, 1), 10);
    }
    fault_alloc_fail(&alloc, 0, false);
    assert_int_equal(dw_origin_note(&origins, MANY, 20), DW_OK);
    assert_int_equal(dw_origin_get(&origins, MANY, 1), 20);
    dw_origins_free(&origins);
    fault_alloc_check_released(&alloc);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_notes),
        cmocka_unit_test(test_blocks_come_and_go),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

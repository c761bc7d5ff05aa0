/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_manifest.h"
#include "dw_partition.h"
#include "fault_io.h"
#include "store_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct manifest_fixture {
    struct fixture f;
    int dirfd;
    struct dw_manifest_part parts[5];
    struct dw_manifest manifest;
};

static int setup(void **state) {
    struct manifest_fixture *x = calloc(1, sizeof *x);
    assert_non_null(x);
    fixture_init(&x->f);
    x->dirfd = open(x->f.base, O_RDONLY | O_DIRECTORY);
    for (uint32_t i = 0; i < 5; i++) {
        x->parts[i] = (struct dw_manifest_part){.serial = 3 + 2 * i,
                                                .slice = 100 + i,
                                                .level = i,
                                                .rec_bytes = 1000 + i,
                                                .idx_bytes = 2000 + i,
                                                .live = 30 + i,
                                                .live_bytes = 400 + i};
    }
    x->manifest =
        (struct dw_manifest){.applied = 77, .next_serial = 12, .count = 5, .parts = x->parts};
    *state = x;
    return 0;
}

static int teardown(void **state) {
    struct manifest_fixture *x = *state;
    close(x->dirfd);
    fixture_end(&x->f);
    free(x);
    return 0;
}

static int write_it(struct manifest_fixture *x) {
    return dw_manifest_write(&fault_io, &x->f.alloc.alloc, x->dirfd, &x->manifest);
}

static int read_it(struct manifest_fixture *x, struct dw_manifest *out) {
    return dw_manifest_read(&fault_io, &x->f.alloc.alloc, x->dirfd, out);
}

static void test_round_trip(void **state) {
    struct manifest_fixture *x = *state;
    struct dw_manifest got;
    assert_int_equal(read_it(x, &got), DW_ENOENT);
    assert_int_equal(write_it(x), DW_OK);
    assert_int_equal(file_size(fixture_path(&x->f, "MANIFEST")), 48 + 5 * 64);
    assert_int_equal(read_it(x, &got), DW_OK);
    assert_int_equal(got.applied, 77);
    assert_int_equal(got.next_serial, 12);
    assert_int_equal(got.count, 5);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(got.parts[i].serial, x->parts[i].serial);
        assert_int_equal(got.parts[i].slice, x->parts[i].slice);
        assert_int_equal(got.parts[i].level, x->parts[i].level);
        assert_int_equal(got.parts[i].rec_bytes, x->parts[i].rec_bytes);
        assert_int_equal(got.parts[i].idx_bytes, x->parts[i].idx_bytes);
        assert_int_equal(got.parts[i].live, x->parts[i].live);
        assert_int_equal(got.parts[i].live_bytes, x->parts[i].live_bytes);
    }
    assert_ptr_equal(dw_manifest_find(&got, 9), &got.parts[3]);
    assert_null(dw_manifest_find(&got, 2));
    assert_null(dw_manifest_find(&got, 4));
    assert_null(dw_manifest_find(&got, 12));
    dw_manifest_free(&x->f.alloc.alloc, &got);
    x->manifest.count = 0;
    assert_int_equal(write_it(x), DW_OK);
    assert_int_equal(read_it(x, &got), DW_OK);
    assert_int_equal(got.count, 0);
    assert_null(dw_manifest_find(&got, 3));
    dw_manifest_free(&x->f.alloc.alloc, &got);
    assert_int_equal(count_files(x->f.base, "tmp"), 0);
}

static void test_every_bit_counts(void **state) {
    struct manifest_fixture *x = *state;
    struct dw_manifest got;
    assert_int_equal(write_it(x), DW_OK);
    const char *path = fixture_path(&x->f, "MANIFEST");
    const uint64_t size = file_size(path);
    for (uint64_t byte = 0; byte < size; byte++) {
        flip_bit(path, byte, byte % 8);
        assert_int_equal(read_it(x, &got), DW_ECORRUPT);
        flip_bit(path, byte, byte % 8);
    }
    assert_int_equal(read_it(x, &got), DW_OK);
    dw_manifest_free(&x->f.alloc.alloc, &got);
    for (uint64_t length = size; length-- > 0;) {
        assert_int_equal(truncate(path, (off_t)length), 0);
        assert_int_equal(read_it(x, &got), DW_ECORRUPT);
    }
}

static void test_nonsense_with_a_good_checksum(void **state) {
    struct manifest_fixture *x = *state;
    struct dw_manifest got;
    const struct dw_manifest_part good = x->parts[2];
    const struct dw_manifest_part bad[] = {
        {.serial = 5, .slice = 1, .level = 0, .rec_bytes = 64, .idx_bytes = 64},
        {.serial = 7, .slice = 1, .level = DW_LEVELS, .rec_bytes = 64, .idx_bytes = 64},
        {.serial = 7, .slice = DW_DUE_MAX, .level = 0, .rec_bytes = 64, .idx_bytes = 64},
        {.serial = 7, .slice = 1, .level = 0, .rec_bytes = 63, .idx_bytes = 64},
        {.serial = 7, .slice = 1, .level = 0, .rec_bytes = 64, .idx_bytes = 63},
        {.serial = 7, .slice = 1, .level = 0, .rec_bytes = UINT64_MAX, .idx_bytes = 64},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        x->parts[2] = bad[i];
        assert_int_equal(write_it(x), DW_OK);
        assert_int_equal(read_it(x, &got), DW_ECORRUPT);
    }
    x->parts[2] = good;
    assert_int_equal(write_it(x), DW_OK);
    assert_int_equal(read_it(x, &got), DW_OK);
    dw_manifest_free(&x->f.alloc.alloc, &got);
}

/* Whichever call fails, the old one or the new one is there, and what a power cut leaves is too. */
static void test_old_or_new(void **state) {
    struct manifest_fixture *x = *state;
    struct dw_manifest got;
    assert_int_equal(mkdir(x->f.dir, 0700), 0);
    close(x->dirfd);
    x->dirfd = open(x->f.dir, O_RDONLY | O_DIRECTORY);
    assert_int_equal(write_it(x), DW_OK);
    x->manifest.applied = 78;
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        for (uint64_t cut = 0; cut < 8; cut++) {
            struct dw_manifest old = x->manifest;
            old.applied = 77;
            fault_io_fail(0, 0, false, 0);
            assert_int_equal(dw_manifest_write(&fault_io, &x->f.alloc.alloc, x->dirfd, &old),
                             DW_OK);
            fault_io_track(x->f.dir);
            fault_io_fail(FAULT_ANY, n, true, ENOSPC);
            int result = write_it(x);
            done = fault_io_failed() == 0;
            assert_int_equal(result, done ? DW_OK : DW_ENOSPC);
            fault_io_fail(0, 0, false, 0);
            assert_int_equal(read_it(x, &got), DW_OK);
            assert_true(got.applied == 78 || (!done && got.applied == 77));
            dw_manifest_free(&x->f.alloc.alloc, &got);

            const char *left = fixture_path(&x->f, "left");
            remove_dir(left);
            fault_io_power_cut(left, cut);
            uint64_t applied;
            assert_int_equal(dw_store_peek_applied(left, &applied), DW_OK);
            assert_true(applied == 78 || (!done && applied == 77));
        }
    }
}

static void test_read_faults(void **state) {
    struct manifest_fixture *x = *state;
    struct dw_manifest got;
    assert_int_equal(write_it(x), DW_OK);
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        fault_io_fail(FAULT_ANY, n, false, EACCES);
        int result = read_it(x, &got);
        done = fault_io_failed() == 0;
        assert_int_equal(result, done ? DW_OK : DW_EACCES);
        dw_manifest_free(&x->f.alloc.alloc, &got);
    }
    assert_int_equal(dw_store_errno(), EACCES);
    fault_io_fail(FAULT_PREAD, 1, false, EINTR);
    assert_int_equal(read_it(x, &got), DW_OK);
    dw_manifest_free(&x->f.alloc.alloc, &got);
    for (uint64_t n = 1; n <= 2; n++) {
        fault_alloc_fail(&x->f.alloc, n, false);
        assert_int_equal(read_it(x, &got), DW_ENOMEM);
    }
    fault_alloc_fail(&x->f.alloc, 1, false);
    assert_int_equal(write_it(x), DW_ENOMEM);
    fault_alloc_fail(&x->f.alloc, 0, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_bit_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nonsense_with_a_good_checksum, setup, teardown),
        cmocka_unit_test_setup_teardown(test_old_or_new, setup, teardown),
        cmocka_unit_test_setup_teardown(test_read_faults, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: MPL-2.0 */
/* The store's calls, one statement of its contract after the other.
 * Longer than other files are, as the contract is. */
#include "dw_crc32c.h"
#include "dw_le.h"
#include "dw_store_internal.h"
#include "fault_io.h"
#include "kept_aside.h"
#include "store_fixture.h"
#include "store_model.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define NOW UINT64_C(1700000000000)

struct world {
    struct fixture f;
    struct model model;
    struct collected collected;
};

static int setup(void **state) {
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    fixture_init(&w->f);
    *state = w;
    return 0;
}

static int setup_open(void **state) {
    setup(state);
    fixture_open(&((struct world *)*state)->f);
    return 0;
}

static int teardown(void **state) {
    struct world *w = *state;
    fixture_end(&w->f);
    model_free(&w->model);
    collected_free(&w->collected);
    free(w);
    return 0;
}

/* Inserts n records with bodies of `length`, the first due after `delay`, each next `step` later.
 */
static void insert_n(struct world *w, size_t n, uint64_t delay, uint64_t step, uint32_t length) {
    struct model_new_record *records = calloc(n, sizeof *records);
    assert_non_null(records);
    for (size_t i = 0; i < n; i++) {
        records[i] =
            (struct model_new_record){.when = delay + i * step, .length = length, .encoding = 7};
    }
    assert_int_equal(model_insert(&w->model, w->f.store, NOW, records, n), DW_OK);
    free(records);
}

static void insert_one(struct world *w, uint64_t delay, uint64_t key_hash, uint32_t length) {
    const struct model_new_record record = {.when = delay,
                                            .key_hash = key_hash,
                                            .length = length,
                                            .encoding = 9};
    assert_int_equal(model_insert(&w->model, w->f.store, NOW, &record, 1), DW_OK);
}

static uint32_t take(struct world *w, uint64_t now, uint32_t max_n) {
    assert_int_equal(model_take(&w->model, w->f.store, now, max_n, UINT64_MAX, &w->collected),
                     DW_OK);
    return w->collected.count;
}

static void settle_taken(struct world *w) {
    uint64_t *ids = calloc(w->collected.count + 1, sizeof *ids);
    assert_non_null(ids);
    for (uint32_t i = 0; i < w->collected.count; i++) {
        ids[i] = w->collected.records[i].id;
    }
    assert_int_equal(model_settle(&w->model, w->f.store, ids, w->collected.count), DW_OK);
    free(ids);
}

static void settle_one(struct world *w, uint64_t id) {
    assert_int_equal(model_settle(&w->model, w->f.store, &id, 1), DW_OK);
}

static struct dw_stat stat_of(struct world *w) {
    struct dw_stat stat;
    assert_int_equal(dw_store_stat(w->f.store, &stat), DW_OK);
    return stat;
}

static void checkpoint(struct world *w) {
    assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_OK);
}

static void reopen(struct world *w) {
    fixture_close(&w->f);
    fixture_open(&w->f);
    model_replay(&w->model, w->f.store, UINT64_MAX);
}

static void maintain_all(struct world *w, uint64_t now) {
    bool more = true;
    for (unsigned i = 0; more; i++) {
        assert_true(i < 100000);
        assert_int_equal(dw_store_maintain(w->f.store, now, 1, &more), DW_OK);
    }
}

static const char *in_dir(struct world *w, const char *name) {
    char path[600];
    snprintf(path, sizeof path, "store/%s", name);
    return fixture_path(&w->f, path);
}

static const char *only_file(struct world *w, const char *ending) {
    char name[256];
    assert_int_equal(count_files(w->f.dir, ending), 1);
    nth_file(w->f.dir, ending, 0, name);
    return in_dir(w, name);
}

/* The closed store's directory, to come back to. */
static void save_copy(struct world *w) {
    copy_dir(w->f.dir, fixture_path(&w->f, "copy"));
}

static void copy_one_back(struct world *w, const char *name) {
    char from[PATH_MAX], to[PATH_MAX];
    snprintf(from, sizeof from, "%s/%s", fixture_path(&w->f, "copy"), name);
    snprintf(to, sizeof to, "%s/%s", w->f.dir, name);
    assert_int_equal(link(from, to), 0);
}

static void back_to_copy(struct world *w) {
    fixture_close(&w->f);
    remove_dir(w->f.dir);
    copy_dir(fixture_path(&w->f, "copy"), w->f.dir);
}

/* ----------------------------------------------------------------- opening */

static void test_configuration_is_checked(void **state) {
    struct world *w = *state;
    const struct dw_config good = w->f.config;
    struct dw_config bad[7] = {good, good, good, good, good, good, good};
    bad[0].now_ms = DW_DUE_MAX + 1;
    bad[1].max_record_bytes = 0;
    bad[2].max_record_bytes = UINT32_C(1) << 31;
    bad[3].max_open_files = 7;
    bad[4].max_open_files = 4097;
    bad[5].partition_bytes = (UINT64_C(16) << 30) + 1;
    bad[6].now_ms = UINT64_MAX;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        w->f.config = bad[i];
        assert_int_equal(fixture_try_open(&w->f), DW_EINVAL);
        assert_null(w->f.store);
    }
    struct stat st;
    assert_int_equal(stat(w->f.dir, &st), -1);
}

static void test_new_store_is_empty(void **state) {
    struct world *w = *state;
    uint64_t applied = 1;
    assert_int_equal(dw_store_peek_applied(w->f.dir, &applied), DW_OK);
    assert_int_equal(applied, 0);
    fixture_open(&w->f);
    struct stat st;
    assert_int_equal(stat(w->f.dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    const struct dw_recovery none = {0};
    assert_memory_equal(&w->f.report, &none, sizeof none);
    model_compare(&w->model, w->f.store, true);
    /* There may be hundreds of exchanges. */
    assert_true(stat_of(w).memory_bytes < 65536);
    assert_true(w->f.alloc.bytes < 65536);
    assert_int_equal(dw_store_next_due(w->f.store), DW_NEVER);
    assert_int_equal(dw_store_applied(w->f.store), 0);
    assert_int_equal(take(w, DW_DUE_MAX, 10), 0);
    assert_int_equal(stat_of(w).partitions, 0);
}

static void test_missing_parent(void **state) {
    struct world *w = *state;
    snprintf(w->f.dir, sizeof w->f.dir, "%s/no/where", w->f.base);
    assert_int_equal(fixture_try_open(&w->f), DW_EIO);
    assert_int_equal(dw_store_errno(), ENOENT);
}

static void test_a_fixed_default_allocator(void **state) {
    struct world *w = *state;
    w->f.config.alloc = NULL;
    w->f.config.io = NULL;
    w->f.config.log = NULL;
    fixture_open(&w->f);
    insert_n(w, 10, 0, 1, 100);
    checkpoint(w);
    model_compare(&w->model, w->f.store, true);
}

static void test_files_of_no_checkpoint_are_removed(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 1000, 1000000, 100);
    checkpoint(w);
    const unsigned named = count_files(w->f.dir, "");
    insert_n(w, 100, 1000, 100000000, 100);
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    assert_true(count_files(w->f.dir, "") > named);
    fixture_close(&w->f);
    /* Not ours: left alone. */
    int fd = open(in_dir(w, "indexes"), O_CREAT | O_WRONLY, 0600);
    close(fd);
    fd = open(in_dir(w, "MANIFEST.tmp"), O_CREAT | O_WRONLY, 0600);
    close(fd);
    fixture_open(&w->f);
    assert_int_equal(count_files(w->f.dir, ""), named + 1);
    assert_int_equal(w->f.report.applied, 1);
    assert_int_equal(w->f.report.pending, 10);
    model_replay(&w->model, w->f.store, UINT64_MAX);
    model_compare(&w->model, w->f.store, true);
}

static void test_without_manifest_it_begins_anew(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 1000, 1000000, 100);
    checkpoint(w);
    fixture_close(&w->f);
    assert_int_equal(unlink(in_dir(w, "MANIFEST")), 0);
    fixture_open(&w->f);
    assert_int_equal(w->f.report.applied, 0);
    assert_int_equal(count_files(w->f.dir, ""), 0);
    model_replay(&w->model, w->f.store, UINT64_MAX);
    model_compare(&w->model, w->f.store, true);
}

static void test_longer_files_are_cut(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 1000, 1, 100);
    checkpoint(w);
    const uint64_t rec = file_size(only_file(w, ".rec")), idx = file_size(only_file(w, ".idx"));
    insert_n(w, 10, 1000, 1, 100);
    settle_one(w, 1 << 16);
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    const uint64_t more =
        file_size(only_file(w, ".rec")) - rec + file_size(only_file(w, ".idx")) - idx;
    fixture_close(&w->f);
    fixture_open(&w->f);
    assert_int_equal(w->f.report.cut_bytes, more);
    assert_int_equal(file_size(only_file(w, ".rec")), rec);
    assert_int_equal(file_size(only_file(w, ".idx")), idx);
    model_replay(&w->model, w->f.store, 0);
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    reopen(w);
    assert_int_equal(w->f.report.pending, 19);
    model_compare(&w->model, w->f.store, true);
}

static void test_damaged_manifest(void **state) {
    struct world *w = *state;
    uint64_t applied;
    insert_n(w, 10, 1000, 1, 100);
    assert_int_equal(fixture_checkpoint(&w->f, fixture_path(&w->f, "snapshot")), DW_OK);
    fixture_close(&w->f);
    flip_bit(in_dir(w, "MANIFEST"), 20, 3);
    assert_int_equal(dw_store_peek_applied(w->f.dir, &applied), DW_ECORRUPT);
    assert_int_equal(fixture_try_open(&w->f), DW_ECORRUPT);
    assert_int_equal(count_files(w->f.dir, ".rec"), 1);
    assert_int_equal(dw_store_restore(w->f.dir, fixture_path(&w->f, "snapshot")), DW_OK);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
}

/* Makes the version of a file or manifest later, with the checksum that belongs to it. */
static void make_later(const char *path, size_t covered) {
    uint8_t bytes[4096];
    int fd = open(path, O_RDWR);
    const size_t size = covered != 0 ? covered : (size_t)file_size(path);
    assert_true(size <= sizeof bytes);
    assert_int_equal(pread(fd, bytes, size, 0), size);
    dw_le32_put(bytes + 8, 2);
    dw_le32_put(bytes + 12, dw_crc32c(dw_crc32c(0, bytes, 12), bytes + 16, size - 16));
    assert_int_equal(pwrite(fd, bytes, size, 0), size);
    close(fd);
}

static void test_later_versions_are_left_alone(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 1000, 1, 100);
    checkpoint(w);
    fixture_close(&w->f);
    static const char *const endings[3] = {".idx", ".rec", "MANIFEST"};
    for (int i = 0; i < 3; i++) {
        make_later(only_file(w, endings[i]), i < 2 ? DW_FILE_HEADER : 0);
        assert_int_equal(fixture_try_open(&w->f), DW_EVERSION);
        assert_int_equal(count_files(w->f.dir, ""), 3);
    }
    uint64_t applied;
    assert_int_equal(dw_store_peek_applied(w->f.dir, &applied), DW_EVERSION);
    assert_int_equal(dw_store_validate(w->f.dir, &applied), DW_EVERSION);
}

/* ------------------------------------------------------------------ insert */

static void test_malformed_batches(void **state) {
    struct world *w = *state;
    const struct model_new_record records[2] = {{.when = 5, .length = 10},
                                                {.when = 6, .length = 20}};
    size_t bytes;
    uint32_t count;
    uint8_t *batch = model_batch(1, records, 2, &bytes);
    struct dw_inserted out;
    assert_int_equal(dw_batch_check(batch, bytes, 20, &count), DW_OK);
    assert_int_equal(count, 2);
    assert_int_equal(dw_batch_check(batch, bytes, 19, &count), DW_ETOOBIG);
    for (size_t length = 0; length < bytes; length++) {
        const int expected = length == 34 ? DW_OK : DW_EINVAL;
        assert_int_equal(dw_batch_check(batch, length, 20, &count), expected);
        assert_int_equal(count, expected == DW_OK);
    }
    static const struct {
        size_t at;
        uint8_t value;
        int result;
    } bad[] = {
        {0, 0, DW_EINVAL},                           /* an empty body */
        {3, 1, DW_ETOOBIG},                          /* 16 MiB */
        {0, 9, DW_EINVAL},                           /* the next record begins too early */
        {4, 2, DW_EINVAL},                           /* unknown flags */
        {5, 0x80, DW_EINVAL},   {34, 21, DW_EINVAL}, /* more than there is */
        {34 + 5, 1, DW_EINVAL},                      /* flags of the second */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const uint8_t good = batch[bad[i].at];
        batch[bad[i].at] = bad[i].value;
        assert_int_equal(dw_store_insert(w->f.store, 1, NOW, batch, bytes, &out), bad[i].result);
        assert_int_equal(out.count, 0);
        assert_int_equal(out.next_due, DW_NEVER);
        batch[bad[i].at] = good;
    }
    assert_int_equal(dw_store_insert(w->f.store, 1, NOW, batch, 0, &out), DW_EINVAL);
    assert_int_equal(dw_store_insert(w->f.store, UINT64_C(1) << 48, NOW, batch, bytes, &out),
                     DW_EINVAL);
    assert_int_equal(dw_store_applied(w->f.store), 0);
    model_compare(&w->model, w->f.store, false);
    assert_int_equal(dw_store_insert(w->f.store, 1, NOW, batch, bytes, &out), DW_OK);
    assert_int_equal(out.count, 2);
    assert_int_equal(out.next_due, NOW + 5);
    assert_true(out.buffered >= bytes);
    free(batch);
}

static void test_largest_batch(void **state) {
    struct world *w = *state;
    struct model_new_record *records = calloc(65536, sizeof *records);
    struct dw_inserted out;
    size_t bytes;
    assert_non_null(records);
    for (unsigned i = 0; i < 65536; i++) {
        records[i] = (struct model_new_record){.when = i, .length = 1};
    }
    uint8_t *batch = model_batch(3, records, 65536, &bytes);
    assert_int_equal(dw_store_insert(w->f.store, 3, NOW, batch, bytes, &out), DW_EINVAL);
    assert_int_equal(dw_store_insert(w->f.store, 3, NOW, batch, bytes - 25, &out), DW_OK);
    assert_int_equal(out.count, 65535);
    assert_null(dw_store_check(w->f.store));
    struct dw_sink sink = collected_sink(&w->collected);
    uint64_t next_due;
    assert_int_equal(dw_store_take(w->f.store, NOW + 65534, 70000, UINT64_MAX, &sink, &next_due),
                     DW_OK);
    assert_int_equal(w->collected.count, 65535);
    for (unsigned i = 0; i < 65535; i++) {
        assert_int_equal(w->collected.records[i].id, (UINT64_C(3) << 16) | i);
    }
    assert_int_equal(next_due, DW_NEVER);
    free(batch);
    free(records);
}

static void test_due_times(void **state) {
    struct world *w = *state;
    const struct model_new_record records[] = {
        {.when = 0, .length = 1},
        {.when = UINT64_MAX, .length = 1},
        {.when = DW_DUE_MAX, .length = 1},
        {.when = UINT64_MAX, .absolute = true, .length = 1},
        {.when = DW_DUE_MAX, .absolute = true, .length = 1},
        {.when = 0, .absolute = true, .length = 1},
        {.when = NOW - 1, .absolute = true, .length = 1},
    };
    assert_int_equal(model_insert(&w->model, w->f.store, NOW, records, 7), DW_OK);
    for (unsigned i = 1; i <= 4; i++) {
        assert_int_equal(model_find(&w->model, 1 << 16 | i)->due, DW_DUE_MAX);
    }
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(take(w, NOW, 10), 3);
    assert_int_equal(take(w, DW_DUE_MAX - 1, 10), 0);
    assert_int_equal(take(w, UINT64_MAX, 10), 4);
}

/* Raft's log may be replayed from anywhere before. */
static void test_changes_at_or_below_applied_do_nothing(void **state) {
    struct world *w = *state;
    insert_n(w, 5, 0, 0, 10);
    model_note(&w->model, w->f.store);
    assert_int_equal(dw_store_applied(w->f.store), 2);
    const struct model_new_record record = {.when = 1, .length = 3};
    size_t bytes;
    uint8_t *batch = model_batch(2, &record, 1, &bytes);
    for (uint64_t index = 0; index <= 2; index++) {
        struct dw_inserted out = {.count = 99};
        uint64_t id = 1 << 16, removed = 99;
        assert_int_equal(dw_store_insert(w->f.store, index, NOW, batch, bytes, &out), DW_OK);
        assert_int_equal(out.count, 0);
        assert_int_equal(out.bytes, 0);
        assert_int_equal(out.next_due, NOW);
        assert_int_equal(dw_store_settle(w->f.store, index, &id, 1, &removed), DW_OK);
        assert_int_equal(removed, 0);
        assert_int_equal(dw_store_reschedule(w->f.store, index, id, NOW + 5), DW_OK);
        dw_store_note(w->f.store, index);
        model_compare(&w->model, w->f.store, true);
    }
    free(batch);
}

/* ---------------------------------------------------------- take and settle */

static void test_in_due_order_then_by_id(void **state) {
    struct world *w = *state;
    insert_n(w, 100, 1000, 0, 30);
    insert_n(w, 100, 1100, UINT64_MAX, 30); /* backwards: each 1 ms earlier */
    insert_n(w, 100, 1000, 0, 30);
    assert_int_equal(dw_store_next_due(w->f.store), NOW + 1000);
    assert_int_equal(take(w, NOW + 999, 1000), 0);
    assert_int_equal(take(w, NOW + 1000, 1000), 200);
    for (unsigned i = 0; i < 200; i++) {
        const uint64_t id = i < 100 ? (UINT64_C(1) << 16) + i : (UINT64_C(3) << 16) + i - 100;
        assert_int_equal(w->collected.records[i].id, id);
        assert_int_equal(w->collected.records[i].encoding, 7);
    }
    assert_int_equal(take(w, NOW + 1100, 1000), 100);
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(w->collected.records[i].due, NOW + 1001 + i);
    }
    assert_int_equal(dw_store_next_due(w->f.store), DW_NEVER);
    assert_int_equal(stat_of(w).taken, 300);
    assert_int_equal(stat_of(w).pending, 300);
}

static void test_recovered_in_order_of_id(void **state) {
    struct world *w = *state;
    /* One millisecond's records come into different partitions, and are moved. */
    w->f.config.partition_bytes = 1000;
    w->f.config.split_bytes = 1;
    fixture_close(&w->f);
    fixture_open(&w->f);
    for (unsigned i = 0; i < 30; i++) {
        insert_n(w, 20, 20000000, 0, 30);
        maintain_all(w, NOW + 19000000 - 1000000 * (i % 20));
    }
    checkpoint(w);
    reopen(w);
    assert_int_equal(take(w, NOW + 20000000, 1000), 600);
    for (unsigned i = 1; i < 600; i++) {
        assert_true(w->collected.records[i].id > w->collected.records[i - 1].id);
    }
}

static void test_limits_of_take(void **state) {
    struct world *w = *state;
    insert_n(w, 700, 0, 1, 100);
    assert_int_equal(take(w, NOW + 1000, 0), 0);
    assert_int_equal(take(w, NOW + 1000, 1), 1);
    assert_int_equal(take(w, NOW + 1000, 300), 300);
    static const uint64_t max_bytes[] = {0, 1, 99, 100, 101, 1000};
    static const uint32_t taken[] = {1, 1, 1, 1, 2, 10};
    for (int i = 0; i < 6; i++) {
        assert_int_equal(model_take(&w->model, w->f.store, NOW + 1000, 500, max_bytes[i],
                                    &w->collected),
                         DW_OK);
        assert_int_equal(w->collected.count, taken[i]);
    }
    assert_int_equal(take(w, NOW + 500, UINT32_MAX), 501 - 301 - 16);
    assert_int_equal(take(w, NOW + 1000, UINT32_MAX), 199);
}

static void test_records_of_all_lengths(void **state) {
    struct world *w = *state;
    static const uint32_t lengths[] = {1,     7,     8,      9,      100,     4096,   32719, 32720,
                                       32721, 65536, 262144, 500000, 1 << 20, 200000, 3,     32000};
    struct model_new_record records[16];
    for (int i = 0; i < 16; i++) {
        records[i] = (struct model_new_record){.when = (uint64_t)(i * 7 % 16),
                                               .length = lengths[i],
                                               .key_hash = 5,
                                               .encoding = (uint16_t)i};
    }
    /* From the buffers, from the files, and from both. */
    for (int round = 0; round < 3; round++) {
        assert_int_equal(model_insert(&w->model, w->f.store, NOW, records, 16), DW_OK);
        if (round == 1) {
            assert_int_equal(dw_store_flush(w->f.store), DW_OK);
        }
        if (round == 2) {
            fault_io_fail(FAULT_PWRITE, 1, true, ENOSPC);
            assert_int_equal(dw_store_flush(w->f.store), DW_ENOSPC);
            assert_int_equal(model_insert(&w->model, w->f.store, NOW, records, 16), DW_OK);
            fault_io_fail(0, 0, false, 0);
        }
        model_compare(&w->model, w->f.store, true);
        assert_int_equal(take(w, NOW + 100, 100), round == 2 ? 32 : 16);
        settle_taken(w);
    }
}

static void test_never_early_when_the_clock_steps_back(void **state) {
    struct world *w = *state;
    insert_n(w, 100, 0, 100, 10);
    assert_int_equal(take(w, NOW + 5000, 10), 10);
    assert_int_equal(take(w, NOW + 450, 100), 0);
    assert_int_equal(take(w, NOW + 1000, 100), 1);
    insert_n(w, 10, 1001, 1, 10); /* the wheel has passed these */
    assert_int_equal(take(w, NOW + 1000, 100), 0);
    assert_int_equal(dw_store_next_due(w->f.store), NOW + 1001);
    assert_int_equal(take(w, NOW + 1005, 100), 5);
    assert_int_equal(take(w, NOW + 3600000, 1000), 94);
}

static void test_taken_are_not_handed_out_again(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 0, 0, 10);
    assert_int_equal(take(w, NOW, 10), 10);
    assert_int_equal(take(w, NOW, 10), 0);
    assert_int_equal(dw_store_next_due(w->f.store), DW_NEVER);
    assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
    assert_int_equal(take(w, NOW, 4), 4);
    settle_taken(w);
    assert_int_equal(take(w, NOW, 10), 6);
    model_compare(&w->model, w->f.store, true);
    /* Only this opening knows that they were. */
    checkpoint(w);
    reopen(w);
    assert_int_equal(take(w, NOW, 10), 6);
}

static void test_untaken_in_order(void **state) {
    struct world *w = *state;
    insert_n(w, 50, 0, 0, 10);
    assert_int_equal(take(w, NOW, 20), 20);
    assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
    assert_int_equal(take(w, NOW, 50), 50);
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(w->collected.records[i].id, 1 << 16 | i);
    }
}

static void test_postpone(void **state) {
    struct world *w = *state;
    insert_n(w, 3, 0, 0, 10);
    const uint64_t id = 1 << 16;
    assert_int_equal(model_postpone(&w->model, w->f.store, id, NOW + 10), DW_ENOENT);
    assert_int_equal(take(w, NOW, 10), 3);
    assert_int_equal(model_postpone(&w->model, w->f.store, 99, NOW + 10), DW_ENOENT);
    assert_int_equal(model_postpone(&w->model, w->f.store, id, NOW + 10), DW_OK);
    assert_int_equal(model_postpone(&w->model, w->f.store, id, NOW + 10), DW_ENOENT);
    assert_int_equal(model_postpone(&w->model, w->f.store, id + 1, NOW - 10), DW_OK);
    assert_int_equal(model_postpone(&w->model, w->f.store, id + 2, UINT64_MAX), DW_OK);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(take(w, NOW + 9, 10), 1);
    assert_int_equal(take(w, NOW + 10, 10), 1);
    assert_int_equal(w->collected.records[0].due, NOW);
    /* Again and again, and it is settled while it waits. */
    for (unsigned i = 1; i < 10; i++) {
        assert_int_equal(model_postpone(&w->model, w->f.store, id, NOW + 10 + i), DW_OK);
        assert_int_equal(take(w, NOW + 10 + i, 10), 1);
        assert_int_equal(w->collected.records[0].due, NOW);
    }
    assert_int_equal(model_postpone(&w->model, w->f.store, id, NOW + 100), DW_OK);
    settle_one(w, id);
    settle_one(w, id + 2);
    model_compare(&w->model, w->f.store, true);
    /* The numbers of these entries are used again, and nothing of the old is seen. */
    insert_n(w, 3, 5, 5, 10);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
    assert_int_equal(take(w, NOW + 1000, 10), 4);
}

static void test_settle(void **state) {
    struct world *w = *state;
    insert_n(w, 40, 0, 1000, 10);
    assert_int_equal(take(w, NOW + 5000, 3), 3);
    const uint64_t ids[] = {1 << 16, 1 << 16, 1 << 16 | 20, 2 << 16, 0, UINT64_MAX, 1 << 16 | 39};
    assert_int_equal(model_settle(&w->model, w->f.store, ids, 7), DW_OK);
    assert_int_equal(w->model.count, 37);
    assert_int_equal(model_settle(&w->model, w->f.store, ids, 0), DW_OK);
    model_compare(&w->model, w->f.store, true);
    struct dw_sink sink = collected_sink(&w->collected);
    assert_int_equal(dw_store_read(w->f.store, 1 << 16, &sink), DW_ENOENT);
    checkpoint(w);
    reopen(w);
    assert_int_equal(w->f.report.pending, 37);
    model_compare(&w->model, w->f.store, true);
}

static void test_no_memory_for_a_body(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 0, 1, 40000);
    insert_n(w, 10, 0, 1, 10);
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    for (uint32_t refuse = 1; refuse < 12; refuse++) {
        w->collected.refuse_at = refuse;
        w->collected.refused = 0;
        assert_int_equal(model_take(&w->model, w->f.store, NOW + 100, 100, UINT64_MAX,
                                    &w->collected),
                         DW_ENOMEM);
        assert_int_equal(w->collected.count, refuse - 1);
        assert_int_equal(w->collected.refused, 1);
        assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
        struct dw_sink sink = collected_sink(&w->collected);
        w->collected.refuse_at = 1;
        assert_int_equal(dw_store_read(w->f.store, 1 << 16, &sink), DW_ENOMEM);
    }
    w->collected.refuse_at = 0;
    assert_int_equal(take(w, NOW + 100, 100), 20);
}

/* A sink without memory, and none for anything else from then on. */
static void *body_of_none(void *ctx, const struct dw_record *record) {
    (void)record;
    fault_alloc_fail(ctx, 1, true);
    return NULL;
}

/* What was taken, cannot be handed out, and for whose queueing there is no memory, is not lost. */
static void test_stranded_records(void **state) {
    struct world *w = *state;
    uint64_t next_due;
    const struct dw_sink sink = {.body = body_of_none, .ctx = &w->f.alloc};
    for (int round = 0; round < 3; round++) {
        insert_n(w, 5, 10, 0, 100);
        const uint64_t first = w->model.index << 16;
        assert_int_equal(dw_store_take(w->f.store, NOW + 20, 3, UINT64_MAX, &sink, &next_due),
                         DW_ENOMEM);
        fault_alloc_fail(&w->f.alloc, 0, false);
        assert_int_equal(next_due, NOW + 10);
        assert_int_equal(stat_of(w).taken, 0);
        model_compare(&w->model, w->f.store, true);
        settle_one(w, first + 1);
        model_compare(&w->model, w->f.store, true);
        if (round == 1) {
            maintain_all(w, NOW + 20);
        } else if (round == 2) {
            assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
        }
        assert_int_equal(take(w, NOW + 20, 10), 4);
        assert_int_equal(w->collected.records[0].id, first);
        settle_taken(w);
        checkpoint(w);
        reopen(w); /* the heap is new, and has to ask for memory again */
    }
}

/* ------------------------------------------------------- read, page and find */

static void test_pages(void **state) {
    struct world *w = *state;
    struct dw_record page[10];
    uint32_t n = 5;
    insert_n(w, 95, 1000, 0, 10);
    insert_n(w, 95, 1000, UINT64_MAX, 10);
    assert_int_equal(take(w, NOW + 950, 20), 20);
    assert_int_equal(model_postpone(&w->model, w->f.store, w->collected.records[3].id, NOW + 9999),
                     DW_OK);
    model_compare(&w->model, w->f.store, true); /* in pages, half of it in files */
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    insert_n(w, 40, 500, 3, 10);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(dw_store_page(w->f.store, 0, 0, page, 0, &n), DW_OK);
    assert_int_equal(n, 0);
    assert_int_equal(dw_store_page(w->f.store, DW_DUE_MAX, UINT64_MAX, page, 10, &n), DW_OK);
    assert_int_equal(n, 0);
    assert_int_equal(dw_store_page(w->f.store, NOW + 1000, 1 << 16 | 89, page, 10, &n), DW_OK);
    assert_int_equal(n, 6); /* five of the first, one of the second batch */
    assert_int_equal(page[0].id, 1 << 16 | 90);
    assert_int_equal(page[5].id, 2 << 16);
    assert_int_equal(dw_store_places(w->f.store, 0, 0, true, page, 10, &n), DW_OK);
    assert_int_equal(n, 0);
    assert_int_equal(dw_store_places(w->f.store, NOW + 1000, 2 << 16, true, page, 5, &n), DW_OK);
    assert_int_equal(n, 5);
    assert_int_equal(page[0].id, 1 << 16 | 94);
    assert_int_equal(page[4].id, 1 << 16 | 90);
}

static void test_read_many(void **state) {
    struct world *w = *state;
    uint64_t ids[700];
    uint32_t seen = 9;
    insert_n(w, 600, 1000, 0, 100);
    insert_one(w, 5, 0, 40000); /* read where it goes */
    for (uint64_t i = 0; i < 600; i++) {
        ids[i] = 1 << 16 | (599 - i);
    }
    ids[7] = 4711;
    ids[600] = 2 << 16;
    for (int round = 0; round < 2; round++) {
        struct collected got = {0};
        struct dw_sink sink = collected_sink(&got);
        assert_int_equal(dw_store_read_many(w->f.store, ids, 601, UINT64_MAX, &sink, &seen), DW_OK);
        assert_int_equal(seen, 601);
        assert_int_equal(got.count, 600);
        for (uint32_t i = 0; i < got.count; i++) {
            assert_int_equal(got.records[i].id, ids[i < 7 ? i : i + 1]);
        }
        assert_int_equal(dw_store_flush(w->f.store), DW_OK); /* from the files then */
        collected_free(&got);
    }
    struct collected got = {0};
    struct dw_sink sink = collected_sink(&got);
    assert_int_equal(dw_store_read_many(w->f.store, ids, 601, 250, &sink, &seen), DW_OK);
    assert_int_equal(seen, 3);
    assert_int_equal(got.count, 3);
    collected_free(&got);
    got = (struct collected){0};
    sink = collected_sink(&got);
    assert_int_equal(dw_store_read_many(w->f.store, ids + 7, 1, 1, &sink, &seen), DW_OK);
    assert_int_equal(seen, 1);
    assert_int_equal(got.count, 0);
    collected_free(&got);
}

static void test_find(void **state) {
    struct world *w = *state;
    uint64_t ids[200], n;
    for (unsigned i = 0; i < 100; i++) {
        insert_one(w, 1000 * i, i % 2 == 0 ? 42 : i % 3, 10);
    }
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(dw_store_find(w->f.store, 42, ids, 3, &n), DW_OK);
    assert_int_equal(n, 50);
    assert_int_equal(dw_store_find(w->f.store, 42, NULL, 0, &n), DW_OK);
    assert_int_equal(n, 50);
    assert_int_equal(dw_store_find(w->f.store, 4711, ids, 200, &n), DW_OK);
    assert_int_equal(n, 0);
    /* 0 is no key. */
    assert_int_equal(dw_store_find(w->f.store, 0, ids, 200, &n), DW_OK);
    assert_int_equal(n, 0);
    checkpoint(w);
    reopen(w);
    assert_int_equal(dw_store_find(w->f.store, 42, ids, 200, &n), DW_OK);
    assert_int_equal(n, 50);
    assert_int_equal(model_settle(&w->model, w->f.store, ids, 50), DW_OK);
    assert_int_equal(dw_store_find(w->f.store, 42, ids, 200, &n), DW_OK);
    assert_int_equal(n, 0);
    model_compare(&w->model, w->f.store, true);
}

static void test_reschedule(void **state) {
    struct world *w = *state;
    insert_n(w, 6, 1000000, 0, 50);
    const uint64_t id = 1 << 16;
    assert_int_equal(model_reschedule(&w->model, w->f.store, 99, NOW), DW_ENOENT);
    /* Waiting, earlier and later; late. */
    assert_int_equal(model_reschedule(&w->model, w->f.store, id, NOW + 10), DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, id + 1, NOW + 2000000), DW_OK);
    assert_int_equal(take(w, NOW + 20, 10), 1);
    assert_int_equal(model_reschedule(&w->model, w->f.store, id + 2, NOW + 5), DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, id + 2, NOW + 6), DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, id + 3, UINT64_MAX), DW_OK);
    model_compare(&w->model, w->f.store, true);
    /* What was taken stays taken. */
    assert_int_equal(model_reschedule(&w->model, w->f.store, id, NOW + 7), DW_OK);
    assert_int_equal(take(w, NOW + 30, 10), 1);
    assert_int_equal(w->collected.records[0].id, id + 2);
    assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
    model_compare(&w->model, w->f.store, true);
    /* A postponed one forgets that. */
    assert_int_equal(take(w, NOW + 30, 10), 2);
    assert_int_equal(model_postpone(&w->model, w->f.store, id, NOW + 500), DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, id, NOW + 40), DW_OK);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(take(w, NOW + 40, 10), 1);
    assert_int_equal(w->collected.records[0].due, NOW + 40);
    assert_int_equal(model_postpone(&w->model, w->f.store, id, NOW + 50), DW_OK);
    assert_int_equal(take(w, NOW + 50, 10), 1);
    assert_int_equal(model_reschedule(&w->model, w->f.store, id, NOW + 60), DW_OK);
    assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    reopen(w);
    assert_int_equal(w->f.report.pending, 6);
    model_compare(&w->model, w->f.store, true);
}

static void test_reschedule_many(void **state) {
    struct world *w = *state;
    insert_n(w, 6, 1000000, 0, 50);
    const uint64_t id = 1 << 16;
    const struct dw_id_due dues[] = {
        {id, NOW + 10}, {id + 5, UINT64_MAX}, {99, NOW}, {id + 1, NOW + 2000000}, {id, NOW + 20}};
    const size_t n = sizeof dues / sizeof *dues;
    uint64_t moved = 7;
    for (size_t i = 0; i < n; i++) {
        model_reschedule(&w->model, NULL, dues[i].id, dues[i].due);
    }
    assert_int_equal(dw_store_reschedule_many(w->f.store, w->model.index, dues, n, &moved), DW_OK);
    assert_int_equal(moved, 4);
    model_compare(&w->model, w->f.store, true);
    /* Its index has been applied. */
    const struct dw_id_due again = {id + 2, NOW};
    assert_int_equal(dw_store_reschedule_many(w->f.store, w->model.index, &again, 1, &moved),
                     DW_OK);
    assert_int_equal(moved, 0);
    model_note(&w->model, NULL);
    assert_int_equal(dw_store_reschedule_many(w->f.store, w->model.index, NULL, 0, &moved), DW_OK);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(take(w, NOW + 20, 10), 1);
    checkpoint(w);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
}

/* All places, `page` at a time, against a walk over them all. */
static void compare_places(struct world *w, bool back, uint32_t page, const struct dw_record *all,
                           uint32_t count) {
    struct dw_record *out = calloc(page, sizeof *out);
    assert_non_null(out);
    uint64_t due = back ? DW_DUE_MAX : 0, id = back ? UINT64_MAX : 0;
    uint32_t seen = 0, n;
    do {
        assert_int_equal(dw_store_places(w->f.store, due, id, back, out, page, &n), DW_OK);
        for (uint32_t i = 0; i < n; i++, seen++) {
            assert_true(seen < count);
            const struct dw_record *wanted = &all[back ? count - 1 - seen : seen];
            assert_int_equal(out[i].id, wanted->id);
            assert_int_equal(out[i].due, wanted->due);
            assert_int_equal(out[i].length, wanted->length);
            due = out[i].due;
            id = out[i].id;
        }
    } while (n == page);
    assert_int_equal(seen, count);
    free(out);
}

static int by_due(const void *a, const void *b) {
    const struct dw_record *x = a, *y = b;
    return x->due != y->due ? (x->due < y->due ? -1 : 1) : (x->id < y->id ? -1 : x->id > y->id);
}

/* In whatever order they came: earlier and earlier, later and later, at random. */
static void test_pages_of_many(void **state) {
    struct world *w = *state;
    enum { MANY = 24000, BATCH = 1000 };
    struct model_new_record batch[BATCH] = {{0}};
    struct dw_record *all = calloc(MANY, sizeof *all);
    assert_non_null(all);
    for (uint32_t i = 0; i < MANY; i++) {
        const uint32_t third = i / (MANY / 3), random = i * 2654435761u % 5000;
        const uint32_t when = third == 0 ? MANY - i : third == 1 ? i : random;
        batch[i % BATCH] = (struct model_new_record){.when = when, .length = 1 + i % 7};
        all[i] = (struct dw_record){.id = (w->model.index + 1) << 16 | i % BATCH,
                                    .due = NOW + when,
                                    .length = 1 + i % 7};
        if (i % BATCH == BATCH - 1) {
            assert_int_equal(model_insert(&w->model, w->f.store, NOW, batch, BATCH), DW_OK);
        }
    }
    qsort(all, MANY, sizeof *all, by_due);
    const uint32_t pages[] = {700, 4097, MANY - 1, MANY, 65535};
    for (unsigned i = 0; i < sizeof pages / sizeof *pages; i++) {
        compare_places(w, false, pages[i], all, MANY);
        compare_places(w, true, pages[i], all, MANY);
    }
    free(all);
}

/* What says so in the index file goes when it is most of what is there; the records stay. */
/* Bytes in the store's files whose names end so. */
static uint64_t bytes_of(struct world *w, const char *end) {
    uint64_t bytes = 0;
    DIR *dir = opendir(in_dir(w, ""));
    assert_non_null(dir);
    for (struct dirent *one; (one = readdir(dir)) != NULL;) {
        struct stat st;
        const size_t length = strlen(one->d_name);
        if (length > strlen(end) && strcmp(one->d_name + length - strlen(end), end) == 0) {
            assert_int_equal(stat(in_dir(w, one->d_name), &st), 0);
            bytes += (uint64_t)st.st_size;
        }
    }
    closedir(dir);
    return bytes;
}

/* Indexes, which opening reads into memory, grow with the messages and not with how often these are
 * given another time, however large they are. */
static void rescheduled_for_ever(struct world *w, uint32_t length) {
    enum { MESSAGES = 100, ROUNDS = 300 };
    struct dw_id_due dues[MESSAGES];
    uint64_t moved, most = 0;
    w->f.config.split_bytes = 80000; /* an eighth of it is left as it is */
    reopen(w);
    insert_n(w, MESSAGES, 1000000, 0, length);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        for (uint64_t i = 0; i < MESSAGES; i++) {
            dues[i] = (struct dw_id_due){1 << 16 | i, NOW + 1000000 + round * (i + 1)};
        }
        model_reschedule_many(&w->model, dues, MESSAGES);
        assert_int_equal(dw_store_reschedule_many(w->f.store, w->model.index, dues, MESSAGES,
                                                  &moved),
                         DW_OK);
        assert_int_equal(moved, MESSAGES);
        maintain_all(w, NOW);
        checkpoint(w);
        const uint64_t bytes = bytes_of(w, ".idx");
        most = bytes > most ? bytes : most;
        if (round == ROUNDS / 2) {
            reopen(w); /* what was over before counts after it */
        }
    }
    model_compare(&w->model, w->f.store, true);
    /* Four times as many entries as records, an eighth of a split's bytes, and a round. */
    assert_in_range(most, MESSAGES * DW_IDX_ENTRY, 6 * MESSAGES * DW_IDX_ENTRY + 10000 + 4096);
    reopen(w);
    assert_int_equal(w->f.report.rebuilt_indexes, 0);
    model_compare(&w->model, w->f.store, true);
}

static void test_rescheduled_for_ever(void **state) {
    rescheduled_for_ever(*state, 50);
}

static void test_large_ones_rescheduled_for_ever(void **state) {
    rescheduled_for_ever(*state, 10000);
}

/* A slice that is released empties by itself: nothing in it is written again. */
static void test_what_is_released_is_not_rewritten(void **state) {
    struct world *w = *state;
    enum { MESSAGES = 60000, LEFT = 4000 };
    insert_n(w, MESSAGES, 1000, 0, 16);
    checkpoint(w);
    const uint64_t bytes = bytes_of(w, ".rec");
    for (uint64_t i = 0; i < MESSAGES - LEFT; i++) {
        settle_one(w, UINT64_C(1) << 16 | i);
    }
    maintain_all(w, NOW + 1500);
    checkpoint(w);
    assert_int_equal(bytes_of(w, ".rec"), bytes);
    model_compare(&w->model, w->f.store, false);
}

/* ---------------------------------------------------------------- files */

static void test_a_full_disk(void **state) {
    struct world *w = *state;
    for (int round = 0; round < 4; round++) {
        insert_n(w, 50, 1000, 100000, 200);
        fault_io_fail(FAULT_PWRITE, 3, true, round % 2 == 0 ? ENOSPC : EDQUOT);
        assert_int_equal(dw_store_flush(w->f.store), DW_ENOSPC);
        assert_true(dw_store_errno() == ENOSPC || dw_store_errno() == EDQUOT);
        assert_true(stat_of(w).buffered > 0);
        model_compare(&w->model, w->f.store, true);
        dw_checkpoint *one;
        assert_int_equal(dw_store_checkpoint(w->f.store, &one), DW_ENOSPC);
        assert_null(one);
        settle_one(w, (w->model.index << 16 | 5) - (UINT64_C(1) << 16));
        bool more;
        assert_int_equal(dw_store_maintain(w->f.store, NOW, 100, &more), DW_OK);
    }
    fault_io_fail(0, 0, false, 0);
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    assert_int_equal(stat_of(w).buffered, 0);
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
}

static void test_open_files_are_bounded(void **state) {
    struct world *w = *state;
    insert_n(w, 100, 1, 60000, 200);
    insert_n(w, 100, 1, 3000000, 200);
    for (unsigned i = 0; i < 3; i++) {
        checkpoint(w);
        model_compare(&w->model, w->f.store, true);
        assert_true(stat_of(w).open_files <= w->f.config.max_open_files);
        assert_true(stat_of(w).partitions > 20);
    }
}

static void test_idle_files_are_closed(void **state) {
    struct world *w = *state;
    bool more;
    insert_n(w, 10, 100000, 1000000, 200);
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    assert_true(stat_of(w).open_files > 4);
    for (unsigned i = 0; i < 59; i++) {
        assert_int_equal(dw_store_maintain(w->f.store, NOW, 1, &more), DW_OK);
        assert_true(stat_of(w).open_files > 4);
    }
    model_compare(&w->model, w->f.store, true); /* uses some */
    const uint32_t used = stat_of(w).open_files;
    assert_int_equal(dw_store_maintain(w->f.store, NOW, 1, &more), DW_OK);
    assert_int_equal(dw_store_maintain(w->f.store, NOW, 1, &more), DW_OK);
    assert_true(stat_of(w).open_files > 0 && stat_of(w).open_files <= used);
    for (unsigned i = 0; i < 60; i++) {
        assert_int_equal(dw_store_maintain(w->f.store, NOW, 1, &more), DW_OK);
    }
    assert_int_equal(stat_of(w).open_files, 0);
    model_compare(&w->model, w->f.store, true);
}

static void test_emptied_partitions_go_with_the_next_checkpoint(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 0, 0, 100);
    checkpoint(w);
    insert_n(w, 10, 1000000, 0, 20000);
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    assert_int_equal(count_files(w->f.dir, ".rec"), 2);
    assert_int_equal(take(w, NOW + 2000000, 100), 20);
    settle_taken(w);
    maintain_all(w, NOW + 2000000);
    /* The manifest names the first, and not the second. */
    assert_int_equal(stat_of(w).partitions, 0);
    assert_int_equal(count_files(w->f.dir, ".rec"), 1);
    fault_io_fail(FAULT_RENAME, 1, false, EIO);
    assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_EIO);
    assert_int_equal(count_files(w->f.dir, ".rec"), 1);
    checkpoint(w);
    assert_int_equal(count_files(w->f.dir, ""), 1);
    assert_int_equal(stat_of(w).file_bytes, 0);
    assert_int_equal(stat_of(w).dead_bytes, 0);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
}

static void test_a_checkpoint_keeps_its_files(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 0, 0, 30000);
    dw_checkpoint *one;
    assert_int_equal(dw_store_checkpoint(w->f.store, &one), DW_OK);
    assert_int_equal(take(w, NOW, 100), 10);
    settle_taken(w);
    maintain_all(w, NOW + 1000000);
    assert_int_equal(count_files(w->f.dir, ".rec"), 1);
    assert_int_equal(dw_checkpoint_finish(one, fixture_path(&w->f, "snapshot")), DW_OK);
    dw_checkpoint_release(one);
    assert_int_equal(count_files(w->f.dir, ".rec"), 1);
    assert_int_equal(count_files(fixture_path(&w->f, "snapshot"), ".rec"), 1);
    reopen(w);
    assert_int_equal(w->f.report.pending, 10);
    model_compare(&w->model, w->f.store, true);
}

/* A sink that does away with all records while the first is being handed out. */
struct sweeping {
    struct world *w;
    struct dw_sink inner;
    bool swept;
};

static void *sweeping_body(void *ctx, const struct dw_record *record) {
    struct sweeping *sweeping = ctx;
    return sweeping->inner.body(sweeping->inner.ctx, record);
}

static void sweeping_done(void *ctx, const struct dw_record *record) {
    struct sweeping *sweeping = ctx;
    struct world *w = sweeping->w;
    sweeping->inner.done(sweeping->inner.ctx, record);
    if (!sweeping->swept) {
        sweeping->swept = true;
        uint64_t ids[5];
        for (unsigned i = 0; i < 5; i++) {
            ids[i] = 1 << 16 | i;
        }
        assert_int_equal(model_settle(&w->model, w->f.store, ids, 5), DW_OK);
        maintain_all(w, NOW + 10000000);
        checkpoint(w);
        assert_int_equal(stat_of(w).partitions, 0);
        insert_n(w, 10, 0, 0, 50); /* what was freed may be used again */
    }
}

static void sweeping_corrupt(void *ctx, const struct dw_record *record, const char *file,
                             uint64_t offset) {
    struct sweeping *sweeping = ctx;
    sweeping->inner.corrupt(sweeping->inner.ctx, record, file, offset);
}

static void test_a_reader_keeps_what_it_reads(void **state) {
    struct world *w = *state;
    static const uint32_t lengths[2] = {100, 50000};
    for (int flushed = 0; flushed < 2; flushed++) {
        for (int i = 0; i < 2; i++) {
            struct sweeping sweeping = {.w = w, .inner = collected_sink(&w->collected)};
            const struct dw_sink sink = {sweeping_body, sweeping_done, sweeping_corrupt, &sweeping};
            uint64_t next_due;
            w->model.index = 0;
            fixture_close(&w->f);
            remove_dir(w->f.dir);
            fixture_open(&w->f);
            insert_n(w, 5, 0, 0, lengths[i]); /* collected all at once */
            ;
            if (flushed) {
                checkpoint(w);
            }
            assert_int_equal(dw_store_take(w->f.store, NOW, 5, UINT64_MAX, &sink, &next_due),
                             DW_OK);
            assert_int_equal(w->collected.count, 5);
            for (unsigned j = 0; j < 5; j++) {
                assert_int_equal(w->collected.records[j].id, 1 << 16 | j);
                assert_false(w->collected.corrupt[j]);
            }
            model_compare(&w->model, w->f.store, true);
            checkpoint(w); /* now it goes */
            assert_int_equal(count_files(w->f.dir, ".rec"), 1);
            model_free(&w->model);
        }
    }
}

static void test_long_partitions_are_followed_by_others(void **state) {
    struct world *w = *state;
    w->f.config.partition_bytes = 10000;
    fixture_open(&w->f);
    for (unsigned i = 0; i < 20; i++) {
        insert_n(w, 10, 100, 1, 400);
    }
    assert_true(stat_of(w).partitions >= 8);
    checkpoint(w);
    reopen(w);
    assert_true(w->f.report.partitions >= 8);
    insert_n(w, 10, 100, 1, 400);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(take(w, NOW + 1000, 1000), 210);
}

/* 4,095 partitions are the most there can be. Long before that the store says that it is full, for
 * whoever takes messages in; but what Raft's log has already is never refused. */
static void test_no_partition_left(void **state) {
    struct world *w = *state;
    struct model_new_record records[100] = {{0}};
    w->f.config.partition_bytes = 1;
    fixture_open(&w->f);
    for (unsigned i = 0; i < 100; i++) {
        records[i] = (struct model_new_record){.when = i * 1000000, .length = 1};
    }
    for (unsigned i = 1; i <= 45; i++) {
        assert_int_equal(model_insert(&w->model, w->f.store, NOW, records, 100), DW_OK);
        assert_int_equal(stat_of(w).partitions, i * 100 < 4095 ? i * 100 : 4095);
        assert_int_equal(stat_of(w).full, i * 100 >= DW_FULL_PARTITIONS);
    }
    assert_null(dw_store_check(w->f.store));
    /* Nothing has room of its own now, and all of it is done. */
    assert_int_equal(model_reschedule(&w->model, w->f.store, UINT64_C(1) << 16, NOW + 100000000),
                     DW_OK);
    checkpoint(w);
    reopen(w);
    assert_int_equal(w->f.report.pending, 4500);
    assert_int_equal(stat_of(w).full, 1);
    assert_int_equal(model_insert(&w->model, w->f.store, NOW, records, 100), DW_OK);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(take(w, NOW + 1000000000, 10000), 4600);
    settle_taken(w);
    checkpoint(w);
    assert_int_equal(stat_of(w).full, 0);
    assert_int_equal(model_insert(&w->model, w->f.store, NOW, records, 5), DW_OK);
    reopen(w);
    assert_int_equal(w->f.report.pending, 0);
}

/* What cannot be written is kept and tried again by the upkeep; meanwhile the store says so, and
 * the log does once. */
struct counting {
    struct dw_alloc alloc;
    const struct dw_alloc *from;
    uint64_t large;
};

static void *count_get(void *ctx, size_t bytes) {
    struct counting *counting = ctx;
    counting->large += bytes >= 32768;
    return dw_get(counting->from, bytes);
}

static void count_release(void *ctx, void *p) {
    struct counting *counting = ctx;
    dw_release(counting->from, p);
}

/* Large blocks are mapped one by one where the store is used: what is written is not gathered in
 * new ones each time. And what was kept for that is given back when nothing comes. */
static void test_buffers_are_used_again(void **state) {
    struct world *w = *state;
    struct counting counting = {.from = &w->f.alloc.alloc};
    counting.alloc = (struct dw_alloc){count_get, count_release, &counting};
    w->f.config.alloc = &counting.alloc;
    fixture_open(&w->f);
    uint64_t warm = 0, blocks = 0;
    bool more;
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 16; i++) {
            insert_n(w, 60, 100000, 1, 1000);
        }
        assert_int_equal(dw_store_flush(w->f.store), DW_OK);
        if (round == 1) {
            warm = counting.large;
            blocks = w->f.alloc.blocks;
        }
    }
    /* 18 MB, and the entries of 17,280 messages. */
    assert_true(counting.large - warm <= 40);
    assert_true(w->f.alloc.blocks - blocks <= 60);
    blocks = w->f.alloc.blocks;
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(dw_store_maintain(w->f.store, NOW, 1, &more), DW_OK);
    }
    assert_true(w->f.alloc.blocks < blocks);
    fixture_close(&w->f);
    w->f.config.alloc = &w->f.alloc.alloc;
}

static void test_failing_writes_are_told(void **state) {
    struct world *w = *state;
    static const int errors[] = {EIO, EACCES, EROFS, EDQUOT, ESTALE};
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++) {
        w->f.config.now_ms = NOW;
        fixture_open(&w->f);
        model_replay(&w->model, w->f.store, UINT64_MAX);
        const unsigned logged = w->f.logged[DW_LOG_ERROR];
        bool more;
        fault_io_fail(FAULT_PWRITE | FAULT_OPEN, 1, true, errors[i]);
        for (unsigned n = 0; n < 50; n++) {
            insert_n(w, 10, 10, 1000000, 100);
            assert_int_not_equal(dw_store_flush(w->f.store), DW_OK);
            (void)dw_store_maintain(w->f.store, NOW + n, 1, &more);
            assert_int_equal(stat_of(w).write_error, errors[i]);
        }
        assert_true(stat_of(w).buffered > 50000);
        assert_int_equal(w->f.logged[DW_LOG_ERROR], logged + 1);
        assert_non_null(strstr(w->f.last_log, strerror(errors[i])));
        fault_io_fail(0, 0, false, 0);
        model_compare(&w->model, w->f.store, true);
        maintain_all(w, NOW + 100);
        assert_int_equal(stat_of(w).write_error, 0);
        checkpoint(w);
        fixture_close(&w->f);
        fixture_open(&w->f);
        model_compare(&w->model, w->f.store, true);
        fixture_close(&w->f);
    }
}

static void test_short_reads_and_writes(void **state) {
    struct world *w = *state;
    insert_n(w, 30, 0, 1000, 300);
    insert_n(w, 3, 0, 1000, 50000);
    fault_io_short(997);
    assert_int_equal(fixture_checkpoint(&w->f, fixture_path(&w->f, "snapshot")), DW_OK);
    model_compare(&w->model, w->f.store, true);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
    fixture_close(&w->f);
    fault_io_fail(FAULT_LINK, 1, true, EXDEV);
    assert_int_equal(dw_restore_with(w->f.dir, fixture_path(&w->f, "snapshot"), &fault_io,
                                     &w->f.alloc.alloc),
                     DW_OK);
    assert_true(fault_io_failed() > 0);
    fault_io_fail(0, 0, false, 0);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(take(w, NOW + 100000, 100), 33);
}

/* --------------------------------------------------------------- maintain */

static void test_coarse_partitions_are_split_in_time(void **state) {
    struct world *w = *state;
    const uint64_t day = 24 * 3600 * 1000;
    w->f.config.split_bytes = 1000;
    fixture_open(&w->f);
    for (unsigned i = 0; i < 20; i++) {
        insert_n(w, 25, 10 * day, 700000, 100);
    }
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    const uint32_t coarse = stat_of(w).partitions;
    assert_true(coarse <= 3);
    maintain_all(w, NOW + day);
    assert_int_equal(stat_of(w).partitions, coarse);
    uint32_t most = coarse;
    for (uint64_t now = NOW + day; now < NOW + 10 * day + 25 * 700000; now += 600000) {
        maintain_all(w, now);
        const uint32_t partitions = stat_of(w).partitions;
        most = partitions > most ? partitions : most;
        take(w, now, 1000);
        settle_taken(w);
    }
    assert_true(most > 2 * coarse);
    model_compare(&w->model, w->f.store, true);
    take(w, NOW + 11 * day, 1000);
    settle_taken(w);
    assert_int_equal(w->model.count, 0);
    maintain_all(w, NOW + 11 * day);
    checkpoint(w);
    assert_int_equal(count_files(w->f.dir, ""), 1);
}

static void test_records_not_yet_written_are_moved(void **state) {
    struct world *w = *state;
    w->f.config.split_bytes = 1000;
    fixture_open(&w->f);
    insert_n(w, 50, 3000000, 4000, 100);
    maintain_all(w, NOW + 2900000);
    assert_true(stat_of(w).partitions > 2);
    assert_int_equal(w->f.logged[DW_LOG_WARNING], 0);
    model_compare(&w->model, w->f.store, true);
}

/* Longer than what is moved at a time; and calls that fail while they are. */
static void test_long_records_are_moved(void **state) {
    struct world *w = *state;
    bool more;
    w->f.config.split_bytes = 1000;
    fixture_open(&w->f);
    insert_n(w, 10, 3000000, 20000, 10);
    insert_n(w, 4, 3000000, 50000, 300000);
    insert_n(w, 10, 3000000, 20000, 10);
    checkpoint(w);
    reopen(w);
    fault_io_fail(FAULT_OPEN, 1, false, EMFILE);
    assert_int_equal(dw_store_maintain(w->f.store, NOW + 2900000, 1, &more), DW_EIO);
    assert_int_equal(dw_store_errno(), EMFILE);
    fault_io_fail(0, 0, false, 0);
    maintain_all(w, NOW + 2900000);
    assert_true(stat_of(w).partitions >= 3);
    assert_int_equal(w->f.logged[DW_LOG_WARNING], 0);
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
}

static void test_garbage_is_bounded(void **state) {
    struct world *w = *state;
    w->f.config.split_bytes = 8000;
    fixture_open(&w->f);
    insert_n(w, 1000, 40000000, 0, 100);
    insert_n(w, 1000, 40000000, 0, 100);
    uint64_t *ids = calloc(2000, sizeof *ids);
    assert_non_null(ids);
    for (unsigned i = 0; i < 2000; i++) {
        ids[i] = (UINT64_C(1) + i / 1000) << 16 | i % 1000;
    }
    /* Half of it dead: left. More than half: rewritten. */
    assert_int_equal(model_settle(&w->model, w->f.store, ids, 999), DW_OK);
    maintain_all(w, NOW);
    checkpoint(w);
    assert_int_equal(stat_of(w).dead_bytes, 999 * dw_rec_bytes(100));
    assert_int_equal(model_settle(&w->model, w->f.store, ids + 999, 10), DW_OK);
    maintain_all(w, NOW);
    assert_int_equal(stat_of(w).partitions, 1);
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    assert_int_equal(stat_of(w).dead_bytes, 0);
    assert_int_equal(count_files(w->f.dir, ".rec"), 1);
    reopen(w);
    assert_int_equal(w->f.report.pending, 991);
    model_compare(&w->model, w->f.store, true);
    free(ids);
}

/* A slice in use empties by itself; it is only kept from growing. */
static void test_garbage_of_now_is_sealed(void **state) {
    struct world *w = *state;
    w->f.config.split_bytes = 8000;
    fixture_open(&w->f);
    for (unsigned i = 0; i < 40; i++) {
        insert_n(w, 20, i, 0, 1000);
        insert_n(w, 1, 10000, 0, 10); /* keeps its partition from being empty */
        assert_int_equal(take(w, NOW + i, 100), 20);
        settle_taken(w);
        maintain_all(w, NOW + i);
        assert_true(stat_of(w).partitions <= 42);
    }
    /* 20 kB of garbage a round, and a partition takes up to 16 kB of that. */
    assert_int_equal(stat_of(w).partitions, 40);
    model_compare(&w->model, w->f.store, true);
}

static void test_leftovers_are_merged(void **state) {
    struct world *w = *state;
    fixture_open(&w->f);
    const uint64_t width = UINT64_C(1) << dw_level_shift(0);
    const unsigned slices = 300;
    for (unsigned i = 0; i < slices; i++) {
        insert_n(w, 1, i * width + 100, 0, 100);
        maintain_all(w, NOW + i * width);
    }
    assert_true(stat_of(w).partitions > 200);
    maintain_all(w, NOW + (slices + 100) * width);
    assert_true(stat_of(w).partitions <= 260);
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    reopen(w);
    assert_int_equal(take(w, NOW + (slices + 100) * width, 1000), slices);
    model_compare(&w->model, w->f.store, true);
}

static void test_maintain_is_bounded(void **state) {
    struct world *w = *state;
    w->f.config.split_bytes = 1000;
    fixture_open(&w->f);
    for (unsigned i = 0; i < 10; i++) {
        insert_n(w, 100, 3000000, 10, 2000);
    }
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    unsigned steps = 0;
    bool more = true;
    while (more) {
        const struct dw_stat before = stat_of(w);
        assert_int_equal(dw_store_maintain(w->f.store, NOW + 2900000, 1, &more), DW_OK);
        assert_true(stat_of(w).file_bytes <= before.file_bytes + 80000);
        model_compare(&w->model, w->f.store, false);
        steps++;
    }
    assert_true(steps > 20);
    model_compare(&w->model, w->f.store, true);
}

/* ------------------------------------------------------------- checkpoints */

static void test_one_checkpoint_at_a_time(void **state) {
    struct world *w = *state;
    dw_checkpoint *one, *two;
    assert_int_equal(dw_store_checkpoint(w->f.store, &one), DW_OK);
    assert_int_equal(dw_store_checkpoint(w->f.store, &two), DW_EINVAL);
    assert_null(two);
    dw_checkpoint_release(one);
    assert_int_equal(dw_store_checkpoint(w->f.store, &two), DW_OK);
    dw_checkpoint_release(two);
    dw_checkpoint_release(NULL);
    uint64_t applied;
    assert_int_equal(dw_store_peek_applied(w->f.dir, &applied), DW_OK);
    assert_int_equal(applied, 0);
}

static void test_finish_may_be_tried_again(void **state) {
    struct world *w = *state;
    insert_n(w, 20, 10, 1000000, 100);
    dw_checkpoint *one;
    assert_int_equal(dw_store_checkpoint(w->f.store, &one), DW_OK);
    fault_io_fail(FAULT_LINK, 3, false, EMLINK); /* one is copied instead */
    fault_io_fail_name(FAULT_PWRITE, "MANIFEST", ENOSPC);
    const char *snapshot = fixture_path(&w->f, "snapshot");
    assert_int_equal(dw_checkpoint_finish(one, snapshot), DW_ENOSPC);
    fault_io_fail_name(0, NULL, 0);
    assert_int_equal(dw_checkpoint_finish(one, snapshot), DW_OK);
    assert_int_equal(dw_checkpoint_finish(one, snapshot), DW_OK);
    dw_checkpoint_release(one);
    uint64_t applied;
    assert_int_equal(dw_store_validate(snapshot, &applied), DW_OK);
    assert_int_equal(applied, 1);
    fixture_close(&w->f);
    assert_int_equal(dw_store_restore(w->f.dir, snapshot), DW_OK);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
}

/* Linux forgets what it could not write, and a second fsync succeeds. */
static void test_a_failed_fsync_is_not_forgotten(void **state) {
    struct world *w = *state;
    insert_n(w, 20, 10, 1000, 100);
    insert_n(w, 20, 100000000, 1000, 100);
    fault_io_fail(FAULT_FDATASYNC, 2, false, EIO);
    assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_EIO);
    assert_int_equal(fault_io_failed(), 1);
    assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_EIO);
    uint64_t applied;
    assert_int_equal(dw_store_peek_applied(w->f.dir, &applied), DW_OK);
    assert_int_equal(applied, 0);
    insert_n(w, 20, 10, 1000, 100);
    maintain_all(w, NOW);
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    reopen(w);
    assert_int_equal(w->f.report.applied, 3);
    model_compare(&w->model, w->f.store, true);
}

/* A directory was made and its name not synced: the next opening, and a snapshot's, see to it. */
static void test_a_new_directory_is_durable(void **state) {
    struct world *w = *state;
    const char *snapshot = fixture_path(&w->f, "snapshot");
    for (unsigned i = 0; i < 3; i++) {
        fault_io_fail_name(FAULT_FSYNC, "..", EIO);
        assert_int_equal(fixture_try_open(&w->f), DW_EIO);
    }
    fault_io_fail_name(0, NULL, 0);
    fixture_open(&w->f);
    insert_n(w, 5, 10, 1000, 100);
    for (unsigned i = 0; i < 3; i++) {
        fault_io_fail_name(FAULT_FSYNC, "..", EIO);
        assert_int_equal(fixture_checkpoint(&w->f, snapshot), DW_EIO);
    }
    fault_io_fail_name(0, NULL, 0);
    assert_int_equal(fixture_checkpoint(&w->f, snapshot), DW_OK);
}

static void test_a_file_that_cannot_be_written(void **state) {
    struct world *w = *state;
    insert_n(w, 20, 10, 1000, 100);
    fault_io_fail_name(FAULT_PWRITE, "00000001-", EIO);
    assert_int_equal(dw_store_flush(w->f.store), DW_EIO);
    insert_n(w, 20, 10, 1000, 100);
    bool more;
    int result = dw_store_maintain(w->f.store, NOW, 1 << 20, &more);
    assert_int_equal(result, DW_OK);
    maintain_all(w, NOW);
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    checkpoint(w);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
}

static void test_snapshots_do_not_change(void **state) {
    struct world *w = *state;
    const char *first = fixture_path(&w->f, "first"), *second = fixture_path(&w->f, "second");
    insert_n(w, 20, 10, 1000000, 100);
    assert_int_equal(fixture_checkpoint(&w->f, first), DW_OK);
    insert_n(w, 20, 10, 1000000, 100);
    settle_one(w, 1 << 16);
    assert_int_equal(fixture_checkpoint(&w->f, second), DW_OK);
    /* Back to the first, and on from there with other changes. */
    fixture_close(&w->f);
    assert_int_equal(dw_store_restore(w->f.dir, first), DW_OK);
    fixture_open(&w->f);
    assert_int_equal(w->f.report.applied, 1);
    assert_int_equal(w->f.report.pending, 20);
    struct model other = {0};
    const struct model_new_record record = {.when = 10, .length = 5000};
    other.index = 1;
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(model_insert(&other, NULL, NOW, &record, 1), DW_OK);
        const struct model_change *change = &other.changes[i];
        struct dw_inserted out;
        assert_int_equal(dw_store_insert(w->f.store, change->index, NOW, change->bytes,
                                         change->length, &out),
                         DW_OK);
    }
    checkpoint(w);
    model_free(&other);
    fixture_close(&w->f);
    assert_int_equal(dw_store_restore(w->f.dir, second), DW_OK);
    fixture_open(&w->f);
    assert_int_equal(w->f.report.applied, 3);
    assert_int_equal(w->f.report.pending, 39);
    model_replay(&w->model, w->f.store, UINT64_MAX);
    model_compare(&w->model, w->f.store, true);
}

static void test_incomplete_snapshots(void **state) {
    struct world *w = *state;
    const char *snapshot = fixture_path(&w->f, "snapshot");
    uint64_t applied;
    char name[256], path[PATH_MAX];
    assert_int_equal(dw_store_validate(snapshot, &applied), DW_ENOENT);
    assert_int_equal(dw_store_restore(w->f.dir, snapshot), DW_ENOENT);
    insert_n(w, 20, 10, 0, 100);
    assert_int_equal(fixture_checkpoint(&w->f, snapshot), DW_OK);
    insert_n(w, 20, 10, 0, 100);
    checkpoint(w);
    fixture_close(&w->f);
    for (int i = 0; i < 2; i++) {
        nth_file(snapshot, i == 0 ? ".rec" : ".idx", 0, name);
        snprintf(path, sizeof path, "%s/%s", snapshot, name);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(dw_store_validate(snapshot, &applied), DW_ECORRUPT);
        int fd = open(path, O_CREAT | O_WRONLY, 0600);
        assert_int_equal(write(fd, "too short", 9), 9);
        close(fd);
        assert_int_equal(dw_store_validate(snapshot, &applied), DW_ECORRUPT);
        /* The store is not given up for it. */
        assert_int_equal(dw_store_restore(w->f.dir, snapshot), DW_ECORRUPT);
        assert_int_equal(dw_store_peek_applied(w->f.dir, &applied), DW_OK);
        assert_int_equal(applied, 2);
    }
    snprintf(path, sizeof path, "%s/MANIFEST", snapshot);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(dw_store_validate(snapshot, &applied), DW_ENOENT);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
}

/* ----------------------------------------------------------------- damage */

static void test_a_damaged_record(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 0, 0, 100);
    checkpoint(w);
    fixture_close(&w->f);
    const char *rec = only_file(w, ".rec");
    const uint64_t at = DW_FILE_HEADER + 3 * dw_rec_bytes(100);
    flip_bit(rec, at + DW_REC_HEADER + 50, 2);         /* body */
    flip_bit(rec, at + 2 * dw_rec_bytes(100) + 17, 2); /* header of another */
    reopen(w);
    assert_int_equal(w->f.report.pending, 10);
    model_find(&w->model, 1 << 16 | 3)->corrupt = true;
    model_find(&w->model, 1 << 16 | 5)->corrupt = true;
    model_compare(&w->model, w->f.store, true);
    assert_true(w->f.logged[DW_LOG_ERROR] >= 2);
    assert_non_null(strstr(w->f.last_log, strrchr(rec, '/')));
    /* Another due time asks for nothing of the record. */
    assert_int_equal(model_reschedule(&w->model, w->f.store, 1 << 16 | 3, NOW + 10), DW_OK);
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    reopen(w);
    assert_int_equal(w->f.report.rebuilt_indexes, 0);
    model_compare(&w->model, w->f.store, true);
    /* Handed out as what they are, in their turn; the others whole. */
    w->f.logged[DW_LOG_ERROR] = 0;
    assert_int_equal(take(w, NOW, 4), 4);
    assert_false(w->collected.corrupt[3]);
    assert_int_equal(take(w, NOW + 10, 100), 6);
    assert_true(w->collected.corrupt[0] && !w->collected.corrupt[4] && w->collected.corrupt[5]);
    assert_int_equal(w->collected.offset, at);
    assert_string_equal(w->collected.file, strrchr(rec, '/') + 1);
    assert_int_equal(w->collected.records[5].length, 100);
    assert_int_equal(w->f.logged[DW_LOG_ERROR], 2);
    assert_int_equal(stat_of(w).corrupt_records, 4);
    assert_int_equal(stat_of(w).unreadable, 0);
    assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
    take(w, NOW + 10, 100);
    settle_taken(w);
    maintain_all(w, NOW + 1000000);
    checkpoint(w);
    assert_int_equal(count_files(w->f.dir, ".rec"), 0);
}

/* Whole, but not the one that should be there. */
static void test_another_record_in_its_place(void **state) {
    struct world *w = *state;
    uint8_t bytes[DW_REC_HEADER + 104];
    const uint64_t each = dw_rec_bytes(100);
    insert_n(w, 10, 0, 0, 100);
    checkpoint(w);
    fixture_close(&w->f);
    int fd = open(only_file(w, ".rec"), O_RDWR);
    assert_int_equal(pread(fd, bytes, each, (off_t)(DW_FILE_HEADER + 3 * each)), each);
    assert_int_equal(pwrite(fd, bytes, each, (off_t)(DW_FILE_HEADER + 5 * each)), each);
    close(fd);
    reopen(w);
    model_find(&w->model, 1 << 16 | 5)->corrupt = true;
    assert_int_equal(take(w, NOW, 100), 10);
    assert_true(w->collected.corrupt[5]);
}

static void test_damage_is_not_moved(void **state) {
    struct world *w = *state;
    w->f.config.split_bytes = 1000;
    fixture_open(&w->f);
    insert_n(w, 100, 3000000, 0, 100);
    checkpoint(w);
    fixture_close(&w->f);
    const char *rec = only_file(w, ".rec");
    flip_bit(rec, DW_FILE_HEADER + 30 * dw_rec_bytes(100) + 60, 0);
    flip_bit(rec, DW_FILE_HEADER + 60 * dw_rec_bytes(100) + 9, 0);
    reopen(w);
    model_find(&w->model, 1 << 16 | 30)->corrupt = true;
    model_find(&w->model, 1 << 16 | 60)->corrupt = true;
    maintain_all(w, NOW + 2900000);
    assert_int_equal(stat_of(w).partitions, 2);
    assert_non_null(strstr(w->f.last_log, "2 records cannot be moved"));
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(take(w, NOW + 3000000, 1000), 100);
    settle_taken(w);
    checkpoint(w);
    maintain_all(w, NOW + 6000000);
    checkpoint(w);
    assert_int_equal(count_files(w->f.dir, ".rec"), 0);
}

static void test_a_damaged_index_is_made_again(void **state) {
    struct world *w = *state;
    const uint64_t dead[] = {1 << 16 | 2, 1 << 16 | 5};
    insert_n(w, 10, 0, 0, 100);
    assert_int_equal(model_settle(&w->model, w->f.store, dead, 2), DW_OK);
    checkpoint(w);
    fixture_close(&w->f);
    save_copy(w);
    /* Any that was added: the record tells, also of one that is dead. */
    for (unsigned i = 0; i < 10; i++) {
        back_to_copy(w);
        const char *idx = only_file(w, ".idx");
        flip_bit(idx, DW_FILE_HEADER + i * DW_IDX_ENTRY + 9, 1);
        w->f.logged[DW_LOG_WARNING] = 0;
        reopen(w);
        assert_int_equal(w->f.report.rebuilt_indexes, 1);
        assert_int_equal(w->f.report.pending, 8);
        assert_int_equal(w->f.logged[DW_LOG_WARNING], 1);
        assert_non_null(strstr(w->f.last_log, strrchr(idx, '/')));
        char offset[32];
        snprintf(offset, sizeof offset, "offset %u;", DW_FILE_HEADER + i * DW_IDX_ENTRY);
        assert_non_null(strstr(w->f.last_log, offset));
        model_compare(&w->model, w->f.store, true);
        /* It is then left for a sound one. */
        maintain_all(w, NOW);
        checkpoint(w);
        reopen(w);
        assert_int_equal(w->f.report.rebuilt_indexes, 0);
        model_compare(&w->model, w->f.store, true);
    }
}

/* Index and records damaged in one place: what is between is lost, and said to be. */
static void test_damage_to_both_files(void **state) {
    struct world *w = *state;
    insert_n(w, 6000, 0, 0, 100);
    checkpoint(w);
    fixture_close(&w->f);
    const char *idx = only_file(w, ".idx"), *rec = only_file(w, ".rec");
    for (unsigned i = 5000; i < 5003; i++) {
        flip_bit(idx, DW_FILE_HEADER + i * DW_IDX_ENTRY + 20, 1);
        flip_bit(rec, DW_FILE_HEADER + i * dw_rec_bytes(100) + 20, 1);
    }
    fixture_open(&w->f);
    assert_int_equal(w->f.report.pending, 5997);
    assert_int_equal(w->f.report.corrupt_records, 3);
    assert_non_null(strstr(w->f.last_log, "3 of its 6000 records are lost"));
    assert_int_equal(w->f.logged[DW_LOG_ERROR], 2); /* and where in the file */
    struct dw_sink sink = collected_sink(&w->collected);
    uint64_t next_due;
    assert_int_equal(dw_store_take(w->f.store, NOW, 10000, UINT64_MAX, &sink, &next_due), DW_OK);
    assert_int_equal(w->collected.count, 5997);
    assert_int_equal(w->collected.records[5000].id, 1 << 16 | 5003);
    assert_null(dw_store_check(w->f.store));
}

static void test_a_damaged_note_of_dead_records(void **state) {
    struct world *w = *state;
    const uint64_t dead[] = {1 << 16 | 2, 1 << 16 | 5};
    insert_n(w, 10, 0, 0, 100);
    assert_int_equal(model_settle(&w->model, w->f.store, dead, 2), DW_OK);
    checkpoint(w);
    fixture_close(&w->f);
    flip_bit(only_file(w, ".idx"), DW_FILE_HEADER + 10 * DW_IDX_ENTRY + 9, 1);
    fixture_open(&w->f);
    /* Delivered again rather than lost. */
    assert_int_equal(w->f.report.pending, 10);
    assert_null(dw_store_check(w->f.store));
}

static void test_missing_files(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 0, 0, 100);
    insert_n(w, 10, 100000000, 0, 100);
    checkpoint(w);
    fixture_close(&w->f);
    save_copy(w);
    char name[256];

    /* The index: everything is there. */
    nth_file(w->f.dir, ".idx", 0, name);
    assert_int_equal(unlink(in_dir(w, name)), 0);
    fixture_open(&w->f);
    assert_int_equal(w->f.report.rebuilt_indexes, 1);
    model_compare(&w->model, w->f.store, true);
    maintain_all(w, NOW);
    checkpoint(w);
    reopen(w);
    assert_int_equal(w->f.report.rebuilt_indexes, 0);
    model_compare(&w->model, w->f.store, true);

    /* The records: they are known, and tried again, as the file may come back; the rest is served.
     */
    back_to_copy(w);
    nth_file(w->f.dir, ".rec", 0, name);
    assert_int_equal(unlink(in_dir(w, name)), 0);
    w->f.logged[DW_LOG_ERROR] = 0;
    fixture_open(&w->f);
    assert_int_equal(w->f.report.corrupt_records, 10);
    assert_int_equal(w->f.report.pending, 20);
    assert_int_equal(w->f.logged[DW_LOG_ERROR], 1);
    assert_non_null(strstr(w->f.last_log, name));
    for (unsigned i = 0; i < 10; i++) {
        model_find(&w->model, 1 << 16 | i)->corrupt = true;
    }
    model_compare(&w->model, w->f.store, false);
    for (unsigned i = 0; i < 10; i++) {
        model_find(&w->model, 1 << 16 | i)->corrupt = false;
    }
    struct dw_sink sink = collected_sink(&w->collected);
    uint64_t next_due;
    assert_int_equal(dw_store_take(w->f.store, NOW, 100, UINT64_MAX, &sink, &next_due), DW_OK);
    assert_int_equal(w->collected.count, 0);
    assert_int_equal(next_due, NOW + 1000);
    assert_int_equal(stat_of(w).unreadable, 10);
    assert_int_equal(stat_of(w).read_errors, 10);
    assert_int_equal(dw_store_read(w->f.store, 1 << 16, &sink), DW_EIO);
    assert_int_equal(dw_store_errno(), ENOENT);
    /* What comes new does not go there. */
    const struct model_new_record record = {.length = 100};
    assert_int_equal(model_insert(&w->model, NULL, NOW, &record, 1), DW_OK);
    struct dw_inserted inserted;
    size_t bytes;
    uint8_t *batch = model_batch(3, &record, 1, &bytes);
    assert_int_equal(dw_store_insert(w->f.store, 3, NOW, batch, bytes, &inserted), DW_OK);
    free(batch);
    assert_int_equal(dw_store_take(w->f.store, NOW, 100, UINT64_MAX, &sink, &next_due), DW_OK);
    assert_int_equal(w->collected.count, 1);
    assert_int_equal(w->collected.records[0].id, 3 << 16);
    checkpoint(w);
    copy_one_back(w, name);
    sink = collected_sink(&w->collected);
    assert_int_equal(dw_store_take(w->f.store, NOW + 1000, 100, UINT64_MAX, &sink, &next_due),
                     DW_OK);
    assert_int_equal(w->collected.count, 10);
    assert_int_equal(stat_of(w).unreadable, 0);
    reopen(w);
    assert_int_equal(w->f.report.corrupt_records, 0);
    model_compare(&w->model, w->f.store, true);
    fixture_close(&w->f);

    /* Both: gone without a trace but the log's. */
    back_to_copy(w);
    assert_int_equal(unlink(in_dir(w, name)), 0);
    nth_file(w->f.dir, ".idx", 0, name);
    assert_int_equal(unlink(in_dir(w, name)), 0);
    fixture_open(&w->f);
    assert_int_equal(w->f.report.corrupt_records, 10);
    assert_int_equal(w->f.report.pending, 10);
    assert_non_null(strstr(w->f.last_log, "10 of its 10 records are lost"));
    assert_null(dw_store_check(w->f.store));
    checkpoint(w);
    fixture_close(&w->f);
    fixture_open(&w->f);
    assert_int_equal(w->f.report.corrupt_records, 0);
    assert_int_equal(w->f.report.partitions, 1);
}

static void test_short_files(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 0, 0, 100);
    checkpoint(w);
    fixture_close(&w->f);
    save_copy(w);
    for (uint64_t length = 0; length < DW_FILE_HEADER + 10 * DW_IDX_ENTRY; length += 13) {
        assert_int_equal(truncate(only_file(w, ".idx"), (off_t)length), 0);
        fixture_open(&w->f);
        assert_int_equal(w->f.report.rebuilt_indexes, 1);
        assert_int_equal(w->f.report.corrupt_records, 0);
        model_compare(&w->model, w->f.store, true);
        back_to_copy(w);
    }
    const uint64_t size = file_size(only_file(w, ".rec"));
    for (uint64_t length = 0; length < size; length += 77) {
        assert_int_equal(truncate(only_file(w, ".rec"), (off_t)length), 0);
        fixture_open(&w->f);
        const uint64_t whole =
            length < DW_FILE_HEADER ? 0 : (length - DW_FILE_HEADER) / dw_rec_bytes(100);
        assert_int_equal(w->f.report.corrupt_records, 10 - whole);
        for (unsigned i = 0; i < 10; i++) {
            model_find(&w->model, 1 << 16 | i)->corrupt = i >= whole;
        }
        model_compare(&w->model, w->f.store, true);
        back_to_copy(w);
    }
}

/* After moves and with damage there may be two of one id: the later one is right. */
static void test_two_records_of_one_id(void **state) {
    struct world *w = *state;
    bool more;
    w->f.config.split_bytes = 1000;
    reopen(w);
    insert_n(w, 1000, 1000000, 0, 100);
    checkpoint(w);
    assert_int_equal(model_reschedule(&w->model, w->f.store, 1 << 16 | 3, NOW + 200000000), DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, 1 << 16 | 4, NOW + 20), DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, 1 << 16 | 4, NOW + 30), DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, 1 << 16 | 5, NOW + 1000001), DW_OK);
    /* They are moved where their time belongs, with some others, and then it ends. */
    assert_int_equal(dw_store_maintain(w->f.store, NOW + 900000, 1, &more), DW_OK);
    assert_true(more);
    checkpoint(w);
    fixture_close(&w->f);
    save_copy(w);
    const unsigned partitions = count_files(w->f.dir, ".idx");
    assert_in_range(partitions, 3, 5);
    /* Any of the index files lost, in any combination. */
    for (unsigned lost = 1; lost < 1u << partitions; lost++) {
        for (unsigned i = partitions; i-- > 0;) {
            char name[256];
            if ((lost >> i & 1) != 0) {
                nth_file(w->f.dir, ".idx", i, name);
                assert_int_equal(unlink(in_dir(w, name)), 0);
            }
        }
        fixture_open(&w->f);
        assert_int_equal(w->f.report.pending, 1000);
        model_compare(&w->model, w->f.store, true);
        maintain_all(w, NOW + 900000);
        model_compare(&w->model, w->f.store, true);
        checkpoint(w);
        reopen(w);
        assert_int_equal(w->f.report.rebuilt_indexes, 0);
        model_compare(&w->model, w->f.store, true);
        back_to_copy(w);
    }
}

static void test_no_permission_on_a_file(void **state) {
    struct world *w = *state;
    char name[256];
    insert_n(w, 10, 0, 0, 100);
    insert_n(w, 10, 100000000, 0, 100);
    checkpoint(w);
    fixture_close(&w->f);

    /* While reading: the rest is served, and these are when it is given back. */
    fixture_open(&w->f);
    nth_file(w->f.dir, ".rec", 0, name);
    fault_io_fail_name(FAULT_OPEN | FAULT_PREAD, name, EACCES);
    struct dw_sink sink = collected_sink(&w->collected);
    uint64_t next_due;
    assert_int_equal(dw_store_take(w->f.store, NOW + 100000000, 100, UINT64_MAX, &sink, &next_due),
                     DW_OK);
    assert_int_equal(w->collected.count, 10);
    assert_int_equal(w->collected.records[0].id, 2 << 16);
    assert_true(next_due > NOW + 100000000 && next_due <= NOW + 100000000 + 60000);
    assert_int_equal(dw_store_read(w->f.store, 1 << 16, &sink), DW_EACCES);
    assert_int_equal(dw_store_errno(), EACCES);
    assert_true(w->f.logged[DW_LOG_ERROR] > 0);
    fault_io_fail_name(0, NULL, 0);
    sink = collected_sink(&w->collected);
    assert_int_equal(dw_store_take(w->f.store, next_due, 100, UINT64_MAX, &sink, &next_due), DW_OK);
    assert_int_equal(w->collected.count, 10);
    assert_int_equal(w->collected.records[0].due, NOW);
    fixture_close(&w->f);

    /* While opening: it is refused, and finds everything when it can. */
    char part[256];
    snprintf(part, sizeof part, "%.*s", (int)(strlen(name) - 4), name);
    fault_io_fail_name(FAULT_OPEN, part, EACCES);
    assert_int_equal(fixture_try_open(&w->f), DW_EACCES);
    assert_int_equal(dw_store_errno(), EACCES);
    assert_non_null(strstr(w->f.last_log, "the store is not opened"));
    fault_io_fail_name(0, NULL, 0);
    reopen(w);
    assert_int_equal(w->f.report.corrupt_records, 0);
    model_compare(&w->model, w->f.store, true);
}

/* Each entry of an index is good, but one stands twice, in another's place: what is missing is not
 * known, so nothing is opened. The index can be made again from the records. */
static void test_an_index_with_other_records(void **state) {
    struct world *w = *state;
    const uint64_t dead[] = {1 << 16 | 2, 1 << 16 | 5};
    uint8_t entry[DW_IDX_ENTRY];
    insert_n(w, 10, 0, 0, 100);
    assert_int_equal(model_settle(&w->model, w->f.store, dead, 2), DW_OK);
    checkpoint(w);
    fixture_close(&w->f);
    save_copy(w);
    /* Over another added one, over the note of dead ones, and that over an added one. */
    static const unsigned from_to[][2] = {{3, 4}, {3, 10}, {10, 3}};
    for (unsigned i = 0; i < 3; i++) {
        const char *idx = only_file(w, ".idx");
        int fd = open(idx, O_RDWR);
        assert_true(fd >= 0);
        assert_int_equal(pread(fd, entry, sizeof entry,
                               DW_FILE_HEADER + from_to[i][0] * DW_IDX_ENTRY),
                         sizeof entry);
        assert_int_equal(pwrite(fd, entry, sizeof entry,
                                DW_FILE_HEADER + from_to[i][1] * DW_IDX_ENTRY),
                         sizeof entry);
        close(fd);
        assert_int_equal(fixture_try_open(&w->f), DW_ECORRUPT);
        assert_non_null(strstr(w->f.last_log, "the store is not opened: ecorrupt"));
        assert_int_equal(unlink(idx), 0);
        fixture_open(&w->f);
        assert_int_equal(w->f.report.rebuilt_indexes, 1);
        assert_int_equal(w->f.report.pending, 10);
        fixture_close(&w->f);
        back_to_copy(w);
    }
}

static void test_no_permission_on_the_directory(void **state) {
    struct world *w = *state;
    fixture_open(&w->f);
    fixture_close(&w->f);
    fault_io_fail(FAULT_OPEN, 1, true, EACCES);
    assert_int_equal(fixture_try_open(&w->f), DW_EACCES);
    assert_int_equal(dw_store_errno(), EACCES);
    fault_io_fail(FAULT_LIST, 1, true, EACCES);
    assert_int_equal(fixture_try_open(&w->f), DW_EACCES);
    fault_io_fail(0, 0, false, 0);
    fixture_open(&w->f);
    insert_n(w, 5, 0, 0, 10);
    fault_io_fail(FAULT_OPEN, 1, true, EROFS);
    assert_int_equal(dw_store_flush(w->f.store), DW_EACCES);
    assert_int_equal(dw_store_errno(), EROFS);
    fault_io_fail(0, 0, false, 0);
    assert_int_equal(dw_store_flush(w->f.store), DW_OK);
}

/* Whatever a read fails with: the records stay, and come whole when they can be read. */
static void test_reads_that_fail(void **state) {
    struct world *w = *state;
    static const int errnos[] = {EIO,    ESTALE, ETIMEDOUT, EROFS,     EACCES,  EPERM,
                                 ENOENT, ENODEV, ENXIO,     EREMOTEIO, EBADMSG, EUCLEAN};
    insert_n(w, 10, 0, 0, 100);
    insert_n(w, 3, 0, 0, 50000);
    checkpoint(w);
    for (size_t i = 0; i < sizeof errnos / sizeof *errnos; i++) {
        reopen(w);
        fault_io_fail_name(i % 2 == 0 ? FAULT_PREAD : FAULT_OPEN, ".rec", errnos[i]);
        /* After 1, 2, 4 ... s, at most 30. */
        uint64_t now = NOW, next_due, pause = 1000;
        for (unsigned tries = 1; tries < 9; tries++) {
            struct dw_sink sink = collected_sink(&w->collected);
            assert_int_equal(dw_store_take(w->f.store, now, 100, UINT64_MAX, &sink, &next_due),
                             DW_OK);
            assert_int_equal(w->collected.count, 0);
            assert_int_equal(next_due, now + pause);
            assert_int_equal(stat_of(w).unreadable, 13);
            assert_int_equal(stat_of(w).read_errors, 13 * tries);
            now = next_due;
            pause = pause < 15000 ? 2 * pause : 30000;
        }
        assert_int_equal(stat_of(w).corrupt_records, 0);
        assert_int_equal(stat_of(w).taken, 0);
        assert_non_null(strstr(w->f.last_log, strerror(errnos[i])));
        assert_non_null(strstr(w->f.last_log, "tried again later"));
        fault_io_fail_name(0, NULL, 0);
        struct dw_sink sink = collected_sink(&w->collected);
        assert_int_equal(dw_store_take(w->f.store, now, 100, UINT64_MAX, &sink, &next_due), DW_OK);
        assert_int_equal(w->collected.count, 13);
        assert_int_equal(w->collected.records[0].due, NOW);
        assert_int_equal(stat_of(w).unreadable, 0);
        /* Much later it begins with short pauses again. */
        assert_int_equal(dw_store_untake(w->f.store), DW_OK);
        fixture_close(&w->f);
    }
    fixture_open(&w->f);
}

/* A bad place of a disk holds up only what lies there. */
static void test_a_bad_place(void **state) {
    struct world *w = *state;
    w->f.config.split_bytes = 1000;
    reopen(w);
    insert_n(w, 60, 3000000, 0, 100);
    checkpoint(w);
    reopen(w);
    const uint64_t each = dw_rec_bytes(100), at = DW_FILE_HEADER + 20 * each;
    char bad[256];
    nth_file(w->f.dir, ".rec", 0, bad);
    fault_io_bad_place(bad, at, at + 20 * each, EIO);
    /* Two of them are given another time, which needs nothing of the disk. */
    assert_int_equal(model_reschedule(&w->model, w->f.store, 1 << 16 | 25, NOW + 3000000 + 70000),
                     DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, 1 << 16 | 26, NOW + 50), DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, 1 << 16 | 45, NOW + 3000000 + 70000),
                     DW_OK);
    struct dw_sink sink = collected_sink(&w->collected);
    uint64_t next_due, now = NOW + 3000000;
    uint32_t whole = 0;
    do {
        assert_int_equal(dw_store_take(w->f.store, now, 100, UINT64_MAX, &sink, &next_due), DW_OK);
        whole = w->collected.count;
    } while (next_due <= now);
    assert_int_equal(whole, 60 - 20 - 1);
    assert_int_equal(stat_of(w).unreadable, 19);
    assert_int_equal(stat_of(w).corrupt_records, 0);
    assert_int_equal(dw_store_untake(w->f.store), DW_OK);
    /* Nor does upkeep lose or leave them. */
    maintain_all(w, NOW + 2900000);
    char said[128];
    snprintf(said, sizeof said, "60 records cannot be moved now: %s", strerror(EIO));
    assert_non_null(strstr(w->f.last_log, said));
    checkpoint(w);
    fixture_close(&w->f);
    fault_io_bad_place(NULL, 0, 0, 0);
    reopen(w);
    assert_int_equal(w->f.report.pending, 60);
    model_compare(&w->model, w->f.store, true);
    maintain_all(w, NOW + 2900000);
    model_compare(&w->model, w->f.store, true);
    checkpoint(w);
    assert_int_equal(access(in_dir(w, bad), F_OK), -1);
    reopen(w);
    model_compare(&w->model, w->f.store, true);
}

/* In one opening, too, what could not be moved is moved when it can be read. */
static void test_a_bad_place_for_a_while(void **state) {
    struct world *w = *state;
    w->f.config.split_bytes = 1000;
    reopen(w);
    insert_n(w, 60, 3000000, 0, 100);
    checkpoint(w);
    fault_io_bad_place(".rec", 0, UINT64_MAX, ESTALE);
    maintain_all(w, NOW + 2900000);
    assert_int_equal(stat_of(w).partitions, 1);
    fault_io_bad_place(NULL, 0, 0, 0);
    maintain_all(w, NOW + 2900000 + 59999);
    assert_int_equal(count_files(w->f.dir, ".rec"), 1);
    maintain_all(w, NOW + 2900000 + 60000);
    checkpoint(w);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(count_files(w->f.dir, ".rec"), 1);
    char name[256];
    nth_file(w->f.dir, ".rec", 0, name);
    assert_int_not_equal(strncmp(name, "00000001", 8), 0);
}

/* One wrong byte in one read is no damage: what is read again is right. */
static void test_a_read_that_is_wrong_once(void **state) {
    struct world *w = *state;
    const uint64_t dead[] = {1 << 16 | 2, 1 << 16 | 5};
    w->f.config.split_bytes = 1000;
    reopen(w);
    insert_n(w, 30, 3000000, 0, 100);
    insert_n(w, 2, 3000000, 0, 50000);
    assert_int_equal(model_settle(&w->model, w->f.store, dead, 2), DW_OK);
    checkpoint(w);
    fixture_close(&w->f);
    save_copy(w);
    for (uint64_t n = 1;; n++) {
        back_to_copy(w);
        fault_io_flip(n, false);
        w->f.logged[DW_LOG_WARNING] = w->f.logged[DW_LOG_ERROR] = 0;
        reopen(w);
        assert_int_equal(w->f.report.rebuilt_indexes, 0);
        assert_int_equal(w->f.report.corrupt_records, 0);
        maintain_all(w, NOW + 2900000);
        model_compare(&w->model, w->f.store, true);
        assert_int_equal(take(w, NOW + 3000000, 100), 30);
        assert_int_equal(stat_of(w).corrupt_records, 0);
        checkpoint(w);
        assert_int_equal(w->f.logged[DW_LOG_WARNING] + w->f.logged[DW_LOG_ERROR], 0);
        if (fault_io_flipped() == 0) {
            assert_true(n > 10);
            break;
        }
        fixture_close(&w->f);
    }
    fault_io_flip(0, false);
}

static unsigned kept_of(struct world *w, uint8_t *bytes, size_t max, struct kept *out) {
    return read_kept_of(w->f.dir, bytes, max, out, 16);
}

static void test_corrupt_records_are_kept_aside(void **state) {
    struct world *w = *state;
    static uint8_t file[1 << 20];
    struct kept kept[16];
    bool is_kept[5];
    insert_n(w, 10, 0, 0, 1001);
    checkpoint(w);
    fixture_close(&w->f);
    char rec[PATH_MAX];
    snprintf(rec, sizeof rec, "%s", only_file(w, ".rec"));
    const uint64_t each = dw_rec_bytes(1001), at = DW_FILE_HEADER + 3 * each;
    flip_bit(rec, at + DW_REC_HEADER + 50, 2);
    flip_bit(rec, at + 2 * each + 17, 2);
    assert_int_equal(truncate(rec, (off_t)(DW_FILE_HEADER + 9 * each + 500)), 0);
    reopen(w);
    const uint64_t ids[5] = {1 << 16 | 3, 1 << 16 | 4, 1 << 16 | 5, 1 << 16 | 9, 77};
    for (unsigned calls = FAULT_OPEN; calls < FAULT_ANY; calls <<= 1) {
        /* Without it being durable, none is. */
        fault_io_fail(calls, 1, true, EIO);
        const int result = dw_store_keep_aside(w->f.store, NOW + 7, ids, 5, is_kept);
        if (fault_io_failed() > 0 && calls != FAULT_FTRUNCATE) {
            assert_int_equal(result, DW_EIO);
            assert_false(is_kept[0] || is_kept[1] || is_kept[2] || is_kept[3] || is_kept[4]);
        }
        fault_io_fail(0, 0, false, 0);
        (void)unlink(in_dir(w, DW_KEPT_NAME));
    }
    assert_int_equal(dw_store_keep_aside(w->f.store, NOW + 7, ids, 5, is_kept), DW_OK);
    assert_true(is_kept[0] && !is_kept[1] && is_kept[2] && is_kept[3] && !is_kept[4]);
    assert_int_equal(kept_of(w, file, sizeof file, kept), 3);
    uint8_t body[1001];
    for (unsigned i = 0; i < 3; i++) {
        const unsigned position = i == 0 ? 3 : i == 1 ? 5 : 9;
        assert_int_equal(kept[i].id, 1 << 16 | position);
        assert_int_equal(kept[i].due, NOW);
        assert_int_equal(kept[i].off, DW_FILE_HEADER + position * each);
        assert_string_equal(kept[i].name, strrchr(rec, '/') + 1);
        assert_int_equal(kept[i].length, 1001);
        assert_int_equal(kept[i].there, i == 2 ? 500 : DW_REC_HEADER + 1001);
        model_body(kept[i].id, 1001, body);
        body[50] ^= i == 0 ? 4 : 0;
        assert_memory_equal(kept[i].bytes + DW_REC_HEADER, body, kept[i].there - DW_REC_HEADER);
    }
    /* It stays where it is, whatever happens to the store, and grows. */
    insert_n(w, 1, 0, 0, 5);
    checkpoint(w);
    reopen(w);
    fault_io_fail(FAULT_PWRITE, 1, false, ENOSPC);
    assert_int_equal(dw_store_keep_aside(w->f.store, NOW + 8, ids, 1, is_kept), DW_ENOSPC);
    assert_int_equal(kept_of(w, file, sizeof file, kept), 3);
    assert_int_equal(dw_store_keep_aside(w->f.store, NOW + 8, ids, 1, is_kept), DW_OK);
    assert_int_equal(kept_of(w, file, sizeof file, kept), 4);
    assert_int_equal(kept[3].id, ids[0]);
    /* What cannot be read is not corrupt. */
    fault_io_fail_name(FAULT_PREAD, ".rec", ESTALE);
    assert_int_equal(dw_store_keep_aside(w->f.store, NOW + 8, ids, 1, is_kept), DW_EIO);
    assert_int_equal(dw_store_errno(), ESTALE);
    assert_false(is_kept[0]);
    fault_io_fail_name(0, NULL, 0);
}

/* No descriptors left: nothing is lost, nothing called corrupt. */
static void test_out_of_descriptors(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 0, 0, 100);
    checkpoint(w);
    reopen(w);
    fault_io_fail(FAULT_OPEN, 1, true, EMFILE);
    assert_int_equal(model_take(&w->model, w->f.store, NOW, 5, UINT64_MAX, &w->collected), DW_EIO);
    assert_int_equal(w->collected.count, 0);
    assert_int_equal(dw_store_errno(), EMFILE);
    fault_io_fail(0, 0, false, 0);
    model_compare(&w->model, w->f.store, true);
    assert_int_equal(take(w, NOW, 100), 10);
}

/* ----------------------------------------------------------------- closing */

static void test_closed(void **state) {
    struct world *w = *state;
    insert_n(w, 10, 0, 0, 100);
    dw_checkpoint *one, *two;
    assert_int_equal(dw_store_checkpoint(w->f.store, &one), DW_OK);
    dw_store_close(w->f.store);
    dw_store_close(w->f.store);
    dw_store *store = w->f.store;
    const struct model_new_record record = {.when = 1, .length = 3};
    struct dw_sink sink = collected_sink(&w->collected);
    struct dw_inserted inserted;
    struct dw_record records[2];
    struct dw_stat stat;
    uint64_t n, id = 1 << 16;
    const struct dw_id_due released = {id, NOW + 1};
    uint32_t count;
    size_t bytes;
    bool more;
    uint8_t *batch = model_batch(2, &record, 1, &bytes);
    assert_int_equal(dw_store_insert(store, 2, NOW, batch, bytes, &inserted), DW_ECLOSED);
    free(batch);
    assert_int_equal(dw_store_settle(store, 2, &id, 1, &n), DW_ECLOSED);
    assert_int_equal(dw_store_settle_due(store, 2, &released, 1, &n), DW_ECLOSED);
    assert_int_equal(dw_store_settle_due_by(store, 2, &released, 1, &n), DW_ECLOSED);
    assert_int_equal(dw_store_purge(store, 2, &n, &n), DW_ECLOSED);
    assert_int_equal(dw_store_reschedule(store, 2, id, NOW), DW_ECLOSED);
    dw_store_note(store, 2);
    assert_int_equal(dw_store_applied(store), 1);
    assert_int_equal(dw_store_flush(store), DW_ECLOSED);
    assert_int_equal(dw_store_maintain(store, NOW, 1, &more), DW_ECLOSED);
    assert_int_equal(dw_store_checkpoint(store, &two), DW_ECLOSED);
    assert_null(two);
    assert_int_equal(dw_checkpoint_finish(one, NULL), DW_ECLOSED);
    dw_checkpoint_release(one);
    assert_int_equal(dw_store_take(store, NOW, 1, 1, &sink, &n), DW_ECLOSED);
    assert_int_equal(n, DW_NEVER);
    assert_int_equal(dw_store_postpone(store, id, NOW), DW_ECLOSED);
    assert_int_equal(dw_store_untake(store), DW_ECLOSED);
    assert_int_equal(dw_store_next_due(store), DW_NEVER);
    assert_int_equal(dw_store_stat(store, &stat), DW_ECLOSED);
    assert_int_equal(dw_store_read(store, id, &sink), DW_ECLOSED);
    assert_int_equal(dw_store_page(store, 0, 0, records, 2, &count), DW_ECLOSED);
    assert_int_equal(dw_store_read_many(store, &id, 1, 1, &sink, &count), DW_ECLOSED);
    assert_int_equal(dw_store_places(store, 1, 1, true, records, 2, &count), DW_ECLOSED);
    assert_int_equal(dw_store_count(store, 0, NOW, &n, &id), DW_ECLOSED);
    assert_int_equal(dw_store_count_until(store, NULL, 0, &n), DW_ECLOSED);
    assert_int_equal(dw_store_reschedule_many(store, 2, NULL, 0, &n), DW_ECLOSED);
    assert_int_equal(dw_store_find(store, 1, &id, 1, &n), DW_ECLOSED);
    dw_store_release(NULL);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TEST_OPEN(name) cmocka_unit_test_setup_teardown(name, setup_open, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_configuration_is_checked),
        TEST(test_new_store_is_empty),
        TEST(test_missing_parent),
        TEST(test_a_fixed_default_allocator),
        TEST_OPEN(test_files_of_no_checkpoint_are_removed),
        TEST_OPEN(test_without_manifest_it_begins_anew),
        TEST_OPEN(test_longer_files_are_cut),
        TEST_OPEN(test_damaged_manifest),
        TEST_OPEN(test_later_versions_are_left_alone),
        TEST_OPEN(test_malformed_batches),
        TEST_OPEN(test_largest_batch),
        TEST_OPEN(test_due_times),
        TEST_OPEN(test_changes_at_or_below_applied_do_nothing),
        TEST_OPEN(test_in_due_order_then_by_id),
        TEST_OPEN(test_recovered_in_order_of_id),
        TEST_OPEN(test_limits_of_take),
        TEST_OPEN(test_records_of_all_lengths),
        TEST_OPEN(test_never_early_when_the_clock_steps_back),
        TEST_OPEN(test_taken_are_not_handed_out_again),
        TEST_OPEN(test_untaken_in_order),
        TEST_OPEN(test_postpone),
        TEST_OPEN(test_settle),
        TEST_OPEN(test_no_memory_for_a_body),
        TEST_OPEN(test_stranded_records),
        TEST_OPEN(test_pages),
        TEST_OPEN(test_read_many),
        TEST_OPEN(test_find),
        TEST_OPEN(test_reschedule),
        TEST_OPEN(test_reschedule_many),
        TEST_OPEN(test_rescheduled_for_ever),
        TEST_OPEN(test_large_ones_rescheduled_for_ever),
        TEST_OPEN(test_what_is_released_is_not_rewritten),
        TEST_OPEN(test_pages_of_many),
        TEST_OPEN(test_a_full_disk),
        TEST_OPEN(test_open_files_are_bounded),
        TEST_OPEN(test_idle_files_are_closed),
        TEST_OPEN(test_emptied_partitions_go_with_the_next_checkpoint),
        TEST_OPEN(test_a_checkpoint_keeps_its_files),
        TEST_OPEN(test_a_reader_keeps_what_it_reads),
        TEST(test_long_partitions_are_followed_by_others),
        TEST(test_no_partition_left),
        TEST(test_failing_writes_are_told),
        TEST(test_buffers_are_used_again),
        TEST_OPEN(test_short_reads_and_writes),
        TEST(test_coarse_partitions_are_split_in_time),
        TEST(test_records_not_yet_written_are_moved),
        TEST(test_long_records_are_moved),
        TEST(test_garbage_is_bounded),
        TEST(test_garbage_of_now_is_sealed),
        TEST(test_leftovers_are_merged),
        TEST(test_maintain_is_bounded),
        TEST_OPEN(test_one_checkpoint_at_a_time),
        TEST_OPEN(test_finish_may_be_tried_again),
        TEST_OPEN(test_a_failed_fsync_is_not_forgotten),
        TEST(test_a_new_directory_is_durable),
        TEST_OPEN(test_a_file_that_cannot_be_written),
        TEST_OPEN(test_snapshots_do_not_change),
        TEST_OPEN(test_incomplete_snapshots),
        TEST_OPEN(test_a_damaged_record),
        TEST_OPEN(test_another_record_in_its_place),
        TEST(test_damage_is_not_moved),
        TEST_OPEN(test_a_damaged_index_is_made_again),
        TEST_OPEN(test_damage_to_both_files),
        TEST_OPEN(test_a_damaged_note_of_dead_records),
        TEST_OPEN(test_an_index_with_other_records),
        TEST_OPEN(test_missing_files),
        TEST_OPEN(test_short_files),
        TEST_OPEN(test_two_records_of_one_id),
        TEST_OPEN(test_no_permission_on_a_file),
        TEST(test_no_permission_on_the_directory),
        TEST_OPEN(test_reads_that_fail),
        TEST_OPEN(test_a_bad_place),
        TEST_OPEN(test_a_bad_place_for_a_while),
        TEST_OPEN(test_a_read_that_is_wrong_once),
        TEST_OPEN(test_corrupt_records_are_kept_aside),
        TEST_OPEN(test_out_of_descriptors),
        TEST_OPEN(test_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

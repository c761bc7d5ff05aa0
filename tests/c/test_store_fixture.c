/* SPDX-License-Identifier: MPL-2.0 */
/* A store that 0.1 wrote (tests/fixtures/make_store) is what it was, message for message. */
#include "store_fixture.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ARCHIVE "tests/fixtures/store-1.tar.xz"
#define T0 UINT64_C(1800000000000)
#define MAX 4096

struct world {
    struct fixture f;
    struct dw_record wanted[MAX];
    uint32_t count;
};

/* What a body should be is known by its id. */
struct reading {
    uint8_t body[4096];
    uint32_t whole;
    uint32_t damaged;
};

static void *body(void *ctx, const struct dw_record *record) {
    struct reading *reading = ctx;
    assert_true(record->length <= sizeof reading->body);
    return reading->body;
}

static void done(void *ctx, const struct dw_record *record) {
    struct reading *reading = ctx;
    for (uint32_t j = 0; j < record->length; j++) {
        assert_int_equal(reading->body[j], (uint8_t)(record->id + 31 * (uint64_t)j));
    }
    reading->whole++;
}

static void corrupt(void *ctx, const struct dw_record *record, const char *file, uint64_t offset) {
    struct reading *reading = ctx;
    print_error("%" PRIu64 " in %s at %" PRIu64 "\n", record->id, file, offset);
    reading->damaged++;
}

static void read_wanted(struct world *w, const char *file) {
    FILE *in = fopen(file, "r");
    assert_non_null(in);
    struct dw_record r = {0};
    while (fscanf(in, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu16 " %" SCNu32 "\n", &r.id,
                  &r.due, &r.key_hash, &r.encoding, &r.length) == 5) {
        assert_true(w->count < MAX);
        w->wanted[w->count++] = r;
    }
    assert_true(feof(in));
    fclose(in);
    assert_true(w->count > 50);
}

static int setup(void **state) {
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    fixture_init(&w->f);
    char command[PATH_MAX];
    snprintf(command, sizeof command, "tar -C '%s' -xJf " ARCHIVE, w->f.base);
    assert_int_equal(system(command), 0);
    snprintf(w->f.dir, sizeof w->f.dir, "%s/store", w->f.base);
    read_wanted(w, fixture_path(&w->f, "records"));
    w->f.config.now_ms = T0;
    fixture_open(&w->f);
    *state = w;
    return 0;
}

static int teardown(void **state) {
    struct world *w = *state;
    fixture_end(&w->f);
    free(w);
    return 0;
}

static void check_all(struct world *w) {
    static struct dw_record found[MAX];
    uint32_t n = 0;
    assert_int_equal(w->f.report.corrupt_records, 0);
    assert_int_equal(w->f.report.rebuilt_indexes, 0);
    assert_int_equal(w->f.report.pending, w->count);
    assert_int_equal(dw_store_page(w->f.store, 0, 0, found, MAX, &n), DW_OK);
    assert_int_equal(n, w->count);
    for (uint32_t i = 0; i < n; i++) {
        const struct dw_record *r = &w->wanted[i];
        assert_int_equal(found[i].id, r->id);
        assert_int_equal(found[i].due, r->due);
        assert_int_equal(found[i].key_hash, r->key_hash);
        assert_int_equal(found[i].encoding, r->encoding);
        assert_int_equal(found[i].length, r->length);
        struct reading reading = {0};
        const struct dw_sink sink = {body, done, corrupt, &reading};
        assert_int_equal(dw_store_read(w->f.store, r->id, &sink), DW_OK);
        assert_int_equal(reading.whole, 1);
        assert_int_equal(reading.damaged, 0);
    }
}

static void test_every_message_is_there(void **state) {
    struct world *w = *state;
    assert_int_equal(w->f.report.cut_bytes, 0);
    check_all(w);
    fixture_close(&w->f);
    fixture_open(&w->f);
    check_all(w);
}

/* And after all of it has been written again by this version. */
static void test_it_goes_on(void **state) {
    struct world *w = *state;
    uint64_t index = dw_store_applied(w->f.store);
    assert_true(index > 20);
    for (uint32_t i = 0; i < w->count; i++) {
        w->wanted[i].due += 1;
        assert_int_equal(dw_store_reschedule(w->f.store, ++index, w->wanted[i].id,
                                             w->wanted[i].due),
                         DW_OK);
    }
    bool more = true;
    while (more) {
        assert_int_equal(dw_store_maintain(w->f.store, T0, 1 << 20, &more), DW_OK);
    }
    assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_OK);
    fixture_close(&w->f);
    fixture_open(&w->f);
    assert_int_equal(dw_store_applied(w->f.store), index);
    check_all(w);
}

static void test_it_comes_due(void **state) {
    struct world *w = *state;
    struct reading reading = {0};
    const struct dw_sink sink = {body, done, corrupt, &reading};
    uint64_t next = 0;
    while (next != DW_NEVER) {
        assert_int_equal(dw_store_take(w->f.store, DW_DUE_MAX, 10, 1 << 20, &sink, &next), DW_OK);
    }
    assert_int_equal(reading.whole, w->count);
    assert_int_equal(reading.damaged, 0);
    uint64_t ids[MAX], removed = 0;
    for (uint32_t i = 0; i < w->count; i++) {
        ids[i] = w->wanted[i].id;
    }
    const uint64_t index = dw_store_applied(w->f.store) + 1;
    assert_int_equal(dw_store_settle(w->f.store, index, ids, w->count, &removed), DW_OK);
    assert_int_equal(removed, w->count);
    assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_OK);
    assert_int_equal(count_files(w->f.dir, ".rec"), 0);
    fixture_close(&w->f);
    fixture_open(&w->f);
    assert_int_equal(w->f.report.pending, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_message_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(test_it_goes_on, setup, teardown),
        cmocka_unit_test_setup_teardown(test_it_comes_due, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

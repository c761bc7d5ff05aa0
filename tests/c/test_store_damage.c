/* SPDX-License-Identifier: MPL-2.0 */
/* A store whose files are damaged, each way with each fault (fault_sweep.h) from its opening on:
 * while it is opened, and its indexes are made again from the records; while what is corrupt is
 * kept aside, and the rest moved out of the damaged files; while that is made durable, and opened
 * again.
 *
 * An opening is refused, or what it holds is what is held where nothing fails; and that is what was
 * in the store, but for what the damage takes away or brings back. What can be read comes whole,
 * what cannot comes as corrupt, and what was said to be kept aside is there after a power cut. All
 * of it: `make soak-faults`. */
#include "dw_store_internal.h"
#include "fault_sweep.h"
#include "kept_aside.h"
#include "store_damage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NOW SOUND_NOW
#define NEAR SOUND_NEAR
#define LATER (NEAR + 3700000)
#define AFTER_ALL (NOW + UINT64_C(400000000))

enum { CORRUPT_MAX = 16 };

static struct sound sound;
static struct damage found[DAMAGES]; /* with what is known only of the files */
static struct model held[DAMAGES];   /* what is held with that damage, where nothing fails */

/* ---------------------------------------------------------------- scenario */

struct world {
    const struct damage *damage;
    struct fixture f;
    struct model model; /* what it should hold */
    struct collected collected;
    struct fault fault;
};

static void arm(struct world *w) {
    fault_arm(&w->fault, &w->f.alloc);
}

static bool disarm(struct world *w) {
    return fault_disarm(&w->fault, &w->f.alloc);
}

/* Each is whole, or comes as corrupt, or is in a file that is not there; as the model has it. */
static void compare(struct world *w) {
    const struct dw_sink sink = collected_sink(&w->collected);
    model_compare(&w->model, w->f.store, false);
    for (size_t i = 0; i < w->model.count; i++) {
        const struct model_record *record = &w->model.records[i];
        w->collected.count = 0;
        const int result = dw_store_read(w->f.store, record->id, &sink);
        if (record->corrupt && w->damage->out_of_reach) {
            assert_int_equal(result, DW_EIO);
            assert_int_equal(dw_store_errno(), ENOENT);
        } else {
            assert_int_equal(result, DW_OK);
            assert_int_equal(w->collected.corrupt[0], record->corrupt);
            assert_int_equal(w->collected.records[0].due, record->due);
        }
    }
}

/* What is open, after that; the process ends here if it is to. */
static void go_on(struct world *w, bool fired) {
    if (fired && w->fault.kill) {
        fixture_close(&w->f);
        fixture_open(&w->f);
        model_replay(&w->model, w->f.store, 0);
    }
    if (fired) {
        compare(w);
    }
}

/* Tries `call` under the fault and, if it fails, once more without. */
#define TRY(w, call)                                                                               \
    do {                                                                                           \
        arm(w);                                                                                    \
        const int result = (call);                                                                 \
        const bool fired = disarm(w);                                                              \
        if (result != DW_OK) {                                                                     \
            assert_true(fired);                                                                    \
            fault_check(&(w)->fault, result);                                                      \
            compare(w);                                                                            \
            assert_int_equal((call), DW_OK);                                                       \
        }                                                                                          \
        go_on(w, fired);                                                                           \
    } while (0)

static void reopen(struct world *w) {
    arm(w);
    fixture_close(&w->f);
    const int result = fixture_try_open(&w->f);
    if (disarm(w) && result != DW_OK) {
        assert_null(w->f.store);
        fault_check(&w->fault, result);
        fixture_open(&w->f);
    } else {
        assert_int_equal(result, DW_OK);
    }
    if (w->model.change_count > 0) {
        model_replay(&w->model, w->f.store, 0);
    }
    compare(w);
}

/* All that can be is moved out of the damaged files. */
static int upkeep(struct world *w, uint64_t now) {
    bool more = true;
    int result = DW_OK;
    for (unsigned i = 0; result == DW_OK && more; i++) {
        assert_true(i < 1000);
        result = dw_store_maintain(w->f.store, now, 1, &more);
    }
    return result;
}

/* A file of which a write or a sync has failed, and that what is corrupt remains in, keeps
 * checkpoints from being made until the next opening. */
static void checkpoint(struct world *w) {
    arm(w);
    int result = fixture_checkpoint(&w->f, NULL);
    const bool fired = disarm(w);
    if (result != DW_OK) {
        assert_true(w->fault.fired);
        if (fired) {
            fault_check(&w->fault, result);
        }
        assert_int_equal(upkeep(w, LATER), DW_OK);
        result = fixture_checkpoint(&w->f, NULL);
    }
    if (result != DW_OK) {
        assert_true(w->damage->corrupt > 0);
        reopen(w);
        assert_int_equal(upkeep(w, LATER), DW_OK);
        assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_OK);
    }
    go_on(w, fired);
}

/* Those that are corrupt, and as many whole ones. */
static uint32_t some_ids(const struct world *w, uint64_t *ids) {
    uint32_t n = 0, whole = 0;
    for (size_t i = 0; i < w->model.count; i++) {
        if (w->model.records[i].corrupt) {
            assert_true(n < CORRUPT_MAX);
            ids[n++] = w->model.records[i].id;
        } else if (whole < CORRUPT_MAX) {
            ids[CORRUPT_MAX + whole++] = w->model.records[i].id;
        }
    }
    memmove(ids + n, ids + CORRUPT_MAX, whole * sizeof *ids);
    return n + whole;
}

/* Each of those ids is there, with the bytes that its file has, after a power cut. */
static void check_kept(struct world *w, const uint64_t *ids, uint32_t n) {
    static uint8_t bytes[1 << 20];
    static struct kept kept[8 * CORRUPT_MAX];
    const char *cut = fixture_path(&w->f, "cut");
    fault_io_power_cut(cut, 0);
    const unsigned count = read_kept_of(cut, bytes, sizeof bytes, kept, sizeof kept / sizeof *kept);
    for (uint32_t i = 0; i < n; i++) {
        unsigned at = 0;
        while (at < count && kept[at].id != ids[i]) {
            at++;
        }
        assert_true(at < count);
        char path[PATH_MAX];
        size_t size;
        snprintf(path, sizeof path, "%s/%s", w->f.dir, kept[at].name);
        uint8_t *file = file_contents(path, &size);
        const struct model_record *record = model_find(&w->model, ids[i]);
        const uint64_t left = kept[at].off < size ? size - kept[at].off : 0;
        const uint64_t whole = DW_REC_HEADER + (uint64_t)record->length;
        assert_int_equal(kept[at].there, left < whole ? left : whole);
        assert_int_equal(kept[at].due, record->due);
        assert_memory_equal(kept[at].bytes, file + kept[at].off, kept[at].there);
        free(file);
    }
    remove_dir(cut);
}

static int keep_aside(struct world *w) {
    uint64_t ids[2 * CORRUPT_MAX];
    bool kept[2 * CORRUPT_MAX];
    const uint32_t n = some_ids(w, ids);
    const int result = dw_store_keep_aside(w->f.store, NOW, ids, n, kept);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(kept[i], result == DW_OK && i < w->damage->corrupt);
    }
    if (result == DW_OK && w->damage->corrupt > 0) {
        check_kept(w, ids, w->damage->corrupt);
    }
    return result;
}

/* All that is due, as far as it can be read now; each as it should be. */
static int take(struct world *w, uint64_t now) {
    uint64_t next_due = 0;
    int result = DW_OK;
    for (unsigned calls = 0; result == DW_OK && next_due <= now; calls++) {
        const struct dw_sink sink = collected_sink(&w->collected);
        assert_true(calls < 200);
        result = dw_store_take(w->f.store, now, 40, UINT64_MAX, &sink, &next_due);
        for (uint32_t i = 0; i < w->collected.count; i++) {
            struct model_record *record = model_find(&w->model, w->collected.records[i].id);
            assert_non_null(record);
            assert_false(record->taken);
            assert_int_equal(w->collected.corrupt[i], record->corrupt);
            assert_int_equal(w->collected.records[i].due, record->due);
            record->taken = true;
        }
    }
    return result;
}

/* What cannot be read is not corrupt, and comes later. */
static void take_all(struct world *w) {
    arm(w);
    const int result = take(w, AFTER_ALL);
    if (disarm(w) && result != DW_OK) {
        fault_check(&w->fault, result);
    } else {
        assert_int_equal(result, DW_OK);
    }
    assert_int_equal(take(w, AFTER_ALL), DW_OK);
    assert_int_equal(take(w, AFTER_ALL + 60000), DW_OK);
    uint64_t left = 0, out_of_reach = 0;
    for (size_t i = 0; i < w->model.count; i++) {
        left += !w->model.records[i].taken;
        out_of_reach += w->damage->out_of_reach && w->model.records[i].corrupt;
    }
    assert_int_equal(left, out_of_reach);
}

static void settle_corrupt(struct world *w) {
    uint64_t ids[2 * CORRUPT_MAX];
    (void)some_ids(w, ids);
    TRY(w, model_settle(&w->model, w->f.store, ids, w->damage->corrupt));
}

static void damaged_copy(struct world *w) {
    copy_dir(sound.f.dir, w->f.dir);
    w->damage->damage(w->f.dir);
    w->f.config.split_bytes = 1000;
}

static void scenario(struct world *w) {
    const bool corrupt = w->damage->corrupt > 0 && !w->damage->out_of_reach;
    damaged_copy(w);
    fault_io_track(w->f.dir);
    reopen(w);
    if (!w->damage->out_of_reach) {
        TRY(w, keep_aside(w));
    }
    TRY(w, upkeep(w, NEAR));
    assert_int_equal(upkeep(w, LATER), DW_OK);
    checkpoint(w);
    reopen(w);
    assert_true(corrupt || w->f.report.rebuilt_indexes == 0);
    if (corrupt) {
        TRY(w, keep_aside(w));
        settle_corrupt(w);
        assert_int_equal(upkeep(w, LATER), DW_OK);
        checkpoint(w);
        reopen(w);
        assert_int_equal(w->f.report.rebuilt_indexes, 0);
    }
    /* Without a file there is no snapshot, as an earlier one may have it. */
    assert_int_equal(fixture_checkpoint(&w->f, fixture_path(&w->f, "snapshot")),
                     w->damage->out_of_reach ? DW_EIO : DW_OK);
    take_all(w);
}

/* --------------------------------------------------- where nothing fails */

static const struct model_record *ever(uint64_t id) {
    for (size_t i = 0; i < sound.count; i++) {
        if (sound.ever[i].id == id) {
            return &sound.ever[i];
        }
    }
    return NULL;
}

/* The model of what is open: what was in the store, but for what the damage did. */
static struct model learn(struct world *w) {
    struct model model = {.index = sound.model.index};
    struct dw_record page[64];
    uint64_t due = 0, id = 0;
    uint32_t n;
    model.records = calloc(SOUND_EVER, sizeof *model.records);
    assert_non_null(model.records);
    do {
        assert_int_equal(dw_store_page(w->f.store, due, id, page, 64, &n), DW_OK);
        for (uint32_t i = 0; i < n; i++) {
            const struct dw_sink sink = collected_sink(&w->collected);
            due = page[i].due;
            id = page[i].id;
            const struct model_record *was = ever(id), *is = model_find(&sound.model, id);
            assert_true(was != NULL && model.count < SOUND_EVER);
            assert_int_equal(page[i].length, was->length);
            assert_int_equal(page[i].key_hash, was->key_hash);
            /* What is rebuilt may have been settled, or given another due time. */
            assert_true(is != NULL || w->damage->rebuilt > 0);
            assert_true((is != NULL && due == is->due) ||
                        (w->damage->rebuilt > 0 && due == was->due));
            const int result = dw_store_read(w->f.store, id, &sink);
            const bool whole = result == DW_OK && !w->collected.corrupt[0];
            assert_true(result == DW_OK || w->damage->out_of_reach);
            model.records[model.count++] = (struct model_record){.id = id,
                                                                 .due = due,
                                                                 .until = due,
                                                                 .key_hash = was->key_hash,
                                                                 .length = was->length,
                                                                 .encoding = was->encoding,
                                                                 .corrupt = !whole};
        }
    } while (n > 0);
    return model;
}

static int setup(void **state) {
    (void)state;
    sound_make(&sound);
    for (unsigned i = 0; i < DAMAGES; i++) {
        struct world w = {.damage = &damages[i]};
        uint64_t lost = 0, corrupt = 0;
        fixture_init(&w.f);
        const unsigned indexes = count_files(sound.f.dir, ".idx");
        damaged_copy(&w);
        fixture_open(&w.f);
        found[i] = damages[i];
        assert_int_equal(w.f.report.rebuilt_indexes,
                         damages[i].rebuilt == UINT_MAX ? indexes : damages[i].rebuilt);
        held[i] = learn(&w);
        for (size_t j = 0; j < sound.model.count; j++) {
            lost += model_find(&held[i], sound.model.records[j].id) == NULL;
        }
        for (size_t j = 0; j < held[i].count; j++) {
            corrupt += held[i].records[j].corrupt;
        }
        assert_int_equal(lost, damages[i].lost);
        if (damages[i].corrupt == UINT_MAX) {
            assert_true(corrupt > 0);
            found[i].corrupt = (unsigned)corrupt;
        }
        assert_int_equal(corrupt, found[i].corrupt);
        fixture_end(&w.f);
        collected_free(&w.collected);
    }
    return 0;
}

/* ------------------------------------------------------------------ faults */

static bool run(const void *arg, struct fault fault) {
    const unsigned i = *(const unsigned *)arg;
    struct world w = {.damage = &found[i], .fault = fault, .model = held[i]};
    w.model.records = malloc((held[i].count + 1) * sizeof *w.model.records);
    assert_non_null(w.model.records);
    memcpy(w.model.records, held[i].records, held[i].count * sizeof *w.model.records);
    w.model.capacity = held[i].count;
    fixture_init(&w.f);
    scenario(&w);
    fixture_end(&w.f);
    model_free(&w.model);
    collected_free(&w.collected);
    return w.fault.fired;
}

static void test_no_fault(void **state) {
    (void)state;
    for (unsigned i = 0; i < DAMAGES; i++) {
        print_message("%s\n", damages[i].name);
        assert_false(run(&i, (struct fault){.kind = FAULT_NONE}));
    }
}

static void test_each_allocation(void **state) {
    (void)state;
    for (unsigned i = 0; i < DAMAGES; i++) {
        if (fault_is_drawn(4)) {
            fault_sweep_allocations(run, &i, 100);
        }
    }
}

#define TEST_CALL(name, calls, every)                                                              \
    static void test_each_##name(void **state) {                                                   \
        (void)state;                                                                               \
        for (unsigned i = 0; i < DAMAGES; i++) {                                                   \
            if (fault_is_drawn(4)) {                                                               \
                fault_sweep_calls(run, &i, calls, every);                                          \
            }                                                                                      \
        }                                                                                          \
    }
TEST_CALL(open, FAULT_OPEN, 40)
TEST_CALL(read, FAULT_PREAD, 40)
TEST_CALL(write, FAULT_PWRITE, 20)
TEST_CALL(fstat, FAULT_FSTAT, 30)
TEST_CALL(truncation, FAULT_FTRUNCATE, 1)
TEST_CALL(fdatasync, FAULT_FDATASYNC, 15)
TEST_CALL(fsync, FAULT_FSYNC, 8)
TEST_CALL(rename, FAULT_RENAME, 2)
TEST_CALL(unlink, FAULT_UNLINK, 8)
TEST_CALL(listing, FAULT_LIST, 30)
TEST_CALL(close, FAULT_CLOSE, 60)
TEST_CALL(advice, FAULT_ADVISE, 4)
/* And where what has failed cannot be undone either. */
TEST_CALL(sync_and_truncation, FAULT_FSYNC | FAULT_FTRUNCATE, 8)
TEST_CALL(datasync_and_truncation, FAULT_FDATASYNC | FAULT_FTRUNCATE, 15)
TEST_CALL(write_and_truncation, FAULT_PWRITE | FAULT_FTRUNCATE, 20)

/* A manifest that is damaged is never opened with, whatever else fails, and nothing goes: put
 * right, all is there. */
static bool run_manifest(const void *arg, struct fault fault) {
    static const struct damage none = {.name = "none"};
    struct world w = {.damage = &none, .fault = fault, .model = sound.model};
    (void)arg;
    fixture_init(&w.f);
    copy_dir(sound.f.dir, w.f.dir);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/MANIFEST", w.f.dir);
    const unsigned files = count_files(w.f.dir, "");
    flip_bit(path, 60, 1);
    arm(&w);
    const int result = fixture_try_open(&w.f);
    if (!disarm(&w) || result == DW_ECORRUPT) {
        assert_int_equal(result, DW_ECORRUPT);
    } else {
        fault_check(&w.fault, result);
    }
    assert_int_equal(count_files(w.f.dir, ""), files);
    flip_bit(path, 60, 1);
    fixture_open(&w.f);
    compare(&w);
    fixture_end(&w.f);
    collected_free(&w.collected);
    return w.fault.fired;
}

static void test_damaged_manifest(void **state) {
    (void)state;
    assert_false(run_manifest(NULL, (struct fault){.kind = FAULT_NONE}));
    fault_sweep_allocations(run_manifest, NULL, 2);
    for (unsigned calls = FAULT_OPEN; calls <= FAULT_ADVISE; calls <<= 1) {
        fault_sweep_calls(run_manifest, NULL, calls, 1);
    }
}

static int teardown(void **state) {
    (void)state;
    for (unsigned i = 0; i < DAMAGES; i++) {
        free(held[i].records);
    }
    sound_end(&sound);
    return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, fault_say)

int main(void) {
    fault_seed();
    const struct CMUnitTest tests[] = {
        TEST(test_no_fault),
        TEST(test_damaged_manifest),
        TEST(test_each_allocation),
        TEST(test_each_open),
        TEST(test_each_read),
        TEST(test_each_write),
        TEST(test_each_fstat),
        TEST(test_each_truncation),
        TEST(test_each_fdatasync),
        TEST(test_each_fsync),
        TEST(test_each_rename),
        TEST(test_each_unlink),
        TEST(test_each_listing),
        TEST(test_each_close),
        TEST(test_each_advice),
        TEST(test_each_sync_and_truncation),
        TEST(test_each_datasync_and_truncation),
        TEST(test_each_write_and_truncation),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

/* SPDX-License-Identifier: MPL-2.0 */
/* What a crash or a bad disk leaves: a store is opened on it, Raft's replay follows, and it must
 * hold what the model does. After a crash, exactly; after damage, all but what was damaged, and
 * perhaps again what was settled.
 * Longer than other files are, as each place and each damage has its own. */
#include "dw_store_internal.h"
#include "fault_io.h"
#include "store_fixture.h"
#include "store_model.h"

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
    uint64_t random;
    uint64_t now;
    /* Of the failed checkpoints since the last durable one, any may be found: a manifest that was
     * renamed, but not its directory synced. */
    uint64_t perhaps[64];
    unsigned perhaps_count;
};

static uint64_t pick(struct world *w, uint64_t below) {
    return model_random(&w->random) % below;
}

static void world_init(struct world *w, uint64_t seed) {
    *w = (struct world){.random = 0x9E3779B97F4A7C15u * (seed + 1), .now = NOW};
    fixture_init(&w->f);
    w->f.config.split_bytes = 3000;
}

static void world_end(struct world *w) {
    fixture_end(&w->f);
    model_free(&w->model);
    collected_free(&w->collected);
}

/* ------------------------------------------------------------- a history */

static void insert_some(struct world *w, size_t n) {
    static const uint64_t scale[] = {50, 5000, 100000, 2000000, 30000000, 5000000000};
    struct model_new_record records[32];
    for (size_t i = 0; i < n; i++) {
        records[i] = (struct model_new_record){
            .when = pick(w, scale[pick(w, 6)]),
            .key_hash = pick(w, 6),
            .length = (uint32_t)(1 + pick(w, 200)),
            .encoding = (uint16_t)pick(w, 100),
        };
    }
    assert_int_equal(model_insert(&w->model, w->f.store, w->now, records, n), DW_OK);
}

static void settle_some(struct world *w, size_t n) {
    uint64_t ids[32];
    for (size_t i = 0; i < n && w->model.count > 0; i++) {
        ids[i] = w->model.records[pick(w, w->model.count)].id;
    }
    assert_int_equal(model_settle(&w->model, w->f.store, ids, w->model.count > 0 ? n : 0), DW_OK);
}

static void maintain_some(struct world *w) {
    bool more = true;
    for (uint64_t n = pick(w, 5); more && n > 0; n--) {
        (void)dw_store_maintain(w->f.store, w->now, 1, &more);
    }
}

/* Anything, of which calls may fail since the disk is gone. */
static void something(struct world *w) {
    switch (pick(w, 10)) {
    case 0:
    case 1:
    case 2:
        insert_some(w, 1 + pick(w, 31));
        break;
    case 3:
    case 4:
        settle_some(w, pick(w, 32));
        break;
    case 5:
        if (w->model.count > 0) {
            /* Reading may fail by now; then nothing has changed. */
            (void)model_reschedule(&w->model, w->f.store,
                                   w->model.records[pick(w, w->model.count)].id,
                                   w->now + pick(w, 10000000));
        }
        break;
    case 6:
        maintain_some(w);
        break;
    case 7:
        w->now += pick(w, 200000);
        break;
    default:
        (void)dw_store_flush(w->f.store);
        break;
    }
}

/* ------------------------------------------------------------ power cuts */

static uint64_t durable_applied(struct world *w) {
    struct dw_stat stat;
    assert_int_equal(dw_store_stat(w->f.store, &stat), DW_OK);
    return stat.checkpoint_applied;
}

/* Opens what a power cut has left of f->dir, in a directory of its own. The model is none the
 * wiser: it is replayed to where it was. */
static void open_what_is_left(struct world *w, uint64_t random) {
    bool expected = false;
    const uint64_t durable = durable_applied(w);
    char dir[sizeof w->f.dir];
    memcpy(dir, w->f.dir, sizeof dir);
    snprintf(w->f.dir, sizeof w->f.dir, "%s/left", w->f.base);
    fault_io_power_cut(w->f.dir, random);
    dw_store *store = w->f.store;
    w->f.store = NULL;
    const struct fault_alloc before = w->f.alloc;
    fixture_open(&w->f);
    assert_int_equal(w->f.report.corrupt_records, 0);
    assert_int_equal(w->f.report.rebuilt_indexes, 0);
    for (unsigned i = 0; i < w->perhaps_count; i++) {
        expected = expected || w->f.report.applied == w->perhaps[i];
    }
    assert_true(expected || w->f.report.applied == durable);
    struct model as_it_was = w->model;
    struct model_record *records = calloc(w->model.count + 1, sizeof *records);
    assert_non_null(records);
    if (w->model.count > 0) {
        memcpy(records, w->model.records, w->model.count * sizeof *records);
    }
    as_it_was.records = records;
    model_replay(&as_it_was, w->f.store, 0);
    model_compare(&as_it_was, w->f.store, true);
    /* It goes on as any other: checkpoint, and opening again. */
    assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_OK);
    fixture_close(&w->f);
    fixture_open(&w->f);
    model_compare(&as_it_was, w->f.store, false);
    fixture_close(&w->f);
    assert_int_equal(before.blocks, w->f.alloc.blocks);
    free(records);
    remove_dir(w->f.dir);
    memcpy(w->f.dir, dir, sizeof dir);
    w->f.store = store;
}

/* A checkpoint whose n-th changing call and all after that fail, as the power does: it is durable
 * or not, and if it says so it is. */
static void checkpoint_and_cut(struct world *w) {
    const uint64_t before = durable_applied(w);
    fault_io_fail(FAULT_CHANGE, 1 + pick(w, 60), true, EIO);
    dw_checkpoint *checkpoint;
    int result = dw_store_checkpoint(w->f.store, &checkpoint);
    if (result == DW_OK) {
        if (pick(w, 2) == 0) {
            something(w);
        }
        const uint64_t applied = dw_checkpoint_applied(checkpoint);
        result = dw_checkpoint_finish(checkpoint, NULL);
        assert_int_equal(durable_applied(w), result == DW_OK ? applied : before);
        w->perhaps[w->perhaps_count++] = applied;
    }
    dw_checkpoint_release(checkpoint);
    if (result == DW_OK) {
        w->perhaps_count = 0;
    }
    fault_io_fail(FAULT_CHANGE, 0, false, 0);
    open_what_is_left(w, 0);
    open_what_is_left(w, model_random(&w->random));
}

static void power_cuts(uint64_t seed) {
    struct world w;
    world_init(&w, seed);
    print_message("seed %u\n", (unsigned)seed);
    fixture_open(&w.f);
    fault_io_track(w.f.dir);
    fault_io_lose_on_close(seed % 2 == 1);
    for (unsigned i = 0; i < 12; i++) {
        for (uint64_t n = pick(&w, 25); n > 0; n--) {
            something(&w);
        }
        if (pick(&w, 3) == 0) {
            /* The store may be left with files that no fsync is to be trusted for. */
            int result = fixture_checkpoint(&w.f, NULL);
            assert_true(result == DW_OK || result == DW_EIO);
            if (result == DW_OK) {
                w.perhaps_count = 0;
            }
            open_what_is_left(&w, model_random(&w.random));
        } else {
            checkpoint_and_cut(&w);
        }
        if (pick(&w, 4) == 0) {
            fixture_close(&w.f);
            fixture_open(&w.f);
            w.perhaps_count = 0;
            model_replay(&w.model, w.f.store, UINT64_MAX);
        }
    }
    world_end(&w);
}

static void test_power_cuts(void **state) {
    (void)state;
    const unsigned rounds = fixture_rounds(8);
    const char *seed = getenv("DW_TEST_SEED");
    for (unsigned i = 0; i < rounds; i++) {
        power_cuts(seed != NULL ? strtoull(seed, NULL, 10) : i);
    }
}

/* More files than descriptors, closed by eviction and by idling, whose write-back fails later where
 * nobody hears of it. */
static void test_closed_files_were_synced(void **state) {
    (void)state;
    for (unsigned round = 0; round < 10; round++) {
        struct world w;
        world_init(&w, 100 + round);
        fixture_open(&w.f);
        fault_io_track(w.f.dir);
        fault_io_lose_on_close(true);
        for (unsigned i = 0; i < 6; i++) {
            for (unsigned n = 0; n < 5; n++) {
                insert_some(&w, 31);
                assert_int_equal(dw_store_flush(w.f.store), DW_OK);
            }
            for (unsigned n = 0; n < 70 * (round % 2); n++) {
                bool more;
                assert_int_equal(dw_store_maintain(w.f.store, w.now, 1, &more), DW_OK);
            }
            settle_some(&w, 31);
            assert_int_equal(fixture_checkpoint(&w.f, NULL), DW_OK);
            open_what_is_left(&w, 0);
        }
        world_end(&w);
    }
}

/* The sync before such a closing fails: that is not forgotten with the descriptor. Nothing is cut
 * from Raft's log that did not reach the disk, and the store recovers by itself. */
static void test_a_sync_that_fails_before_closing(void **state) {
    (void)state;
    for (unsigned at = 1; at <= 12; at++) {
        struct world w;
        world_init(&w, 200 + at);
        fixture_open(&w.f);
        fault_io_track(w.f.dir);
        fault_io_lose_on_close(true);
        assert_int_equal(fixture_checkpoint(&w.f, NULL), DW_OK);
        fault_io_fail(FAULT_FDATASYNC, at, false, at % 2 == 0 ? EIO : ENOSPC);
        for (unsigned n = 0; fault_io_failed() == 0; n++) {
            bool more;
            assert_true(n < 10000);
            insert_some(&w, 31);
            assert_int_equal(dw_store_flush(w.f.store), DW_OK);
            assert_int_equal(dw_store_maintain(w.f.store, w.now, 1, &more), DW_OK);
        }
        fault_io_fail(0, 0, false, 0);
        const int result = fixture_checkpoint(&w.f, NULL);
        assert_true(result == DW_OK || result == DW_EIO);
        open_what_is_left(&w, 0);
        bool more = true;
        for (unsigned n = 0; more; n++) {
            assert_true(n < 10000);
            assert_int_equal(dw_store_maintain(w.f.store, w.now, 1, &more), DW_OK);
        }
        assert_int_equal(fixture_checkpoint(&w.f, NULL), DW_OK);
        open_what_is_left(&w, 0);
        model_compare(&w.model, w.f.store, true);
        world_end(&w);
    }
}

/* A checkpoint that ends at each of its calls in turn. */
static void test_checkpoint_cut_short(void **state) {
    struct world w;
    (void)state;
    world_init(&w, 20);
    fixture_open(&w.f);
    fault_io_track(w.f.dir);
    const unsigned times = fixture_rounds(6);
    bool failed = true;
    for (uint64_t n = 1; failed; n++) {
        for (unsigned i = 0; i < times; i++) {
            dw_checkpoint *checkpoint;
            insert_some(&w, 30);
            settle_some(&w, 10);
            w.now += 100000;
            assert_int_equal(dw_store_checkpoint(w.f.store, &checkpoint), DW_OK);
            fault_io_fail(FAULT_PWRITE | FAULT_RENAME | FAULT_FSYNC, n, true, ENOSPC);
            int result = dw_checkpoint_finish(checkpoint, NULL);
            dw_checkpoint_release(checkpoint);
            failed = fault_io_failed() > 0;
            assert_int_equal(result, failed ? DW_ENOSPC : DW_OK);
            fault_io_fail(0, 0, false, 0);
            w.perhaps[0] = w.model.index;
            w.perhaps_count = failed;
            for (unsigned cut = 0; cut < 4; cut++) {
                open_what_is_left(&w, model_random(&w.random));
            }
            assert_int_equal(fixture_checkpoint(&w.f, NULL), DW_OK);
        }
    }
    world_end(&w);
}

/* A restore that ends anywhere leaves the old store, none, or the new one, and each is whole. */
static void test_restore_cut_short(void **state) {
    struct world w;
    unsigned seen[3] = {0};
    (void)state;
    world_init(&w, 21);
    const char *snapshot = fixture_path(&w.f, "snapshot");
    fixture_open(&w.f);
    insert_some(&w, 20);
    assert_int_equal(fixture_checkpoint(&w.f, snapshot), DW_OK);
    /* The files of the snapshot are gone from the store. */
    while (w.model.count > 0) {
        settle_some(&w, 32);
    }
    insert_some(&w, 20);
    assert_int_equal(fixture_checkpoint(&w.f, NULL), DW_OK);
    fixture_close(&w.f);
    fixture_open(&w.f);
    fixture_close(&w.f);
    copy_dir(w.f.dir, fixture_path(&w.f, "crashed"));
    const uint64_t last = w.model.index, cuts = fixture_rounds(5);
    bool failed = true;
    for (uint64_t n = 1; failed; n++) {
        for (uint64_t random = 0; random < cuts; random++) {
            char dir[sizeof w.f.dir];
            memcpy(dir, w.f.dir, sizeof dir);
            remove_dir(w.f.dir);
            copy_dir(fixture_path(&w.f, "crashed"), w.f.dir);
            fault_io_track(w.f.dir);
            fault_io_fail(FAULT_CHANGE, n, true, EIO);
            int result = dw_restore_with(w.f.dir, fixture_path(&w.f, "snapshot"), &fault_io,
                                         &w.f.alloc.alloc);
            failed = fault_io_failed() > 0;
            assert_int_equal(result, failed ? DW_EIO : DW_OK);
            fault_io_fail(0, 0, false, 0);
            snprintf(w.f.dir, sizeof w.f.dir, "%s/left", w.f.base);
            fault_io_power_cut(w.f.dir, random * 0x9E3779B97F4A7C15u);
            memset(w.f.logged, 0, sizeof w.f.logged);
            fixture_open(&w.f);
            assert_int_equal(w.f.logged[DW_LOG_ERROR] + w.f.logged[DW_LOG_WARNING], 0);
            const uint64_t applied = w.f.report.applied;
            assert_true(applied == 1 || (failed && (applied == 0 || applied == last)));
            seen[applied == last ? 2 : applied]++;
            model_replay(&w.model, w.f.store, 0);
            model_compare(&w.model, w.f.store, true);
            fixture_close(&w.f);
            remove_dir(w.f.dir);
            memcpy(w.f.dir, dir, sizeof dir);
        }
    }
    assert_true(seen[0] > 0 && seen[1] > 0 && seen[2] > 0);
    world_end(&w);
}

/* So does a checkpoint's snapshot: it is whole, or it is not there. */
static void test_snapshot_cut_short(void **state) {
    struct world w;
    (void)state;
    world_init(&w, 22);
    fixture_open(&w.f);
    const unsigned cuts = fixture_rounds(8);
    bool failed = true;
    unsigned whole = 0, none = 0;
    for (uint64_t n = 1; failed; n++) {
        insert_some(&w, 5);
        const char *snapshot = fixture_path(&w.f, "snapshot");
        remove_dir(snapshot);
        assert_int_equal(mkdir(snapshot, 0700), 0);
        fault_io_track(snapshot);
        dw_checkpoint *checkpoint;
        assert_int_equal(dw_store_checkpoint(w.f.store, &checkpoint), DW_OK);
        fault_io_fail(FAULT_RENAME | FAULT_FSYNC | FAULT_PWRITE | FAULT_LINK | FAULT_UNLINK, n,
                      true, EIO);
        int result = dw_checkpoint_finish(checkpoint, snapshot);
        dw_checkpoint_release(checkpoint);
        failed = fault_io_failed() > 0;
        assert_int_equal(result, failed ? DW_EIO : DW_OK);
        fault_io_fail(0, 0, false, 0);
        for (uint64_t random = 0; random < cuts; random++) {
            const char *left = fixture_path(&w.f, "left");
            uint64_t applied;
            fault_io_power_cut(left, random * 0x9E3779B97F4A7C15u);
            result = dw_store_validate(left, &applied);
            assert_true(result == DW_OK || (failed && result == DW_ENOENT));
            assert_int_equal(applied, result == DW_OK ? w.model.index : 0);
            *(result == DW_OK ? &whole : &none) += 1;
            remove_dir(left);
        }
    }
    assert_true(whole >= cuts && none >= cuts);
    world_end(&w);
}

/* ----------------------------------------------------- cuts at every place */

/* The store's files after a crash, to come back to for each cut. */
static void restore_files(struct world *w) {
    remove_dir(w->f.dir);
    copy_dir(fixture_path(&w->f, "crashed"), w->f.dir);
}

static void open_and_compare(struct world *w) {
    fixture_open(&w->f);
    assert_int_equal(w->f.report.corrupt_records, 0);
    assert_int_equal(w->f.report.rebuilt_indexes, 0);
    model_replay(&w->model, w->f.store, 0);
    model_compare(&w->model, w->f.store, true);
    fixture_close(&w->f);
}

/* Some checkpoints, then much that no checkpoint has, flushed; and a crash. Lengths as of the last
 * checkpoint, of the files there are then, come back in named[]. */
struct named {
    char name[256];
    uint64_t bytes;
};

static unsigned crash(struct world *w, struct named *named, unsigned most) {
    unsigned n = 0;
    fixture_open(&w->f);
    for (unsigned i = 0; i < 3; i++) {
        insert_some(w, 20);
        settle_some(w, 5);
        maintain_some(w);
        assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_OK);
    }
    const unsigned files = count_files(w->f.dir, "");
    for (unsigned i = 0; i < files; i++) {
        assert_true(n < most);
        nth_file(w->f.dir, "", i, named[n].name);
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/%s", w->f.dir, named[n].name);
        named[n++].bytes = file_size(path);
    }
    for (unsigned i = 0; i < 3; i++) {
        insert_some(w, 20);
        settle_some(w, 10);
        maintain_some(w);
        assert_int_equal(dw_store_flush(w->f.store), DW_OK);
    }
    fixture_close(&w->f);
    copy_dir(w->f.dir, fixture_path(&w->f, "crashed"));
    return n;
}

static uint64_t named_bytes(const struct named *named, unsigned n, const char *name) {
    for (unsigned i = 0; i < n; i++) {
        if (strcmp(named[i].name, name) == 0) {
            return named[i].bytes;
        }
    }
    return 0;
}

/* Every boundary between records or entries, and places within them. */
static void test_files_cut_anywhere(void **state) {
    struct world w;
    struct named named[300];
    (void)state;
    world_init(&w, 99);
    const unsigned n = crash(&w, named, 300);
    const char *crashed = fixture_path(&w.f, "crashed");
    open_and_compare(&w);
    unsigned cuts = 0;
    const unsigned files = count_files(crashed, ""), step = fixture_rounds(10) > 10    ? 1
                                                            : fixture_rounds(10) == 10 ? 5
                                                                                       : 29;
    for (unsigned i = 0; i < files; i++) {
        char name[256], path[PATH_MAX];
        restore_files(&w);
        nth_file(w.f.dir, "", i, name);
        snprintf(path, sizeof path, "%s/%s", w.f.dir, name);
        const uint64_t size = file_size(path), least = named_bytes(named, n, name);
        for (uint64_t length = least; length < size; length += 8 * step) {
            restore_files(&w);
            assert_int_equal(truncate(path, (off_t)(length + length % 3)), 0);
            open_and_compare(&w);
            cuts++;
        }
    }
    assert_true(cuts > 20);
    world_end(&w);
}

/* Files that the last checkpoint does not know of may be there or not, in any state. */
static void test_files_of_later_vanish(void **state) {
    struct world w;
    struct named named[300];
    (void)state;
    world_init(&w, 5);
    const unsigned n = crash(&w, named, 300);
    const char *crashed = fixture_path(&w.f, "crashed");
    for (unsigned round = 0; round < fixture_rounds(30); round++) {
        restore_files(&w);
        unsigned later = 0;
        for (unsigned i = count_files(crashed, ""); i-- > 0;) {
            char name[256], path[PATH_MAX];
            nth_file(fixture_path(&w.f, "crashed"), "", i, name);
            if (named_bytes(named, n, name) == 0) {
                later++;
                snprintf(path, sizeof path, "%s/%s", w.f.dir, name);
                if (pick(&w, 2) == 0) {
                    assert_int_equal(unlink(path), 0);
                } else if (pick(&w, 2) == 0) {
                    flip_bit(path, pick(&w, file_size(path)), 1);
                }
            }
        }
        assert_true(later > 0);
        open_and_compare(&w);
    }
    world_end(&w);
}

/* ----------------------------------------------------------------- damage */

struct seen {
    uint64_t whole;   /* pending records that came out as they should */
    uint64_t corrupt; /* came out as corrupt */
    uint64_t again;   /* settled before, and came again */
    uint64_t before;  /* with the due time that they had before another one */
};

/* Takes everything there is. The model stays as it is. */
static struct seen take_all(struct world *w, bool settle) {
    struct seen seen = {0};
    struct dw_sink sink;
    uint64_t next_due = 0, removed;
    while (next_due != DW_NEVER) {
        sink = collected_sink(&w->collected);
        assert_int_equal(dw_store_take(w->f.store, DW_DUE_MAX, 100, UINT64_MAX, &sink, &next_due),
                         DW_OK);
        for (uint32_t i = 0; i < w->collected.count; i++) {
            const uint64_t id = w->collected.records[i].id;
            const struct model_record *record = model_find(&w->model, id);
            if (w->collected.corrupt[i]) {
                seen.corrupt++;
            } else if (record == NULL) {
                seen.again++;
            } else {
                assert_int_equal(w->collected.records[i].encoding, record->encoding);
                seen.whole += w->collected.records[i].due == record->due;
                seen.before += w->collected.records[i].due != record->due;
            }
            if (settle) {
                assert_int_equal(dw_store_settle(w->f.store, dw_store_applied(w->f.store) + 1, &id,
                                                 1, &removed),
                                 DW_OK);
                assert_int_equal(removed, 1);
            }
        }
    }
    return seen;
}

/* A small store with a bit of everything, closed. */
static void small_store(struct world *w) {
    uint64_t ids[3];
    fixture_open(&w->f);
    insert_some(w, 12);
    for (unsigned i = 0; i < 3; i++) {
        ids[i] = w->model.records[3 * i].id;
    }
    assert_int_equal(model_settle(&w->model, w->f.store, ids, 3), DW_OK);
    assert_int_equal(model_reschedule(&w->model, w->f.store, w->model.records[0].id, NOW + 77),
                     DW_OK);
    insert_some(w, 3);
    assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_OK);
    fixture_close(&w->f);
    copy_dir(w->f.dir, fixture_path(&w->f, "crashed"));
}

/* The damaged store opens, serves the rest, and is sound again after upkeep and a checkpoint.
 * Another due time stands in the index alone, and is lost with that: one message has it. */
static void open_damaged(struct world *w, uint64_t most_lost, uint64_t most_before) {
    fixture_open(&w->f);
    assert_null(dw_store_check(w->f.store));
    const struct seen first = take_all(w, false);
    assert_true(first.whole + first.before + most_lost >= w->model.count);
    assert_true(first.before <= most_before);
    assert_true(first.before == 0 || w->f.logged[DW_LOG_WARNING] > 0);
    assert_true(first.again <= 3);
    assert_true(first.corrupt <= most_lost);
    assert_int_equal(dw_store_untake(w->f.store), DW_OK);
    bool more = true;
    for (unsigned i = 0; more; i++) {
        assert_true(i < 1000);
        assert_int_equal(dw_store_maintain(w->f.store, NOW, 1 << 20, &more), DW_OK);
    }
    assert_null(dw_store_check(w->f.store));
    assert_int_equal(fixture_checkpoint(&w->f, NULL), DW_OK);
    fixture_close(&w->f);
    fixture_open(&w->f);
    assert_null(dw_store_check(w->f.store));
    const struct seen second = take_all(w, true);
    assert_int_equal(second.whole, first.whole);
    assert_int_equal(second.before, first.before);
    assert_int_equal(second.again, first.again);
    struct dw_stat stat;
    assert_int_equal(dw_store_stat(w->f.store, &stat), DW_OK);
    assert_int_equal(stat.pending, 0);
    fixture_close(&w->f);
}

static void test_every_flipped_bit(void **state) {
    struct world w;
    (void)state;
    world_init(&w, 3);
    small_store(&w);
    const char *crashed = fixture_path(&w.f, "crashed");
    const unsigned files = count_files(crashed, "");
    const unsigned step = fixture_rounds(100) > 100 ? 1 : fixture_rounds(100) == 100 ? 7 : 61;
    unsigned reported = 0, flips = 0;
    for (unsigned i = 0; i < files; i++) {
        char name[256], path[PATH_MAX];
        restore_files(&w);
        nth_file(w.f.dir, "", i, name);
        snprintf(path, sizeof path, "%s/%s", w.f.dir, name);
        const uint64_t size = file_size(path);
        for (uint64_t byte = 0; byte < size; byte += step) {
            restore_files(&w);
            flip_bit(path, byte, byte % 8);
            flips++;
            if (strcmp(name, "MANIFEST") == 0) {
                assert_int_equal(fixture_try_open(&w.f), DW_ECORRUPT);
                reported++;
                continue;
            }
            memset(w.f.logged, 0, sizeof w.f.logged);
            open_damaged(&w, strstr(name, ".rec") != NULL ? 1 : 0,
                         strstr(name, ".idx") != NULL ? 1 : 0);
            if (w.f.logged[DW_LOG_WARNING] + w.f.logged[DW_LOG_ERROR] > 0) {
                assert_non_null(strstr(w.f.last_log, w.f.dir));
                reported++;
            }
        }
    }
    /* Only the padding of records, and what is already dead, may be damaged unnoticed. */
    assert_true(reported > flips * 2 / 3);
    world_end(&w);
}

/* Larger damage: parts of files overwritten with zeros or with other parts, or cut off. */
static void damage_file(struct world *w, const char *path) {
    const uint64_t size = file_size(path);
    const uint64_t at = pick(w, size), bytes = 1 + pick(w, size - at);
    uint8_t *junk = calloc(1, (size_t)size);
    assert_non_null(junk);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    switch (pick(w, 4)) {
    case 0:
        break; /* zeros */
    case 1:
        for (uint64_t i = 0; i < bytes; i++) {
            junk[i] = (uint8_t)model_random(&w->random);
        }
        break;
    case 2:
        assert_true(pread(fd, junk, (size_t)bytes, (off_t)pick(w, size)) >= 0);
        break;
    default:
        assert_int_equal(ftruncate(fd, (off_t)at), 0);
        break;
    }
    if (file_size(path) == size) {
        assert_int_equal(pwrite(fd, junk, (size_t)bytes, (off_t)at), bytes);
    }
    close(fd);
    free(junk);
}

static void test_larger_damage(void **state) {
    struct world w;
    struct named named[300];
    unsigned refused = 0;
    (void)state;
    world_init(&w, 11);
    crash(&w, named, 300);
    for (unsigned round = 0; round < fixture_rounds(60); round++) {
        restore_files(&w);
        const unsigned files = count_files(w.f.dir, "");
        for (uint64_t n = 1 + pick(&w, 3); n > 0; n--) {
            char name[256], path[PATH_MAX];
            nth_file(w.f.dir, "", (unsigned)pick(&w, files), name);
            if (strcmp(name, "MANIFEST") != 0) {
                snprintf(path, sizeof path, "%s/%s", w.f.dir, name);
                if (file_size(path) > 0) {
                    damage_file(&w, path);
                }
            }
        }
        /* Where entries of an index stand in each other's place, it has to be made again. */
        if (fixture_try_open(&w.f) == DW_ECORRUPT) {
            assert_non_null(strstr(w.f.last_log, "not opened"));
            refused++;
            continue;
        }
        assert_non_null(w.f.store);
        assert_null(dw_store_check(w.f.store));
        /* What is known comes out, whole or not, and can be settled. */
        struct dw_stat stat;
        assert_int_equal(dw_store_stat(w.f.store, &stat), DW_OK);
        const struct seen seen = take_all(&w, true);
        assert_true(seen.whole + seen.before + seen.corrupt + seen.again <= stat.pending);
        assert_int_equal(dw_store_stat(w.f.store, &stat), DW_OK);
        assert_int_equal(stat.pending, 0);
        assert_int_equal(fixture_checkpoint(&w.f, NULL), DW_OK);
        assert_null(dw_store_check(w.f.store));
        fixture_close(&w.f);
    }
    assert_true(refused <= fixture_rounds(60) / 4 + 1);
    world_end(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_cuts),
        cmocka_unit_test(test_closed_files_were_synced),
        cmocka_unit_test(test_a_sync_that_fails_before_closing),
        cmocka_unit_test(test_checkpoint_cut_short),
        cmocka_unit_test(test_restore_cut_short),
        cmocka_unit_test(test_snapshot_cut_short),
        cmocka_unit_test(test_files_cut_anywhere),
        cmocka_unit_test(test_files_of_later_vanish),
        cmocka_unit_test(test_every_flipped_bit),
        cmocka_unit_test(test_larger_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

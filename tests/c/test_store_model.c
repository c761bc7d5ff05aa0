/* SPDX-License-Identifier: MPL-2.0 */
/* Random sequences of everything that a store can do, beside the model: changes, taking in all its
 * forms, upkeep, checkpoints, closing and opening again with Raft's replay, restoring from
 * snapshots, and a clock that is stepped in both directions. */
#include "fault_io.h"
#include "store_fixture.h"
#include "store_model.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SNAPSHOTS = 4, BATCH_MAX = 24, PENDING_MAX = 1500, RELEASED = 256 };

struct run {
    struct fixture f;
    struct model model;
    struct collected collected;
    uint64_t random;
    uint64_t now;
    struct dw_id_due released[RELEASED]; /* the last ones taken, as they were due then */
    size_t taken;                        /* so far */
    unsigned snapshots;                  /* made so far; the last SNAPSHOTS are kept */
    uint64_t snapshot_applied[SNAPSHOTS];
};

static uint64_t pick(struct run *run, uint64_t below) {
    return model_random(&run->random) % below;
}

/* Delays over all orders of magnitude, and many of the same. */
static uint64_t some_delay(struct run *run) {
    static const uint64_t scale[] = {
        1, 50, 5000, 70000, 1500000, 20000000, UINT64_C(300000000), UINT64_C(50000000000)};
    const uint64_t most = scale[pick(run, sizeof scale / sizeof *scale)];
    return pick(run, 3) == 0 ? most : pick(run, most + 1);
}

static void insert_some(struct run *run) {
    struct model_new_record records[BATCH_MAX];
    const size_t n = 1 + pick(run, BATCH_MAX);
    if (run->model.count > PENDING_MAX) {
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const bool absolute = pick(run, 4) == 0;
        records[i] = (struct model_new_record){
            .absolute = absolute,
            .when = (absolute ? run->now - 5000 : 0) + some_delay(run),
            .key_hash = pick(run, 2) == 0 ? 0 : 1 + pick(run, 40),
            .length = (uint32_t)(1 + (pick(run, 20) == 0 ? pick(run, 60000) : pick(run, 400))),
            .encoding = (uint16_t)pick(run, 65536),
        };
    }
    if (pick(run, 500) == 0) {
        records[0].when = UINT64_MAX;
    }
    assert_int_equal(model_insert(&run->model, run->f.store, run->now, records, n), DW_OK);
}

/* Few keys in some batches, so that one meets itself in its batch, and more in others. */
static void insert_keyed(struct run *run) {
    struct model_new_record records[BATCH_MAX];
    const size_t n = 1 + pick(run, BATCH_MAX);
    const uint64_t keys = pick(run, 2) == 0 ? 4 : 40;
    for (size_t i = 0; i < n; i++) {
        enum dw_on_key on_key = (enum dw_on_key)pick(run, DW_RELEASE + 1);
        if (on_key == DW_KEEP && run->model.count > PENDING_MAX) {
            on_key = DW_CANCEL;
        }
        records[i] = (struct model_new_record){
            .when = model_is_empty(on_key) ? pick(run, 3) : some_delay(run),
            .key_hash = on_key == DW_KEEP && pick(run, 2) == 0 ? 0 : 1 + pick(run, keys),
            .length = model_is_empty(on_key) ? 0 : (uint32_t)(1 + pick(run, 400)),
            .encoding = (uint16_t)pick(run, 65536),
            .on_key = on_key,
        };
    }
    assert_int_equal(model_insert_keyed(&run->model, run->f.store, run->now, records, n), DW_OK);
}

static uint64_t some_id(struct run *run) {
    if (run->model.count == 0 || pick(run, 20) == 0) {
        return (1 + pick(run, run->model.index + 1)) << 16 | pick(run, BATCH_MAX);
    }
    return run->model.records[pick(run, run->model.count)].id;
}

static uint64_t taken_id(struct run *run) {
    for (size_t i = 0; i < run->model.count; i++) {
        const size_t at = (i * 7 + pick(run, run->model.count)) % run->model.count;
        if (run->model.records[at].taken) {
            return run->model.records[at].id;
        }
    }
    return some_id(run);
}

static void settle_some(struct run *run, bool taken) {
    uint64_t ids[64];
    const size_t n = pick(run, 64);
    for (size_t i = 0; i < n; i++) {
        ids[i] = taken ? taken_id(run) : some_id(run);
    }
    assert_int_equal(model_settle(&run->model, run->f.store, ids, n), DW_OK);
}

/* What was taken some time ago, postponed, given other due times, settled and taken again since;
 * and again with another time, or with that of the retry. */
static void settle_released(struct run *run) {
    struct dw_id_due released[64];
    const size_t held = run->taken < RELEASED ? run->taken : RELEASED;
    const size_t n = held == 0 ? 0 : pick(run, 64);
    for (size_t i = 0; i < n; i++) {
        released[i] = run->released[pick(run, held)];
        const struct model_record *record = model_find(&run->model, released[i].id);
        if (record != NULL && pick(run, 4) == 0) {
            released[i].due = pick(run, 2) == 0 ? record->until : record->due;
        } else if (pick(run, 10) == 0) {
            released[i].due += pick(run, 3) - 1;
        } else if (i > 0 && pick(run, 10) == 0) {
            released[i].id = released[i - 1].id;
        }
    }
    assert_int_equal(pick(run, 2) == 0
                         ? model_settle_due(&run->model, run->f.store, released, n)
                         : model_settle_due_by(&run->model, run->f.store, released, n),
                     DW_OK);
}

static void settle_all_but_some(struct run *run) {
    size_t n = 0;
    uint64_t *ids = malloc((run->model.count + 1) * sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < run->model.count; i++) {
        if (pick(run, 10) != 0) {
            ids[n++] = run->model.records[i].id;
        }
    }
    assert_int_equal(model_settle(&run->model, run->f.store, ids, n), DW_OK);
    free(ids);
}

static void note_released(struct run *run) {
    for (uint32_t i = 0; i < run->collected.count; i++) {
        const struct dw_record *record = &run->collected.records[i];
        run->released[run->taken++ % RELEASED] =
            (struct dw_id_due){.id = record->id, .due = record->due};
    }
}

static void take_some(struct run *run) {
    const uint32_t max_n = (uint32_t)(pick(run, 5) == 0 ? 1000 : pick(run, 30));
    const uint64_t max_bytes = pick(run, 4) == 0 ? pick(run, 3000) : 1 << 24;
    assert_int_equal(model_take(&run->model, run->f.store, run->now, max_n, max_bytes,
                                &run->collected),
                     DW_OK);
    note_released(run);
}

static void take_without_memory(struct run *run) {
    run->collected.refuse_at = (uint32_t)(1 + pick(run, 5));
    run->collected.refused = 0;
    int result = model_take(&run->model, run->f.store, run->now, 20, 1 << 20, &run->collected);
    assert_int_equal(result, run->collected.refused > 0 ? DW_ENOMEM : DW_OK);
    run->collected.refuse_at = 0;
}

static void move_clock(struct run *run) {
    switch (pick(run, 12)) {
    case 0:
        run->now -= pick(run, 3600000);
        break;
    case 1:
        run->now += pick(run, 3600000);
        break;
    case 2:
        run->now += pick(run, 40) == 0 ? some_delay(run) : 0;
        break;
    default:
        run->now += pick(run, 3000);
        break;
    }
}

static void maintain(struct run *run) {
    bool more = true;
    for (uint64_t i = 1 + pick(run, 6); more && i > 0; i--) {
        assert_int_equal(dw_store_maintain(run->f.store, run->now, 1 + pick(run, 100000), &more),
                         DW_OK);
    }
}

static const char *snapshot_path(struct run *run, unsigned number) {
    char name[32];
    snprintf(name, sizeof name, "snapshot%u", number % SNAPSHOTS);
    return fixture_path(&run->f, name);
}

static void checkpoint(struct run *run, bool snapshot) {
    const char *path = NULL;
    if (snapshot) {
        path = snapshot_path(run, run->snapshots);
        remove_dir(path);
    }
    dw_checkpoint *one, *other;
    assert_int_equal(dw_store_checkpoint(run->f.store, &one), DW_OK);
    assert_int_equal(dw_store_checkpoint(run->f.store, &other), DW_EINVAL);
    const uint64_t applied = run->model.index;
    /* What happens before it is finished does not belong to it. */
    if (pick(run, 2) == 0) {
        insert_some(run);
        settle_some(run, pick(run, 2) == 0);
        if (pick(run, 8) == 0) {
            assert_int_equal(model_purge(&run->model, run->f.store), DW_OK);
        }
        maintain(run);
        assert_int_equal(dw_store_flush(run->f.store), DW_OK);
    }
    assert_int_equal(dw_checkpoint_applied(one), applied);
    assert_int_equal(dw_checkpoint_finish(one, path), DW_OK);
    dw_checkpoint_release(one);
    uint64_t seen;
    assert_int_equal(dw_store_peek_applied(run->f.dir, &seen), DW_OK);
    assert_int_equal(seen, applied);
    if (snapshot) {
        assert_int_equal(dw_store_validate(path, &seen), DW_OK);
        assert_int_equal(seen, applied);
        run->snapshot_applied[run->snapshots++ % SNAPSHOTS] = applied;
    }
}

static void open_again(struct run *run) {
    run->f.config.now_ms = run->now;
    run->f.config.max_open_files = (uint32_t)(8 + pick(run, 20));
    fixture_open(&run->f);
    assert_int_equal(run->f.report.corrupt_records, 0);
    assert_int_equal(run->f.report.rebuilt_indexes, 0);
    model_replay(&run->model, run->f.store, pick(run, run->model.index + 1));
    model_compare(&run->model, run->f.store, false);
}

static void reopen(struct run *run) {
    fixture_close(&run->f);
    open_again(run);
}

static void restore(struct run *run) {
    if (run->snapshots == 0) {
        return;
    }
    const unsigned least = run->snapshots < SNAPSHOTS ? 0 : run->snapshots - SNAPSHOTS;
    const unsigned number = least + (unsigned)pick(run, run->snapshots - least);
    fixture_close(&run->f);
    assert_int_equal(dw_store_restore(run->f.dir, snapshot_path(run, number)), DW_OK);
    uint64_t seen;
    assert_int_equal(dw_store_peek_applied(run->f.dir, &seen), DW_OK);
    assert_int_equal(seen, run->snapshot_applied[number % SNAPSHOTS]);
    open_again(run);
    assert_int_equal(run->f.report.applied, seen);
    /* The other snapshots are as good as they were. */
    for (unsigned i = least; i < run->snapshots; i++) {
        assert_int_equal(dw_store_validate(snapshot_path(run, i), &seen), DW_OK);
        assert_int_equal(seen, run->snapshot_applied[i % SNAPSHOTS]);
    }
}

static void step(struct run *run) {
    dw_store *store = run->f.store;
    const uint64_t choice = pick(run, 1000);
    if (choice < 180) {
        insert_some(run);
    } else if (choice < 250) {
        insert_keyed(run);
    } else if (choice < 450) {
        take_some(run);
    } else if (choice < 470) {
        take_without_memory(run);
    } else if (choice < 520) {
        settle_released(run);
    } else if (choice < 570) {
        settle_some(run, true);
    } else if (choice < 640) {
        settle_some(run, false);
    } else if (choice < 645) {
        settle_all_but_some(run);
    } else if (choice < 647) {
        assert_int_equal(model_purge(&run->model, store), DW_OK);
    } else if (choice < 700) {
        model_postpone(&run->model, store, taken_id(run), run->now - 1000 + some_delay(run));
    } else if (choice < 730) {
        model_reschedule(&run->model, store, some_id(run), run->now - 1000 + some_delay(run));
    } else if (choice < 740) {
        assert_int_equal(model_untake(&run->model, store), DW_OK);
    } else if (choice < 750) {
        model_note(&run->model, store);
    } else if (choice < 830) {
        move_clock(run);
    } else if (choice < 880) {
        maintain(run);
    } else if (choice < 940) {
        assert_int_equal(dw_store_flush(store), DW_OK);
    } else if (choice < 965) {
        checkpoint(run, pick(run, 2) == 0);
    } else if (choice < 985) {
        reopen(run);
    } else if (choice < 990) {
        restore(run);
    } else {
        model_compare(&run->model, store, true);
    }
}

static void run_sequence(uint64_t seed, unsigned steps) {
    struct run run = {.random = seed * 2 + 1, .now = 1700000000000};
    print_message("seed %" PRIu64 "\n", seed);
    for (int i = 0; i < 4; i++) {
        model_random(&run.random);
    }
    fixture_init(&run.f);
    run.f.config.partition_bytes = pick(&run, 3) == 0 ? 20000 : 0;
    run.f.config.split_bytes = pick(&run, 2) == 0 ? 2000 : 100;
    fixture_open(&run.f);
    for (unsigned i = 0; i < steps; i++) {
        step(&run);
        struct dw_stat stat;
        assert_int_equal(dw_store_stat(run.f.store, &stat), DW_OK);
        assert_int_equal(stat.applied, run.model.index);
        assert_int_equal(stat.digest, model_digest(&run.model));
    }
    model_compare(&run.model, run.f.store, true);
    assert_int_equal(run.f.logged[DW_LOG_ERROR], 0);
    fixture_end(&run.f);
    model_free(&run.model);
    collected_free(&run.collected);
}

static void test_random_sequences(void **state) {
    (void)state;
    const unsigned rounds = fixture_rounds(12);
    const char *seed = getenv("DW_TEST_SEED");
    if (seed != NULL) {
        run_sequence(strtoull(seed, NULL, 10), 2000);
        return;
    }
    for (unsigned i = 0; i < rounds; i++) {
        run_sequence(i, 2000);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_sequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

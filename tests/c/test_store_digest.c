/* SPDX-License-Identifier: MPL-2.0 */
/* The digest of what is pending: the same whenever two replicas have applied the same of a log,
 * whatever else each has done meanwhile, and another one if a single record differs in anything. */
#include "dw_digest.h"
#include "store_fixture.h"
#include "store_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NOW UINT64_C(1700000000000)

/* --------------------------------------------------------------- of records */

/* The mix is SplitMix64's, by the outputs that are published with it; and what is made of it has
 * been worked out elsewhere. Replicas of different versions compare them. */
static void test_never_changes(void **state) {
    (void)state;
    const uint64_t golden = UINT64_C(0x9E3779B97F4A7C15);
    assert_true(dw_digest_mix(1234567 + golden) == UINT64_C(6457827717110365317));
    assert_true(dw_digest_mix(1234567 + 2 * golden) == UINT64_C(3203168211198807973));
    assert_true(dw_digest_of(1 << 16, NOW, 0, 1) == UINT64_C(0x2A19C7E9CD91C6BC));
    assert_true(dw_digest_of(1 << 16 | 1, NOW, 0, 1) == UINT64_C(0x11D3A2828A487F64));
    assert_true(dw_digest_of(UINT64_MAX - 1, DW_DUE_MAX, UINT64_MAX, INT32_MAX) ==
                UINT64_C(0x34A8AC8B896F1C8D));
    assert_true(dw_digest_of(7 << 16, 0, 12345, 1024) == UINT64_C(0x458128A0AA4BFD80));
}

static uint64_t digest_of(dw_store *store) {
    struct dw_stat stat;
    assert_int_equal(dw_store_stat(store, &stat), DW_OK);
    return stat.digest;
}

/* Of a store with these records under one index. */
static uint64_t digest_with(uint64_t index, const struct model_new_record *records, size_t n) {
    struct fixture f;
    struct dw_inserted out;
    size_t bytes;
    fixture_init(&f);
    fixture_open(&f);
    assert_true(digest_of(f.store) == 0);
    uint8_t *batch = model_batch(index, records, n, &bytes);
    assert_int_equal(dw_store_insert(f.store, index, NOW, batch, bytes, &out), DW_OK);
    free(batch);
    assert_null(dw_store_check(f.store));
    const uint64_t digest = digest_of(f.store);
    fixture_end(&f);
    return digest;
}

/* Each field of each of three, by one bit, and two that have exchanged one. */
static void test_one_differs(void **state) {
    (void)state;
    const struct model_new_record records[] = {
        {.when = 1000, .length = 8},
        {.when = 2000, .key_hash = 5, .length = 64},
        {.when = 3000, .key_hash = 9, .length = 16},
    };
    enum { N = sizeof records / sizeof *records };
    uint64_t seen[64];
    size_t n = 0;
    seen[n++] = digest_with(1, records, N);
    seen[n++] = digest_with(2, records, N);
    seen[n++] = digest_with(1, records, N - 1);
    for (size_t i = 0; i < N; i++) {
        struct model_new_record other[N];
        memcpy(other, records, sizeof records);
        other[i].when ^= 1;
        seen[n++] = digest_with(1, other, N);
        memcpy(other, records, sizeof records);
        other[i].key_hash ^= UINT64_C(1) << 63;
        seen[n++] = digest_with(1, other, N);
        memcpy(other, records, sizeof records);
        other[i].length ^= 1;
        seen[n++] = digest_with(1, other, N);
        memcpy(other, records, sizeof records);
        other[i].when = records[(i + 1) % N].when;
        other[(i + 1) % N].when = records[i].when;
        seen[n++] = digest_with(1, other, N);
        memcpy(other, records, sizeof records);
        other[i].length = records[(i + 1) % N].length;
        other[(i + 1) % N].length = records[i].length;
        seen[n++] = digest_with(1, other, N);
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++) {
            assert_true(seen[i] != seen[j]);
        }
    }
    struct model_new_record same[N];
    memcpy(same, records, sizeof records);
    same[0].encoding = 7;
    same[1].when += NOW;
    same[1].absolute = true;
    assert_true(digest_with(1, same, N) == seen[0]);
}

/* -------------------------------------------------------------- of replicas */

enum { CHANGES = 150, SNAPSHOTS = 3 };

struct leader {
    struct fixture f;
    struct model model;
    uint64_t random;
    uint64_t digests[CHANGES + 1]; /* by index */
};

struct replica {
    struct fixture f;
    const struct leader *leader;
    struct collected collected;
    uint64_t random;
    uint64_t now;
};

static uint64_t pick(uint64_t *random, uint64_t below) {
    return model_random(random) % below;
}

static const char *snapshot_of(const struct leader *leader, unsigned number) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/snapshot%u", leader->f.base, number);
    return path;
}

static uint64_t some_delay(uint64_t *random) {
    static const uint64_t scale[] = {50, 5000, 100000, 2000000, 30000000, UINT64_C(5000000000)};
    return pick(random, scale[pick(random, sizeof scale / sizeof *scale)]);
}

static void insert(struct leader *leader, bool keyed) {
    struct model_new_record records[20];
    const size_t n = 1 + pick(&leader->random, 20);
    for (size_t i = 0; i < n; i++) {
        const enum dw_on_key on_key =
            keyed ? (enum dw_on_key)pick(&leader->random, DW_RELEASE + 1) : DW_KEEP;
        records[i] = (struct model_new_record){
            .when = some_delay(&leader->random),
            .key_hash = (keyed ? 1 : 0) + pick(&leader->random, 6),
            .length = model_is_empty(on_key) ? 0 : (uint32_t)(1 + pick(&leader->random, 500)),
            .on_key = on_key,
        };
    }
    assert_int_equal(keyed ? model_insert_keyed(&leader->model, leader->f.store, NOW, records, n)
                           : model_insert(&leader->model, leader->f.store, NOW, records, n),
                     DW_OK);
}

static const struct model_record *some_record(struct leader *leader) {
    return &leader->model.records[pick(&leader->random, leader->model.count)];
}

static void settle(struct leader *leader, bool due) {
    uint64_t ids[8];
    struct dw_id_due released[8];
    for (unsigned i = 0; i < 8; i++) {
        const struct model_record *record = some_record(leader);
        ids[i] = record->id;
        released[i] = (struct dw_id_due){record->id, record->due + pick(&leader->random, 2)};
    }
    const bool by = pick(&leader->random, 2) == 0;
    assert_int_equal(!due ? model_settle(&leader->model, leader->f.store, ids, 8)
                     : by ? model_settle_due_by(&leader->model, leader->f.store, released, 8)
                          : model_settle_due(&leader->model, leader->f.store, released, 8),
                     DW_OK);
}

static void reschedule_many(struct leader *leader) {
    struct dw_id_due dues[8];
    uint64_t moved;
    for (unsigned i = 0; i < 8; i++) {
        dues[i] = (struct dw_id_due){some_record(leader)->id, NOW + some_delay(&leader->random)};
    }
    assert_int_equal(dw_store_reschedule_many(leader->f.store, leader->model.index + 1, dues, 8,
                                              &moved),
                     DW_OK);
    model_reschedule_many(&leader->model, dues, 8);
}

static void lead(struct leader *leader) {
    const uint64_t choice = leader->model.count == 0 ? 0 : pick(&leader->random, 10);
    if (choice < 3) {
        insert(leader, false);
    } else if (choice == 3) {
        insert(leader, true);
    } else if (choice < 6) {
        settle(leader, choice == 4);
    } else if (choice < 8) {
        model_reschedule(&leader->model, leader->f.store, some_record(leader)->id,
                         NOW + some_delay(&leader->random));
    } else if (choice == 8 && pick(&leader->random, 20) == 0) {
        assert_int_equal(model_purge(&leader->model, leader->f.store), DW_OK);
    } else if (choice == 8) {
        reschedule_many(leader);
    } else {
        model_note(&leader->model, leader->f.store);
    }
    assert_null(dw_store_check(leader->f.store));
    leader->digests[leader->model.index] = digest_of(leader->f.store);
}

static void check_digest(const struct replica *replica) {
    assert_true(digest_of(replica->f.store) ==
                replica->leader->digests[dw_store_applied(replica->f.store)]);
}

static void check(const struct replica *replica) {
    assert_null(dw_store_check(replica->f.store));
    check_digest(replica);
}

/* All changes up to that index, of which the store has had some. */
static void follow(struct replica *replica, uint64_t index) {
    for (uint64_t i = 0; i < index; i++) {
        model_apply(replica->f.store, &replica->leader->model.changes[i]);
        check_digest(replica);
    }
    check(replica);
}

static void take_some(struct replica *replica) {
    const struct dw_sink sink = collected_sink(&replica->collected);
    uint64_t next_due;
    replica->now += some_delay(&replica->random) / 10;
    assert_int_equal(dw_store_take(replica->f.store, replica->now,
                                   (uint32_t)(1 + pick(&replica->random, 60)), UINT64_MAX, &sink,
                                   &next_due),
                     DW_OK);
    check(replica);
    for (uint32_t i = 0; i < replica->collected.count; i++) {
        if (pick(&replica->random, 2) == 0) {
            assert_int_equal(dw_store_postpone(replica->f.store, replica->collected.records[i].id,
                                               replica->now + some_delay(&replica->random)),
                             DW_OK);
        }
    }
}

static void maintain(struct replica *replica) {
    bool more = true;
    replica->now += some_delay(&replica->random) / 10;
    while (more) {
        assert_int_equal(dw_store_maintain(replica->f.store, replica->now, 1, &more), DW_OK);
    }
}

static void open_again(struct replica *replica) {
    replica->f.config.now_ms = replica->now;
    fixture_open(&replica->f);
    check(replica);
}

/* What is this replica's own affair; *index: how far it is in the log. */
static void disturb(struct replica *replica, uint64_t *index) {
    switch (pick(&replica->random, 8)) {
    case 0:
    case 1:
        take_some(replica);
        break;
    case 2:
        assert_int_equal(dw_store_untake(replica->f.store), DW_OK);
        break;
    case 3:
        maintain(replica);
        break;
    case 4:
        assert_int_equal(fixture_checkpoint(&replica->f, NULL), DW_OK);
        break;
    case 5:
        fixture_close(&replica->f);
        open_again(replica);
        break;
    case 6:
        fixture_close(&replica->f);
        assert_int_equal(dw_store_restore(replica->f.dir,
                                          snapshot_of(replica->leader,
                                                      (unsigned)pick(&replica->random, SNAPSHOTS))),
                         DW_OK);
        open_again(replica);
        break;
    default:
        assert_int_equal(dw_store_flush(replica->f.store), DW_OK);
        break;
    }
    check(replica);
    if (*index < dw_store_applied(replica->f.store)) {
        *index = dw_store_applied(replica->f.store);
    }
    follow(replica, *index);
}

static void run_replica(const struct leader *leader, uint64_t seed) {
    struct replica replica = {.leader = leader, .random = seed, .now = NOW};
    fixture_init(&replica.f);
    replica.f.config.partition_bytes = seed % 2 == 0 ? 20000 : 0;
    replica.f.config.split_bytes = 500;
    fixture_open(&replica.f);
    uint64_t index = 0;
    while (index < CHANGES) {
        follow(&replica, ++index);
        if (pick(&replica.random, 3) == 0) {
            disturb(&replica, &index);
        }
    }
    assert_int_equal(dw_store_applied(replica.f.store), CHANGES);
    fixture_end(&replica.f);
    collected_free(&replica.collected);
}

static void test_replicas(void **state) {
    (void)state;
    for (unsigned round = 0; round < fixture_rounds(4); round++) {
        struct leader *leader = calloc(1, sizeof *leader);
        assert_non_null(leader);
        leader->random = 2 * round + 1;
        fixture_init(&leader->f);
        leader->f.config.split_bytes = 2000;
        fixture_open(&leader->f);
        for (unsigned i = 1; i <= CHANGES; i++) {
            lead(leader);
            if (i % (CHANGES / SNAPSHOTS) == 0) {
                assert_int_equal(fixture_checkpoint(&leader->f,
                                                    snapshot_of(leader,
                                                                i / (CHANGES / SNAPSHOTS) - 1)),
                                 DW_OK);
            }
        }
        run_replica(leader, 10 * round + 10);
        run_replica(leader, 10 * round + 11);
        fixture_end(&leader->f);
        model_free(&leader->model);
        free(leader);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_never_changes),
        cmocka_unit_test(test_one_differs),
        cmocka_unit_test(test_replicas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

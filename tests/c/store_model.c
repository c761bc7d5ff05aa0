/* SPDX-License-Identifier: MPL-2.0 */
/* Longer than other files are, as a model of all that a store does is in it. */
#include "store_model.h"

#include "dw_le.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

uint64_t model_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(0x2545F4914F6CDD1D);
}

void model_body(uint64_t id, uint32_t length, uint8_t *out) {
    uint64_t state = id * UINT64_C(0x9E3779B97F4A7C15) + 1;
    for (uint32_t i = 0; i < length; i++) {
        if (i % 8 == 0) {
            state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
        }
        out[i] = (uint8_t)(state >> (8 * (i % 8)));
    }
}

/* --------------------------------------------------------------- collected */

void collected_free(struct collected *collected) {
    free(collected->records);
    free(collected->corrupt);
    free(collected->body);
    *collected = (struct collected){0};
}

static void collected_add(struct collected *collected, const struct dw_record *record,
                          bool corrupt) {
    if (collected->count == collected->capacity) {
        collected->capacity = 2 * collected->capacity + 16;
        collected->records =
            realloc(collected->records, collected->capacity * sizeof *collected->records);
        collected->corrupt =
            realloc(collected->corrupt, collected->capacity * sizeof *collected->corrupt);
        assert_non_null(collected->records);
        assert_non_null(collected->corrupt);
    }
    collected->records[collected->count] = *record;
    collected->corrupt[collected->count++] = corrupt;
}

static void *collected_body(void *ctx, const struct dw_record *record) {
    struct collected *collected = ctx;
    if (collected->refuse_at != 0 && collected->count + 1 == collected->refuse_at) {
        collected->refused++;
        return NULL;
    }
    free(collected->body);
    collected->body = malloc(record->length);
    assert_non_null(collected->body);
    return collected->body;
}

static void collected_done(void *ctx, const struct dw_record *record) {
    struct collected *collected = ctx;
    uint8_t *expected = malloc(record->length);
    assert_non_null(expected);
    model_body(record->id, record->length, expected);
    assert_memory_equal(collected->body, expected, record->length);
    free(expected);
    collected_add(collected, record, false);
}

static void collected_corrupt(void *ctx, const struct dw_record *record, const char *file,
                              uint64_t offset) {
    struct collected *collected = ctx;
    collected_add(collected, record, true);
    snprintf(collected->file, sizeof collected->file, "%s", file);
    collected->offset = offset;
}

struct dw_sink collected_sink(struct collected *collected) {
    collected->count = 0;
    return (struct dw_sink){collected_body, collected_done, collected_corrupt, collected};
}

/* ------------------------------------------------------------------- model */

void model_free(struct model *model) {
    for (size_t i = 0; i < model->change_count; i++) {
        free(model->changes[i].bytes);
    }
    free(model->changes);
    free(model->records);
    *model = (struct model){0};
}

struct model_record *model_find(const struct model *model, uint64_t id) {
    for (size_t i = 0; i < model->count; i++) {
        if (model->records[i].id == id) {
            return &model->records[i];
        }
    }
    return NULL;
}

uint64_t model_next_due(const struct model *model) {
    uint64_t next = DW_NEVER;
    for (size_t i = 0; i < model->count; i++) {
        if (!model->records[i].taken && model->records[i].until < next) {
            next = model->records[i].until;
        }
    }
    return next;
}

/* As dw_digest.h says it is made. */
uint64_t model_digest(const struct model *model) {
    uint64_t digest = 0;
    for (size_t i = 0; i < model->count; i++) {
        const struct model_record *record = &model->records[i];
        const uint64_t golden = UINT64_C(0x9E3779B97F4A7C15);
        const uint64_t fields[] = {record->id + golden, record->key_hash,
                                   record->due + record->length * golden};
        uint64_t x = 0;
        for (unsigned j = 0; j < 3; j++) {
            x += fields[j];
            x ^= x >> 30;
            x *= UINT64_C(0xBF58476D1CE4E5B9);
            x ^= x >> 27;
            x *= UINT64_C(0x94D049BB133111EB);
            x ^= x >> 31;
        }
        digest += x;
    }
    return digest;
}

uint8_t *model_batch(uint64_t index, const struct model_new_record *records, size_t n,
                     size_t *bytes) {
    *bytes = 0;
    for (size_t i = 0; i < n; i++) {
        *bytes += 24 + (size_t)records[i].length;
    }
    uint8_t *batch = malloc(*bytes + 1);
    assert_non_null(batch);
    uint8_t *p = batch;
    for (size_t i = 0; i < n; i++) {
        dw_le32_put(p, records[i].length);
        dw_le16_put(p + 4, (uint16_t)(records[i].absolute | (unsigned)records[i].on_key << 1));
        dw_le16_put(p + 6, records[i].encoding);
        dw_le64_put(p + 8, records[i].when);
        dw_le64_put(p + 16, records[i].key_hash);
        model_body(index << 16 | i, records[i].length, p + 24);
        p += 24 + (size_t)records[i].length;
    }
    return batch;
}

static struct model_change *add_change(struct model *model, struct model_change change) {
    if (model->change_count == model->change_capacity) {
        model->change_capacity = 2 * model->change_capacity + 64;
        model->changes = realloc(model->changes, model->change_capacity * sizeof *model->changes);
        assert_non_null(model->changes);
    }
    model->index = change.index;
    model->changes[model->change_count] = change;
    return &model->changes[model->change_count++];
}

int model_apply(dw_store *store, const struct model_change *change) {
    struct dw_inserted inserted;
    struct dw_keyed keyed;
    uint64_t removed, taken;
    switch (change->kind) {
    case MODEL_INSERT_KEYED:
        return dw_store_insert_keyed(store, change->index, change->base_ms, change->bytes,
                                     change->length, DW_KEYED_2, &keyed);
    case MODEL_INSERT:
        return dw_store_insert(store, change->index, change->base_ms, change->bytes, change->length,
                               &inserted);
    case MODEL_SETTLE:
        return dw_store_settle(store, change->index, (const uint64_t *)(void *)change->bytes,
                               change->length, &removed);
    case MODEL_SETTLE_DUE:
        return dw_store_settle_due(store, change->index,
                                   (const struct dw_id_due *)(void *)change->bytes, change->length,
                                   &removed);
    case MODEL_SETTLE_DUE_BY:
        return dw_store_settle_due_by(store, change->index,
                                      (const struct dw_id_due *)(void *)change->bytes,
                                      change->length, &removed);
    case MODEL_PURGE:
        return dw_store_purge(store, change->index, &removed, &taken);
    case MODEL_RESCHEDULE:
        return dw_store_reschedule(store, change->index, change->id, change->due);
    case MODEL_RESCHEDULE_MANY:
        return dw_store_reschedule_many(store, change->index,
                                        (const struct dw_id_due *)(void *)change->bytes,
                                        change->length, &removed);
    default:
        dw_store_note(store, change->index);
        return DW_OK;
    }
}

static uint64_t due_of(uint64_t base_ms, const struct model_new_record *record) {
    uint64_t due = record->when;
    if (!record->absolute) {
        due = record->when > DW_DUE_MAX ? DW_DUE_MAX : base_ms + record->when;
    }
    return due > DW_DUE_MAX ? DW_DUE_MAX : due;
}

static void add_record(struct model *model, struct model_record record) {
    if (model->count == model->capacity) {
        model->capacity = 2 * model->capacity + 256;
        model->records = realloc(model->records, model->capacity * sizeof *model->records);
        assert_non_null(model->records);
    }
    model->records[model->count++] = record;
}

static void remove_record(struct model *model, struct model_record *record) {
    *record = model->records[--model->count];
}

static void add_new(struct model *model, uint64_t index, size_t i, uint64_t base_ms,
                    const struct model_new_record *record) {
    const uint64_t due = due_of(base_ms, record);
    add_record(model, (struct model_record){.id = index << 16 | i,
                                            .due = due,
                                            .until = due,
                                            .key_hash = record->key_hash,
                                            .length = record->length,
                                            .encoding = record->encoding});
}

int model_insert(struct model *model, dw_store *store, uint64_t base_ms,
                 const struct model_new_record *records, size_t n) {
    const uint64_t index = model->index + 1;
    struct model_change change = {.kind = MODEL_INSERT, .index = index, .base_ms = base_ms};
    change.bytes = model_batch(index, records, n, &change.length);
    if (store != NULL) {
        struct dw_inserted out;
        int result = dw_store_insert(store, index, base_ms, change.bytes, change.length, &out);
        if (result != DW_OK) {
            assert_int_equal(out.count, 0);
            free(change.bytes);
            return result;
        }
        assert_int_equal(out.count, n);
        assert_int_equal(out.bytes, change.length - 24 * n);
    }
    add_change(model, change);
    for (size_t i = 0; i < n; i++) {
        add_new(model, index, i, base_ms, &records[i]);
    }
    if (store != NULL && !model->may_break) {
        assert_int_equal(dw_store_next_due(store), model_next_due(model));
    }
    return DW_OK;
}

/* What is pending under the key goes; how many of those were taken, of the others counts itself. */
static uint64_t remove_key(struct model *model, uint64_t key_hash, uint64_t *taken) {
    uint64_t removed = 0;
    for (size_t i = model->count; i-- > 0;) {
        if (model->records[i].key_hash == key_hash) {
            *(model->records[i].taken ? taken : &removed) += 1;
            remove_record(model, &model->records[i]);
        }
    }
    return removed;
}

static bool has_key(const struct model *model, uint64_t key_hash) {
    for (size_t i = 0; i < model->count; i++) {
        if (model->records[i].key_hash == key_hash) {
            return true;
        }
    }
    return false;
}

/* What is pending under the key and due later is due then. */
static void release_key(struct model *model, uint64_t index, uint64_t key_hash, uint64_t due) {
    for (size_t i = 0; i < model->count; i++) {
        struct model_record *record = &model->records[i];
        if (record->key_hash == key_hash && record->due > due) {
            record->due = due;
            record->until = due;
            record->moved = true;
            record->released = index;
        }
    }
}

static struct dw_keyed insert_keyed(struct model *model, uint64_t index, uint64_t base_ms,
                                    const struct model_new_record *records, size_t n) {
    struct dw_keyed out = {0};
    for (size_t i = 0; i < n; i++) {
        const struct model_new_record *record = &records[i];
        if (record->on_key == DW_REPLACE) {
            out.replaced += remove_key(model, record->key_hash, &out.taken);
        } else if (record->on_key == DW_CANCEL) {
            out.cancelled += remove_key(model, record->key_hash, &out.taken);
            continue;
        } else if (record->on_key == DW_RELEASE) {
            release_key(model, index, record->key_hash, base_ms);
            continue;
        } else if (record->on_key == DW_DROP && has_key(model, record->key_hash)) {
            out.dropped++;
            continue;
        }
        add_new(model, index, i, base_ms, record);
    }
    for (size_t i = 0; i < model->count; i++) {
        if (model->records[i].id >> 16 == index) {
            out.inserted.count++;
            out.inserted.bytes += model->records[i].length;
        }
        out.released += model->records[i].released == index;
    }
    return out;
}

int model_insert_keyed(struct model *model, dw_store *store, uint64_t base_ms,
                       const struct model_new_record *records, size_t n) {
    const uint64_t index = model->index + 1;
    struct model_change change = {.kind = MODEL_INSERT_KEYED, .index = index, .base_ms = base_ms};
    struct dw_keyed out;
    change.bytes = model_batch(index, records, n, &change.length);
    enum dw_keyed_version version = DW_KEYED_1;
    for (size_t i = 0; i < n; i++) {
        version = records[i].on_key == DW_RELEASE ? DW_KEYED_2 : version;
    }
    int result =
        dw_store_insert_keyed(store, index, base_ms, change.bytes, change.length, version, &out);
    if (result != DW_OK) {
        assert_int_equal(out.inserted.count + out.cancelled + out.replaced + out.taken, 0);
        free(change.bytes);
        return result;
    }
    add_change(model, change);
    const struct dw_keyed expected = insert_keyed(model, index, base_ms, records, n);
    assert_int_equal(out.inserted.count, expected.inserted.count);
    assert_int_equal(out.inserted.bytes, expected.inserted.bytes);
    assert_int_equal(out.cancelled, expected.cancelled);
    assert_int_equal(out.replaced, expected.replaced);
    assert_int_equal(out.taken, expected.taken);
    assert_int_equal(out.dropped, expected.dropped);
    assert_int_equal(out.released, expected.released);
    assert_int_equal(out.inserted.next_due, model_next_due(model));
    return DW_OK;
}

int model_settle(struct model *model, dw_store *store, const uint64_t *ids, size_t n) {
    struct model_change change = {.kind = MODEL_SETTLE, .index = model->index + 1, .length = n};
    uint64_t removed = 0, expected = 0;
    if (store != NULL) {
        int result = dw_store_settle(store, change.index, ids, n, &removed);
        if (result != DW_OK) {
            assert_int_equal(removed, 0);
            return result;
        }
    }
    change.bytes = malloc(n * sizeof *ids + 1);
    assert_non_null(change.bytes);
    memcpy(change.bytes, ids, n * sizeof *ids);
    add_change(model, change);
    for (size_t i = 0; i < n; i++) {
        struct model_record *record = model_find(model, ids[i]);
        if (record != NULL) {
            expected++;
            remove_record(model, record);
        }
    }
    if (store != NULL) {
        assert_int_equal(removed, expected);
    }
    return DW_OK;
}

static int settle_released(struct model *model, dw_store *store, enum model_kind kind,
                           const struct dw_id_due *released, size_t n) {
    struct model_change change = {.kind = kind, .index = model->index + 1, .length = n};
    const bool by = kind == MODEL_SETTLE_DUE_BY;
    uint64_t removed = 0, expected = 0;
    int result = by ? dw_store_settle_due_by(store, change.index, released, n, &removed)
                    : dw_store_settle_due(store, change.index, released, n, &removed);
    if (result != DW_OK) {
        assert_int_equal(removed, 0);
        return result;
    }
    change.bytes = malloc(n * sizeof *released + 1);
    assert_non_null(change.bytes);
    memcpy(change.bytes, released, n * sizeof *released);
    add_change(model, change);
    for (size_t i = 0; i < n; i++) {
        struct model_record *record = model_find(model, released[i].id);
        if (record != NULL &&
            (record->due == released[i].due || (by && record->due < released[i].due))) {
            expected++;
            remove_record(model, record);
        }
    }
    assert_int_equal(removed, expected);
    return DW_OK;
}

int model_settle_due(struct model *model, dw_store *store, const struct dw_id_due *released,
                     size_t n) {
    return settle_released(model, store, MODEL_SETTLE_DUE, released, n);
}

int model_settle_due_by(struct model *model, dw_store *store, const struct dw_id_due *released,
                        size_t n) {
    return settle_released(model, store, MODEL_SETTLE_DUE_BY, released, n);
}

int model_purge(struct model *model, dw_store *store) {
    const struct model_change change = {.kind = MODEL_PURGE, .index = model->index + 1};
    uint64_t removed, taken, expected_taken = 0;
    int result = dw_store_purge(store, change.index, &removed, &taken);
    if (result != DW_OK) {
        assert_int_equal(removed + taken, 0);
        return result;
    }
    for (size_t i = 0; i < model->count; i++) {
        expected_taken += model->records[i].taken;
    }
    assert_int_equal(removed, model->count);
    assert_int_equal(taken, expected_taken);
    add_change(model, change);
    model->count = 0;
    return DW_OK;
}

int model_reschedule(struct model *model, dw_store *store, uint64_t id, uint64_t due) {
    const struct model_change change = {.kind = MODEL_RESCHEDULE,
                                        .index = model->index + 1,
                                        .id = id,
                                        .due = due};
    struct model_record *record = model_find(model, id);
    int result = record == NULL ? DW_ENOENT : DW_OK;
    if (store != NULL) {
        int got = dw_store_reschedule(store, change.index, id, due);
        if (got != DW_OK && got != DW_ENOENT) {
            return got;
        }
        assert_int_equal(got, result);
    }
    add_change(model, change);
    if (record != NULL) {
        record->due = due > DW_DUE_MAX ? DW_DUE_MAX : due;
        record->until = record->due;
        record->moved = true;
    }
    return result;
}

void model_reschedule_many(struct model *model, const struct dw_id_due *dues, size_t n) {
    struct model_change change = {.kind = MODEL_RESCHEDULE_MANY,
                                  .index = model->index + 1,
                                  .length = n};
    change.bytes = malloc(n * sizeof *dues + 1);
    assert_non_null(change.bytes);
    memcpy(change.bytes, dues, n * sizeof *dues);
    add_change(model, change);
    for (size_t i = 0; i < n; i++) {
        struct model_record *record = model_find(model, dues[i].id);
        if (record != NULL) {
            record->due = dues[i].due > DW_DUE_MAX ? DW_DUE_MAX : dues[i].due;
            record->until = record->due;
            record->moved = true;
        }
    }
}

void model_note(struct model *model, dw_store *store) {
    const struct model_change change = {.kind = MODEL_NOTE, .index = model->index + 1};
    add_change(model, change);
    if (store != NULL) {
        dw_store_note(store, change.index);
    }
}

/* Some that should have come before record `last` but did not. */
static bool is_left_before(const struct model *model, uint64_t until) {
    return model_next_due(model) < until;
}

int model_take(struct model *model, dw_store *store, uint64_t now_ms, uint32_t max_n,
               uint64_t max_bytes, struct collected *collected) {
    const struct dw_sink sink = collected_sink(collected);
    uint64_t next_due;
    int result = dw_store_take(store, now_ms, max_n, max_bytes, &sink, &next_due);
    if (result == DW_EBROKEN) {
        return result;
    }
    uint64_t bytes = 0, last_until = 0, plain_until = 0, plain_id = 0;
    for (uint32_t i = 0; i < collected->count; i++) {
        const struct dw_record *got = &collected->records[i];
        struct model_record *record = model_find(model, got->id);
        assert_non_null(record);
        assert_false(record->taken);
        assert_true(record->until <= now_ms);
        assert_true(record->until >= last_until);
        assert_int_equal(got->due, record->due);
        assert_int_equal(got->key_hash, record->key_hash);
        assert_int_equal(got->length, record->length);
        if (collected->corrupt[i]) {
            assert_true(record->corrupt);
        } else {
            assert_int_equal(got->encoding, record->encoding);
        }
        if (!record->moved) {
            assert_true(record->until > plain_until || record->id > plain_id);
            plain_until = record->until;
            plain_id = record->id;
        }
        last_until = record->until;
        record->taken = true;
        /* No further one once max_bytes are reached. */
        assert_true(bytes < max_bytes || i == 0);
        bytes += record->length;
    }
    assert_true(collected->count <= max_n);
    assert_false(is_left_before(model, last_until));
    assert_int_equal(next_due, model_next_due(model));
    if (result == DW_OK && collected->count < max_n && bytes < max_bytes) {
        assert_true(next_due > now_ms || next_due == DW_NEVER);
    }
    return result;
}

int model_postpone(struct model *model, dw_store *store, uint64_t id, uint64_t until) {
    struct model_record *record = model_find(model, id);
    int result = dw_store_postpone(store, id, until);
    if (result == DW_EBROKEN) {
        return result;
    }
    if (result == DW_ENOMEM) {
        return result;
    }
    assert_int_equal(result, record != NULL && record->taken ? DW_OK : DW_ENOENT);
    if (result == DW_OK) {
        record->taken = false;
        record->until = until > DW_DUE_MAX ? DW_DUE_MAX : until;
        record->moved = true;
    }
    return result;
}

int model_untake(struct model *model, dw_store *store) {
    int result = dw_store_untake(store);
    for (size_t i = 0; result == DW_OK && i < model->count; i++) {
        struct model_record *record = &model->records[i];
        if (record->taken) {
            record->taken = false;
            record->until = record->due;
            record->moved = true;
        }
    }
    return result;
}

void model_replay(struct model *model, dw_store *store, uint64_t from) {
    for (size_t i = 0; i < model->change_count; i++) {
        const uint64_t applied = dw_store_applied(store);
        const struct model_change *change = &model->changes[i];
        if (change->index > from || change->index > applied) {
            int result = model_apply(store, change);
            assert_true(result == DW_OK ||
                        (result == DW_ENOENT && change->kind == MODEL_RESCHEDULE));
            assert_int_equal(dw_store_applied(store),
                             applied > change->index ? applied : change->index);
        }
    }
    assert_int_equal(dw_store_applied(store), model->index);
    for (size_t i = 0; i < model->count; i++) {
        model->records[i].taken = false;
        model->records[i].until = model->records[i].due;
    }
}

/* ----------------------------------------------------------------- compare */

static void compare_stat(const struct model *model, dw_store *store) {
    struct dw_stat stat;
    uint64_t bytes = 0, taken = 0, histogram = 0;
    for (size_t i = 0; i < model->count; i++) {
        bytes += model->records[i].length;
        taken += model->records[i].taken;
    }
    assert_int_equal(dw_store_stat(store, &stat), DW_OK);
    assert_int_equal(stat.pending, model->count);
    assert_int_equal(stat.pending_bytes, bytes);
    assert_int_equal(stat.taken, taken);
    assert_int_equal(stat.next_due, model_next_due(model));
    assert_int_equal(stat.applied, model->index);
    assert_int_equal(stat.digest, model_digest(model));
    for (int i = 0; i < 48; i++) {
        histogram += stat.histogram[i];
    }
    assert_int_equal(histogram, model->count - taken);
    assert_true(stat.dead_bytes <= stat.file_bytes + stat.buffered);
    assert_int_equal(dw_store_next_due(store), stat.next_due);
}

static void compare_pages(const struct model *model, dw_store *store) {
    struct dw_record page[37];
    uint64_t due = 0, id = 0;
    size_t seen = 0;
    uint32_t n;
    do {
        int result = dw_store_page(store, due, id, page, 37, &n);
        assert_int_equal(result, DW_OK);
        for (uint32_t i = 0; i < n; i++) {
            const struct model_record *record = model_find(model, page[i].id);
            assert_non_null(record);
            assert_true(page[i].due > due || (page[i].due == due && page[i].id > id));
            assert_int_equal(page[i].due, record->due);
            assert_int_equal(page[i].key_hash, record->key_hash);
            assert_int_equal(page[i].length, record->length);
            if (!record->corrupt) {
                assert_int_equal(page[i].encoding, record->encoding);
            }
            due = page[i].due;
            id = page[i].id;
        }
        seen += n;
    } while (n > 0);
    assert_int_equal(seen, model->count);
}

/* From the end, and counted: from the due time of one of them on, and up to it. */
static void compare_pages_back(const struct model *model, dw_store *store) {
    struct dw_record page[41];
    uint64_t due = DW_DUE_MAX, id = UINT64_MAX, pivot = 0, count, bytes;
    uint64_t above = 0, above_bytes = 0, below = 0, below_bytes = 0;
    size_t seen = 0;
    uint32_t n;
    do {
        assert_int_equal(dw_store_places(store, due, id, true, page, 41, &n), DW_OK);
        for (uint32_t i = 0; i < n; i++) {
            const struct model_record *record = model_find(model, page[i].id);
            assert_non_null(record);
            assert_true(page[i].due < due || (page[i].due == due && page[i].id < id));
            assert_int_equal(page[i].due, record->due);
            assert_int_equal(page[i].length, record->length);
            due = page[i].due;
            id = page[i].id;
            pivot = seen + i == model->count / 2 ? due : pivot;
        }
        seen += n;
    } while (n > 0);
    assert_int_equal(seen, model->count);
    assert_int_equal(dw_store_places(store, due, id, false, page, 41, &n), DW_OK);
    assert_int_equal(n, model->count == 0 ? 0 : model->count < 42 ? model->count - 1 : 41);
    for (uint32_t i = 1; i < n; i++) {
        assert_true(page[i - 1].due < page[i].due ||
                    (page[i - 1].due == page[i].due && page[i - 1].id < page[i].id));
    }
    for (size_t i = 0; i < model->count; i++) {
        const struct model_record *record = &model->records[i];
        above += record->due >= pivot;
        above_bytes += record->due >= pivot ? record->length : 0;
        below += record->due <= pivot;
        below_bytes += record->due <= pivot ? record->length : 0;
    }
    assert_int_equal(dw_store_count(store, pivot, DW_DUE_MAX, &count, &bytes), DW_OK);
    assert_int_equal(count, above);
    assert_int_equal(bytes, above_bytes);
    assert_int_equal(dw_store_count(store, 0, pivot, &count, &bytes), DW_OK);
    assert_int_equal(count, below);
    assert_int_equal(bytes, below_bytes);
    uint64_t counts[2];
    assert_int_equal(dw_store_count_until(store, &pivot, 1, counts), DW_OK);
    assert_int_equal(counts[0], below);
    assert_int_equal(counts[1], model->count - below);
    assert_int_equal(dw_store_count_until(store, NULL, 0, counts), DW_OK);
    assert_int_equal(counts[0], model->count);
}

static void compare_key(const struct model *model, dw_store *store, uint64_t key_hash) {
    uint64_t *ids = malloc((model->count + 1) * sizeof *ids);
    assert_non_null(ids);
    uint64_t n, expected = 0;
    assert_int_equal(dw_store_find(store, key_hash, ids, (uint32_t)model->count + 1, &n), DW_OK);
    for (size_t i = 0; i < model->count; i++) {
        expected += model->records[i].key_hash == key_hash;
    }
    assert_int_equal(n, expected);
    for (uint64_t i = 0; i < n; i++) {
        const struct model_record *record = model_find(model, ids[i]);
        assert_non_null(record);
        assert_int_equal(record->key_hash, key_hash);
    }
    free(ids);
}

static void compare_bodies(const struct model *model, dw_store *store) {
    struct collected collected = {0};
    for (size_t i = 0; i < model->count; i++) {
        const struct model_record *record = &model->records[i];
        const struct dw_sink sink = collected_sink(&collected);
        assert_int_equal(dw_store_read(store, record->id, &sink), DW_OK);
        assert_int_equal(collected.count, 1);
        assert_int_equal(collected.records[0].id, record->id);
        assert_int_equal(collected.records[0].due, record->due);
        if (collected.corrupt[0]) {
            assert_true(record->corrupt);
        } else {
            assert_int_equal(collected.records[0].encoding, record->encoding);
        }
    }
    collected_free(&collected);
}

void model_compare(const struct model *model, dw_store *store, bool bodies) {
    const char *wrong = dw_store_check(store);
    if (wrong != NULL) {
        fail_msg("%s", wrong);
    }
    compare_stat(model, store);
    compare_pages(model, store);
    compare_pages_back(model, store);
    for (size_t i = 0; i < model->count; i += 1 + model->count / 8) {
        if (model->records[i].key_hash != 0) {
            compare_key(model, store, model->records[i].key_hash);
        }
    }
    if (bodies) {
        compare_bodies(model, store);
    }
}

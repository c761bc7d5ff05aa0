/* SPDX-License-Identifier: MPL-2.0 */
#include "store_damage.h"

#include "dw_store_internal.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void insert_n(struct sound *sound, size_t n, uint64_t delay, uint64_t step,
                     uint32_t length) {
    struct model_new_record records[300];
    const size_t before = sound->model.count;
    assert_true(n <= 300 && sound->count + n <= SOUND_EVER);
    for (size_t i = 0; i < n; i++) {
        records[i] = (struct model_new_record){.when = delay + i * step,
                                               .key_hash = i % 3,
                                               .length = length,
                                               .encoding = (uint16_t)i};
    }
    assert_int_equal(model_insert(&sound->model, sound->f.store, SOUND_NOW, records, n), DW_OK);
    memcpy(sound->ever + sound->count, sound->model.records + before, n * sizeof *sound->ever);
    sound->count += n;
}

static void settle_every(struct sound *sound, uint64_t index, unsigned from, unsigned to,
                         unsigned step) {
    uint64_t ids[64];
    size_t n = 0;
    for (unsigned i = from; i < to && n < 64; i += step) {
        ids[n++] = index << 16 | i;
    }
    assert_int_equal(model_settle(&sound->model, sound->f.store, ids, n), DW_OK);
}

static void reschedule(struct sound *sound, uint64_t id, uint64_t due) {
    assert_int_equal(model_reschedule(&sound->model, sound->f.store, id, due), DW_OK);
}

void sound_make(struct sound *sound) {
    bool more;
    fixture_init(&sound->f);
    sound->f.config.split_bytes = 1000;
    fixture_open(&sound->f);
    insert_n(sound, 40, 0, 3000, 300);
    insert_n(sound, 12, 3000000, 100000, 4000);
    insert_n(sound, 300, 3000000, 10, 500);
    insert_n(sound, 10, UINT64_C(200000000), 1, 100);
    settle_every(sound, 1, 0, 40, 3);
    settle_every(sound, 3, 0, 300, 7);
    reschedule(sound, 1 << 16 | 1, SOUND_NOW + 5);
    reschedule(sound, UINT64_C(3) << 16 | 290, SOUND_NOW + 3000001);
    reschedule(sound, UINT64_C(3) << 16 | 291, SOUND_NOW + 70);
    reschedule(sound, UINT64_C(3) << 16 | 5, SOUND_NOW + UINT64_C(200000000));
    reschedule(sound, UINT64_C(4) << 16 | 2, SOUND_NOW + 3000000);
    assert_int_equal(fixture_checkpoint(&sound->f, NULL), DW_OK);
    assert_int_equal(dw_store_maintain(sound->f.store, SOUND_NEAR, 1, &more), DW_OK);
    assert_true(more);
    assert_int_equal(fixture_checkpoint(&sound->f, NULL), DW_OK);
    model_compare(&sound->model, sound->f.store, true);
    fixture_close(&sound->f);
}

void sound_end(struct sound *sound) {
    fixture_end(&sound->f);
    model_free(&sound->model);
}

/* The files of the partition that has most records, and is moved in part. */
static const char *big(const char *dir, const char *ending) {
    static char paths[4][PATH_MAX];
    static unsigned next;
    char name[256], *path = paths[next++ % 4];
    uint64_t most = 0;
    const unsigned count = count_files(dir, ".rec");
    for (unsigned i = 0; i < count; i++) {
        char other[PATH_MAX];
        nth_file(dir, ".rec", i, name);
        snprintf(other, sizeof other, "%s/%s", dir, name);
        if (file_size(other) > most) {
            most = file_size(other);
            snprintf(path, PATH_MAX, "%.*s%s", (int)strlen(other) - 4, other, ending);
        }
    }
    return path;
}

uint8_t *file_contents(const char *path, size_t *size) {
    int fd = open(path, O_RDONLY);
    *size = (size_t)file_size(path);
    uint8_t *bytes = malloc(*size + 1);
    assert_true(fd >= 0 && bytes != NULL);
    assert_int_equal(read(fd, bytes, *size), *size);
    close(fd);
    return bytes;
}

/* Where the n-th record from the end begins, from 0. Of the last forty, the 5th, 12th, 19th ... are
 * dead. */
static uint64_t record_from_end(const char *path, unsigned n) {
    size_t size, count = 0;
    uint64_t begins[SOUND_EVER];
    uint8_t *bytes = file_contents(path, &size);
    struct dw_rec_header header;
    for (size_t at = DW_FILE_HEADER; at + DW_REC_HEADER <= size && count < SOUND_EVER;
         at += (size_t)dw_rec_bytes(header.length)) {
        assert_true(dw_rec_decode(bytes + at, &header));
        begins[count++] = at;
    }
    free(bytes);
    assert_true(n < count);
    return begins[count - 1 - n];
}

/* Where the first entry of the index is that is of this kind, and of the record that begins there
 * unless that is 0. */
static uint64_t index_entry(const char *path, enum dw_idx_kind kind, uint64_t record) {
    size_t size;
    uint8_t *bytes = file_contents(path, &size);
    uint64_t found = 0;
    for (size_t at = DW_FILE_HEADER; found == 0 && at + DW_IDX_ENTRY <= size; at += DW_IDX_ENTRY) {
        struct dw_idx_entry entry;
        dw_idx_decode(bytes + at, &entry);
        if (entry.kind == kind && (record == 0 || entry.off * (uint64_t)DW_REC_UNIT == record)) {
            found = at;
        }
    }
    free(bytes);
    assert_true(found > 0);
    return found;
}

/* --------------------------------------------------------------------- damages */

static void flip_added(const char *dir) {
    const uint64_t record = record_from_end(big(dir, ".rec"), 9);
    flip_bit(big(dir, ".idx"), index_entry(big(dir, ".idx"), DW_IDX_ADDED, record) + 17, 3);
}

static void flip_dead(const char *dir) {
    flip_bit(big(dir, ".idx"), index_entry(big(dir, ".idx"), DW_IDX_DEAD, 0) + 9, 3);
}

static void flip_index_header(const char *dir) {
    flip_bit(big(dir, ".idx"), 20, 1);
}

static void cut_index(const char *dir) {
    const char *path = big(dir, ".idx");
    assert_int_equal(truncate(path, (off_t)(file_size(path) / 2 + 7)), 0);
}

static void lose_index(const char *dir) {
    assert_int_equal(unlink(big(dir, ".idx")), 0);
}

static void lose_all_indexes(const char *dir) {
    char name[256], path[PATH_MAX];
    while (count_files(dir, ".idx") > 0) {
        nth_file(dir, ".idx", 0, name);
        snprintf(path, sizeof path, "%s/%s", dir, name);
        assert_int_equal(unlink(path), 0);
    }
}

static void flip_bodies(const char *dir) {
    const char *path = big(dir, ".rec");
    const uint64_t at[] = {record_from_end(path, 4), record_from_end(path, 6),
                           record_from_end(path, 30)};
    for (unsigned i = 0; i < 3; i++) {
        flip_bit(path, at[i] + DW_REC_HEADER + 100 * i, i);
    }
}

static void flip_record_headers(const char *dir) {
    const char *path = big(dir, ".rec");
    const uint64_t at[] = {record_from_end(path, 8), record_from_end(path, 11),
                           record_from_end(path, 13)};
    for (unsigned i = 0; i < 3; i++) {
        flip_bit(path, at[i] + 10 * i, i);
    }
}

static void cut_records(const char *dir) {
    const char *path = big(dir, ".rec");
    assert_int_equal(truncate(path, (off_t)record_from_end(path, 3) + 100), 0);
}

static void lose_records(const char *dir) {
    assert_int_equal(unlink(big(dir, ".rec")), 0);
}

static void flip_record_file_header(const char *dir) {
    flip_bit(big(dir, ".rec"), 17, 1);
}

static void flip_added_and_records(const char *dir) {
    const char *rec = big(dir, ".rec"), *idx = big(dir, ".idx");
    const uint64_t at[] = {record_from_end(rec, 10), record_from_end(rec, 11),
                           record_from_end(rec, 13)};
    for (unsigned i = 0; i < 3; i++) {
        flip_bit(idx, index_entry(idx, DW_IDX_ADDED, at[i]) + 17, 3);
        flip_bit(rec, at[i] + 20, i);
    }
}

static void lose_index_and_flip(const char *dir) {
    flip_bodies(dir);
    const char *path = big(dir, ".rec");
    const uint64_t at[] = {record_from_end(path, 8), record_from_end(path, 13)};
    for (unsigned i = 0; i < 2; i++) {
        flip_bit(path, at[i] + 20, i);
    }
    lose_index(dir);
}

static void cut_index_and_flip(const char *dir) {
    flip_bodies(dir);
    cut_index(dir);
}

static void cut_both(const char *dir) {
    cut_records(dir);
    cut_index(dir);
}

const struct damage damages[DAMAGES] = {
    {"an added entry of an index", flip_added, .rebuilt = 1},
    {"a note of dead records", flip_dead, .rebuilt = 1},
    {"the head of an index", flip_index_header, .rebuilt = 1},
    {"an index cut off", cut_index, .rebuilt = 1},
    {"an index missing", lose_index, .rebuilt = 1},
    {"all indexes missing", lose_all_indexes, .rebuilt = UINT_MAX},
    {"bodies", flip_bodies, .corrupt = 3},
    {"heads of records", flip_record_headers, .corrupt = 3},
    {"records cut off", cut_records, .corrupt = 4},
    {"records missing", lose_records, .corrupt = UINT_MAX, .out_of_reach = true},
    {"the head of the records' file", flip_record_file_header, .rebuilt = 0},
    {"records and their entries", flip_added_and_records, .rebuilt = 1, .lost = 3},
    {"records, and the index missing", lose_index_and_flip, .rebuilt = 1, .lost = 2, .corrupt = 3},
    {"bodies, and the index cut off", cut_index_and_flip, .rebuilt = 1, .corrupt = 3},
    {"records and index cut off", cut_both, .rebuilt = 1, .lost = 4},
};

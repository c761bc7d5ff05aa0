/* SPDX-License-Identifier: MPL-2.0 */
/* Formats of the partition files, slices of due time, the cache of descriptors, buffered streams,
 * states. */
#include "dw_partition.h"
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
#include <unistd.h>

#include <cmocka.h>

/* ----------------------------------------------------------------- formats */

static const struct dw_rec_header some_header = {
    .id = UINT64_C(0x123456789abcdef0),
    .due = DW_DUE_MAX - 5,
    .key_hash = UINT64_C(0xfedcba9876543210),
    .index = 77,
    .length = 1234,
    .body_crc = 0xdeadbeef,
    .encoding = 0xabcd,
};

static void test_record_header(void **state) {
    uint8_t bytes[DW_REC_HEADER];
    struct dw_rec_header got;
    (void)state;
    dw_rec_encode(bytes, &some_header);
    assert_memory_equal(bytes, "DWR1", 4);
    assert_true(dw_rec_decode(bytes, &got));
    assert_int_equal(got.id, some_header.id);
    assert_int_equal(got.due, some_header.due);
    assert_int_equal(got.key_hash, some_header.key_hash);
    assert_int_equal(got.index, some_header.index);
    assert_int_equal(got.length, some_header.length);
    assert_int_equal(got.body_crc, some_header.body_crc);
    assert_int_equal(got.encoding, some_header.encoding);
    for (unsigned bit = 0; bit < 8 * sizeof bytes; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(dw_rec_decode(bytes, &got));
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* What other programs may rely on: offsets as documented. */
static void test_record_layout(void **state) {
    uint8_t bytes[DW_REC_HEADER];
    (void)state;
    dw_rec_encode(bytes, &some_header);
    static const uint8_t from_8[] = {0xd2, 0x04, 0,    0,    0xef, 0xbe, 0xad, 0xde, 0xf0, 0xde,
                                     0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0xfa, 0xff, 0xff, 0xff,
                                     0xff, 0xff, 0xcd, 0xab, 0x10, 0x32, 0x54, 0x76, 0x98, 0xba,
                                     0xdc, 0xfe, 77,   0,    0,    0,    0,    0,    0,    0};
    assert_memory_equal(bytes + 8, from_8, sizeof from_8);
    assert_int_equal(dw_rec_bytes(1), 56);
    assert_int_equal(dw_rec_bytes(8), 56);
    assert_int_equal(dw_rec_bytes(9), 64);
    assert_int_equal(dw_rec_bytes(INT32_MAX), UINT64_C(48) + (UINT64_C(1) << 31));
}

static void test_index_entries(void **state) {
    const struct dw_idx_entry entries[2] = {
        {.kind = DW_IDX_ADDED,
         .encoding = 0xffff,
         .id = 1,
         .due = DW_DUE_MAX,
         .key_hash = 3,
         .off = UINT32_MAX,
         .length = 4},
        {.kind = DW_IDX_DEAD, .dead_count = 8, .dead = {1, 2, 3, 4, 5, 6, 7, UINT32_MAX}},
    };
    (void)state;
    for (int i = 0; i < 2; i++) {
        uint8_t bytes[DW_IDX_ENTRY];
        struct dw_idx_entry got = {0};
        dw_idx_encode(bytes, &entries[i]);
        dw_idx_decode(bytes, &got);
        assert_memory_equal(&got, &entries[i], sizeof got);
        for (unsigned bit = 0; bit < 8 * sizeof bytes; bit++) {
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            dw_idx_decode(bytes, &got);
            assert_int_equal(got.kind, DW_IDX_BAD);
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
    }
}

static void test_file_header(void **state) {
    uint8_t bytes[DW_FILE_HEADER];
    (void)state;
    dw_file_header_encode(bytes, DW_FILE_IDX, 12, 3, 45);
    assert_int_equal(dw_file_header_check(bytes, DW_FILE_IDX, 12, 3, 45), DW_OK);
    assert_int_equal(dw_file_header_check(bytes, DW_FILE_REC, 12, 3, 45), DW_ECORRUPT);
    assert_int_equal(dw_file_header_check(bytes, DW_FILE_IDX, 13, 3, 45), DW_ECORRUPT);
    assert_int_equal(dw_file_header_check(bytes, DW_FILE_IDX, 12, 4, 45), DW_ECORRUPT);
    assert_int_equal(dw_file_header_check(bytes, DW_FILE_IDX, 12, 3, 46), DW_ECORRUPT);
    for (unsigned bit = 0; bit < 8 * sizeof bytes; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(dw_file_header_check(bytes, DW_FILE_IDX, 12, 3, 45), DW_ECORRUPT);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void test_file_names(void **state) {
    char name[DW_FILE_NAME_BYTES];
    enum dw_file_kind kind;
    uint64_t serial, slice;
    uint32_t level;
    (void)state;
    dw_file_name(name, DW_FILE_REC, 7, 2, 123456);
    assert_string_equal(name, "00000007-2-123456.rec");
    assert_true(dw_file_name_parse(name, &kind, &serial, &level, &slice));
    assert_true(kind == DW_FILE_REC && serial == 7 && level == 2 && slice == 123456);
    dw_file_name(name, DW_FILE_IDX, UINT64_C(1234567890123), 7, DW_DUE_MAX);
    assert_true(dw_file_name_parse(name, &kind, &serial, &level, &slice));
    assert_true(kind == DW_FILE_IDX && serial == UINT64_C(1234567890123) && level == 7 &&
                slice == DW_DUE_MAX);
    static const char *const not_ours[] = {
        "",
        "MANIFEST",
        "00000007-2-1",
        "00000007-2-1.re",
        "00000007-2-1.rec~",
        "7-2-1.rec",
        "00000007-8-1.rec",
        "00000007--1.rec",
        "-2-1.rec",
        "00000007-2-.rec",
        "indexes",
        "00000007-2-01.rec",
        "000000007-2-1.rec",
    };
    for (size_t i = 0; i < sizeof not_ours / sizeof *not_ours; i++) {
        assert_false(dw_file_name_parse(not_ours[i], &kind, &serial, &level, &slice));
    }
}

/* ------------------------------------------------------------------ slices */

static void test_place(void **state) {
    uint64_t random = 5;
    (void)state;
    for (unsigned i = 0; i < 200000; i++) {
        const uint64_t clock = model_random(&random) & DW_DUE_MAX;
        const uint64_t distance = model_random(&random) >> (16 + model_random(&random) % 48);
        const uint64_t due = (i % 8 == 0 ? distance : clock + distance) & DW_DUE_MAX;
        uint32_t level;
        uint64_t slice;
        dw_place(clock, due, &level, &slice);
        assert_true(level < DW_LEVELS);
        /* It is in the slice, or overdue and in the one of now. */
        assert_int_equal(slice, (due > clock ? due : clock) >> dw_level_shift(level));
        assert_true(level == 0 || !dw_slice_is_near(clock, level, slice));
        assert_false(dw_slice_is_past(clock, level, slice));
        /* The slice is no wider than 16 times the distance, and a few times the narrowest. */
        if (level > 0) {
            assert_true(due - clock >= UINT64_C(1) << (dw_level_shift(level) - 2));
        }
    }
}

/* With the clock standing still there are some 16 slices a level. */
static void test_place_is_bounded(void **state) {
    static uint64_t seen[DW_LEVELS][64];
    unsigned count[DW_LEVELS] = {0};
    const uint64_t clock = 1700000000000 - 12345;
    uint64_t random = 6;
    (void)state;
    for (unsigned i = 0; i < 100000; i++) {
        const uint64_t due = clock + (model_random(&random) >> (17 + model_random(&random) % 40));
        uint32_t level;
        uint64_t slice;
        dw_place(clock, due & DW_DUE_MAX, &level, &slice);
        unsigned at = 0;
        while (at < count[level] && seen[level][at] != slice) {
            at++;
        }
        if (at == count[level]) {
            assert_true(count[level] < 33);
            seen[level][count[level]++] = slice;
        }
    }
    unsigned all = 0;
    for (unsigned level = 0; level < DW_LEVELS; level++) {
        all += count[level];
    }
    assert_true(all > 60 && all < 200);
}

/* As the clock goes on, a due time's slice only gets finer, and never is a past one. */
static void test_place_gets_finer(void **state) {
    uint64_t random = 7;
    (void)state;
    for (unsigned i = 0; i < 300; i++) {
        uint64_t clock = 1700000000000 + model_random(&random) % 1000000000;
        const uint64_t due = clock + (model_random(&random) >> (24 + model_random(&random) % 20));
        uint32_t last = DW_LEVELS;
        while (clock < due) {
            uint32_t level;
            uint64_t slice;
            dw_place(clock, due, &level, &slice);
            assert_true(level <= last);
            last = level;
            clock += 1 + (due - clock) / 7;
        }
        assert_int_equal(last, 0);
    }
}

/* ------------------------------------------------------------------- files */

struct files_fixture {
    struct fixture f;
    pthread_mutex_t lock;
    dw_budget *budget;
    struct dw_files files;
};

static uint32_t in_use(struct files_fixture *x) {
    struct dw_budget_use use;
    dw_budget_use(x->budget, &use);
    return use.open;
}

static int files_setup(void **state) {
    struct files_fixture *x = calloc(1, sizeof *x);
    assert_non_null(x);
    fixture_init(&x->f);
    x->budget = dw_budget_new(&dw_alloc_libc, 9); /* 8 files and their directory */
    assert_non_null(x->budget);
    pthread_mutex_init(&x->lock, NULL);
    dw_files_init(&x->files, &fault_io, &x->lock, x->budget, x->f.base);
    *state = x;
    return 0;
}

static int files_teardown(void **state) {
    struct files_fixture *x = *state;
    dw_files_close(&x->files);
    assert_int_equal(in_use(x), 0);
    dw_files_end(&x->files);
    dw_budget_drop(x->budget);
    pthread_mutex_destroy(&x->lock);
    fixture_end(&x->f);
    free(x);
    return 0;
}

static int acquire(struct files_fixture *x, struct dw_file *file, unsigned number) {
    char name[32];
    snprintf(name, sizeof name, "f%u", number);
    return dw_files_acquire(&x->files, file, name, 1);
}

static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

static void test_files_are_closed_by_last_use(void **state) {
    struct files_fixture *x = *state;
    struct dw_file file[20];
    for (unsigned i = 0; i < 20; i++) {
        dw_file_init(&file[i]);
    }
    for (unsigned i = 0; i < 8; i++) {
        assert_true(acquire(x, &file[i], i) >= 0);
        dw_files_release(&file[i]);
    }
    assert_int_equal(x->files.open, 9);
    /* 0 was just used, so 1 goes, and then 2. */
    assert_true(acquire(x, &file[0], 0) >= 0);
    dw_files_release(&file[0]);
    assert_true(acquire(x, &file[8], 8) >= 0);
    assert_true(acquire(x, &file[9], 9) >= 0);
    assert_int_equal(x->files.open, 9);
    assert_int_equal(in_use(x), 9);
    assert_true(file[0].fd >= 0 && file[1].fd < 0 && file[2].fd < 0 && file[3].fd >= 0);
    /* Pinned ones stay, though there are too many. */
    int pinned[20];
    for (unsigned i = 0; i < 20; i++) {
        pinned[i] = acquire(x, &file[i], i);
        assert_true(pinned[i] >= 0);
    }
    assert_int_equal(x->files.open, 20 + (x->files.dir.fd >= 0));
    assert_int_equal(in_use(x), x->files.open);
    for (unsigned i = 0; i < 20; i++) {
        assert_true(is_open(pinned[i]));
        assert_int_equal(file[i].fd, pinned[i]);
        dw_files_release(&file[i]);
    }
    dw_files_release(&file[8]);
    dw_files_release(&file[9]);
    for (unsigned i = 0; i < 20; i++) {
        dw_files_forget(&file[i]);
        assert_false(is_open(pinned[i]));
    }
    dw_files_close(&x->files);
    assert_int_equal(x->files.open, 0);
    assert_null(x->files.newest);
    assert_null(x->files.oldest);
}

static void test_files_failing_to_open(void **state) {
    struct files_fixture *x = *state;
    struct dw_file file;
    dw_file_init(&file);
    assert_int_equal(dw_files_acquire(&x->files, &file, "missing", 0), -1);
    assert_int_equal(errno, ENOENT);
    fault_io_fail(FAULT_OPEN, 1, false, EINTR);
    assert_true(acquire(x, &file, 1) >= 0);
    assert_int_equal(fault_io_failed(), 1);
    dw_files_release(&file);
    dw_files_forget(&file);
}

/* ----------------------------------------------------------------- streams */

static void put(struct files_fixture *x, struct dw_stream *stream, uint8_t value, size_t bytes) {
    assert_int_equal(dw_stream_reserve(stream, &x->f.alloc.alloc, &x->lock, bytes), DW_OK);
    memset(dw_stream_put(stream, bytes), value, bytes);
}

static int flush(struct files_fixture *x, struct dw_stream *stream, uint64_t *flushed) {
    return dw_stream_flush(stream, &x->f.alloc.alloc, &x->files, "stream", flushed);
}

static void drop(struct files_fixture *x, struct dw_stream *stream) {
    dw_files_forget(&stream->file);
    dw_release(&x->f.alloc.alloc, stream->writing);
    dw_release(&x->f.alloc.alloc, stream->active);
    dw_release(&x->f.alloc.alloc, stream->spare);
}

static void test_stream_keeps_what_cannot_be_written(void **state) {
    struct files_fixture *x = *state;
    struct dw_stream stream;
    uint64_t flushed;
    dw_stream_init(&stream);
    put(x, &stream, 'a', 5000);
    fault_io_fail(FAULT_PWRITE, 1, true, ENOSPC);
    assert_int_equal(flush(x, &stream, &flushed), ENOSPC);
    assert_int_equal(flushed, 0);
    put(x, &stream, 'b', 6000);
    assert_int_equal(flush(x, &stream, &flushed), ENOSPC);
    assert_int_equal(dw_stream_length(&stream), 11000);
    assert_int_equal(dw_stream_buffered(&stream), 11000);
    fault_io_fail(0, 0, false, 0);
    assert_int_equal(flush(x, &stream, &flushed), 0);
    assert_int_equal(flushed, 11000);
    assert_int_equal(dw_stream_buffered(&stream), 0);
    const char *path = fixture_path(&x->f, "stream");
    assert_int_equal(file_size(path), 11000);
    char bytes[11000];
    int fd = open(path, O_RDONLY);
    assert_int_equal(read(fd, bytes, sizeof bytes), sizeof bytes);
    close(fd);
    for (unsigned i = 0; i < sizeof bytes; i++) {
        assert_int_equal(bytes[i], i < 5000 ? 'a' : 'b');
    }
    drop(x, &stream);
}

static void test_stream_readers_keep_buffers(void **state) {
    struct files_fixture *x = *state;
    struct dw_stream stream;
    uint64_t flushed;
    dw_stream_init(&stream);
    put(x, &stream, 'a', 100);
    struct dw_buf *first = dw_stream_buf_locked(&stream, 50);
    assert_non_null(first);
    /* It grows, so it moves: the reader's stays as it was. */
    put(x, &stream, 'b', 100000);
    assert_ptr_not_equal(first, stream.active);
    assert_int_equal(first->bytes[99], 'a');
    fault_io_fail(FAULT_PWRITE, 1, false, EIO);
    assert_int_equal(flush(x, &stream, &flushed), EIO);
    put(x, &stream, 'c', 10);
    struct dw_buf *writing = dw_stream_buf_locked(&stream, 100);
    struct dw_buf *active = dw_stream_buf_locked(&stream, 100100);
    assert_ptr_equal(writing, stream.writing);
    assert_ptr_equal(active, stream.active);
    assert_int_equal(flush(x, &stream, &flushed), 0);
    assert_null(dw_stream_buf_locked(&stream, 100));
    assert_int_equal(writing->bytes[100], 'b');
    assert_int_equal(active->bytes[0], 'c');
    struct dw_buf *all[3] = {first, writing, active};
    for (int i = 0; i < 3; i++) {
        assert_true(dw_buf_unref_locked(all[i]));
        dw_release(&x->f.alloc.alloc, all[i]);
    }
    drop(x, &stream);
}

static void test_stream_truncate(void **state) {
    struct files_fixture *x = *state;
    struct dw_stream stream;
    uint64_t flushed;
    dw_stream_init(&stream);
    put(x, &stream, 'a', 10);
    assert_int_equal(flush(x, &stream, &flushed), 0);
    const uint64_t mark = dw_stream_length(&stream);
    put(x, &stream, 'b', 20000);
    dw_stream_truncate(&stream, mark);
    assert_int_equal(dw_stream_length(&stream), 10);
    put(x, &stream, 'c', 5);
    assert_int_equal(flush(x, &stream, &flushed), 0);
    assert_int_equal(file_size(fixture_path(&x->f, "stream")), 15);
    drop(x, &stream);
}

static void test_dead_notes_share_an_entry(void **state) {
    struct files_fixture *x = *state;
    const struct dw_alloc *alloc = &x->f.alloc.alloc;
    struct dw_partition *partition = dw_partition_new(alloc, 1, 0, 2);
    assert_non_null(partition);
    struct dw_rec_header header = some_header;
    header.length = 3;
    assert_int_equal(dw_partition_reserve(partition, alloc, &x->lock, 3), DW_OK);
    assert_int_equal(dw_partition_append(partition, &header, "abc"), DW_FILE_HEADER / DW_REC_UNIT);
    assert_int_equal(dw_stream_length(&partition->rec), DW_FILE_HEADER + 56);
    assert_int_equal(dw_stream_length(&partition->idx), DW_FILE_HEADER + DW_IDX_ENTRY);
    assert_int_equal(dw_partition_reserve_dead(partition, alloc, &x->lock, 17), DW_OK);
    for (uint32_t i = 0; i < 17; i++) {
        dw_partition_dead(partition, 8 + i);
    }
    assert_int_equal(dw_stream_length(&partition->idx), DW_FILE_HEADER + 4 * DW_IDX_ENTRY);
    uint32_t next = 8;
    for (int i = 1; i < 4; i++) {
        struct dw_idx_entry entry;
        dw_idx_decode(partition->idx.active->bytes + DW_FILE_HEADER + i * DW_IDX_ENTRY, &entry);
        assert_int_equal(entry.kind, DW_IDX_DEAD);
        for (uint32_t j = 0; j < entry.dead_count; j++) {
            assert_int_equal(entry.dead[j], next++);
        }
    }
    assert_int_equal(next, 8 + 17);
    dw_partition_free(alloc, partition);
}

static void test_no_memory_for_a_partition(void **state) {
    struct files_fixture *x = *state;
    for (uint64_t n = 1; n <= 3; n++) {
        fault_alloc_fail(&x->f.alloc, n, false);
        assert_null(dw_partition_new(&x->f.alloc.alloc, 1, 0, 2));
        fault_alloc_check_released(&x->f.alloc);
    }
    fault_alloc_fail(&x->f.alloc, 0, false);
    struct dw_partition *partition = dw_partition_new(&x->f.alloc.alloc, 1, 0, 2);
    assert_non_null(partition);
    fault_alloc_fail(&x->f.alloc, 1, true);
    assert_int_equal(dw_partition_reserve(partition, &x->f.alloc.alloc, &x->lock, 100000),
                     DW_ENOMEM);
    assert_int_equal(dw_partition_reserve_dead(partition, &x->f.alloc.alloc, &x->lock, 100000),
                     DW_ENOMEM);
    assert_int_equal(dw_stream_length(&partition->rec), DW_FILE_HEADER);
    fault_alloc_fail(&x->f.alloc, 0, false);
    dw_partition_free(&x->f.alloc.alloc, partition);
}

/* ------------------------------------------------------------------ states */

/* Each sequence of events, against what has happened in it at all: nothing that has is forgotten,
 * whatever comes after. */
static void test_states_forget_nothing(void **state) {
    enum { LONGEST = 6 };
    unsigned sequences = 1;
    (void)state;
    for (unsigned length = 0; length <= LONGEST; length++, sequences *= DW_PARTITION_EVENTS) {
        for (unsigned sequence = 0; sequence < sequences; sequence++) {
            struct dw_partition partition = {.state = DW_PARTITION_OPEN};
            bool happened[DW_PARTITION_EVENTS] = {false};
            unsigned rest = sequence;
            for (unsigned i = 0; i < length; i++, rest /= DW_PARTITION_EVENTS) {
                const enum dw_partition_event event =
                    (enum dw_partition_event)(rest % DW_PARTITION_EVENTS);
                dw_partition_note_locked(&partition, event);
                happened[event] = true;
            }
            const bool retired = happened[DW_PARTITION_RETIRE];
            const bool failed = happened[DW_PARTITION_FAIL_WRITE];
            const bool given_up = happened[DW_PARTITION_GIVE_UP];
            const bool damaged = happened[DW_PARTITION_FIND_DAMAGE];
            assert_int_equal(dw_partition_is_open(&partition), length == 0);
            assert_int_equal(dw_partition_is_retired(&partition), retired);
            assert_int_equal(dw_partition_is_suspect(&partition), failed && !retired);
            assert_int_equal(dw_partition_is_stuck(&partition), given_up && !retired);
            assert_int_equal(dw_partition_must_move(&partition),
                             (failed || damaged) && !given_up && !retired);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record_header),
        cmocka_unit_test(test_record_layout),
        cmocka_unit_test(test_index_entries),
        cmocka_unit_test(test_file_header),
        cmocka_unit_test(test_file_names),
        cmocka_unit_test(test_place),
        cmocka_unit_test(test_place_is_bounded),
        cmocka_unit_test(test_place_gets_finer),
        cmocka_unit_test(test_states_forget_nothing),
        cmocka_unit_test_setup_teardown(test_files_are_closed_by_last_use, files_setup,
                                        files_teardown),
        cmocka_unit_test_setup_teardown(test_files_failing_to_open, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(test_stream_keeps_what_cannot_be_written, files_setup,
                                        files_teardown),
        cmocka_unit_test_setup_teardown(test_stream_readers_keep_buffers, files_setup,
                                        files_teardown),
        cmocka_unit_test_setup_teardown(test_stream_truncate, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(test_dead_notes_share_an_entry, files_setup,
                                        files_teardown),
        cmocka_unit_test_setup_teardown(test_no_memory_for_a_partition, files_setup,
                                        files_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

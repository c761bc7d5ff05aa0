/* SPDX-License-Identifier: MPL-2.0 */

/* Leases: fencing, ending in the background, checkpoints by number; also by many threads at once,
 * for which this program is run under the thread sanitizer too. */

#include "dw_lease.h"

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define T0 UINT64_C(1600000000000)

/* An allocator for several threads that counts its blocks and can be told to fail. */
static atomic_long blocks;
static atomic_long left = -1; /* that still succeed; -1: all */

static void *counted_get(void *ctx, size_t bytes) {
    (void)ctx;
    if (atomic_load(&left) == 0) {
        return NULL;
    }
    if (atomic_load(&left) > 0) {
        atomic_fetch_sub(&left, 1);
    }
    void *p = malloc(bytes);
    if (p != NULL) {
        atomic_fetch_add(&blocks, 1);
    }
    return p;
}

static void counted_release(void *ctx, void *p) {
    (void)ctx;
    if (p != NULL) {
        atomic_fetch_sub(&blocks, 1);
        free(p);
    }
}

static const struct dw_alloc counted = {counted_get, counted_release, NULL};

struct fixture {
    char root[64];
    char dir[96];
    dw_leases *leases;
};

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    snprintf(f->root, sizeof f->root, "/tmp/dw-lease-XXXXXX");
    assert_non_null(mkdtemp(f->root));
    snprintf(f->dir, sizeof f->dir, "%s/store", f->root);
    atomic_store(&left, -1);
    atomic_store(&blocks, 0);
    f->leases = dw_leases_new(&counted);
    assert_non_null(f->leases);
    *state = f;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void await_blocks(long n) {
    for (int i = 0; atomic_load(&blocks) != n && i < 120000; ++i) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    assert_int_equal(atomic_load(&blocks), n);
}

/* Everything that was dropped is gone, memory and all. */
static int teardown(void **state) {
    struct fixture *f = *state;
    dw_leases_drop(f->leases);
    await_blocks(0);
    assert_int_equal(nftw(f->root, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
    free(f);
    return 0;
}

static int try_open(struct fixture *f, const char *dir, dw_lease **lease, int *os_error) {
    struct dw_config config = {.now_ms = T0,
                               .max_record_bytes = 1000000,
                               .max_open_files = 8,
                               .alloc = &counted};
    struct dw_recovery report;
    *os_error = 0;
    return dw_lease_open(f->leases, dir, &config, lease, &report, os_error);
}

static dw_lease *open_lease(struct fixture *f) {
    dw_lease *lease;
    int os_error;
    assert_int_equal(try_open(f, f->dir, &lease, &os_error), DW_OK);
    return lease;
}

static int insert(dw_lease *lease, uint64_t index) {
    unsigned char batch[24 + 100] = {100};
    struct dw_inserted in;
    return dw_store_insert(dw_lease_store(lease), index, T0, batch, sizeof batch, &in);
}

static void a_second_opening_fences_the_first(void **state) {
    struct fixture *f = *state;
    dw_lease *first = open_lease(f);
    assert_int_equal(insert(first, 1), DW_OK);
    dw_lease *second = open_lease(f);
    assert_true(dw_lease_closed(first));
    assert_false(dw_lease_closed(second));
    assert_int_equal(insert(first, 2), DW_ECLOSED);
    assert_int_equal(insert(second, 1), DW_OK);
    dw_lease_close(first);
    assert_int_equal(insert(second, 2), DW_OK);
    dw_lease_drop(first);
    dw_lease_close(second);
    dw_lease_close(second);
    assert_int_equal(insert(second, 3), DW_ECLOSED);
    dw_lease_drop(second);
}

static void one_directory_under_many_names(void **state) {
    struct fixture *f = *state;
    char name[160], link_name[128];
    dw_lease *first = open_lease(f), *other;
    int os_error;
    snprintf(name, sizeof name, "%s/../store/.", f->dir);
    assert_int_equal(try_open(f, name, &other, &os_error), DW_OK);
    assert_true(dw_lease_closed(first));
    snprintf(link_name, sizeof link_name, "%s/link", f->root);
    assert_int_equal(symlink("store", link_name), 0);
    dw_lease *linked;
    assert_int_equal(try_open(f, link_name, &linked, &os_error), DW_OK);
    assert_true(dw_lease_closed(other));
    dw_lease_drop(first);
    dw_lease_drop(other);
    dw_lease_drop(linked);
}

static void errors_name_their_cause(void **state) {
    struct fixture *f = *state;
    dw_lease *lease;
    int os_error;
    char name[160];
    snprintf(name, sizeof name, "%s/a/b", f->root);
    assert_int_equal(try_open(f, name, &lease, &os_error), DW_EIO);
    assert_int_equal(os_error, ENOENT);
    snprintf(name, sizeof name, "%s/file", f->root);
    FILE *file = fopen(name, "w");
    assert_non_null(file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(try_open(f, name, &lease, &os_error), DW_EIO);
    assert_int_equal(os_error, ENOTDIR);
    assert_int_equal(dw_lease_restore(f->leases, f->dir, name, &os_error), DW_EIO);
}

/* Whichever allocation fails, nothing is left behind and the next try succeeds. */
static void an_opening_may_run_out_of_memory_anywhere(void **state) {
    struct fixture *f = *state;
    dw_lease *lease;
    int os_error, result;
    long before = atomic_load(&blocks), n = 0;
    do {
        atomic_store(&left, n++);
        result = try_open(f, f->dir, &lease, &os_error);
        atomic_store(&left, -1);
        if (result != DW_OK) {
            assert_int_equal(result, DW_ENOMEM);
            assert_int_equal(atomic_load(&blocks), before);
        }
    } while (result != DW_OK);
    assert_true(n > 3);
    assert_int_equal(insert(lease, 1), DW_OK);
    dw_lease_drop(lease);
}

static void the_last_drop_closes_and_frees(void **state) {
    struct fixture *f = *state;
    long before = atomic_load(&blocks);
    dw_lease *lease = open_lease(f);
    assert_int_equal(insert(lease, 1), DW_OK);
    dw_lease_keep(lease);
    dw_lease_drop(lease);
    assert_int_equal(insert(lease, 2), DW_OK);
    dw_lease_drop(lease);
    await_blocks(before);
}

/* The next opening may come before, while or after the background has ended the last one. */
static void opening_while_the_last_one_ends(void **state) {
    struct fixture *f = *state;
    for (int i = 0; i < 300; ++i) {
        dw_lease *lease = open_lease(f);
        assert_int_equal(insert(lease, 1), DW_OK);
        dw_lease_drop(lease);
    }
}

static void leases_outlive_their_table(void **state) {
    struct fixture *f = *state;
    dw_lease *lease = open_lease(f);
    dw_leases_keep(f->leases); /* the one that teardown drops */
    dw_leases_drop(f->leases);
    assert_int_equal(insert(lease, 1), DW_OK);
    dw_lease_drop(lease);
}

static void checkpoints_go_by_number(void **state) {
    struct fixture *f = *state;
    dw_lease *lease = open_lease(f);
    uint64_t first, second, third, applied, durable;
    int os_error;
    assert_int_equal(dw_lease_finish(lease, 0, NULL, &os_error), DW_ENOENT);
    assert_int_equal(insert(lease, 1), DW_OK);
    assert_int_equal(dw_lease_checkpoint(lease, &first, &applied, &os_error), DW_OK);
    assert_int_equal(applied, 1);
    assert_int_equal(insert(lease, 2), DW_OK);
    assert_int_equal(dw_lease_checkpoint(lease, &second, &applied, &os_error), DW_OK);
    assert_int_equal(applied, 2);
    assert_int_equal(dw_lease_finish(lease, first, NULL, &os_error), DW_ENOENT);
    assert_int_equal(dw_lease_finish(lease, second, NULL, &os_error), DW_OK);
    assert_int_equal(dw_lease_finish(lease, second, NULL, &os_error), DW_ENOENT);
    assert_int_equal(dw_store_peek_applied(f->dir, &durable), DW_OK);
    assert_int_equal(durable, 2);
    assert_int_equal(dw_lease_checkpoint(lease, &third, &applied, &os_error), DW_OK);
    dw_lease *next = open_lease(f);
    assert_int_equal(dw_lease_finish(lease, third, NULL, &os_error), DW_ECLOSED);
    assert_int_equal(dw_store_applied(dw_lease_store(next)), 2);
    /* One that nobody finishes goes with its lease. */
    assert_int_equal(dw_lease_checkpoint(next, &first, &applied, &os_error), DW_OK);
    dw_lease_drop(lease);
    dw_lease_drop(next);
}

static void restoring_fences_too(void **state) {
    struct fixture *f = *state;
    char snapshot[128];
    uint64_t number, applied;
    int os_error;
    snprintf(snapshot, sizeof snapshot, "%s/snapshot", f->root);
    dw_lease *lease = open_lease(f);
    assert_int_equal(insert(lease, 1), DW_OK);
    assert_int_equal(dw_lease_checkpoint(lease, &number, &applied, &os_error), DW_OK);
    assert_int_equal(dw_lease_finish(lease, number, snapshot, &os_error), DW_OK);
    assert_int_equal(insert(lease, 2), DW_OK);
    assert_int_equal(dw_lease_restore(f->leases, f->dir, snapshot, &os_error), DW_OK);
    assert_int_equal(insert(lease, 3), DW_ECLOSED);
    dw_lease *restored = open_lease(f);
    assert_int_equal(dw_store_applied(dw_lease_store(restored)), 1);
    dw_lease_drop(lease);
    dw_lease_drop(restored);
}

static bool gone;

static bool is_gone(void) {
    return gone;
}

/* It was killed while it waited for its turn, and another one has opened meanwhile. */
static void a_caller_that_has_gone_fences_nobody(void **state) {
    struct fixture *f = *state;
    char snapshot[128];
    uint64_t number, applied;
    dw_lease *late;
    int os_error;
    snprintf(snapshot, sizeof snapshot, "%s/snapshot", f->root);
    dw_leases_ask(f->leases, is_gone);
    gone = false;
    dw_lease *lease = open_lease(f);
    assert_int_equal(insert(lease, 1), DW_OK);
    assert_int_equal(dw_lease_checkpoint(lease, &number, &applied, &os_error), DW_OK);
    assert_int_equal(dw_lease_finish(lease, number, snapshot, &os_error), DW_OK);
    assert_int_equal(insert(lease, 2), DW_OK);
    gone = true;
    assert_int_equal(try_open(f, f->dir, &late, &os_error), DW_ECLOSED);
    assert_int_equal(dw_lease_restore(f->leases, f->dir, snapshot, &os_error), DW_ECLOSED);
    assert_int_equal(insert(lease, 3), DW_OK);
    assert_int_equal(dw_store_flush(dw_lease_store(lease)), DW_OK);
    assert_int_equal(dw_store_applied(dw_lease_store(lease)), 3);
    dw_lease_drop(lease);
}

static void writing_is_for_one(void **state) {
    struct fixture *f = *state;
    dw_lease *lease = open_lease(f);
    assert_true(dw_lease_write_begin(lease));
    assert_false(dw_lease_write_begin(lease));
    dw_lease_write_end(lease);
    assert_true(dw_lease_write_begin(lease));
    dw_lease_write_end(lease);
    dw_lease_drop(lease);
}

/* The other process tries while this one has the directory, and again when it no longer has. */
static void another_process_is_kept_out(void **state) {
    struct fixture *f = *state;
    dw_lease *lease = open_lease(f);
    int go[2], tried[2];
    char byte = 0;
    assert_int_equal(pipe(go), 0);
    assert_int_equal(pipe(tried), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dw_lease *mine;
        int os_error;
        close(go[1]);
        close(tried[0]);
        dw_leases *leases = dw_leases_new(&dw_alloc_libc);
        struct dw_config config = {.now_ms = T0, .max_record_bytes = 1000, .max_open_files = 8};
        struct dw_recovery report;
        if (dw_lease_open(leases, f->dir, &config, &mine, &report, &os_error) != DW_EACCES ||
            os_error != EWOULDBLOCK) {
            _exit(1);
        }
        /* The descriptor that fork gave us holds the lock as well. */
        dw_lease_close(lease);
        if (write(tried[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 0) {
            _exit(2);
        }
        _exit(dw_lease_open(leases, f->dir, &config, &mine, &report, &os_error) == DW_OK ? 0 : 3);
    }
    close(go[0]);
    close(tried[1]);
    int status;
    assert_int_equal(read(tried[0], &byte, 1), 1);
    close(tried[0]);
    dw_lease_close(lease);
    close(go[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    dw_lease_drop(lease);
}

/* One lock for all stores below a directory: they hold no descriptor when they are idle, and
 * another process gets none of them as long as any is open. */
static void a_claim_is_for_all_below(void **state) {
    struct fixture *f = *state;
    enum { N = 30 };
    dw_lease *leases[N];
    int os_error;
    const int before = dup(0);
    close(before);
    assert_int_equal(dw_leases_claim(f->leases, f->root, &os_error), DW_OK);
    assert_int_equal(dw_leases_claim(f->leases, f->root, &os_error), DW_OK);
    for (int i = 0; i < N; i++) {
        char dir[PATH_MAX];
        snprintf(dir, sizeof dir, "%s/store%d", f->root, i);
        assert_int_equal(try_open(f, dir, &leases[i], &os_error), DW_OK);
        for (int n = 0; n < 70; n++) {
            bool more;
            assert_int_equal(dw_store_maintain(dw_lease_store(leases[i]), T0, 1, &more), DW_OK);
        }
    }
    const int after = dup(0);
    close(after);
    assert_int_equal(after, before + 1);
    for (int give_back = 0; give_back < 3; give_back++) {
        if (give_back == 1) {
            dw_leases_give_back(f->leases);
        }
        if (give_back == 2) {
            for (int i = 0; i < N; i++) {
                dw_lease_close(leases[i]);
            }
        }
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            /* What fork gave us is the same lock. */
            dw_leases *mine = dw_leases_new(&dw_alloc_libc);
            const int result = dw_leases_claim(mine, f->root, &os_error);
            dw_leases_drop(mine);
            _exit(result == DW_OK ? 0 : os_error == EWOULDBLOCK ? 1 : 2);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), give_back == 2 ? 0 : 1);
    }
    for (int i = 0; i < N; i++) {
        dw_lease_drop(leases[i]);
    }
}

#define THREADS 6

static void *open_and_write(void *arg) {
    struct fixture *f = arg;
    uint64_t number, applied;
    for (int i = 0; i < 40; ++i) {
        dw_lease *lease;
        int os_error, result = try_open(f, f->dir, &lease, &os_error);
        if (result != DW_OK) {
            return "open";
        }
        for (uint64_t n = 0; result == DW_OK && n < 20; ++n) {
            if (dw_lease_write_begin(lease)) {
                result = insert(lease, dw_store_applied(dw_lease_store(lease)) + 1);
                dw_lease_write_end(lease);
            }
        }
        if (result == DW_OK && dw_lease_write_begin(lease)) {
            result = dw_lease_checkpoint(lease, &number, &applied, &os_error);
            dw_lease_write_end(lease);
            if (result == DW_OK) {
                result = dw_lease_finish(lease, number, NULL, &os_error);
            }
        }
        if (result != DW_OK && result != DW_ECLOSED) {
            return "write";
        }
        if (i % 3 == 0) {
            dw_lease_close(lease);
        }
        dw_lease_drop(lease);
    }
    return NULL;
}

static void many_threads_open_one_directory(void **state) {
    struct fixture *f = *state;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; ++i) {
        assert_int_equal(pthread_create(&threads[i], NULL, open_and_write, f), 0);
    }
    for (int i = 0; i < THREADS; ++i) {
        void *failed;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    dw_lease *last = open_lease(f);
    assert_int_equal(insert(last, UINT64_C(1) << 40), DW_OK);
    dw_lease_drop(last);
}

static dw_lease *shared;

static void *use_until_closed(void *arg) {
    struct dw_stat stat;
    struct dw_record records[10];
    uint32_t n;
    int result = DW_OK;
    (void)arg;
    while (result == DW_OK) {
        result = dw_store_stat(dw_lease_store(shared), &stat);
        if (result == DW_OK) {
            result = dw_store_page(dw_lease_store(shared), 0, 0, records, 10, &n);
        }
        (void)dw_store_next_due(dw_lease_store(shared));
    }
    dw_lease_drop(shared);
    return result == DW_ECLOSED ? NULL : "use";
}

static void users_meet_the_fence(void **state) {
    struct fixture *f = *state;
    pthread_t threads[THREADS];
    shared = open_lease(f);
    for (int i = 0; i < THREADS; ++i) {
        dw_lease_keep(shared);
        assert_int_equal(pthread_create(&threads[i], NULL, use_until_closed, NULL), 0);
    }
    for (uint64_t index = 1; index < 500; ++index) {
        assert_int_equal(insert(shared, index), DW_OK);
    }
    dw_lease *next = open_lease(f);
    for (int i = 0; i < THREADS; ++i) {
        void *failed;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    assert_true(dw_lease_closed(shared));
    dw_lease_drop(shared);
    dw_lease_drop(next);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_second_opening_fences_the_first),
        TEST(one_directory_under_many_names),
        TEST(errors_name_their_cause),
        TEST(an_opening_may_run_out_of_memory_anywhere),
        TEST(the_last_drop_closes_and_frees),
        TEST(opening_while_the_last_one_ends),
        TEST(leases_outlive_their_table),
        TEST(checkpoints_go_by_number),
        TEST(restoring_fences_too),
        TEST(a_caller_that_has_gone_fences_nobody),
        TEST(writing_is_for_one),
        TEST(another_process_is_kept_out),
        TEST(a_claim_is_for_all_below),
        TEST(many_threads_open_one_directory),
        TEST(users_meet_the_fence),
    };
    return cmocka_run_group_tests_name("dw_lease", tests, NULL, NULL);
}

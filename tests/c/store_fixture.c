/* SPDX-License-Identifier: MPL-2.0 */
#include "store_fixture.h"

#include "fault_io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void keep_log(void *ctx, enum dw_level level, const char *message) {
    struct fixture *f = ctx;
    f->logged[level]++;
    if (level != DW_LOG_INFO) {
        snprintf(f->last_log, sizeof f->last_log, "%s", message);
    }
}

void fixture_init(struct fixture *f) {
    *f = (struct fixture){0};
    const char *tmp = getenv("TMPDIR");
    if (tmp == NULL) {
        tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    }
    snprintf(f->base, sizeof f->base, "%s/dw_store_XXXXXX", tmp);
    assert_non_null(mkdtemp(f->base));
    snprintf(f->dir, sizeof f->dir, "%s/store", f->base);
    fault_alloc_init(&f->alloc);
    fault_io_reset();
    f->config = (struct dw_config){
        .now_ms = 1700000000000,
        .max_record_bytes = 1 << 20,
        .max_open_files = 8,
        .alloc = &f->alloc.alloc,
        .io = &fault_io,
        .log = keep_log,
        .log_ctx = f,
    };
}

void fixture_end(struct fixture *f) {
    fault_io_fail(0, 0, false, 0);
    fault_io_fail_name(0, NULL, 0);
    fixture_close(f);
    fault_alloc_check_released(&f->alloc);
    remove_dir(f->base);
    fault_io_reset();
}

int fixture_try_open(struct fixture *f) {
    return dw_store_open(f->dir, &f->config, &f->store, &f->report);
}

void fixture_open(struct fixture *f) {
    assert_int_equal(fixture_try_open(f), DW_OK);
    assert_non_null(f->store);
}

void fixture_close(struct fixture *f) {
    if (f->store != NULL) {
        dw_store_close(f->store);
        dw_store_release(f->store);
        f->store = NULL;
    }
}

int fixture_checkpoint(struct fixture *f, const char *snapshot_dir) {
    dw_checkpoint *checkpoint;
    int result = dw_store_checkpoint(f->store, &checkpoint);
    if (result == DW_OK) {
        assert_int_equal(dw_checkpoint_applied(checkpoint), dw_store_applied(f->store));
        result = dw_checkpoint_finish(checkpoint, snapshot_dir);
    }
    dw_checkpoint_release(checkpoint);
    return result;
}

const char *fixture_path(struct fixture *f, const char *name) {
    static char paths[8][PATH_MAX];
    static unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, PATH_MAX, "%s/%s", f->base, name);
    return path;
}

unsigned fixture_rounds(unsigned normal) {
    const char *times = getenv("DW_TEST_ROUNDS");
    if (getenv("DW_TEST_SMALL") != NULL) {
        return normal / 10 + 1;
    }
    return times != NULL ? normal * (unsigned)strtoul(times, NULL, 10) : normal;
}

/* ------------------------------------------------------------------- files */

static void each_name(const char *dir, void (*each)(const char *dir, const char *name, void *arg),
                      void *arg) {
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d)) != NULL;) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            each(dir, entry->d_name, arg);
        }
    }
    closedir(d);
}

static void copy_one(const char *dir, const char *name, void *arg) {
    char from[PATH_MAX], to[PATH_MAX];
    snprintf(from, sizeof from, "%s/%s", dir, name);
    snprintf(to, sizeof to, "%s/%s", (const char *)arg, name);
    int in = open(from, O_RDONLY);
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(in >= 0 && out >= 0);
    char bytes[65536];
    ssize_t n;
    while ((n = read(in, bytes, sizeof bytes)) > 0) {
        assert_int_equal(write(out, bytes, (size_t)n), n);
    }
    assert_int_equal(n, 0);
    close(in);
    close(out);
}

void copy_dir(const char *from, const char *to) {
    assert_int_equal(mkdir(to, 0700), 0);
    each_name(from, copy_one, (void *)(uintptr_t)to);
}

static void remove_one(const char *dir, const char *name, void *arg) {
    char path[PATH_MAX];
    (void)arg;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (unlink(path) != 0) {
        remove_dir(path);
    }
}

void remove_dir(const char *dir) {
    struct stat st;
    if (stat(dir, &st) == 0) {
        each_name(dir, remove_one, NULL);
        assert_int_equal(rmdir(dir), 0);
    }
}

struct names {
    const char *ending;
    unsigned count;
    char (*names)[256];
};

static void gather(const char *dir, const char *name, void *arg) {
    struct names *names = arg;
    const size_t length = strlen(name), ending = strlen(names->ending);
    (void)dir;
    if (length >= ending && strcmp(name + length - ending, names->ending) == 0) {
        names->names = realloc(names->names, (names->count + 1) * sizeof *names->names);
        assert_non_null(names->names);
        snprintf(names->names[names->count++], sizeof *names->names, "%s", name);
    }
}

static int by_name(const void *a, const void *b) {
    return strcmp(a, b);
}

unsigned count_files(const char *dir, const char *ending) {
    struct names names = {.ending = ending};
    each_name(dir, gather, &names);
    free(names.names);
    return names.count;
}

void nth_file(const char *dir, const char *ending, unsigned n, char out[256]) {
    struct names names = {.ending = ending};
    each_name(dir, gather, &names);
    assert_true(n < names.count);
    qsort(names.names, names.count, sizeof *names.names, by_name);
    memcpy(out, names.names[n], 256);
    free(names.names);
}

uint64_t file_size(const char *path) {
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

void flip_bit(const char *path, uint64_t byte, unsigned bit) {
    int fd = open(path, O_RDWR);
    uint8_t value;
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &value, 1, (off_t)byte), 1);
    value ^= (uint8_t)(1u << bit);
    assert_int_equal(pwrite(fd, &value, 1, (off_t)byte), 1);
    close(fd);
}

/* SPDX-License-Identifier: MPL-2.0 */
#ifndef STORE_FIXTURE_H
#define STORE_FIXTURE_H

#include "dw_store.h"
#include "fault_alloc.h"

#include <limits.h>

/* A store in a directory of its own, with an allocator and system calls that fail when told to, and
 * what it logs kept. */

struct fixture {
    char base[PATH_MAX / 4]; /* removed in the end */
    char dir[PATH_MAX / 2];  /* the store's, in base */
    struct fault_alloc alloc;
    struct dw_config config;
    struct dw_recovery report; /* of the last opening */
    dw_store *store;
    unsigned logged[3];  /* by enum dw_level */
    char last_log[1024]; /* of warnings and errors */
};

/* The store is not opened yet. Resets the faults of fault_io. */
void fixture_init(struct fixture *f);
/* Closes it if it is open, and fails the test unless all memory was given back. */
void fixture_end(struct fixture *f);

int fixture_try_open(struct fixture *f);
void fixture_open(struct fixture *f);  /* must succeed */
void fixture_close(struct fixture *f); /* and release */

/* A checkpoint with all that belongs to it; as the first failing call answers. */
int fixture_checkpoint(struct fixture *f, const char *snapshot_dir);

/* A path in f->base. The string stays valid until the 8th call after this. */
const char *fixture_path(struct fixture *f, const char *name);

/* Rounds of a random test: `normal`, times DW_TEST_ROUNDS if that is set, few if DW_TEST_SMALL. */
unsigned fixture_rounds(unsigned normal);

void copy_dir(const char *from, const char *to);
void remove_dir(const char *dir);
/* Names in `dir` that end so. */
unsigned count_files(const char *dir, const char *ending);
/* The name in `dir` that is the n-th of those that end so, from 0, by their order. */
void nth_file(const char *dir, const char *ending, unsigned n, char out[256]);
uint64_t file_size(const char *path);
void flip_bit(const char *path, uint64_t byte, unsigned bit);

#endif

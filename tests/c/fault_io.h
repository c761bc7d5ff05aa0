/* SPDX-License-Identifier: MPL-2.0 */
#ifndef FAULT_IO_H
#define FAULT_IO_H

#include "dw_io.h"

#include <stdbool.h>

/* The system calls with a fault put in, and a power cut. One of it in a program; not for several
 * threads. */

enum fault_call {
    FAULT_OPEN = 1 << 0,
    FAULT_PREAD = 1 << 1,
    FAULT_PWRITE = 1 << 2, /* a failing one writes half of it */
    FAULT_FSTAT = 1 << 3,
    FAULT_FTRUNCATE = 1 << 4,
    FAULT_FDATASYNC = 1 << 5,
    FAULT_FSYNC = 1 << 6,
    FAULT_MKDIR = 1 << 7,
    FAULT_RENAME = 1 << 8,
    FAULT_LINK = 1 << 9,
    FAULT_UNLINK = 1 << 10,
    FAULT_LIST = 1 << 11,      /* fdopendir, readdir */
    FAULT_CLOSE = 1 << 12,     /* closes, and says that it failed */
    FAULT_ADVISE = 1 << 13,    /* fadvise */
    FAULT_ANY = (1 << 12) - 1, /* whose failure matters */
    FAULT_CHANGE = FAULT_PWRITE | FAULT_FTRUNCATE | FAULT_MKDIR | FAULT_RENAME | FAULT_LINK |
                   FAULT_UNLINK | FAULT_FDATASYNC | FAULT_FSYNC,
};

extern const struct dw_io fault_io;

/* Forgets everything: no fault, no tracking. */
void fault_io_reset(void);

/* Of the calls in `kinds`, the n-th from now fails with `err`, and with `on` all that follow; n 0:
 * none. Counts them from 1 in any case. */
void fault_io_fail(unsigned kinds, uint64_t n, bool on, int err);

uint64_t fault_io_counted(void); /* calls since fault_io_fail() */
uint64_t fault_io_failed(void);  /* of these that were made to fail */

/* The same for one file: every call of these kinds on names that contain `part` fails. NULL: none
 */
void fault_io_fail_name(unsigned kinds, const char *part, int err);

/* A bad place: every read of bytes from `from` to `end` of names that contain `part` fails with
 * `err`. NULL: none. */
void fault_io_bad_place(const char *part, uint64_t from, uint64_t end, int err);

/* The n-th read from now, from 1, brings a wrong byte, and with `on` all that follow; 0: none. */
void fault_io_flip(uint64_t n, bool on);
uint64_t fault_io_flipped(void); /* of the reads since */

/* Reads and writes of at most that many bytes at once, and every other one interrupted; 0: as they
 * come. */
void fault_io_short(size_t bytes);

/* Whether what a file has unsynced when a descriptor of it is closed is lost: the write-back fails
 * later, nobody hears of it, and every sync after that succeeds. Of the tracked directory. */
void fault_io_lose_on_close(bool lose);

/* From now on notes what is durable in directory `dir`: which names, by its fsync, and how much of
 * each file, by theirs (also of files that come to it by a link, if they were made since the first
 * such call). What is in it now is. What a failed sync of a file left unsynced is lost for good, as
 * on Linux: it can be read until the power cut, and later syncs succeed without it. */
void fault_io_track(const char *dir);

/* Fills directory `to` with what is left of the tracked one after a power cut: of names made or
 * removed since the last fsync of the directory any, and of each file's bytes beyond what was
 * synced some, and junk after that. `random` decides, 0 to the worst: nothing unsynced is left. */
void fault_io_power_cut(const char *to, uint64_t random);

#endif

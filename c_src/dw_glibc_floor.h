/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_GLIBC_FLOOR_H
#define DW_GLIBC_FLOOR_H

/* Included before all else where the library is built for others' machines with glibc: what newer
 * versions (2.32 to 2.34) moved or made is bound to as the oldest of each processor has it, so that
 * the library loads from 2.28 on. tests/static/libraries looks at what was bound to. */

#include <features.h>

#if defined(__GLIBC__)

#include <sys/stat.h>

#if defined(__x86_64__)
#define DW_GLIBC_OLDEST "GLIBC_2.2.5"
enum { DW_STAT_VERSION = 1 };
#elif defined(__aarch64__)
#define DW_GLIBC_OLDEST "GLIBC_2.17"
enum { DW_STAT_VERSION = 0 };
#else
#error "the oldest glibc of this processor is not known here"
#endif

__asm__(".symver pthread_create,pthread_create@" DW_GLIBC_OLDEST);
__asm__(".symver pthread_sigmask,pthread_sigmask@" DW_GLIBC_OLDEST);
__asm__(".symver __fxstat,__fxstat@" DW_GLIBC_OLDEST);

/* What fstat was in headers before 2.33. */
int __fxstat(int version, int fd, struct stat *st);

static inline int dw_fstat(int fd, struct stat *st) {
    return __fxstat(DW_STAT_VERSION, fd, st);
}
#define fstat dw_fstat

#endif
#endif

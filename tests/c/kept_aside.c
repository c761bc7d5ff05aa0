/* SPDX-License-Identifier: MPL-2.0 */
#include "kept_aside.h"

#include "dw_crc32c.h"
#include "dw_le.h"
#include "dw_store.h"

#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

unsigned read_kept(const uint8_t *p, size_t size, struct kept *out, unsigned max) {
    unsigned n = 0;
    for (size_t at = 0; at + 64 <= size && n < max;) {
        if (memcmp(p + at, "DWK1", 4) != 0) {
            at += 8;
            continue;
        }
        const uint32_t there = dw_le32(p + at + 52), name = dw_le16(p + at + 56);
        const size_t bytes = 64 + name + there;
        if (at + bytes > size || dw_crc32c(0, p + at + 8, bytes - 8) != dw_le32(p + at + 4)) {
            at += 8;
            continue;
        }
        out[n] = (struct kept){.id = dw_le64(p + at + 16),
                               .due = dw_le64(p + at + 24),
                               .key_hash = dw_le64(p + at + 32),
                               .off = dw_le64(p + at + 40),
                               .length = dw_le32(p + at + 48),
                               .there = there,
                               .bytes = p + at + 64 + name};
        snprintf(out[n++].name, DW_FILE_NAME_BYTES, "%.*s", (int)name, (const char *)p + at + 64);
        at += (bytes + 7) / 8 * 8;
    }
    return n;
}

unsigned read_kept_of(const char *dir, uint8_t *bytes, size_t size, struct kept *out,
                      unsigned max) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", dir, DW_KEPT_NAME);
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        return 0;
    }
    const ssize_t n = read(fd, bytes, size);
    close(fd);
    assert_true(n >= 0 && (size_t)n < size);
    return read_kept(bytes, (size_t)n, out, max);
}

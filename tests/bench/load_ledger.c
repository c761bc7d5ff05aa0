/* SPDX-License-Identifier: MPL-2.0 */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A header, then a byte for each sequence number. */
struct header {
    uint64_t magic;
    uint64_t capacity;
    _Atomic uint32_t closed;
    uint8_t unused[44];
};

static const uint64_t ledger_magic = 0x646c656467657231;

static bool map_it(struct ledger *ledger, int fd, size_t bytes) {
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    ledger->map_bytes = bytes;
    ledger->map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (ledger->map == MAP_FAILED) {
        return complain("the ledger cannot be mapped: %s", strerror(errno));
    }
    struct header *header = ledger->map;
    ledger->closed = &header->closed;
    ledger->state = (uint8_t *)ledger->map + sizeof *header;
    return true;
}

bool ledger_create(struct ledger *ledger, const char *path, uint64_t capacity) {
    size_t bytes = sizeof(struct header) + capacity;
    int fd = -1;
    if (path != NULL) {
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
            complain("%s: %s", path, strerror(errno));
            if (fd >= 0) {
                close(fd);
            }
            return false;
        }
    }
    bool mapped = map_it(ledger, fd, bytes);
    if (fd >= 0) {
        close(fd);
    }
    if (!mapped) {
        return false;
    }
    struct header *header = ledger->map;
    ledger->capacity = capacity;
    header->capacity = capacity;
    header->magic = ledger_magic;
    return true;
}

bool ledger_open(struct ledger *ledger, const char *path) {
    struct stat stat;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &stat) != 0) {
        complain("%s: %s", path, strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return false;
    }
    if ((size_t)stat.st_size < sizeof(struct header)) {
        close(fd);
        return complain("%s is not a ledger", path);
    }
    bool mapped = map_it(ledger, fd, (size_t)stat.st_size);
    close(fd);
    if (!mapped) {
        return false;
    }
    const struct header *header = ledger->map;
    if (header->magic != ledger_magic ||
        header->capacity + sizeof *header != (uint64_t)stat.st_size) {
        ledger_unmap(ledger);
        return complain("%s is not a ledger", path);
    }
    ledger->capacity = header->capacity;
    return true;
}

void ledger_unmap(struct ledger *ledger) {
    munmap(ledger->map, ledger->map_bytes);
}

/* SPDX-License-Identifier: MPL-2.0 */
#ifndef STORE_DAMAGE_H
#define STORE_DAMAGE_H

#include "store_fixture.h"
#include "store_model.h"

/* A store, made once and closed, and the ways in which copies of it are damaged. */

#define SOUND_NOW UINT64_C(1700000000000)
#define SOUND_NEAR (SOUND_NOW + 2900000) /* what is due in 3,000 s is moved to finer slices */

enum { SOUND_EVER = 512 };

struct sound {
    struct fixture f;
    struct model model;
    struct model_record ever[SOUND_EVER]; /* as they were inserted */
    size_t count;
};

/* Two slices that are near, of which one is moved in part; messages settled, and given another due
 * time where they are. */
void sound_make(struct sound *sound);
void sound_end(struct sound *sound);

/* All bytes of a file; to be freed. */
uint8_t *file_contents(const char *path, size_t *size);

struct damage {
    const char *name;
    void (*damage)(const char *dir);
    unsigned rebuilt;  /* indexes; UINT_MAX: all */
    unsigned lost;     /* messages that nothing is left of */
    unsigned corrupt;  /* of which something is left; UINT_MAX: of a whole file */
    bool out_of_reach; /* these, until the file is back */
};

enum { DAMAGES = 15 };
extern const struct damage damages[DAMAGES];

#endif

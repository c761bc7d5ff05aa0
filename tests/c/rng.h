/* SPDX-License-Identifier: MPL-2.0 */
#ifndef RNG_H
#define RNG_H

#include <stdint.h>
#include <stdlib.h>

/* Random numbers for tests, the same for the same seed everywhere (splitmix64). */
struct rng {
    uint64_t state;
};

static inline struct rng rng_of(uint64_t seed) {
    return (struct rng){.state = seed};
}

static inline uint64_t rng_next(struct rng *r) {
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* One of 0..n-1. */
static inline uint64_t rng_below(struct rng *r, uint64_t n) {
    return rng_next(r) % n;
}

static inline int rng_percent(struct rng *r, unsigned percent) {
    return rng_below(r, 100) < percent;
}

/* A number of up to so many bits, each length as likely as another. */
static inline uint64_t rng_bits(struct rng *r, unsigned bits) {
    return rng_next(r) & ((UINT64_C(1) << rng_below(r, bits + 1)) - 1);
}

/* How large a test is: as usual, or smaller if DW_TEST_SMALL is set (under valgrind, all is slow).
 */
static inline uint64_t rng_size(uint64_t usual, uint64_t when_small) {
    return getenv("DW_TEST_SMALL") == NULL ? usual : when_small;
}

/* How many rounds a randomised test makes: as many as DW_TEST_ROUNDS says, or as usual. Round i
 * uses seed i, so that a failing round can be had again alone. */
static inline uint64_t rng_rounds(uint64_t usual) {
    const char *rounds = getenv("DW_TEST_ROUNDS");
    return rounds == NULL ? rng_size(usual, usual / 16 + 1) : strtoull(rounds, NULL, 10);
}

/* The first round: 0, or what DW_TEST_SEED says. */
static inline uint64_t rng_first(void) {
    const char *seed = getenv("DW_TEST_SEED");
    return seed == NULL ? 0 : strtoull(seed, NULL, 10);
}

#endif

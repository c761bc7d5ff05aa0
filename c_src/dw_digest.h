/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_DIGEST_H
#define DW_DIGEST_H

#include <stdint.h>

/* A digest of a set of records: the sum, modulo 2^64, of a hash of each, so that the order in which
 * they came makes no difference and one that goes is subtracted. Of no records it is 0.
 *
 * Replicas compare it, whatever their versions: it stays as it is. It tells sets apart that differ
 * by accident, not those that somebody chose to have the same. */

/* A bijection, in which each bit depends on all: the finaliser of SplitMix64 (G. Steele, D. Lea,
 * C. Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014), whose constants are those
 * of D. Stafford's variant 13 of the finaliser of MurmurHash3. */
static inline uint64_t dw_digest_mix(uint64_t x) {
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

/* A record's hash. Two that differ in one field never have the same. */
static inline uint64_t dw_digest_of(uint64_t id, uint64_t due, uint64_t key_hash, uint32_t length) {
    const uint64_t golden = UINT64_C(0x9E3779B97F4A7C15);
    uint64_t x = dw_digest_mix(id + golden);
    x = dw_digest_mix(x + key_hash);
    return dw_digest_mix(x + due + length * golden);
}

#endif

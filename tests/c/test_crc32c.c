/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_crc32c.h"

#include "rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

typedef uint32_t crc_function(uint32_t crc, const void *p, size_t bytes);

static crc_function *const functions[] = {dw_crc32c, dw_crc32c_by_table};

/* RFC 3720 appendix B.4, whose bytes are the little-endian form of these numbers; the check value
 * of "123456789" is from the catalogue of parametrised CRC algorithms. */
static void known_values(void **state) {
    (void)state;
    uint8_t zeros[32], ones[32], up[32], down[32];
    for (unsigned i = 0; i < 32; i++) {
        zeros[i] = 0;
        ones[i] = 0xff;
        up[i] = (uint8_t)i;
        down[i] = (uint8_t)(31 - i);
    }
    const uint8_t read_pdu[48] = {0x01, 0xc0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
                                  0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x14, 0x00, 0x00, 0x00,
                                  0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x00, 0x14, 0x00, 0x00,
                                  0x00, 0x18, 0x28, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
                                  0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00};
    for (unsigned i = 0; i < 2; i++) {
        crc_function *crc = functions[i];
        assert_int_equal(crc(0, zeros, 32), 0x8a9136aa);
        assert_int_equal(crc(0, ones, 32), 0x62a8ab43);
        assert_int_equal(crc(0, up, 32), 0x46dd794e);
        assert_int_equal(crc(0, down, 32), 0x113fdb5c);
        assert_int_equal(crc(0, read_pdu, 48), 0xd9963a56);
        assert_int_equal(crc(0, "123456789", 9), 0xe3069283);
        assert_int_equal(crc(0, "", 0), 0);
        assert_int_equal(crc(0x12345678, "", 0), 0x12345678);
    }
}

/* One bit at a time, from the polynomial alone. */
static uint32_t by_definition(uint32_t crc, const uint8_t *p, size_t bytes) {
    crc = ~crc;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= p[i];
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ ((crc & 1) != 0 ? 0x82f63b78 : 0);
    }
    return ~crc;
}

static void all_ways_agree(void **state) {
    (void)state;
    uint8_t p[700];
    uint64_t first = rng_first(), rounds = rng_rounds(4000);
    for (uint64_t seed = first; seed < first + rounds; seed++) {
        struct rng rng = rng_of(seed);
        size_t from = rng_below(&rng, 17), bytes = rng_below(&rng, 300);
        for (size_t i = 0; i < from + bytes; i++)
            p[i] = (uint8_t)rng_next(&rng);
        uint32_t begin = (uint32_t)rng_next(&rng);
        uint32_t crc = by_definition(begin, p + from, bytes);
        if (dw_crc32c(begin, p + from, bytes) != crc ||
            dw_crc32c_by_table(begin, p + from, bytes) != crc)
            fail_msg("DW_TEST_SEED=%llu: %zu bytes at %zu", (unsigned long long)seed, bytes, from);
        size_t cut = bytes == 0 ? 0 : rng_below(&rng, bytes);
        assert_int_equal(dw_crc32c(dw_crc32c(begin, p + from, cut), p + from + cut, bytes - cut),
                         crc);
    }
}

static void a_changed_bit_is_seen(void **state) {
    (void)state;
    uint8_t p[64];
    memset(p, 0x5a, sizeof p);
    uint32_t crc = dw_crc32c(0, p, sizeof p);
    for (unsigned bit = 0; bit < 8 * sizeof p; bit++) {
        p[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_not_equal(dw_crc32c(0, p, sizeof p), crc);
        p[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_int_equal(dw_crc32c(0, p, sizeof p), crc);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_values),
        cmocka_unit_test(all_ways_agree),
        cmocka_unit_test(a_changed_bit_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_crc32c.h"

#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <sys/auxv.h>
#endif

/* Without the processor's help, eight bytes at a time ("slicing by 8", Kounavis and Berry 2005):
 * table[n][b] is the remainder of byte b followed by n zero bytes. As the remainder of a sum is the
 * sum of the remainders, the compiler makes each table from those of the eight single bits. */

#define BIT(b, i, r) (((b) >> (i)&1u) != 0 ? (r) : 0u)
#define SUM(b, r0, r1, r2, r3, r4, r5, r6, r7)                                                     \
    (BIT(b, 0, r0) ^ BIT(b, 1, r1) ^ BIT(b, 2, r2) ^ BIT(b, 3, r3) ^ BIT(b, 4, r4) ^               \
     BIT(b, 5, r5) ^ BIT(b, 6, r6) ^ BIT(b, 7, r7))
#define SUMS4(b, ...)                                                                              \
    SUM(b, __VA_ARGS__), SUM((b) + 1, __VA_ARGS__), SUM((b) + 2, __VA_ARGS__),                     \
        SUM((b) + 3, __VA_ARGS__)
#define SUMS16(b, ...)                                                                             \
    SUMS4(b, __VA_ARGS__), SUMS4((b) + 4, __VA_ARGS__), SUMS4((b) + 8, __VA_ARGS__),               \
        SUMS4((b) + 12, __VA_ARGS__)
#define SUMS64(b, ...)                                                                             \
    SUMS16(b, __VA_ARGS__), SUMS16((b) + 16, __VA_ARGS__), SUMS16((b) + 32, __VA_ARGS__),          \
        SUMS16((b) + 48, __VA_ARGS__)
#define TABLE(...)                                                                                 \
    {                                                                                              \
        SUMS64(0u, __VA_ARGS__), SUMS64(64u, __VA_ARGS__), SUMS64(128u, __VA_ARGS__),              \
            SUMS64(192u, __VA_ARGS__)                                                              \
    }

static const uint32_t table[8][256] = {
    TABLE(0xf26b8303, 0xe13b70f7, 0xc79a971f, 0x8ad958cf, 0x105ec76f, 0x20bd8ede, 0x417b1dbc,
          0x82f63b78),
    TABLE(0x13a29877, 0x274530ee, 0x4e8a61dc, 0x9d14c3b8, 0x3fc5f181, 0x7f8be302, 0xff17c604,
          0xfbc3faf9),
    TABLE(0xa541927e, 0x4f6f520d, 0x9edea41a, 0x38513ec5, 0x70a27d8a, 0xe144fb14, 0xc76580d9,
          0x8b277743),
    TABLE(0xdd45aab8, 0xbf672381, 0x7b2231f3, 0xf64463e6, 0xe964b13d, 0xd725148b, 0xaba65fe7,
          0x52a0c93f),
    TABLE(0x38116fac, 0x7022df58, 0xe045beb0, 0xc5670b91, 0x8f2261d3, 0x1ba8b557, 0x37516aae,
          0x6ea2d55c),
    TABLE(0xef306b19, 0xdb8ca0c3, 0xb2f53777, 0x6006181f, 0xc00c303e, 0x85f4168d, 0x0e045beb,
          0x1c08b7d6),
    TABLE(0x68032cc8, 0xd0065990, 0xa5e0c5d1, 0x4e2dfd53, 0x9c5bfaa6, 0x3d5b83bd, 0x7ab7077a,
          0xf56e0ef4),
    TABLE(0x493c7d27, 0x9278fa4e, 0x211d826d, 0x423b04da, 0x847609b4, 0x0d006599, 0x1a00cb32,
          0x34019664),
};

static uint64_t load64(const unsigned char *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

uint32_t dw_crc32c_by_table(uint32_t crc, const void *p, size_t bytes) {
    const unsigned char *b = p;
    uint32_t c = ~crc;
    for (; bytes >= 8; b += 8, bytes -= 8) {
        uint64_t v = load64(b) ^ c;
        c = 0;
        for (unsigned i = 0; i < 8; i++)
            c ^= table[7 - i][v >> (8 * i) & 0xff];
    }
    for (; bytes > 0; b++, bytes--)
        c = c >> 8 ^ table[0][(c ^ *b) & 0xff];
    return ~c;
}

#if defined(__x86_64__)

#define HAVE_INSTRUCTION 1

static bool has_instruction(void) {
    return __builtin_cpu_supports("sse4.2");
}

__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const void *p,
                                                                 size_t bytes) {
    const unsigned char *b = p;
    uint64_t c = (uint32_t)~crc;
    for (; bytes >= 8; b += 8, bytes -= 8)
        c = _mm_crc32_u64(c, load64(b));
    for (; bytes > 0; b++, bytes--)
        c = _mm_crc32_u8((uint32_t)c, *b);
    return ~(uint32_t)c;
}

#elif defined(__aarch64__) && defined(__linux__)

#define HAVE_INSTRUCTION 1

static bool has_instruction(void) {
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
}

__attribute__((target("+crc"))) static uint32_t by_instruction(uint32_t crc, const void *p,
                                                               size_t bytes) {
    const unsigned char *b = p;
    uint32_t c = ~crc;
    for (; bytes >= 8; b += 8, bytes -= 8)
        c = __crc32cd(c, load64(b));
    for (; bytes > 0; b++, bytes--)
        c = __crc32cb(c, *b);
    return ~c;
}

#endif

uint32_t dw_crc32c(uint32_t crc, const void *p, size_t bytes) {
#ifdef HAVE_INSTRUCTION
    if (has_instruction())
        return by_instruction(crc, p, bytes);
#endif
    return dw_crc32c_by_table(crc, p, bytes);
}

/* SPDX-License-Identifier: MPL-2.0 */
#include "load.h"

#include <amqp_framing.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHANNEL = 1, FRAME_HEAD = 7, FRAME_OVERHEAD = FRAME_HEAD + 1, PROPERTIES_MOST = 512 };

static void put_be(uint8_t *out, uint64_t value, int bytes) {
    for (int i = bytes - 1; i >= 0; i--) {
        out[i] = (uint8_t)value;
        value >>= 8;
    }
}

static uint64_t get_be(const uint8_t *in, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) {
        value = value << 8 | in[i];
    }
    return value;
}

void stamp_write(uint8_t out[STAMP_BYTES], const struct stamp *stamp) {
    put_be(out, stamp->run, 8);
    put_be(out + 8, stamp->seq, 8);
    put_be(out + 16, (uint64_t)stamp->published_us, 8);
    put_be(out + 24, (uint64_t)stamp->due_us, 8);
}

void stamp_read(const uint8_t in[STAMP_BYTES], struct stamp *stamp) {
    stamp->run = get_be(in, 8);
    stamp->seq = get_be(in + 8, 8);
    stamp->published_us = (int64_t)get_be(in + 16, 8);
    stamp->due_us = (int64_t)get_be(in + 24, 8);
}

/* splitmix64: the delay depends on the seed and the sequence number only, whichever connection
 * publishes it. */
static uint64_t scramble(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

int64_t delay_due_us(const struct delay_plan *plan, uint64_t seq, int64_t published_us) {
    switch (plan->kind) {
    case DELAY_FIXED:
        return published_us + plan->from_ms * 1000;
    case DELAY_UNIFORM: {
        uint64_t span = (uint64_t)(plan->to_ms - plan->from_ms) + 1;
        uint64_t delay_ms = scramble(plan->seed ^ scramble(seq)) % span;
        return published_us + (plan->from_ms + (int64_t)delay_ms) * 1000;
    }
    case DELAY_WINDOW: {
        double part = plan->count == 0 ? 0 : (double)(seq % plan->count) / (double)plan->count;
        return (plan->from_ms + (int64_t)(part * (double)plan->to_ms)) * 1000;
    }
    case DELAY_SCATTER: {
        uint64_t span = plan->to_ms == 0 ? 1 : (uint64_t)plan->to_ms;
        return (plan->from_ms + (int64_t)(scramble(plan->seed ^ scramble(seq)) % span)) * 1000;
    }
    case DELAY_NONE:
        break;
    }
    return published_us;
}

static size_t frame_begin(uint8_t *out, uint8_t type, size_t payload) {
    out[0] = type;
    put_be(out + 1, CHANNEL, 2);
    put_be(out + 3, payload, 4);
    return FRAME_HEAD;
}

bool batch_init(struct batch *batch, const struct options *options) {
    amqp_basic_publish_t method = {
        .exchange = amqp_cstring_bytes(options->exchange),
        .routing_key = amqp_cstring_bytes(options->key),
    };
    uint8_t *payload = batch->method + FRAME_HEAD;
    memset(batch, 0, sizeof *batch);
    put_be(payload, AMQP_BASIC_PUBLISH_METHOD, 4);
    amqp_bytes_t rest = {.len = sizeof batch->method - FRAME_OVERHEAD - 4, .bytes = payload + 4};
    int length = amqp_encode_method(AMQP_BASIC_PUBLISH_METHOD, &method, rest);
    if (length < 0) {
        return complain("basic.publish: %s", amqp_error_string2(length));
    }
    frame_begin(batch->method, AMQP_FRAME_METHOD, (size_t)length + 4);
    payload[4 + length] = AMQP_FRAME_END;
    batch->method_length = FRAME_OVERHEAD + 4 + (size_t)length;
    size_t most = batch->method_length + FRAME_OVERHEAD + 12 + PROPERTIES_MOST + FRAME_OVERHEAD +
                  options->size;
    batch->capacity = most * options->window;
    batch->bytes = calloc(1, batch->capacity);
    return batch->bytes != NULL || complain("out of memory");
}

void batch_free(struct batch *batch) {
    free(batch->bytes);
}

/* The properties of a message: persistent, and its delay or its key said in the way that was asked
 * for. */
static int encode_properties(amqp_bytes_t out, enum delay_header header,
                             const struct stamp *stamp) {
    /* Rounded up: a due time is never asked for too early. */
    int64_t delay_ms = (stamp->due_us - stamp->published_us + 999) / 1000;
    char expiration[24], key[24];
    amqp_table_entry_t entries[2] = {{.value.kind = AMQP_FIELD_KIND_I64},
                                     {.value.kind = AMQP_FIELD_KIND_UTF8}};
    amqp_table_entry_t *entry = &entries[0];
    amqp_basic_properties_t properties = {
        ._flags = AMQP_BASIC_DELIVERY_MODE_FLAG,
        .delivery_mode = 2,
        .headers = {.num_entries = 1, .entries = entries},
    };
    delay_ms = delay_ms < 0 ? 0 : delay_ms;
    snprintf(key, sizeof key, "%" PRIu64, stamp->seq);
    switch (header) {
    case HEADER_X_DELAY:
        properties._flags |= AMQP_BASIC_HEADERS_FLAG;
        entry->key = amqp_cstring_bytes("x-delay");
        entry->value.kind = AMQP_FIELD_KIND_I32;
        entry->value.value.i32 = (int32_t)delay_ms;
        break;
    case HEADER_KEY:
        properties._flags |= AMQP_BASIC_HEADERS_FLAG;
        properties.headers.num_entries = 2;
        entry->key = amqp_cstring_bytes("x-delay");
        entry->value.kind = AMQP_FIELD_KIND_I32;
        entry->value.value.i32 = (int32_t)delay_ms;
        entries[1].key = amqp_cstring_bytes("x-delay-key");
        entries[1].value.value.bytes = amqp_cstring_bytes(key);
        break;
    case HEADER_CANCEL:
        properties._flags |= AMQP_BASIC_HEADERS_FLAG;
        entry->key = amqp_cstring_bytes("x-delay-cancel");
        entry->value.kind = AMQP_FIELD_KIND_UTF8;
        entry->value.value.bytes = amqp_cstring_bytes(key);
        break;
    case HEADER_DELIVERY_TIME:
        properties._flags |= AMQP_BASIC_HEADERS_FLAG;
        entry->key = amqp_cstring_bytes("x-opt-delivery-time");
        entry->value.value.i64 = stamp->due_us / 1000;
        break;
    case HEADER_EXPIRATION:
        properties._flags |= AMQP_BASIC_EXPIRATION_FLAG;
        snprintf(expiration, sizeof expiration, "%" PRId64, delay_ms);
        properties.expiration = amqp_cstring_bytes(expiration);
        break;
    case HEADER_NONE:
        break;
    }
    return amqp_encode_properties(AMQP_BASIC_CLASS, &properties, out);
}

bool batch_add(struct batch *batch, const struct options *options, const struct stamp *stamp) {
    uint8_t *out = batch->bytes + batch->length;
    memcpy(out, batch->method, batch->method_length);
    out += batch->method_length;

    uint8_t *payload = out + FRAME_HEAD;
    put_be(payload, AMQP_BASIC_CLASS, 2);
    put_be(payload + 2, 0, 2);
    put_be(payload + 4, options->size, 8);
    amqp_bytes_t rest = {.len = PROPERTIES_MOST, .bytes = payload + 12};
    int length = encode_properties(rest, options->header, stamp);
    if (length < 0) {
        return complain("properties: %s", amqp_error_string2(length));
    }
    frame_begin(out, AMQP_FRAME_HEADER, 12 + (size_t)length);
    out = payload + 12 + length;
    *out++ = AMQP_FRAME_END;

    out += frame_begin(out, AMQP_FRAME_BODY, options->size);
    stamp_write(out, stamp);
    memset(out + STAMP_BYTES, 'x', options->size - STAMP_BYTES);
    out += options->size;
    *out++ = AMQP_FRAME_END;
    batch->length = (size_t)(out - batch->bytes);
    return true;
}

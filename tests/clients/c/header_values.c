// SPDX-License-Identifier: MPL-2.0
// header_values URL EXCHANGE CASES: sends the cases of ../header_values.py with librabbitmq. CASES
// has a line for each: its type, 1 or 0 for the header `copy`, its name and its value, both in
// hexadecimal. Answers a line for each: its name, and what the broker said if it was refused.

#include <errno.h>
#include <inttypes.h>

#include "later.h"

#define LONGEST (1 << 18)

static char line[LONGEST], name[LONGEST], value[LONGEST];

// The bytes of a number in hexadecimal, and a null byte after them.
static size_t decoded(const char *hex, char *bytes) {
    size_t n = 0;
    for (; hex[2 * n] != '\0' && hex[2 * n + 1] != '\0'; n++) {
        unsigned octet;
        if (sscanf(hex + 2 * n, "%2x", &octet) != 1) {
            break;
        }
        bytes[n] = (char)octet;
    }
    bytes[n] = '\0';
    return n;
}

static int64_t integer(const char *text) {
    errno = 0;
    int64_t number = strtoll(text, NULL, 10);
    if (errno != 0) {
        perror(text);
        exit(1);
    }
    return number;
}

// `inner` is room for what an array or a table holds: one 32-bit integer.
static amqp_field_value_t field(char kind, size_t length, amqp_table_entry_t *inner) {
    amqp_field_value_t it = {.kind = (uint8_t)kind};
    switch (kind) {
    case AMQP_FIELD_KIND_BOOLEAN:
        it.value.boolean = value[0] == '1';
        break;
    case AMQP_FIELD_KIND_I8:
        it.value.i8 = (int8_t)integer(value);
        break;
    case AMQP_FIELD_KIND_U8:
        it.value.u8 = (uint8_t)integer(value);
        break;
    case AMQP_FIELD_KIND_I16:
        it.value.i16 = (int16_t)integer(value);
        break;
    case AMQP_FIELD_KIND_U16:
        it.value.u16 = (uint16_t)integer(value);
        break;
    case AMQP_FIELD_KIND_I32:
        it.value.i32 = (int32_t)integer(value);
        break;
    case AMQP_FIELD_KIND_U32:
        it.value.u32 = (uint32_t)integer(value);
        break;
    case AMQP_FIELD_KIND_I64:
        it.value.i64 = integer(value);
        break;
    case AMQP_FIELD_KIND_TIMESTAMP:
        it.value.u64 = (uint64_t)integer(value);
        break;
    case AMQP_FIELD_KIND_F32:
        it.value.f32 = strtof(value, NULL);
        break;
    case AMQP_FIELD_KIND_F64:
        it.value.f64 = strtod(value, NULL);
        break;
    case AMQP_FIELD_KIND_DECIMAL: {
        char *rest;
        it.value.decimal.value = (uint32_t)strtoll(value, &rest, 10);
        it.value.decimal.decimals = (uint8_t)integer(rest);
        break;
    }
    case AMQP_FIELD_KIND_UTF8:
    case AMQP_FIELD_KIND_BYTES:
        it.value.bytes = (amqp_bytes_t){.len = length, .bytes = value};
        break;
    case AMQP_FIELD_KIND_ARRAY:
    case AMQP_FIELD_KIND_TABLE:
        inner->key = amqp_cstring_bytes("ms");
        inner->value =
            (amqp_field_value_t){.kind = AMQP_FIELD_KIND_I32, .value.i32 = (int32_t)integer(value)};
        if (kind == AMQP_FIELD_KIND_TABLE) {
            it.value.table = table_of(inner, 1);
        } else {
            it.value.array = (amqp_array_t){.num_entries = 1, .entries = &inner->value};
        }
        break;
    default:
        break;
    }
    return it;
}

static void send_case(amqp_connection_state_t connection, const char *exchange, char kind, int copy,
                      size_t length) {
    amqp_table_entry_t inner;
    amqp_table_entry_t headers[2] = {{.key = amqp_cstring_bytes("x-delay")},
                                     {.key = amqp_cstring_bytes("copy")}};
    headers[0].value = headers[1].value = field(kind, length, &inner);
    publish(connection, exchange, "k", name, 0, table_of(headers, copy ? 2 : 1));
    amqp_rpc_reply_t reply = wait_for_confirm(connection, NULL, 0);
    printf("%s\t", name);
    if (reply.reply_type == AMQP_RESPONSE_NORMAL) {
        printf("\n");
        return;
    }
    print_reason(reply);
    amqp_channel_close_ok_t closed = {0};
    check_status(amqp_send_method(connection, CHANNEL, AMQP_CHANNEL_CLOSE_OK_METHOD, &closed));
    open_confirming(connection);
}

int main(int argc, char **argv) {
    amqp_connection_state_t connection = connect_to(argc, argv);
    FILE *cases = argc > 3 ? fopen(argv[3], "r") : NULL;
    if (cases == NULL) {
        fprintf(stderr, "no cases\n");
        return 1;
    }
    while (fgets(line, sizeof line, cases) != NULL) {
        char *save;
        char *kind = strtok_r(line, " \n", &save);
        char *copy = strtok_r(NULL, " \n", &save);
        char *named = strtok_r(NULL, " \n", &save);
        char *given = strtok_r(NULL, " \n", &save);
        if (kind == NULL || copy == NULL || named == NULL) {
            fprintf(stderr, "no case\n");
            return 1;
        }
        decoded(named, name);
        send_case(connection, argv[2], kind[0], copy[0] == '1', decoded(given ? given : "", value));
    }
    fclose(cases);
    disconnect(connection);
    return 0;
}

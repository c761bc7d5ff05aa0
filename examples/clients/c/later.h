// SPDX-License-Identifier: MPL-2.0
// What the samples share: a connection, declarations, a confirmed publish. Every answer is checked.
#ifndef LATER_H
#define LATER_H

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHANNEL 1

// What the broker said when it closed the channel or the connection.
static inline void print_reason(amqp_rpc_reply_t reply) {
    if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION &&
        reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD) {
        amqp_channel_close_t *close = reply.reply.decoded;
        printf("%d, %.*s\n", close->reply_code, (int)close->reply_text.len,
               (char *)close->reply_text.bytes);
    } else if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION &&
               reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD) {
        amqp_connection_close_t *close = reply.reply.decoded;
        printf("%d, %.*s\n", close->reply_code, (int)close->reply_text.len,
               (char *)close->reply_text.bytes);
    } else {
        printf("%s\n", amqp_error_string2(reply.library_error));
    }
}

static inline void check(amqp_rpc_reply_t reply) {
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) {
        print_reason(reply);
        exit(1);
    }
}

static inline void check_status(int status) {
    if (status != AMQP_STATUS_OK) {
        fprintf(stderr, "%s\n", amqp_error_string2(status));
        exit(1);
    }
}

static inline void open_confirming(amqp_connection_state_t connection) {
    amqp_channel_open(connection, CHANNEL);
    check(amqp_get_rpc_reply(connection));
    amqp_confirm_select(connection, CHANNEL);
    check(amqp_get_rpc_reply(connection));
}

// The URL is the program's first argument. The channel is in confirm mode.
static inline amqp_connection_state_t connect_to(int argc, char **argv) {
    char *url = strdup(argc > 1 ? argv[1] : "amqp://guest:guest@localhost:5672");
    struct amqp_connection_info info;
    if (url == NULL || amqp_parse_url(url, &info) != AMQP_STATUS_OK) {
        fprintf(stderr, "not an AMQP URL\n");
        exit(1);
    }
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = connection == NULL ? NULL : amqp_tcp_socket_new(connection);
    if (socket == NULL) {
        fprintf(stderr, "no memory\n");
        exit(1);
    }
    check_status(amqp_socket_open(socket, info.host, info.port));
    check(amqp_login(connection, info.vhost, 0, AMQP_DEFAULT_FRAME_SIZE, 0, AMQP_SASL_METHOD_PLAIN,
                     info.user, info.password));
    free(url);
    open_confirming(connection);
    return connection;
}

static inline void disconnect(amqp_connection_state_t connection) {
    check(amqp_connection_close(connection, AMQP_REPLY_SUCCESS));
    check_status(amqp_destroy_connection(connection));
}

static inline amqp_table_entry_t text_entry(const char *key, const char *text) {
    return (amqp_table_entry_t){
        .key = amqp_cstring_bytes(key),
        .value = {.kind = AMQP_FIELD_KIND_UTF8, .value.bytes = amqp_cstring_bytes(text)}};
}

static inline amqp_table_entry_t number_entry(const char *key, int64_t number) {
    return (amqp_table_entry_t){.key = amqp_cstring_bytes(key),
                                .value = {.kind = AMQP_FIELD_KIND_I64, .value.i64 = number}};
}

static inline amqp_table_t table_of(amqp_table_entry_t *entries, int n) {
    return (amqp_table_t){.num_entries = n, .entries = entries};
}

static inline void declare_exchange(amqp_connection_state_t connection, const char *name,
                                    amqp_table_t arguments) {
    amqp_exchange_declare(connection, CHANNEL, amqp_cstring_bytes(name),
                          amqp_cstring_bytes("x-delayed-message"), 0, 1, 0, 0, arguments);
    check(amqp_get_rpc_reply(connection));
}

static inline void declare_queue(amqp_connection_state_t connection, const char *name,
                                 amqp_table_t arguments) {
    amqp_queue_declare(connection, CHANNEL, amqp_cstring_bytes(name), 0, 1, 0, 0, arguments);
    check(amqp_get_rpc_reply(connection));
}

// The exchange `later`, and with a queue `work` that is bound to it.
static inline void declare_later(amqp_connection_state_t connection, int with_queue) {
    amqp_table_entry_t type = text_entry("x-delayed-type", "direct");
    declare_exchange(connection, "later", table_of(&type, 1));
    if (with_queue) {
        declare_queue(connection, "work", amqp_empty_table);
        amqp_queue_bind(connection, CHANNEL, amqp_cstring_bytes("work"),
                        amqp_cstring_bytes("later"), amqp_cstring_bytes("job"), amqp_empty_table);
        check(amqp_get_rpc_reply(connection));
    }
}

static inline void publish(amqp_connection_state_t connection, const char *exchange,
                           const char *key, const char *text, int mandatory, amqp_table_t headers) {
    amqp_basic_properties_t properties = {._flags = AMQP_BASIC_HEADERS_FLAG |
                                                    AMQP_BASIC_DELIVERY_MODE_FLAG,
                                          .headers = headers,
                                          .delivery_mode = AMQP_DELIVERY_PERSISTENT};
    amqp_maybe_release_buffers(connection);
    check_status(amqp_basic_publish(connection, CHANNEL, amqp_cstring_bytes(exchange),
                                    amqp_cstring_bytes(key), mandatory, 0, &properties,
                                    amqp_cstring_bytes(text)));
}

// What the broker answers to a message that was published on a channel in confirm mode. The text of
// a return goes to `returned`, if it is not NULL; a normal reply is the confirm.
static inline amqp_rpc_reply_t wait_for_confirm(amqp_connection_state_t connection, char *returned,
                                                size_t room) {
    amqp_rpc_reply_t reply = {.reply_type = AMQP_RESPONSE_NORMAL};
    for (;;) {
        amqp_frame_t frame;
        int status = amqp_simple_wait_frame(connection, &frame);
        if (status != AMQP_STATUS_OK) {
            reply.reply_type = AMQP_RESPONSE_LIBRARY_EXCEPTION;
            reply.library_error = status;
            return reply;
        }
        if (frame.frame_type != AMQP_FRAME_METHOD) {
            continue;
        }
        switch (frame.payload.method.id) {
        case AMQP_BASIC_ACK_METHOD:
            return reply;
        case AMQP_BASIC_RETURN_METHOD: {
            amqp_basic_return_t *back = frame.payload.method.decoded;
            amqp_message_t message;
            if (returned != NULL) {
                snprintf(returned, room, "%.*s", (int)back->reply_text.len,
                         (char *)back->reply_text.bytes);
            }
            check(amqp_read_message(connection, CHANNEL, &message, 0));
            amqp_destroy_message(&message);
            break;
        }
        default: // closed, or refused
            reply.reply_type = AMQP_RESPONSE_SERVER_EXCEPTION;
            reply.reply = frame.payload.method;
            return reply;
        }
    }
}

static inline void consume(amqp_connection_state_t connection, const char *queue) {
    amqp_basic_consume(connection, CHANNEL, amqp_cstring_bytes(queue), amqp_cstring_bytes(queue), 0,
                       0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(connection));
}

static inline amqp_envelope_t receive(amqp_connection_state_t connection) {
    amqp_envelope_t envelope;
    amqp_maybe_release_buffers(connection);
    check(amqp_consume_message(connection, &envelope, NULL, 0));
    return envelope;
}

// An entry of a table, or NULL.
static inline amqp_field_value_t *entry_of(const amqp_table_t *table, const char *name) {
    for (int i = 0; i < table->num_entries; i++) {
        amqp_bytes_t key = table->entries[i].key;
        if (key.len == strlen(name) && memcmp(key.bytes, name, key.len) == 0) {
            return &table->entries[i].value;
        }
    }
    return NULL;
}

// A header of a message, or NULL.
static inline amqp_field_value_t *header_of(amqp_envelope_t *envelope, const char *name) {
    amqp_basic_properties_t *properties = &envelope->message.properties;
    return properties->_flags & AMQP_BASIC_HEADERS_FLAG ? entry_of(&properties->headers, name)
                                                        : NULL;
}

#endif

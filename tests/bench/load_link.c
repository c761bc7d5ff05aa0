/* SPDX-License-Identifier: MPL-2.0 */
#include "load.h"

#include <amqp_framing.h>
#include <amqp_tcp_socket.h>
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHANNEL = 1, FRAME_MOST = 131072, BEING_SHUT_DOWN = 320, INTERNAL_ERROR = 541 };

/* A broker that goes down or comes up closes with these; any other reason is our own fault. */
static enum link_status closed_with(uint16_t code, amqp_bytes_t text) {
    if (code == BEING_SHUT_DOWN) {
        return LINK_LOST;
    }
    complain("closed by the broker: %d %.*s", code, (int)text.len, (const char *)text.bytes);
    return code == INTERNAL_ERROR ? LINK_LOST : LINK_REFUSED;
}

static enum link_status closed_by(const amqp_method_t *method) {
    if (method->id == AMQP_CONNECTION_CLOSE_METHOD) {
        const amqp_connection_close_t *close = method->decoded;
        return closed_with(close->reply_code, close->reply_text);
    }
    if (method->id == AMQP_CHANNEL_CLOSE_METHOD) {
        const amqp_channel_close_t *close = method->decoded;
        return closed_with(close->reply_code, close->reply_text);
    }
    return LINK_OK;
}

static enum link_status of_reply(amqp_rpc_reply_t reply) {
    switch (reply.reply_type) {
    case AMQP_RESPONSE_NORMAL:
        return LINK_OK;
    case AMQP_RESPONSE_SERVER_EXCEPTION:
        return closed_by(&reply.reply);
    default:
        return LINK_LOST;
    }
}

enum link_status link_open(struct link *link, const struct options *options) {
    const struct timeval patience = {.tv_sec = 20};
    enum link_status status = LINK_LOST;
    link->state = amqp_new_connection();
    if (link->state == NULL) {
        complain("out of memory");
        return LINK_REFUSED;
    }
    /* A broker that comes up may leave a request unanswered. */
    if (amqp_set_rpc_timeout(link->state, &patience) != AMQP_STATUS_OK) {
        complain("no timeout");
        link_drop(link);
        return LINK_REFUSED;
    }
    amqp_socket_t *socket = amqp_tcp_socket_new(link->state);
    if (socket != NULL && amqp_socket_open_noblock(socket, options->host, options->port,
                                                   &patience) == AMQP_STATUS_OK) {
        status = of_reply(amqp_login(link->state, "/", 0, FRAME_MOST, 0, AMQP_SASL_METHOD_PLAIN,
                                     "guest", "guest"));
        if (status == LINK_OK) {
            amqp_channel_open(link->state, CHANNEL);
            status = of_reply(amqp_get_rpc_reply(link->state));
        }
    }
    if (status != LINK_OK) {
        link_drop(link);
        return status;
    }
    link->fd = amqp_get_sockfd(link->state);
    return LINK_OK;
}

enum link_status link_open_patiently(struct link *link, const struct options *options) {
    const struct timespec pause = {.tv_nsec = 20000000};
    while (!stopping()) {
        enum link_status status = link_open(link, options);
        if (status != LINK_LOST) {
            return status;
        }
        nanosleep(&pause, NULL);
    }
    return LINK_TIMEOUT;
}

void link_close(struct link *link) {
    amqp_connection_close(link->state, AMQP_REPLY_SUCCESS);
    link_drop(link);
}

void link_drop(struct link *link) {
    amqp_destroy_connection(link->state);
    link->state = NULL;
}

enum link_status link_write(struct link *link, const uint8_t *bytes, size_t length) {
    while (length > 0) {
        ssize_t sent = send(link->fd, bytes, length, MSG_NOSIGNAL);
        if (sent > 0) {
            bytes += sent;
            length -= (size_t)sent;
        } else if (sent < 0 && errno == EAGAIN) {
            struct pollfd writable = {.fd = link->fd, .events = POLLOUT};
            poll(&writable, 1, 100);
            if (stopping()) {
                return LINK_LOST;
            }
        } else if (sent < 0 && errno != EINTR) {
            return LINK_LOST;
        }
    }
    return LINK_OK;
}

enum link_status link_read(struct link *link, amqp_frame_t *frame, int64_t wait_us) {
    const struct timeval wait = {.tv_sec = (time_t)(wait_us / 1000000),
                                 .tv_usec = (suseconds_t)(wait_us % 1000000)};
    amqp_maybe_release_buffers(link->state);
    int status = amqp_simple_wait_frame_noblock(link->state, frame, &wait);
    if (status == AMQP_STATUS_TIMEOUT) {
        return LINK_TIMEOUT;
    }
    if (status != AMQP_STATUS_OK) {
        return LINK_LOST;
    }
    return frame->frame_type == AMQP_FRAME_METHOD ? closed_by(&frame->payload.method) : LINK_OK;
}

bool link_has_input(const struct link *link) {
    return amqp_frames_enqueued(link->state) || amqp_data_in_buffer(link->state);
}

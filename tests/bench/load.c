/* SPDX-License-Identifier: MPL-2.0 */
#include "load.h"

#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

static const char usage[] =
    "usage: load publish|consume|probe|calibrate [options]\n"
    "  --port N --host H       where the broker is\n"
    "  --run N                 number that tells this run's messages from others\n"
    "  --count N               messages to have confirmed, or to receive\n"
    "  --ledger FILE           shared record of what was confirmed\n"
    "  --timeout S             give up after so long\n"
    "  --reconnect             survive the loss of the connection\n"
    "publish:\n"
    "  --exchange E --key K    --connections N --window N --size BYTES --rate PER_SECOND\n"
    "  --delay none|fixed:MS|uniform:MS:MS --seed N\n"
    "  --delay window:EPOCH_MS:LENGTH_MS   due in order, spread evenly over the window\n"
    "  --delay scatter:EPOCH_MS:LENGTH_MS  due at random milliseconds of the window\n"
    "  --header none|x-delay|x-opt-delivery-time|expiration\n"
    "consume:\n"
    "  --queue Q --prefetch N  (0: automatic acknowledgement)\n"
    "  --idle S                end after so long without a message\n"
    "  --linger S              wait so long for duplicates at the end\n"
    "  --window-s S            length of the lateness windows\n"
    "both: --origin EPOCH_MS --bucket MS   the curve of confirms or arrivals over time\n";

static volatile sig_atomic_t stop_asked;

static void ask_to_stop(int signal) {
    (void)signal;
    stop_asked = 1;
}

bool stopping(void) {
    return stop_asked != 0;
}

bool complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return false;
}

int64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static bool parse_delay(const char *text, struct delay_plan *plan) {
    long long from = 0;
    long long to = 0;
    int used = 0;
    if (strcmp(text, "none") == 0) {
        plan->kind = DELAY_NONE;
        return true;
    }
    if (sscanf(text, "fixed:%lld%n", &from, &used) == 1 && text[used] == '\0') {
        plan->kind = DELAY_FIXED;
        to = from;
    } else if (sscanf(text, "uniform:%lld:%lld%n", &from, &to, &used) == 2 && text[used] == '\0') {
        plan->kind = DELAY_UNIFORM;
        if (to < from) {
            return complain("the least delay is over the greatest: %s", text);
        }
    } else if (sscanf(text, "window:%lld:%lld%n", &from, &to, &used) == 2 && text[used] == '\0') {
        plan->kind = DELAY_WINDOW;
    } else if (sscanf(text, "scatter:%lld:%lld%n", &from, &to, &used) == 2 && text[used] == '\0') {
        plan->kind = DELAY_SCATTER;
    } else {
        return complain("not a delay: %s", text);
    }
    plan->from_ms = from;
    plan->to_ms = to;
    return from >= 0 && to >= 0 ? true : complain("negative delay: %s", text);
}

static bool parse_header(const char *text, enum delay_header *header) {
    static const char *const names[] = {"none",       "x-delay",     "x-opt-delivery-time",
                                        "expiration", "x-delay-key", "x-delay-cancel"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(text, names[i]) == 0) {
            *header = (enum delay_header)i;
            return true;
        }
    }
    return complain("not a delay header: %s", text);
}

static bool parse_number(const char *text, double least, double most, double *out) {
    char *end = NULL;
    *out = strtod(text, &end);
    if (end == text || *end != '\0' || !(*out >= least && *out <= most)) {
        return complain("%s is not a number from %g to %g", text, least, most);
    }
    return true;
}

enum option_id {
    OPT_HOST = 1,
    OPT_PORT,
    OPT_RUN,
    OPT_COUNT,
    OPT_LEDGER,
    OPT_TIMEOUT,
    OPT_RECONNECT,
    OPT_EXCHANGE,
    OPT_KEY,
    OPT_CONNECTIONS,
    OPT_WINDOW,
    OPT_SIZE,
    OPT_RATE,
    OPT_DELAY,
    OPT_SEED,
    OPT_HEADER,
    OPT_QUEUE,
    OPT_PREFETCH,
    OPT_IDLE,
    OPT_LINGER,
    OPT_WINDOW_S,
    OPT_ORIGIN,
    OPT_BUCKET,
};

static const struct option long_options[] = {
    {"host", required_argument, NULL, OPT_HOST},
    {"port", required_argument, NULL, OPT_PORT},
    {"run", required_argument, NULL, OPT_RUN},
    {"count", required_argument, NULL, OPT_COUNT},
    {"ledger", required_argument, NULL, OPT_LEDGER},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"reconnect", no_argument, NULL, OPT_RECONNECT},
    {"exchange", required_argument, NULL, OPT_EXCHANGE},
    {"key", required_argument, NULL, OPT_KEY},
    {"connections", required_argument, NULL, OPT_CONNECTIONS},
    {"window", required_argument, NULL, OPT_WINDOW},
    {"size", required_argument, NULL, OPT_SIZE},
    {"rate", required_argument, NULL, OPT_RATE},
    {"delay", required_argument, NULL, OPT_DELAY},
    {"seed", required_argument, NULL, OPT_SEED},
    {"header", required_argument, NULL, OPT_HEADER},
    {"queue", required_argument, NULL, OPT_QUEUE},
    {"prefetch", required_argument, NULL, OPT_PREFETCH},
    {"idle", required_argument, NULL, OPT_IDLE},
    {"linger", required_argument, NULL, OPT_LINGER},
    {"window-s", required_argument, NULL, OPT_WINDOW_S},
    {"origin", required_argument, NULL, OPT_ORIGIN},
    {"bucket", required_argument, NULL, OPT_BUCKET},
    {NULL, 0, NULL, 0},
};

static bool parse_option(struct options *o, int id, const char *text) {
    double n = 0;
    switch (id) {
    case OPT_HOST:
        o->host = text;
        return true;
    case OPT_EXCHANGE:
        o->exchange = text;
        return strlen(text) < 256 || complain("the exchange's name is too long");
    case OPT_KEY:
        o->key = text;
        return strlen(text) < 256 || complain("the routing key is too long");
    case OPT_QUEUE:
        o->queue = text;
        return true;
    case OPT_LEDGER:
        o->ledger_path = text;
        return true;
    case OPT_RECONNECT:
        o->reconnect = true;
        return true;
    case OPT_DELAY:
        return parse_delay(text, &o->delay);
    case OPT_HEADER:
        return parse_header(text, &o->header);
    case OPT_RATE:
        return parse_number(text, 0, 1e7, &o->rate);
    case OPT_IDLE:
        return parse_number(text, 0, 1e6, &o->idle_s);
    case OPT_LINGER:
        return parse_number(text, 0, 1e6, &o->linger_s);
    case OPT_TIMEOUT:
        return parse_number(text, 0.001, 1e6, &o->timeout_s);
    default:
        break;
    }
    if (!parse_number(text, 0, 9e15, &n) || n != floor(n)) {
        return complain("not a whole number: %s", text);
    }
    switch (id) {
    case OPT_PORT:
        o->port = (int)n;
        return (n > 0 && n < 65536) || complain("not a port: %s", text);
    case OPT_RUN:
        o->run = (uint64_t)n;
        return true;
    case OPT_COUNT:
        o->count = (uint64_t)n;
        return n <= 1e8 || complain("too many messages: %s", text);
    case OPT_CONNECTIONS:
        o->connections = (uint32_t)n;
        return (n >= 1 && n <= 64) || complain("connections: 1 to 64");
    case OPT_WINDOW:
        o->window = (uint32_t)n;
        return (n >= 1 && n <= 100000) || complain("window: 1 to 100000");
    case OPT_SIZE:
        o->size = (uint32_t)n;
        return (n >= STAMP_BYTES && n <= 65536) || complain("size: %d to 65536", STAMP_BYTES);
    case OPT_SEED:
        o->delay.seed = (uint64_t)n;
        return true;
    case OPT_PREFETCH:
        o->prefetch = (uint32_t)n;
        return n < 65536 || complain("prefetch: 0 to 65535");
    case OPT_WINDOW_S:
        o->window_s = (int64_t)n;
        return n >= 1 || complain("window-s: at least 1");
    case OPT_ORIGIN:
        o->origin_ms = (int64_t)n;
        return true;
    case OPT_BUCKET:
        o->bucket_ms = (int64_t)n;
        return n >= 1 || complain("bucket: at least 1");
    default:
        return false;
    }
}

static bool parse_options(struct options *o, int argc, char **argv) {
    int id;
    while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (!parse_option(o, id, optarg)) {
            return false;
        }
    }
    if (optind != argc) {
        return complain("what is %s?", argv[optind]);
    }
    o->delay.count = o->count;
    return true;
}

static bool watch_for_the_end(double timeout_s) {
    struct sigaction action = {.sa_handler = ask_to_stop};
    struct itimerval timer = {0};
    timer.it_value.tv_sec = (time_t)timeout_s;
    timer.it_value.tv_usec = (suseconds_t)((timeout_s - floor(timeout_s)) * 1e6);
    sigemptyset(&action.sa_mask);
    return sigaction(SIGINT, &action, NULL) == 0 && sigaction(SIGTERM, &action, NULL) == 0 &&
           sigaction(SIGALRM, &action, NULL) == 0 && signal(SIGPIPE, SIG_IGN) != SIG_ERR &&
           setitimer(ITIMER_REAL, &timer, NULL) == 0;
}

/* How long a fixed piece of work takes just now: a noisy neighbour shows here first. */
int calibrate(void) {
    uint64_t x = 1;
    int64_t best = INT64_MAX;
    int64_t worst = 0;
    for (int round = 0; round < 5; round++) {
        int64_t began = now_us();
        for (uint32_t i = 0; i < 20000000; i++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        int64_t took = now_us() - began;
        best = took < best ? took : best;
        worst = took > worst ? took : worst;
    }
    printf("{\"best_ms\": %.3f, \"worst_ms\": %.3f, \"check\": %llu}\n", (double)best / 1e3,
           (double)worst / 1e3, (unsigned long long)x);
    return 0;
}

/* Tries until a client gets a channel. */
int probe(const struct options *options) {
    struct link link;
    int64_t began = now_us();
    enum link_status status = link_open_patiently(&link, options);
    if (status != LINK_OK) {
        return status == LINK_REFUSED ? 1 : 2;
    }
    int64_t answered = now_us();
    link_close(&link);
    printf("{\"began_ms\": %.3f, \"answered_ms\": %.3f}\n", (double)began / 1e3,
           (double)answered / 1e3);
    return 0;
}

int main(int argc, char **argv) {
    struct options options = {
        .host = "127.0.0.1",
        .port = 5672,
        .exchange = "",
        .key = "",
        .queue = "",
        .count = 0,
        .connections = 1,
        .window = 200,
        .size = 100,
        .idle_s = 30,
        .linger_s = 0.5,
        .timeout_s = 600,
        .bucket_ms = 100,
        .window_s = 10,
    };
    if (argc < 2 || !parse_options(&options, argc - 1, argv + 1)) {
        fputs(usage, stderr);
        return 1;
    }
    if (!watch_for_the_end(options.timeout_s)) {
        complain("no signals");
        return 1;
    }
    if (strcmp(argv[1], "publish") == 0) {
        return publish(&options);
    }
    if (strcmp(argv[1], "consume") == 0) {
        return consume(&options);
    }
    if (strcmp(argv[1], "probe") == 0) {
        return probe(&options);
    }
    if (strcmp(argv[1], "calibrate") == 0) {
        return calibrate();
    }
    fputs(usage, stderr);
    return 1;
}

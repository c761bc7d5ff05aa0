/* SPDX-License-Identifier: MPL-2.0 */
#include "load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_BUCKETS = 2000 };

bool samples_add(struct samples *samples, int64_t value) {
    if (samples->count == samples->capacity) {
        size_t capacity = samples->capacity == 0 ? 4096 : samples->capacity * 2;
        int64_t *at = realloc(samples->at, capacity * sizeof *at);
        if (at == NULL) {
            return complain("out of memory");
        }
        samples->at = at;
        samples->capacity = capacity;
    }
    samples->at[samples->count++] = value;
    return true;
}

static int compare(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left;
    int64_t b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

void samples_sort(struct samples *samples) {
    if (samples->count > 0) {
        qsort(samples->at, samples->count, sizeof *samples->at, compare);
    }
}

/* The nearest-rank definition: an observed value, never one in between. */
int64_t samples_quantile(const struct samples *samples, double q) {
    if (samples->count == 0) {
        return 0;
    }
    double rank = ceil(q * (double)samples->count);
    size_t i = rank < 1 ? 0 : (size_t)rank - 1;
    return samples->at[i < samples->count ? i : samples->count - 1];
}

void samples_print_ms(const char *name, const struct samples *samples) {
    static const struct {
        const char *name;
        double q;
    } quantiles[] = {
        {"min", 0},    {"p1", 0.01},    {"p5", 0.05},    {"p10", 0.1},      {"p25", 0.25},
        {"p50", 0.5},  {"p75", 0.75},   {"p90", 0.9},    {"p95", 0.95},     {"p98", 0.98},
        {"p99", 0.99}, {"p995", 0.995}, {"p999", 0.999}, {"p9999", 0.9999}, {"max", 1},
    };
    printf("\"%s\": {\"count\": %zu", name, samples->count);
    for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles; i++) {
        printf(", \"%s\": %.3f", quantiles[i].name,
               (double)samples_quantile(samples, quantiles[i].q) / 1e3);
    }
    printf("}");
}

void samples_print_curve(const struct samples *sorted_us, int64_t origin_us, int64_t bucket_us) {
    size_t i = 0;
    printf("\"curve\": {\"origin_ms\": %.3f, \"bucket_ms\": %.3f, \"counts\": [",
           (double)origin_us / 1e3, (double)bucket_us / 1e3);
    /* What came before the origin counts in the first bucket, what came too late in the last. */
    for (int bucket = 0; bucket < MOST_BUCKETS && i < sorted_us->count; bucket++) {
        int64_t end = origin_us + (bucket + 1) * bucket_us;
        size_t first = i;
        while (i < sorted_us->count && (sorted_us->at[i] < end || bucket == MOST_BUCKETS - 1)) {
            i++;
        }
        printf("%s%zu", bucket == 0 ? "" : ", ", i - first);
    }
    printf("]}");
}

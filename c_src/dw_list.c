/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_fetch.h"

#include <string.h>

/* Listing and counting what is pending, by due time. Any thread, beside the writer: a walk over all
 * entries, which lets go of the lock between two steps; it changes nothing, and costs memory for
 * one page. */

/* -------------------------------------------------------------------- page
 * One walk over all entries notes those after the cursor; whenever there are many more than max_n,
 * all but the first max_n go, and what comes behind these is passed over from then on. So a walk
 * costs about the same for each entry, whatever their order and however many are wanted. Backwards,
 * all bits of due time and id are turned over, which turns their order round. An entry keeps its
 * number and its due time for as long as it is pending and is not rescheduled, so what stays is met
 * exactly once. */

enum { PAGE_STEP = 2048 };

struct place {
    uint64_t due;
    uint64_t id;
    uint64_t key_hash;
    uint32_t length;
};

struct page {
    uint64_t turned;    /* all bits if it goes backwards */
    struct place from;  /* the cursor */
    struct place bound; /* what comes behind it is not wanted, if `bounded` */
    bool bounded;
    struct place *places; /* in no order */
    uint32_t n;
    uint32_t max_n;
    uint32_t capacity; /* twice max_n, and a step more */
    uint32_t random;
};

static bool comes_before(const struct place *a, const struct place *b) {
    return a->due != b->due ? a->due < b->due : a->id < b->id;
}

static void swap_places(struct place *a, struct place *b) {
    const struct place was = *a;
    *a = *b;
    *b = was;
}

/* Puts the first max_n, and no others, first, the last of them at their end (Hoare's selection). */
static void select_first(struct page *page) {
    struct place *places = page->places;
    const int64_t wanted = (int64_t)page->max_n - 1;
    int64_t low = 0, high = (int64_t)page->n - 1;
    while (low < high) {
        page->random ^= page->random << 13;
        page->random ^= page->random >> 17;
        page->random ^= page->random << 5;
        const struct place pivot = places[low + page->random % (high - low + 1)];
        int64_t i = low, j = high;
        while (i <= j) {
            while (comes_before(&places[i], &pivot)) {
                i++;
            }
            while (comes_before(&pivot, &places[j])) {
                j--;
            }
            if (i <= j) {
                swap_places(&places[i++], &places[j--]);
            }
        }
        if (wanted <= j) {
            high = j;
        } else if (wanted >= i) {
            low = i;
        } else {
            return;
        }
    }
}

static void drop_behind(struct page *page) {
    if (page->n > page->max_n) {
        select_first(page);
        page->n = page->max_n;
        page->bound = page->places[page->n - 1];
        page->bounded = true;
    }
}

/* Merges, from runs of one; there is as much room again behind them. The result. */
static const struct place *sort_places(const struct page *page) {
    struct place *from = page->places, *to = page->places + page->max_n;
    for (uint32_t run = 1; run < page->n; run *= 2) {
        for (uint32_t at = 0; at < page->n; at += 2 * run) {
            const uint32_t middle = page->n - at < run ? page->n : at + run;
            const uint32_t end = page->n - at < 2 * run ? page->n : at + 2 * run;
            uint32_t a = at, b = middle;
            for (uint32_t out = at; out < end; out++) {
                const bool left = b == end || (a < middle && comes_before(&from[a], &from[b]));
                to[out] = from[left ? a++ : b++];
            }
        }
        struct place *was = from;
        from = to;
        to = was;
    }
    return from;
}

static bool is_pending(const struct dw_entry *entry) {
    return entry->state != DW_FREE && entry->state != DW_DEAD;
}

/* One step of the walk, from entry number `from`. */
static void page_step_locked(struct dw_store *store, uint32_t from, uint32_t to,
                             struct page *page) {
    for (uint32_t k = from; k < to; k++) {
        const struct dw_entry *entry = dw_slab_at(store->slab, k);
        if (!is_pending(entry)) {
            continue;
        }
        const struct place place = {
            .due = dw_due_of_locked(store, k, entry) ^ page->turned,
            .id = entry->id ^ page->turned,
            .key_hash = entry->key_hash,
            .length = entry->len,
        };
        if (comes_before(&page->from, &place) &&
            !(page->bounded && comes_before(&page->bound, &place))) {
            page->places[page->n++] = place;
        }
    }
}

static void read_header(struct dw_fetch *fetch, struct dw_wanted *wanted) {
    uint8_t header[DW_REC_HEADER];
    if (wanted->buf != NULL) {
        dw_fetch_check(wanted, wanted->buf->bytes + (wanted->off - wanted->buf->base));
        return;
    }
    for (int i = 0; i < 2 && wanted->fate != DW_FATE_THERE; i++) {
        if (i > 0) {
            dw_io_forget(fetch->store->io, fetch->fd, wanted->off, sizeof header);
        }
        if (dw_fetch_file(fetch, wanted->partition, header, sizeof header, wanted->off) != 0) {
            return;
        }
        dw_fetch_check(wanted, header);
    }
}

/* The encodings stand in the records alone. One that cannot be read is left at 0. */
static int page_encodings(struct dw_store *store, struct dw_record *out, uint32_t n) {
    struct dw_fetch fetch;
    int result = dw_fetch_new(store, &fetch, n);
    for (uint32_t from = 0; result == DW_OK && from < n;) {
        const uint32_t to = n - from < DW_FETCH_MAX ? n : from + DW_FETCH_MAX;
        uint16_t which[DW_FETCH_MAX];
        dw_lock(store);
        for (uint32_t i = from; i < to; i++) {
            uint32_t k = dw_index_find(store->by_id, out[i].id);
            if (k != DW_NIL) {
                which[fetch.count] = (uint16_t)(i - from);
                dw_fetch_add_locked(&fetch, k);
            }
        }
        dw_unlock(store);
        for (uint32_t i = 0; i < fetch.count; i++) {
            struct dw_wanted *wanted = &fetch.wanted[i];
            read_header(&fetch, wanted);
            if (wanted->fate == DW_FATE_THERE) {
                out[from + which[i]].encoding = wanted->record.encoding;
            }
        }
        dw_fetch_clear(&fetch);
        from = to;
    }
    dw_fetch_free(&fetch);
    return result;
}

static int walk(struct dw_store *store, struct page *page) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    for (uint32_t k = 0; k < dw_slab_limit(store->slab);) {
        const uint32_t limit = dw_slab_limit(store->slab);
        const uint32_t to = limit - k < PAGE_STEP ? limit : k + PAGE_STEP;
        page_step_locked(store, k, to, page);
        k = to;
        if (page->capacity - page->n < PAGE_STEP) {
            dw_unlock(store);
            drop_behind(page);
            dw_lock(store);
        }
        dw_yield_locked(store);
    }
    return dw_leave(store, DW_OK);
}

static int find_page(struct dw_store *store, uint64_t due, uint64_t id, bool back,
                     struct dw_record *out, uint32_t max_n, uint32_t *n) {
    struct page page = {
        .turned = back ? UINT64_MAX : 0,
        .max_n = max_n,
        .capacity = 2 * max_n + PAGE_STEP,
        .random = 1,
    };
    *n = 0;
    if (max_n == 0) {
        return dw_closed_error(store);
    }
    page.from = (struct place){.due = due ^ page.turned, .id = id ^ page.turned};
    page.places = dw_get(store->alloc, page.capacity * sizeof *page.places);
    if (page.places == NULL) {
        return DW_ENOMEM;
    }
    const int result = walk(store, &page);
    if (result == DW_OK) {
        drop_behind(&page);
        const struct place *places = sort_places(&page);
        for (uint32_t i = 0; i < page.n; i++) {
            out[i] = (struct dw_record){
                .id = places[i].id ^ page.turned,
                .due = places[i].due ^ page.turned,
                .key_hash = places[i].key_hash,
                .length = places[i].length,
            };
        }
        *n = page.n;
    }
    dw_release(store->alloc, page.places);
    return result;
}

int dw_store_page(dw_store *store, uint64_t after_due, uint64_t after_id, struct dw_record *out,
                  uint32_t max_n, uint32_t *n) {
    int result = find_page(store, after_due, after_id, false, out, max_n, n);
    if (result != DW_OK || *n == 0) {
        return result;
    }
    result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    dw_unlock(store);
    result = page_encodings(store, out, *n);
    dw_lock(store);
    return dw_leave(store, result);
}

int dw_store_places(dw_store *store, uint64_t due, uint64_t id, bool back, struct dw_record *out,
                    uint32_t max_n, uint32_t *n) {
    return find_page(store, due, id, back, out, max_n, n);
}

/* ------------------------------------------------------------------- count */

/* Calls see for each pending entry, with its due time. */
static int each_pending(dw_store *store, void (*see)(void *ctx, uint64_t due, uint32_t bytes),
                        void *ctx) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    for (uint32_t k = 0; k < dw_slab_limit(store->slab);) {
        const uint32_t limit = dw_slab_limit(store->slab);
        const uint32_t to = limit - k < PAGE_STEP ? limit : k + PAGE_STEP;
        for (; k < to; k++) {
            const struct dw_entry *entry = dw_slab_at(store->slab, k);
            if (is_pending(entry)) {
                see(ctx, dw_due_of_locked(store, k, entry), entry->len);
            }
        }
        dw_yield_locked(store);
    }
    return dw_leave(store, result);
}

struct range {
    uint64_t from, to, count, bytes;
};

static void count_in_range(void *ctx, uint64_t due, uint32_t bytes) {
    struct range *range = ctx;
    if (due >= range->from && due <= range->to) {
        range->count += 1;
        range->bytes += bytes;
    }
}

int dw_store_count(dw_store *store, uint64_t from_due, uint64_t to_due, uint64_t *count,
                   uint64_t *bytes) {
    struct range range = {.from = from_due, .to = to_due};
    int result = each_pending(store, count_in_range, &range);
    *count = range.count;
    *bytes = range.bytes;
    return result;
}

struct ranges {
    const uint64_t *bounds;
    uint32_t n;
    uint64_t *counts;
};

static void count_until(void *ctx, uint64_t due, uint32_t bytes) {
    const struct ranges *ranges = ctx;
    uint32_t low = 0, high = ranges->n;
    (void)bytes;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (due <= ranges->bounds[middle]) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    ranges->counts[low] += 1;
}

int dw_store_count_until(dw_store *store, const uint64_t *bounds, uint32_t n, uint64_t *counts) {
    memset(counts, 0, (n + 1) * sizeof *counts);
    struct ranges ranges = {.bounds = bounds, .n = n, .counts = counts};
    return each_pending(store, count_until, &ranges);
}

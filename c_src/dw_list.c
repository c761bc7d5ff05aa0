/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_fetch.h"

#include <string.h>

/* Listing and counting what is pending, by due time. Any thread, beside the writer: a walk over all
 * entries, which lets go of the lock between two steps; it changes nothing, and costs memory for
 * one page. */

/* -------------------------------------------------------------------- page
 * One walk over all entries keeps the max_n first ones after the cursor, in a heap whose top is the
 * last of them; or, backwards, the last ones before it, their first on top. An entry keeps its
 * number and its due time for as long as it is pending and is not rescheduled, so what stays is met
 * exactly once. */

enum { PAGE_STEP = 2048 };

struct page {
    struct dw_record from; /* the cursor: due and id */
    struct dw_record *out;
    uint32_t max_n;
    uint32_t n;
    bool back;
};

static bool comes_before(const struct page *page, const struct dw_record *a,
                         const struct dw_record *b) {
    if (page->back) {
        return a->due != b->due ? a->due > b->due : a->id > b->id;
    }
    return a->due != b->due ? a->due < b->due : a->id < b->id;
}

static void page_sift(const struct page *page, uint32_t root, uint32_t count) {
    struct dw_record *heap = page->out;
    const struct dw_record moved = heap[root];
    for (uint32_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && comes_before(page, &heap[child], &heap[child + 1])) {
            child++;
        }
        if (!comes_before(page, &moved, &heap[child])) {
            break;
        }
        heap[root] = heap[child];
    }
    heap[root] = moved;
}

static void page_push(const struct page *page, uint32_t count, const struct dw_record *record) {
    struct dw_record *heap = page->out;
    uint32_t at = count;
    for (; at > 0 && comes_before(page, &heap[(at - 1) / 2], record); at = (at - 1) / 2) {
        heap[at] = heap[(at - 1) / 2];
    }
    heap[at] = *record;
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
        const struct dw_record record = {
            .id = entry->id,
            .due = dw_due_of_locked(store, k, entry),
            .key_hash = entry->key_hash,
            .length = entry->len,
        };
        if (!comes_before(page, &page->from, &record)) {
            continue;
        }
        if (page->n < page->max_n) {
            page_push(page, page->n++, &record);
        } else if (comes_before(page, &record, &page->out[0])) {
            page->out[0] = record;
            page_sift(page, 0, page->max_n);
        }
    }
}

static void page_sort(const struct page *page) {
    struct dw_record *out = page->out;
    for (uint32_t left = page->n; left-- > 1;) {
        const struct dw_record first = out[0];
        out[0] = out[left];
        out[left] = first;
        page_sift(page, 0, left);
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

static int find_page(struct dw_store *store, struct page *page, bool encodings) {
    int result = dw_enter(store);
    if (result != DW_OK) {
        return result;
    }
    for (uint32_t k = 0; page->max_n > 0 && k < dw_slab_limit(store->slab);) {
        const uint32_t limit = dw_slab_limit(store->slab);
        const uint32_t to = limit - k < PAGE_STEP ? limit : k + PAGE_STEP;
        page_step_locked(store, k, to, page);
        k = to;
        dw_yield_locked(store);
    }
    dw_unlock(store);
    page_sort(page);
    if (encodings && page->n > 0) {
        result = page_encodings(store, page->out, page->n);
    }
    dw_lock(store);
    return dw_leave(store, result);
}

int dw_store_page(dw_store *store, uint64_t after_due, uint64_t after_id, struct dw_record *out,
                  uint32_t max_n, uint32_t *n) {
    struct page page = {.from = {.due = after_due, .id = after_id},
                        .out = out,
                        .max_n = max_n,
                        .back = false};
    int result = find_page(store, &page, true);
    *n = page.n;
    return result;
}

int dw_store_places(dw_store *store, uint64_t due, uint64_t id, bool back, struct dw_record *out,
                    uint32_t max_n, uint32_t *n) {
    struct page page = {.from = {.due = due, .id = id}, .out = out, .max_n = max_n, .back = back};
    int result = find_page(store, &page, false);
    *n = page.n;
    return result;
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

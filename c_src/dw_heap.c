/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_heap.h"

#include "dw_invariant.h"

#include <stdbool.h>
#include <string.h>

/* The heap's array lies in segments that are never moved: after the clock was stepped back a long
 * way the heap holds every new message, and no push may then copy millions of numbers.
 *
 * A cancelled entry stays in its place as DW_DEAD until it reaches the top, or until the sweep
 * meets it: every cancel looks at SWEEP_STEPS places, round and round, and takes the dead ones out.
 * One round of n places takes n / SWEEP_STEPS cancels, so the dead stay a fraction of the whole.
 * The one long step left: if that many of the earliest were cancelled, dw_heap_top buries them all
 * in one call. */

#define SEGMENT_BITS 12u
#define SEGMENT_PLACES (1u << SEGMENT_BITS)
#define SEGMENTS_AT_FIRST 4u
#define SWEEP_STEPS 8u

struct dw_heap {
    struct dw_alloc alloc;
    dw_slab *slab;
    uint32_t **segment;
    uint32_t segments_max; /* length of the table of segments */
    uint32_t segments;     /* how many of them there are */
    uint32_t places;       /* live and dead */
    uint32_t dead;
    uint32_t sweep; /* the place that the sweep looks at next */
    size_t bytes;
};

dw_heap *dw_heap_new(const struct dw_alloc *alloc, dw_slab *slab) {
    dw_heap *heap = dw_get(alloc, sizeof *heap);
    if (heap == NULL)
        return NULL;
    memset(heap, 0, sizeof *heap);
    heap->alloc = *alloc;
    heap->slab = slab;
    heap->bytes = sizeof *heap;
    return heap;
}

void dw_heap_free(dw_heap *heap) {
    if (heap == NULL)
        return;
    const struct dw_alloc alloc = heap->alloc;
    for (uint32_t i = 0; i < heap->segments; i++)
        dw_release(&alloc, heap->segment[i]);
    dw_release(&alloc, heap->segment);
    dw_release(&alloc, heap);
}

static inline uint32_t *place(const dw_heap *heap, uint32_t i) {
    return &heap->segment[i >> SEGMENT_BITS][i & (SEGMENT_PLACES - 1)];
}

static inline bool before(const dw_heap *heap, uint32_t a, uint32_t b) {
    const struct dw_entry *x = dw_slab_at(heap->slab, a), *y = dw_slab_at(heap->slab, b);
    return x->due != y->due ? x->due < y->due : x->id < y->id;
}

static void sift_up(dw_heap *heap, uint32_t i, uint32_t k) {
    while (i > 0) {
        uint32_t up = (i - 1) / 2, parent = *place(heap, up);
        if (!before(heap, k, parent))
            break;
        *place(heap, i) = parent;
        i = up;
    }
    *place(heap, i) = k;
}

static void sift_down(dw_heap *heap, uint32_t i, uint32_t k) {
    for (;;) {
        uint64_t left = 2 * (uint64_t)i + 1;
        if (left >= heap->places)
            break;
        uint32_t down = (uint32_t)left, child = *place(heap, down);
        if (left + 1 < heap->places && before(heap, *place(heap, down + 1), child))
            child = *place(heap, ++down);
        if (!before(heap, child, k))
            break;
        *place(heap, i) = child;
        i = down;
    }
    *place(heap, i) = k;
}

/* One empty segment is kept, so that a push and a pop at a boundary do not allocate in turn. */
static void shrink(dw_heap *heap) {
    uint32_t needed = (heap->places + SEGMENT_PLACES - 1) / SEGMENT_PLACES;
    while (heap->segments > needed + 1) {
        dw_release(&heap->alloc, heap->segment[--heap->segments]);
        heap->bytes -= SEGMENT_PLACES * sizeof(uint32_t);
    }
}

static void take_out(dw_heap *heap, uint32_t i) {
    uint32_t last = *place(heap, --heap->places);
    if (i < heap->places) {
        if (i > 0 && before(heap, last, *place(heap, (i - 1) / 2)))
            sift_up(heap, i, last);
        else
            sift_down(heap, i, last);
    }
    shrink(heap);
}

/* Takes the dead entry at place i out and gives it back. */
static void bury(dw_heap *heap, uint32_t i) {
    uint32_t k = *place(heap, i);
    take_out(heap, i);
    heap->dead--;
    dw_slab_put(heap->slab, k);
}

static inline bool is_dead(const dw_heap *heap, uint32_t i) {
    return dw_slab_at(heap->slab, *place(heap, i))->state == DW_DEAD;
}

static int grow(dw_heap *heap) {
    if (heap->segments == heap->segments_max) {
        const uint32_t before = heap->segments_max;
        uint32_t **table = dw_get_longer(&heap->alloc, heap->segment, &heap->segments_max,
                                         SEGMENTS_AT_FIRST, heap->segments + 1, sizeof *table);
        if (table == NULL)
            return DW_ENOMEM;
        heap->segment = table;
        heap->bytes += (heap->segments_max - before) * sizeof *table;
    }
    uint32_t *segment = dw_get(&heap->alloc, SEGMENT_PLACES * sizeof *segment);
    if (segment == NULL)
        return DW_ENOMEM;
    heap->segment[heap->segments++] = segment;
    heap->bytes += SEGMENT_PLACES * sizeof *segment;
    return DW_OK;
}

int dw_heap_push(dw_heap *heap, uint32_t k) {
    if (heap->places >> SEGMENT_BITS == heap->segments && grow(heap) != DW_OK)
        return DW_ENOMEM;
    dw_slab_at(heap->slab, k)->state = DW_LATE;
    sift_up(heap, heap->places++, k);
    return DW_OK;
}

uint32_t dw_heap_top(dw_heap *heap) {
    while (heap->places > 0) {
        if (!is_dead(heap, 0))
            return *place(heap, 0);
        bury(heap, 0);
    }
    return DW_NIL;
}

void dw_heap_pop(dw_heap *heap) {
    uint32_t k = dw_heap_top(heap);
    if (!DW_INVARIANT(k != DW_NIL))
        return;
    dw_slab_at(heap->slab, k)->state = DW_TAKEN;
    take_out(heap, 0);
}

void dw_heap_cancel(dw_heap *heap, uint32_t k) {
    struct dw_entry *e = dw_slab_at(heap->slab, k);
    if (!DW_INVARIANT(e->state == DW_LATE))
        return;
    e->state = DW_DEAD;
    heap->dead++;
    for (uint32_t step = 0; step < SWEEP_STEPS && heap->dead > 0; step++) {
        if (heap->sweep >= heap->places)
            heap->sweep = 0;
        if (is_dead(heap, heap->sweep))
            bury(heap, heap->sweep);
        else
            heap->sweep++;
    }
}

uint64_t dw_heap_count(const dw_heap *heap) {
    return heap->places - heap->dead;
}

size_t dw_heap_bytes(const dw_heap *heap) {
    return heap->bytes;
}

const char *dw_heap_check(const dw_heap *heap) {
    uint32_t dead = 0;
    if (heap->places > (uint64_t)heap->segments * SEGMENT_PLACES)
        return "more places than segments";
    for (uint32_t i = 0; i < heap->places; i++) {
        uint32_t k = *place(heap, i);
        if (k >= dw_slab_limit(heap->slab))
            return "a number beyond the slab";
        unsigned state = dw_slab_at(heap->slab, k)->state;
        if (state == DW_DEAD)
            dead++;
        else if (state != DW_LATE)
            return "an entry that is neither late nor dead";
        if (i > 0 && before(heap, k, *place(heap, (i - 1) / 2)))
            return "a child before its parent";
    }
    return dead == heap->dead ? NULL : "the count of the dead is wrong";
}

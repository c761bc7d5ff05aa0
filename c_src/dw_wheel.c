/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_wheel.h"

#include "dw_invariant.h"

#include <string.h>

/* Longer than other files are, as it is one structure: what inserts, drains, sweeps and looks for
 * the next due time goes through the same slots, chunks and heap, and inlined, which is what makes
 * it fast. Its owner's lock guards it; no call does long work.
 *
 * Levels. Time is 48 bits of milliseconds; a slot of level l is 2^(8l) of them:
 *
 *     level        0       1       2       3       4       5
 *     slot      1 ms  256 ms  65.5 s   4.7 h  49.7 d  34.8 a
 *     reach   0.5 s   2.2 min  9.3 h   99 d     70 a    all
 *
 * The slot of level l in which the wheel's time lies is that level's current one. An entry goes
 * into the lowest level at which it is due within the current or the next slot of the level above;
 * so a level has two windows of 256 slots, and 512 slot heads do. From there it only moves down.
 *
 * Draining. What a slot of level l >= 1 holds must have moved to level l - 1 before the wheel's
 * time enters the slot: current slots above level 0 are empty. That can be done while the slot is
 * the next one, as the level below has a window for it. It is (look-ahead), some references a call.
 * Where it is not finished in time, time stands still until it is, and the caller is told to call
 * again.
 *
 * Order. A drain takes references from a slot's head and appends them below, so all that is below
 * came in before all that is still there. A new entry therefore goes into the highest slot
 * containing its due time that is not empty: behind all that came before it. So entries of one
 * millisecond stay in the order of insertion.
 *
 * Jumps. Each level has a bitmap of its slots that hold something. Time goes at once to the
 * beginning of the first of those, over all levels; the empty ones in between cost nothing.
 *
 * References are 8 bytes: entry number, and the low 32 bits of due, which with the slot give all of
 * it, but at level 5, whose slots are wider than that: there the slab has it. They lie in chunks of
 * 512 bytes, cut from blocks; a chunk that was emptied is reused, blocks are kept.
 *
 * Next due. Within level 0 the bitmap tells. Above, all chunks are in a 4-ary heap by the least due
 * time that may be in them. When the least entry of the chunk at the top was cancelled or drained,
 * the next one is found and the chunk sinks to where it belongs: at most once a cancelled entry and
 * chunk drained, and a cancel does it for SETTLE_CHUNKS chunks where the top is known to be wrong.
 * The one bad case: many entries at the front of the far ones are cancelled, the earliest last of
 * all, with no dw_wheel_work before dw_wheel_next; that then pays for them all, about a microsecond
 * each. So it is with many that were cancelled within one millisecond of level 0, some nanoseconds
 * each. dw_wheel_next_within pays for some of them a call, and answers too early a time until then.
 *
 * Dead references, those of cancelled entries, are dropped wherever they are met. When they are
 * more than half as many as the live ones and DEAD_SLACK more, a sweep goes over all chunks,
 * SWEEP_REFS a cancel or pop: it drops them, and joins chunks that became small.
 *
 * The histogram. Each slot above level 0 counts its live entries (level 0 counts for level 1). A
 * cancelled entry may be in a slot or, drained, below it; the count is taken from the lowest slot
 * containing its due time that has one. Slots nest, so the entry whose count that was can later use
 * the one of the cancelled: counts never run out, and one is wrong by a slot's width at most. A
 * drain takes the counts along, and so drops dead references; only the last one, from level 1, does
 * without looking at the slab.
 *
 * No memory. An insert fails, with nothing changed. A drain stops where it is, with nothing lost:
 * dw_wheel_peek says DW_PEEK_AGAIN, and goes on when there is memory. */

#define LEVELS 6u
#define BITS 8u
#define SLOTS 512u /* of a level: two windows */
#define WORDS (SLOTS / 64u)
#define CHUNK_REFS 62u
#define BLOCK_BITS 6u
#define BLOCK_CHUNKS (1u << BLOCK_BITS)
#define BLOCKS_AT_FIRST 8u
#define LINE 64u
#define ARITY 4u
#define LOOK_AHEAD                                                                                 \
    CHUNK_REFS      /* references drained ahead when a new millisecond's entry is shown            \
                     */
#define PREFETCH 8u /* references fetched ahead of a millisecond's, at least */
#define DEAD_SLACK 1024u
#define SWEEP_REFS (2 * CHUNK_REFS)
#define SETTLE_TRIES 4u
#define SETTLE_CHUNKS 2u

struct ref {
    uint32_t due; /* low 32 bits */
    uint32_t k;
};

struct chunk {
    uint32_t next; /* in its slot, or on the free list; DW_NIL at the end */
    uint32_t prev;
    uint32_t pos;  /* where in the heap it is, or for level 0 in the array of near chunks */
    uint16_t slot; /* level * SLOTS + slot number modulo SLOTS */
    uint8_t first; /* references [first, n) are there */
    uint8_t n;
    struct ref ref[CHUNK_REFS];
};

_Static_assert(sizeof(struct chunk) == 512, "8 cache lines");
_Static_assert(LEVELS *BITS == 48, "as wide as dw_entry.due");

struct item {
    uint64_t due; /* no live entry in the chunk is due before */
    uint32_t chunk;
};

/* A block brings room for its chunks in the heap and in the array of near chunks, so that linking a
 * chunk cannot fail. */
struct block {
    struct chunk chunk[BLOCK_CHUNKS];
    struct item heap[BLOCK_CHUNKS];
    uint32_t near[BLOCK_CHUNKS];
};

struct slot {
    uint32_t head, tail; /* chunks, or both DW_NIL */
};

struct dw_wheel {
    struct dw_alloc alloc;
    dw_slab *slab;
    uint64_t now;
    uint64_t live;
    uint64_t dead;
    char **block; /* the block begins at the first line boundary */
    uint32_t blocks_max;
    uint32_t chunks; /* numbers of chunks handed out so far are below this */
    uint32_t free;   /* first of the free chunks, or DW_NIL */
    uint32_t heap_n; /* chunks in use above level 0 */
    uint32_t near_n; /* chunks in use at level 0 */
    bool stale;      /* the heap's top may be due later than it says, as some were cancelled */
    uint32_t sweep;  /* places of heap and near array that the sweep has yet to look at */
    size_t bytes;
    uint64_t occupied[LEVELS][WORDS]; /* a bit a slot */
    uint8_t words[LEVELS];            /* a bit a word of it: whether it is not 0 */
    uint32_t counts[LEVELS][SLOTS];   /* [0] is not used */
    struct slot slot[LEVELS * SLOTS];
};

static void *get(dw_wheel *w, size_t bytes) {
    void *p = dw_get(&w->alloc, bytes);
    if (p != NULL)
        w->bytes += bytes;
    return p;
}

dw_wheel *dw_wheel_new(const struct dw_alloc *alloc, dw_slab *slab, uint64_t now_ms) {
    dw_wheel *w = dw_get(alloc, sizeof *w);
    if (w == NULL)
        return NULL;
    memset(w, 0, sizeof *w);
    w->alloc = *alloc;
    w->slab = slab;
    w->now = now_ms < DW_DUE_MAX ? now_ms : DW_DUE_MAX;
    w->free = DW_NIL;
    w->bytes = sizeof *w;
    for (uint32_t i = 0; i < LEVELS * SLOTS; i++)
        w->slot[i] = (struct slot){.head = DW_NIL, .tail = DW_NIL};
    return w;
}

void dw_wheel_free(dw_wheel *w) {
    if (w == NULL)
        return;
    const struct dw_alloc alloc = w->alloc;
    for (uint32_t i = 0; i < w->blocks_max; i++)
        dw_release(&alloc, w->block[i]);
    dw_release(&alloc, w->block);
    dw_release(&alloc, w);
}

/* ---- chunks */

static inline struct block *block_at(const dw_wheel *w, uint32_t i) {
    return (void *)(((uintptr_t)w->block[i >> BLOCK_BITS] + LINE - 1) & ~(uintptr_t)(LINE - 1));
}

static inline struct chunk *chunk_at(const dw_wheel *w, uint32_t c) {
    return &block_at(w, c)->chunk[c & (BLOCK_CHUNKS - 1)];
}

static inline struct item *heap_at(const dw_wheel *w, uint32_t i) {
    return &block_at(w, i)->heap[i & (BLOCK_CHUNKS - 1)];
}

static inline uint32_t *near_at(const dw_wheel *w, uint32_t i) {
    return &block_at(w, i)->near[i & (BLOCK_CHUNKS - 1)];
}

static int add_block(dw_wheel *w, uint32_t b) {
    if (b >= w->blocks_max) {
        const uint32_t before = w->blocks_max;
        char **table = dw_get_longer(&w->alloc, w->block, &w->blocks_max, BLOCKS_AT_FIRST, b + 1,
                                     sizeof *table);
        if (table == NULL)
            return DW_ENOMEM;
        w->block = table;
        w->bytes += (w->blocks_max - before) * sizeof *table;
    }
    w->block[b] = get(w, sizeof(struct block) + LINE - 1);
    return w->block[b] == NULL ? DW_ENOMEM : DW_OK;
}

static uint32_t chunk_get(dw_wheel *w) {
    uint32_t c = w->free;
    if (c != DW_NIL) {
        w->free = chunk_at(w, c)->next;
        return c;
    }
    if ((w->chunks & (BLOCK_CHUNKS - 1)) == 0 && add_block(w, w->chunks >> BLOCK_BITS) != DW_OK)
        return DW_NIL;
    return w->chunks++;
}

/* ---- the heap of far chunks, and the array of near ones */

static inline void heap_set(dw_wheel *w, uint32_t i, struct item item) {
    *heap_at(w, i) = item;
    chunk_at(w, item.chunk)->pos = i;
}

static void heap_up(dw_wheel *w, uint32_t i, struct item item) {
    while (i > 0) {
        uint32_t up = (i - 1) / ARITY;
        const struct item *parent = heap_at(w, up);
        if (parent->due <= item.due)
            break;
        heap_set(w, i, *parent);
        i = up;
    }
    heap_set(w, i, item);
}

static void heap_down(dw_wheel *w, uint32_t i, struct item item) {
    for (;;) {
        uint64_t first = (uint64_t)ARITY * i + 1, end = first + ARITY;
        if (end > w->heap_n)
            end = w->heap_n;
        if (first >= end)
            break;
        uint32_t least = (uint32_t)first;
        for (uint32_t child = least + 1; child < end; child++)
            if (heap_at(w, child)->due < heap_at(w, least)->due)
                least = child;
        if (item.due <= heap_at(w, least)->due)
            break;
        heap_set(w, i, *heap_at(w, least));
        i = least;
    }
    heap_set(w, i, item);
}

static void heap_rekey(dw_wheel *w, uint32_t i, struct item item) {
    if (i > 0 && item.due < heap_at(w, (i - 1) / ARITY)->due)
        heap_up(w, i, item);
    else
        heap_down(w, i, item);
}

static inline unsigned level_of(const struct chunk *chunk) {
    return chunk->slot / SLOTS;
}

static void enlist(dw_wheel *w, uint32_t c, unsigned level, uint64_t due) {
    if (level == 0) {
        chunk_at(w, c)->pos = w->near_n;
        *near_at(w, w->near_n++) = c;
    } else {
        w->heap_n++;
        heap_up(w, w->heap_n - 1, (struct item){.due = due, .chunk = c});
    }
}

static void delist(dw_wheel *w, uint32_t c) {
    uint32_t pos = chunk_at(w, c)->pos;
    if (level_of(chunk_at(w, c)) == 0) {
        uint32_t last = *near_at(w, --w->near_n);
        *near_at(w, pos) = last;
        chunk_at(w, last)->pos = pos;
    } else {
        struct item last = *heap_at(w, --w->heap_n);
        if (pos < w->heap_n)
            heap_rekey(w, pos, last);
    }
}

/* ---- slots */

static inline void set_occupied(dw_wheel *w, uint32_t slot, bool on) {
    unsigned level = slot / SLOTS, i = slot % SLOTS / 64;
    uint64_t bit = UINT64_C(1) << slot % 64;
    if (on)
        w->occupied[level][i] |= bit;
    else
        w->occupied[level][i] &= ~bit;
    unsigned word = 1u << i;
    w->words[level] =
        (uint8_t)(w->occupied[level][i] != 0 ? w->words[level] | word : w->words[level] & ~word);
}

/* The number, from the epoch on, of the slot of the level in which time t lies. */
static inline uint64_t number(unsigned level, uint64_t t) {
    return t >> (BITS * level);
}

static inline uint32_t slot_of(unsigned level, uint64_t t) {
    return level * SLOTS + (uint32_t)(number(level, t) % SLOTS);
}

static inline bool is_empty(const dw_wheel *w, uint32_t slot) {
    return w->slot[slot].head == DW_NIL;
}

static uint32_t append_chunk(dw_wheel *w, unsigned level, uint32_t slot, uint64_t due) {
    uint32_t c = chunk_get(w);
    if (c == DW_NIL)
        return DW_NIL;
    struct slot *s = &w->slot[slot];
    struct chunk *chunk = chunk_at(w, c);
    chunk->next = DW_NIL;
    chunk->prev = s->tail;
    chunk->slot = (uint16_t)slot;
    chunk->first = chunk->n = 0;
    if (s->tail == DW_NIL) {
        s->head = c;
        set_occupied(w, slot, true);
    } else {
        chunk_at(w, s->tail)->next = c;
    }
    s->tail = c;
    enlist(w, c, level, due);
    return c;
}

/* Takes the chunk out of its slot, and keeps it for another. */
static void drop_chunk(dw_wheel *w, uint32_t c) {
    struct chunk *chunk = chunk_at(w, c);
    struct slot *s = &w->slot[chunk->slot];
    delist(w, c);
    if (chunk->prev == DW_NIL)
        s->head = chunk->next;
    else
        chunk_at(w, chunk->prev)->next = chunk->next;
    if (chunk->next == DW_NIL)
        s->tail = chunk->prev;
    else
        chunk_at(w, chunk->next)->prev = chunk->prev;
    if (s->head == DW_NIL)
        set_occupied(w, chunk->slot, false);
    chunk->next = w->free;
    w->free = c;
}

static inline int append(dw_wheel *w, unsigned level, uint64_t due, uint32_t k) {
    uint32_t slot = slot_of(level, due), c = w->slot[slot].tail;
    if (c == DW_NIL || chunk_at(w, c)->n == CHUNK_REFS) {
        c = append_chunk(w, level, slot, due);
        if (c == DW_NIL)
            return DW_ENOMEM;
    }
    struct chunk *chunk = chunk_at(w, c);
    chunk->ref[chunk->n++] = (struct ref){.due = (uint32_t)due, .k = k};
    if (level > 0 && due < heap_at(w, chunk->pos)->due)
        heap_up(w, chunk->pos, (struct item){.due = due, .chunk = c});
    return DW_OK;
}

/* The first slot of the level from number `from` on that holds something, or DW_NEVER. The level
 * holds nothing in the slots before `from`, so those that its two windows may have follow each
 * other in the bitmap, round its end. */
static uint64_t find_occupied(const dw_wheel *w, unsigned level, uint64_t from) {
    unsigned bit = (unsigned)(from % SLOTS), i = bit / 64;
    uint64_t bits = w->occupied[level][i] & UINT64_MAX << bit % 64;
    if (bits == 0) {
        /* The words after the first one, round to the part of it that is not yet looked at. */
        unsigned words = w->words[level], after = i + 1;
        words = (words | words << WORDS) >> after & ((1u << WORDS) - 1);
        if (words == 0)
            return DW_NEVER;
        i = (after + (unsigned)__builtin_ctz(words)) % WORDS;
        bits = w->occupied[level][i];
    }
    return from + (i * 64 + (unsigned)__builtin_ctzll(bits) - bit) % SLOTS;
}

/* ---- entries */

/* The lowest level whose two windows reach due. */
static inline unsigned lowest_level(const dw_wheel *w, uint64_t due) {
    unsigned level = 0;
    while (level < LEVELS - 1 && number(level + 1, due) - number(level + 1, w->now) > 1)
        level++;
    return level;
}

/* The level for a new entry: above the lowest if something is still there that came before it. */
static inline unsigned entry_level(const dw_wheel *w, uint64_t due) {
    unsigned level = lowest_level(w, due);
    for (unsigned l = level + 1; l < LEVELS && number(l, due) != number(l, w->now); l++)
        if (!is_empty(w, slot_of(l, due)))
            level = l;
    return level;
}

static inline uint32_t *count_at(dw_wheel *w, unsigned level, uint64_t due) {
    return &w->counts[level][number(level, due) % SLOTS];
}

static void count_out(dw_wheel *w, uint64_t due) {
    unsigned level = lowest_level(w, due);
    if (level == 0)
        level = 1;
    while (*count_at(w, level, due) == 0) {
        level++;
        if (!DW_INVARIANT(level < LEVELS))
            return;
    }
    --*count_at(w, level, due);
}

static inline bool is_live(const dw_wheel *w, uint32_t k) {
    return dw_slab_at(w->slab, k)->state == DW_WAITING;
}

static inline void bury(dw_wheel *w, uint32_t k) {
    w->dead--;
    dw_slab_put(w->slab, k);
}

/* The due time of a reference of a chunk above level 0, given a time in the chunk's slot. */
static inline uint64_t ref_due(const dw_wheel *w, unsigned level, uint64_t in_slot,
                               struct ref ref) {
    if (BITS * level > 32)
        return dw_slab_at(w->slab, ref.k)->due;
    uint64_t mask = (UINT64_C(1) << (BITS * level)) - 1;
    return (in_slot & ~mask) | (ref.due & mask);
}

/* Fetches the slab's lines of the next references, of at most `most`. */
static inline void prefetch_refs(const dw_wheel *w, const struct chunk *chunk, unsigned most) {
    unsigned end = chunk->first + most < chunk->n ? chunk->first + most : chunk->n;
    for (unsigned i = chunk->first; i < end; i++)
        __builtin_prefetch(dw_slab_at(w->slab, chunk->ref[i].k), 1);
}

/* ---- moving down */

/* Drains slot `n` of the level, the next one or one that time is about to enter, as far as the
 * budget goes; true when it is empty. */
static bool drain(dw_wheel *w, unsigned level, uint64_t n, uint64_t *budget) {
    const uint64_t begin = n << (BITS * level);
    const struct slot *s = &w->slot[slot_of(level, begin)];
    while (s->head != DW_NIL) {
        uint32_t c = s->head;
        struct chunk *chunk = chunk_at(w, c);
        if (*budget > 0)
            prefetch_refs(w, chunk, CHUNK_REFS);
        for (; chunk->first < chunk->n; chunk->first++, --*budget) {
            if (*budget == 0)
                return false;
            struct ref ref = chunk->ref[chunk->first];
            if (level > 1 && !is_live(w, ref.k)) {
                bury(w, ref.k);
                continue;
            }
            uint64_t due = ref_due(w, level, begin, ref);
            if (append(w, level - 1, due, ref.k) != DW_OK)
                return false;
            if (level > 1 && *count_at(w, level, due) > 0) {
                --*count_at(w, level, due);
                ++*count_at(w, level - 1, due);
            }
        }
        drop_chunk(w, c);
    }
    return true;
}

static void look_ahead(dw_wheel *w, uint64_t *budget) {
    for (unsigned level = 1; level<LEVELS && * budget> 0; level++)
        drain(w, level, number(level, w->now) + 1, budget);
}

static bool is_ahead(const dw_wheel *w) {
    for (unsigned level = 1; level < LEVELS; level++)
        if (find_occupied(w, level, number(level, w->now) + 1) == number(level, w->now) + 1)
            return true;
    return false;
}

/* When, after now, an entry is due or a slot must be empty, whichever is first; then *level is 0 or
 * that slot's level, the highest if several begin there. */
static uint64_t next_event(const dw_wheel *w, unsigned *level) {
    uint64_t first = find_occupied(w, 0, w->now);
    *level = 0;
    if (first != DW_NEVER && number(1, first) == number(1, w->now))
        return first;
    for (unsigned l = 1; l < LEVELS; l++) {
        uint64_t n = find_occupied(w, l, number(l, w->now) + 1);
        if (n != DW_NEVER && n << (BITS * l) <= first) {
            first = n << (BITS * l);
            *level = l;
        }
    }
    return first;
}

/* ---- getting rid of the dead */

/* Removes the first reference of a slot of level 0. */
static inline void shift(dw_wheel *w, uint32_t slot) {
    uint32_t c = w->slot[slot].head;
    struct chunk *chunk = chunk_at(w, c);
    if (++chunk->first == chunk->n)
        drop_chunk(w, c);
}

/* The first live entry of a slot of level 0; DW_NIL if there is none, or the budget ran out. */
static uint32_t first_live(dw_wheel *w, uint32_t slot, uint64_t *budget) {
    while (!is_empty(w, slot)) {
        if (*budget == 0)
            return DW_NIL;
        const struct chunk *chunk = chunk_at(w, w->slot[slot].head);
        if (chunk->first % PREFETCH == 0)
            prefetch_refs(w, chunk, 2 * PREFETCH);
        uint32_t k = chunk->ref[chunk->first].k;
        if (is_live(w, k))
            return k;
        bury(w, k);
        shift(w, slot);
        --*budget;
    }
    return DW_NIL;
}

/* Drops the chunk's dead references, and says exactly when its first entry is due. If none is left
 * the chunk goes too: false. */
static bool refresh(dw_wheel *w, uint32_t c) {
    struct chunk *chunk = chunk_at(w, c);
    unsigned level = level_of(chunk), n = 0;
    uint64_t in_slot = level > 0 ? heap_at(w, chunk->pos)->due : w->now, least = DW_NEVER;
    prefetch_refs(w, chunk, CHUNK_REFS);
    for (unsigned i = chunk->first; i < chunk->n; i++) {
        struct ref ref = chunk->ref[i];
        if (!is_live(w, ref.k)) {
            bury(w, ref.k);
            continue;
        }
        uint64_t due = ref_due(w, level, in_slot, ref);
        least = due < least ? due : least;
        chunk->ref[n++] = ref;
    }
    chunk->first = 0;
    chunk->n = (uint8_t)n;
    if (n == 0)
        drop_chunk(w, c);
    else if (level > 0)
        heap_rekey(w, chunk->pos, (struct item){.due = least, .chunk = c});
    return n > 0;
}

/* Moves a chunk's references to the chunk before it, if there is room. */
static void join(dw_wheel *w, uint32_t c) {
    struct chunk *chunk = chunk_at(w, c);
    if (chunk->prev == DW_NIL)
        return;
    struct chunk *prev = chunk_at(w, chunk->prev);
    unsigned n = (unsigned)(chunk->n - chunk->first);
    if (prev->n + n > CHUNK_REFS)
        return;
    memcpy(&prev->ref[prev->n], &chunk->ref[chunk->first], n * sizeof *chunk->ref);
    prev->n = (uint8_t)(prev->n + n);
    if (level_of(chunk) > 0) {
        uint64_t due = heap_at(w, chunk->pos)->due;
        if (due < heap_at(w, prev->pos)->due)
            heap_up(w, prev->pos, (struct item){.due = due, .chunk = chunk->prev});
    }
    drop_chunk(w, c);
}

/* A chunk that is removed lets another take its place, which the sweep may so have missed, as may
 * one that moves in the heap: they are few, and the next sweep has them. */
static void sweep(dw_wheel *w, uint64_t *budget) {
    if (w->sweep == 0 && w->dead > w->live / 2 + DEAD_SLACK)
        w->sweep = w->heap_n + w->near_n;
    while (w->sweep > 0 && *budget >= CHUNK_REFS) {
        const uint32_t all = w->heap_n + w->near_n;
        if (w->sweep > all) {
            w->sweep = all; /* others have gone meanwhile, perhaps all */
            continue;
        }
        *budget -= CHUNK_REFS;
        uint32_t i = --w->sweep;
        uint32_t c = i < w->heap_n ? heap_at(w, i)->chunk : *near_at(w, i - w->heap_n);
        if (refresh(w, c))
            join(w, c);
    }
}

/* Makes the heap's top say exactly when its earliest live entry is due: true if that is what it has
 * said, false if it is later, and another chunk may be the top now. Mostly the slab is only looked
 * at for the entries that would be the earliest. */
static bool settle_top(dw_wheel *w) {
    const struct item top = *heap_at(w, 0);
    const struct chunk *chunk = chunk_at(w, top.chunk);
    uint32_t least = (uint32_t)top.due;
    for (unsigned tries = 0; BITS * level_of(chunk) <= 32 && tries < SETTLE_TRIES; tries++) {
        uint32_t from = least;
        least = UINT32_MAX;
        for (unsigned i = chunk->first; i < chunk->n; i++)
            if (chunk->ref[i].due >= from && chunk->ref[i].due < least)
                least = chunk->ref[i].due;
        for (unsigned i = chunk->first; i < chunk->n; i++)
            if (chunk->ref[i].due == least && is_live(w, chunk->ref[i].k)) {
                uint64_t due = top.due - (uint32_t)top.due + least;
                if (due != top.due)
                    heap_down(w, 0, (struct item){.due = due, .chunk = top.chunk});
                return due == top.due;
            }
        if (least++ == UINT32_MAX)
            break;
    }
    return refresh(w, top.chunk) && heap_at(w, chunk->pos)->due == top.due;
}

/* Finds out when the earliest live entry is due; false if the budget ran out first. */
static bool find_earliest(dw_wheel *w, uint64_t *budget, uint64_t *due) {
    while ((*due = find_occupied(w, 0, w->now)) != DW_NEVER) {
        if (first_live(w, slot_of(0, *due), budget) != DW_NIL)
            break;
        if (*budget == 0)
            return false;
    }
    while (w->heap_n > 0 && heap_at(w, 0)->due < *due) {
        if (*budget < CHUNK_REFS)
            return false;
        *budget -= CHUNK_REFS;
        if (settle_top(w))
            *due = heap_at(w, 0)->due;
    }
    w->stale = false;
    return true;
}

static void upkeep(dw_wheel *w) {
    uint64_t budget = SWEEP_REFS;
    sweep(w, &budget);
    for (unsigned n = 0; n < SETTLE_CHUNKS && w->stale; n++)
        w->stale = w->heap_n > 0 && !settle_top(w);
}

/* ---- the interface */

uint64_t dw_wheel_now(const dw_wheel *w) {
    return w->now;
}

int dw_wheel_insert(dw_wheel *w, uint32_t k) {
    struct dw_entry *e = dw_slab_at(w->slab, k);
    uint64_t due = e->due;
    if (due < w->now)
        return DW_ELATE;
    unsigned level = entry_level(w, due);
    if (append(w, level, due, k) != DW_OK)
        return DW_ENOMEM;
    e->state = DW_WAITING;
    ++*count_at(w, level == 0 ? 1 : level, due);
    w->live++;
    return DW_OK;
}

void dw_wheel_cancel(dw_wheel *w, uint32_t k) {
    struct dw_entry *e = dw_slab_at(w->slab, k);
    if (!DW_INVARIANT(e->state == DW_WAITING))
        return;
    e->state = DW_DEAD;
    count_out(w, e->due);
    w->live--;
    w->dead++;
    if (w->heap_n > 0 && e->due == heap_at(w, 0)->due)
        w->stale = true;
    upkeep(w);
}

enum dw_peek dw_wheel_peek(dw_wheel *w, uint64_t now_ms, uint32_t budget, uint32_t *k) {
    uint64_t left = budget > 0 ? budget : 1;
    const uint64_t then = w->now;
    if (now_ms > DW_DUE_MAX)
        now_ms = DW_DUE_MAX;
    if (now_ms < w->now)
        return DW_PEEK_NONE;
    for (;;) {
        uint32_t slot = slot_of(0, w->now);
        uint32_t live = first_live(w, slot, &left);
        if (live != DW_NIL) {
            if (w->now != then) {
                left = left < LOOK_AHEAD ? left : LOOK_AHEAD;
                look_ahead(w, &left);
            }
            *k = live;
            return DW_PEEK_ENTRY;
        }
        if (!is_empty(w, slot))
            return DW_PEEK_AGAIN;
        if (w->now == now_ms) {
            look_ahead(w, &left);
            return DW_PEEK_NONE;
        }
        unsigned level;
        uint64_t event = next_event(w, &level);
        if (event > now_ms) {
            w->now = now_ms;
        } else if (level == 0) {
            w->now = event;
        } else {
            w->now = event - 1;
            if (!drain(w, level, number(level, event), &left))
                return DW_PEEK_AGAIN;
        }
    }
}

void dw_wheel_pop(dw_wheel *w) {
    uint32_t slot = slot_of(0, w->now);
    if (!DW_INVARIANT(!is_empty(w, slot)))
        return;
    const struct chunk *chunk = chunk_at(w, w->slot[slot].head);
    struct dw_entry *e = dw_slab_at(w->slab, chunk->ref[chunk->first].k);
    if (!DW_INVARIANT(e->state == DW_WAITING && e->due == w->now))
        return;
    e->state = DW_TAKEN;
    count_out(w, w->now);
    w->live--;
    shift(w, slot);
    upkeep(w);
}

bool dw_wheel_work(dw_wheel *w, uint32_t budget) {
    uint64_t left = budget > CHUNK_REFS ? budget : CHUNK_REFS, due;
    look_ahead(w, &left);
    sweep(w, &left);
    bool known = find_earliest(w, &left, &due);
    return !known || (left < CHUNK_REFS && (w->sweep > 0 || is_ahead(w)));
}

uint64_t dw_wheel_next(dw_wheel *w) {
    uint64_t unlimited = UINT64_MAX, due;
    find_earliest(w, &unlimited, &due);
    return due;
}

uint64_t dw_wheel_next_within(dw_wheel *w, uint32_t budget) {
    uint64_t left = budget > CHUNK_REFS ? budget : CHUNK_REFS, due;
    if (w->live == 0)
        return DW_NEVER;
    if (find_earliest(w, &left, &due))
        return due;
    /* What is in a slot or a chunk is due then or later. */
    due = find_occupied(w, 0, w->now);
    if (w->heap_n > 0 && heap_at(w, 0)->due < due)
        due = heap_at(w, 0)->due;
    return due;
}

uint64_t dw_wheel_count(const dw_wheel *w) {
    return w->live;
}

size_t dw_wheel_bytes(const dw_wheel *w) {
    return w->bytes;
}

/* A slot's entries are taken to be due in its middle. */
void dw_wheel_histogram(const dw_wheel *w, uint64_t out[48]) {
    memset(out, 0, 48 * sizeof *out);
    for (unsigned level = 1; level < LEVELS; level++) {
        const uint64_t width = UINT64_C(1) << (BITS * level);
        uint64_t n = number(level, w->now);
        for (unsigned i = 0; i < SLOTS; i++, n++) {
            uint32_t count = w->counts[level][n % SLOTS];
            if (count == 0)
                continue;
            uint64_t middle = n * width + width / 2;
            uint64_t distance = middle > w->now ? middle - w->now : 0;
            out[distance < 2 ? 0 : 63 - __builtin_clzll(distance)] += count;
        }
    }
}

/* ---- for tests */

struct tally {
    uint64_t live, dead;
    uint32_t near, far;
};

static const char *check_ref(const dw_wheel *w, unsigned level, uint64_t n, struct ref ref,
                             uint64_t at_least, struct tally *sum) {
    if (ref.k >= dw_slab_limit(w->slab))
        return "a number beyond the slab";
    const struct dw_entry *e = dw_slab_at(w->slab, ref.k);
    if (e->state != DW_WAITING && e->state != DW_DEAD)
        return "an entry that is neither waiting nor dead";
    if ((uint32_t)e->due != ref.due || number(level, e->due) != n)
        return "a reference in the wrong slot";
    if (e->state == DW_DEAD) {
        sum->dead++;
        return NULL;
    }
    sum->live++;
    if (e->due < w->now)
        return "a live entry that is overdue";
    return e->due < at_least ? "a live entry due before its chunk" : NULL;
}

static const char *check_slot(const dw_wheel *w, unsigned level, uint64_t n, struct tally *sum) {
    uint32_t slot = level * SLOTS + (uint32_t)(n % SLOTS), prev = DW_NIL;
    bool occupied = (w->occupied[level][n % SLOTS / 64] >> n % 64 & 1) != 0;
    if (occupied == is_empty(w, slot))
        return "the bitmap and a slot differ";
    bool word = (w->words[level] >> n % SLOTS / 64 & 1) != 0;
    if (word != (w->occupied[level][n % SLOTS / 64] != 0))
        return "the bitmap and its summary differ";
    if (occupied && level > 0 && n == number(level, w->now))
        return "a current slot is not empty";
    if (occupied && level < LEVELS - 1 && (n >> BITS) - number(level + 1, w->now) > 1)
        return "a slot beyond the windows is not empty";
    for (uint32_t c = w->slot[slot].head; c != DW_NIL; c = chunk_at(w, c)->next) {
        const struct chunk *chunk = chunk_at(w, c);
        if (chunk->slot != slot || chunk->prev != prev)
            return "a chunk is linked wrongly";
        if (chunk->first >= chunk->n || chunk->n > CHUNK_REFS)
            return "an empty or overfull chunk";
        if (level == 0 ? chunk->pos >= w->near_n || *near_at(w, chunk->pos) != c
                       : chunk->pos >= w->heap_n || heap_at(w, chunk->pos)->chunk != c)
            return "a chunk is not where it says";
        uint64_t at_least = level == 0 ? n : heap_at(w, chunk->pos)->due;
        if (number(level, at_least) != n)
            return "a chunk's least due time is not in its slot";
        for (unsigned i = chunk->first; i < chunk->n; i++) {
            const char *wrong = check_ref(w, level, n, chunk->ref[i], at_least, sum);
            if (wrong != NULL)
                return wrong;
        }
        *(level == 0 ? &sum->near : &sum->far) += 1;
        prev = c;
    }
    return w->slot[slot].tail == prev ? NULL : "a slot's last chunk is not its tail";
}

const char *dw_wheel_check(const dw_wheel *w) {
    struct tally sum = {0};
    uint64_t counts = 0, free = 0;
    for (unsigned level = 0; level < LEVELS; level++)
        for (unsigned i = 0; i < SLOTS; i++) {
            const char *wrong = check_slot(w, level, number(level, w->now) + i, &sum);
            if (wrong != NULL)
                return wrong;
            counts += w->counts[level][i];
        }
    for (uint32_t i = 1; i < w->heap_n; i++)
        if (heap_at(w, i)->due < heap_at(w, (i - 1) / ARITY)->due)
            return "the heap is out of order";
    for (uint32_t c = w->free; c != DW_NIL; c = chunk_at(w, c)->next)
        free++;
    if (sum.live != w->live || sum.dead != w->dead)
        return "the numbers of live and dead are wrong";
    if (sum.near != w->near_n || sum.far != w->heap_n)
        return "the numbers of chunks are wrong";
    if (free + sum.near + sum.far != w->chunks)
        return "a chunk is lost";
    return counts == w->live ? NULL : "the histogram's counts are wrong";
}

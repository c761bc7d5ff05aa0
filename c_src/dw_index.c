/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_index.h"

#include "dw_invariant.h"

#include "dw_le.h"

#include <stdbool.h>
#include <string.h>

/* Longer than other files are, as it is one structure: finding, adding, removing, splitting and
 * merging all go through buckets, nodes and groups, and inlined. Its owner's lock guards it.
 *
 * Linear hashing (Litwin 1980). With 2^l <= buckets < 2^(l+1), a hash belongs to the bucket that
 * its l + 1 low bits name, or its l low bits if there is no such bucket yet. Growing by one bucket
 * splits one other, shrinking by one merges two: no step touches more than one chain.
 *
 * A bucket is a cache line: 12 tags (8 bits of the hash, so that mostly only the entry sought is
 * looked up in the slab) and 12 numbers. What does not fit goes into nodes of 32 bytes with 5
 * slots, linked from the bucket, the newest first. The buckets not yet split hold twice as many as
 * the others; small nodes keep that from costing memory: at SPLIT_LOAD entries a bucket it is 6.5
 * to 7 bytes an entry throughout. Bucket and nodes are full, but for the newest of them: a removal
 * moves the last slot into the hole.
 *
 * Entries with the same key would all lie in one chain. From GROUP_ENTRIES on they move into a
 * table of their own, hashed by entry number, and the chain holds a single slot, tagged GROUP_TAG,
 * with the number of the node that describes the group. Such a table is dropped when it is empty.
 */

#define BUCKET_SLOTS 12u
#define NODE_SLOTS 5u
#define SPLIT_LOAD_X2 25u /* entries per bucket, times two, above which one is split */
#define MERGE_LOAD 5u     /* entries per bucket below which two are merged */
#define GROUP_TAG 255u
#define GROUP_ENTRIES 64u
#define GROUP_DEPTH 10u /* nodes in a chain before it is searched for a group to form */

/* The first 1,024 buckets lie in pieces of 8, 8, 16, 32, ..., 512, the others in segments. */
#define PIECES 8u
#define PIECE_BUCKETS 8u
#define SEGMENT_BITS 10u
#define SEGMENT_BUCKETS (1u << SEGMENT_BITS)
#define NODES_BITS 8u
#define NODES_SEGMENT (1u << NODES_BITS)
#define TABLE_AT_FIRST 8u /* segments in a table of segments */
#define LINE 64u

struct bucket {
    uint8_t tag[BUCKET_SLOTS]; /* 0: the slot is empty */
    uint32_t next;             /* node, or DW_NIL */
    uint32_t k[BUCKET_SLOTS];
};

struct node {
    uint8_t tag[NODE_SLOTS];
    uint8_t depth; /* how many nodes there are from here to the chain's end, at most 255 */
    uint8_t unused[2];
    uint32_t next;
    uint32_t k[NODE_SLOTS];
};

struct table;

struct group {
    uint64_t value;
    struct table *table;
    uint32_t from; /* where the search for any entry of the group begins */
};

union cell {
    struct node node;
    struct group group;
    uint32_t free; /* next free cell, or DW_NIL */
};

_Static_assert(sizeof(struct bucket) == LINE, "a bucket is a cache line");
_Static_assert(sizeof(union cell) == 32, "two cells a cache line");
_Static_assert(offsetof(struct node, next) == 8, "the tags are read as 8 bytes");

/* Memory whose first line boundary counts: the allocator aligns less than that. */
typedef char *lines;

struct table {
    bool by_number;    /* a group's table */
    uint32_t buckets;  /* at least 1 */
    uint32_t half;     /* 2^l */
    uint32_t segments; /* length of the table of segments */
    uint64_t slots;    /* in use */
    lines *segment;
    lines piece[PIECES];
};

struct dw_index {
    struct dw_alloc alloc;
    const dw_slab *slab;
    enum dw_index_field field;
    uint64_t entries;
    size_t bytes;
    struct table table;
    lines *cells;         /* segments of cells */
    uint32_t cells_max;   /* length of that table */
    uint32_t cells_limit; /* all cells handed out so far are below this */
    uint32_t cells_free;  /* first of the free list, or DW_NIL */
    uint32_t groups;
};

static void *get(dw_index *x, size_t bytes) {
    void *p = dw_get(&x->alloc, bytes);
    if (p != NULL)
        x->bytes += bytes;
    return p;
}

static void release(dw_index *x, void *p, size_t bytes) {
    if (p != NULL)
        x->bytes -= bytes;
    dw_release(&x->alloc, p);
}

static inline void *line_at(lines p, size_t offset) {
    return (void *)((((uintptr_t)p + LINE - 1) & ~(uintptr_t)(LINE - 1)) + offset);
}

static inline size_t lines_bytes(size_t bytes) {
    return bytes + LINE - 1;
}

static lines get_lines(dw_index *x, size_t bytes) {
    return get(x, lines_bytes(bytes));
}

/* The table of segments with room for segment i: itself, or a copy twice as long. */
static int reserve_segment(dw_index *x, lines **table, uint32_t *length, uint32_t i) {
    if (i < *length)
        return DW_OK;
    const uint32_t before = *length;
    lines *copy = dw_get_longer(&x->alloc, *table, length, TABLE_AT_FIRST, i + 1, sizeof *copy);
    if (copy == NULL)
        return DW_ENOMEM;
    *table = copy;
    x->bytes += (*length - before) * sizeof *copy;
    return DW_OK;
}

/* ---- cells */

static inline union cell *cell_at(const dw_index *x, uint32_t c) {
    return line_at(x->cells[c >> NODES_BITS], (c & (NODES_SEGMENT - 1)) * sizeof(union cell));
}

static uint32_t cell_get(dw_index *x) {
    uint32_t c = x->cells_free;
    if (c != DW_NIL) {
        x->cells_free = cell_at(x, c)->free;
        return c;
    }
    c = x->cells_limit;
    uint32_t s = c >> NODES_BITS;
    if (reserve_segment(x, &x->cells, &x->cells_max, s) != DW_OK)
        return DW_NIL;
    if (x->cells[s] == NULL)
        x->cells[s] = get_lines(x, NODES_SEGMENT * sizeof(union cell));
    if (x->cells[s] == NULL)
        return DW_NIL;
    x->cells_limit++;
    return c;
}

static void cell_put(dw_index *x, uint32_t c) {
    cell_at(x, c)->free = x->cells_free;
    x->cells_free = c;
}

/* ---- buckets */

/* Buckets [PIECE_BUCKETS * 2^(i-1), PIECE_BUCKETS * 2^i) are in piece i; the first ones in 0. */
static inline uint32_t piece_of(uint32_t b) {
    return b < PIECE_BUCKETS ? 0 : 32 - (uint32_t)__builtin_clz(b / PIECE_BUCKETS);
}

static inline uint32_t piece_first(uint32_t piece) {
    return piece == 0 ? 0 : PIECE_BUCKETS << (piece - 1);
}

static inline size_t piece_bytes(uint32_t piece) {
    return (piece_first(piece + 1) - piece_first(piece)) * sizeof(struct bucket);
}

static inline struct bucket *bucket_at(const struct table *t, uint32_t b) {
    if (b >= SEGMENT_BUCKETS)
        return line_at(t->segment[(b >> SEGMENT_BITS) - 1],
                       (b & (SEGMENT_BUCKETS - 1)) * sizeof(struct bucket));
    uint32_t piece = piece_of(b);
    return line_at(t->piece[piece], (b - piece_first(piece)) * sizeof(struct bucket));
}

static int bucket_reserve(dw_index *x, struct table *t, uint32_t b) {
    lines *p;
    size_t bytes;
    if (b < SEGMENT_BUCKETS) {
        uint32_t piece = piece_of(b);
        p = &t->piece[piece];
        bytes = piece_bytes(piece);
    } else {
        uint32_t s = (b >> SEGMENT_BITS) - 1;
        if (reserve_segment(x, &t->segment, &t->segments, s) != DW_OK)
            return DW_ENOMEM;
        p = &t->segment[s];
        bytes = SEGMENT_BUCKETS * sizeof(struct bucket);
    }
    if (*p == NULL)
        *p = get_lines(x, bytes);
    return *p == NULL ? DW_ENOMEM : DW_OK;
}

/* Bucket b is gone. If it was the first of a segment, the segment after that goes: one empty one is
 * kept, so that splits and merges at a boundary do not allocate in turn. */
static void bucket_drop(dw_index *x, struct table *t, uint32_t b) {
    uint32_t s = b >> SEGMENT_BITS;
    if ((b & (SEGMENT_BUCKETS - 1)) == 0 && s < t->segments) {
        release(x, t->segment[s], lines_bytes(SEGMENT_BUCKETS * sizeof(struct bucket)));
        t->segment[s] = NULL;
    }
}

static void bucket_clear(struct bucket *b) {
    memset(b->tag, 0, sizeof b->tag);
    b->next = DW_NIL;
}

/* ---- chains */

/* The slots of a bucket or of a node. */
struct slots {
    uint8_t *tag;
    uint32_t *k;
    unsigned n; /* 0: the chain has ended */
    uint32_t next;
};

static inline struct slots of_bucket(struct bucket *b) {
    return (struct slots){.tag = b->tag, .k = b->k, .n = BUCKET_SLOTS, .next = b->next};
}

static inline struct slots of_node(const dw_index *x, uint32_t c) {
    if (c == DW_NIL)
        return (struct slots){.n = 0};
    struct node *node = &cell_at(x, c)->node;
    return (struct slots){.tag = node->tag, .k = node->k, .n = NODE_SLOTS, .next = node->next};
}

/* Where the next slot is taken or given up: the newest node, or the bucket if there is none. */
static inline struct slots open_end(const dw_index *x, struct bucket *b) {
    return b->next == DW_NIL ? of_bucket(b) : of_node(x, b->next);
}

/* Bit i is set if byte i of v is `tag`. */
static inline unsigned bytes_equal(uint64_t v, uint8_t tag) {
    const uint64_t low7 = UINT64_C(0x7f7f7f7f7f7f7f7f);
    v ^= UINT64_C(0x0101010101010101) * tag;
    uint64_t zero = ~(((v & low7) + low7) | v | low7);
    return (unsigned)((zero >> 7) * UINT64_C(0x0102040810204080) >> 56);
}

/* Bit i is set if slot i has that tag. */
static inline unsigned slots_with(struct slots s, uint8_t tag) {
    unsigned first = bytes_equal(dw_le64(s.tag), tag);
    if (s.n == NODE_SLOTS)
        return first & ((1u << NODE_SLOTS) - 1);
    return first | (bytes_equal(dw_le32(s.tag + 8), tag) & 0xf) << 8;
}

static inline unsigned slots_used(struct slots s) {
    unsigned empty = slots_with(s, 0);
    return empty == 0 ? s.n : (unsigned)__builtin_ctz(empty);
}

static int chain_add(dw_index *x, struct bucket *b, uint8_t tag, uint32_t k) {
    struct slots s = open_end(x, b);
    unsigned i = slots_used(s);
    if (i == s.n) {
        uint32_t c = cell_get(x);
        if (c == DW_NIL)
            return DW_ENOMEM;
        unsigned depth = b->next == DW_NIL ? 1 : cell_at(x, b->next)->node.depth + 1u;
        cell_at(x, c)->node =
            (struct node){.depth = (uint8_t)(depth < UINT8_MAX ? depth : UINT8_MAX),
                          .next = b->next};
        b->next = c;
        s = of_node(x, c);
        i = 0;
    }
    s.tag[i] = tag;
    s.k[i] = k;
    return DW_OK;
}

/* Empties slot i of s, which is in b's chain, by moving the chain's last slot there. */
static void chain_remove(dw_index *x, struct bucket *b, struct slots s, unsigned i) {
    struct slots end = open_end(x, b);
    unsigned last = slots_used(end) - 1;
    s.tag[i] = end.tag[last];
    s.k[i] = end.k[last];
    end.tag[last] = 0;
    if (last == 0 && b->next != DW_NIL) {
        uint32_t c = b->next;
        b->next = end.next;
        cell_put(x, c);
    }
}

/* A node's or bucket's slots, copied out so that it can be reused while they are put elsewhere. */
struct copied {
    unsigned n;
    uint8_t tag[BUCKET_SLOTS];
    uint32_t k[BUCKET_SLOTS];
};

static void copy_slots(struct slots s, struct copied *copy) {
    copy->n = slots_used(s);
    memcpy(copy->tag, s.tag, copy->n);
    memcpy(copy->k, s.k, copy->n * sizeof *copy->k);
}

/* ---- tables */

/* Stafford's variant 13 of the murmur3 finalizer: one to one, and every bit depends on all. */
static inline uint64_t mix(uint64_t v) {
    v = (v ^ v >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    v = (v ^ v >> 27) * UINT64_C(0x94d049bb133111eb);
    return v ^ v >> 31;
}

/* From bits that no address uses; neither 0 nor GROUP_TAG. */
static inline uint8_t tag_of(uint64_t hash) {
    return (uint8_t)(1 + (hash >> 56) % (GROUP_TAG - 1));
}

static inline uint64_t value_of(const dw_index *x, uint32_t k) {
    const struct dw_entry *e = dw_slab_at(x->slab, k);
    return x->field == DW_BY_ID ? e->id : e->key_hash;
}

static inline uint64_t hash_of_slot(const dw_index *x, const struct table *t, uint8_t tag,
                                    uint32_t k) {
    if (t->by_number)
        return mix(k);
    return mix(tag == GROUP_TAG ? cell_at(x, k)->group.value : value_of(x, k));
}

static inline uint32_t address(const struct table *t, uint64_t hash) {
    uint32_t b = (uint32_t)hash & (2 * t->half - 1);
    return b < t->buckets ? b : b - t->half;
}

static int table_init(dw_index *x, struct table *t, bool by_number) {
    *t = (struct table){.by_number = by_number, .buckets = 1, .half = 1};
    if (bucket_reserve(x, t, 0) != DW_OK)
        return DW_ENOMEM;
    bucket_clear(bucket_at(t, 0));
    return DW_OK;
}

static void table_free(dw_index *x, struct table *t) {
    for (uint32_t i = 0; i < PIECES; i++)
        release(x, t->piece[i], lines_bytes(piece_bytes(i)));
    for (uint32_t i = 0; i < t->segments; i++)
        release(x, t->segment[i], lines_bytes(SEGMENT_BUCKETS * sizeof(struct bucket)));
    release(x, t->segment, t->segments * sizeof *t->segment);
}

/* Gives the nodes of the table's chains back, for a table that is dropped with slots in it. */
static void table_empty(dw_index *x, struct table *t) {
    for (uint32_t i = 0; i < t->buckets; i++)
        for (uint32_t c = bucket_at(t, i)->next; c != DW_NIL;) {
            uint32_t next = cell_at(x, c)->node.next;
            cell_put(x, c);
            c = next;
        }
}

/* The slab lines that a split will need are fetched all at once rather than one after the other. */
static void prefetch_chain(const dw_index *x, const struct table *t, struct bucket *b) {
    if (t->by_number)
        return;
    for (struct slots s = of_bucket(b); s.n > 0; s = of_node(x, s.next)) {
        unsigned n = slots_used(s);
        for (unsigned i = 0; i < n; i++)
            if (s.tag[i] != GROUP_TAG)
                __builtin_prefetch(dw_slab_at(x->slab, s.k[i]));
    }
}

static void split_slots(dw_index *x, struct table *t, const struct copied *copy) {
    for (unsigned i = 0; i < copy->n; i++) {
        uint64_t hash = hash_of_slot(x, t, copy->tag[i], copy->k[i]);
        int rc = chain_add(x, bucket_at(t, address(t, hash)), copy->tag[i], copy->k[i]);
        /* Two chains need no more nodes than the one has given back. */
        (void)DW_INVARIANT(rc == DW_OK);
    }
}

/* Adds a bucket, and moves the entries that belong there from the one that had them. Does nothing
 * if there is no memory: chains get longer, and the next put tries again. */
static void split(dw_index *x, struct table *t) {
    if (t->buckets == UINT32_MAX / 2 || bucket_reserve(x, t, t->buckets) != DW_OK)
        return;
    struct bucket *from = bucket_at(t, t->buckets - t->half);
    prefetch_chain(x, t, from);
    bucket_clear(bucket_at(t, t->buckets));
    t->buckets++;

    struct copied copy;
    copy_slots(of_bucket(from), &copy);
    uint32_t c = from->next;
    bucket_clear(from);
    split_slots(x, t, &copy);
    while (c != DW_NIL) {
        struct slots s = of_node(x, c);
        copy_slots(s, &copy);
        cell_put(x, c);
        c = s.next;
        split_slots(x, t, &copy);
    }
    if (t->buckets == 2 * t->half)
        t->half *= 2;
}

static bool has_free_cells(const dw_index *x, unsigned n) {
    for (uint32_t c = x->cells_free; n > 0 && c != DW_NIL; c = cell_at(x, c)->free)
        n--;
    return n == 0;
}

/* Takes the last bucket away, moving what it holds to the one that it was split from. It must not
 * fail half way: 12 entries more in nodes need at most 4 nodes more, so these must be there. They
 * are, as the table once held more; else the bucket stays. */
static void merge(dw_index *x, struct table *t) {
    if (!has_free_cells(x, 4))
        return;
    uint32_t half = t->buckets == t->half ? t->half / 2 : t->half;
    uint32_t last = t->buckets - 1;
    struct bucket *from = bucket_at(t, last), *into = bucket_at(t, last - half);
    for (;;) {
        struct slots end = open_end(x, from);
        unsigned n = slots_used(end);
        if (n == 0)
            break;
        uint8_t tag = end.tag[n - 1];
        uint32_t k = end.k[n - 1];
        chain_remove(x, from, end, n - 1);
        int rc = chain_add(x, into, tag, k);
        (void)DW_INVARIANT(rc == DW_OK);
    }
    t->buckets--;
    t->half = half;
    bucket_drop(x, t, last);
}

static int table_add(dw_index *x, struct table *t, uint64_t hash, uint8_t tag, uint32_t k) {
    if (chain_add(x, bucket_at(t, address(t, hash)), tag, k) != DW_OK)
        return DW_ENOMEM;
    t->slots++;
    if (2 * t->slots > (uint64_t)SPLIT_LOAD_X2 * t->buckets)
        split(x, t);
    return DW_OK;
}

/* Removes slot i of s, which is in the chain of `hash`. */
static void table_remove(dw_index *x, struct table *t, uint64_t hash, struct slots s, unsigned i) {
    chain_remove(x, bucket_at(t, address(t, hash)), s, i);
    t->slots--;
    if (t->buckets > 1 && t->slots < (uint64_t)MERGE_LOAD * t->buckets)
        merge(x, t);
}

/* The slot with that tag and number; n is 0 if there is none. */
static struct slots table_find(const dw_index *x, const struct table *t, uint64_t hash, uint8_t tag,
                               uint32_t k, unsigned *i) {
    struct slots s = of_bucket(bucket_at(t, address(t, hash)));
    for (; s.n > 0; s = of_node(x, s.next))
        for (unsigned m = slots_with(s, tag); m != 0; m &= m - 1) {
            *i = (unsigned)__builtin_ctz(m);
            if (s.k[*i] == k)
                return s;
        }
    return s;
}

/* ---- groups */

static uint32_t group_find(const dw_index *x, uint64_t hash, uint64_t value) {
    if (x->groups == 0)
        return DW_NIL;
    struct slots s = of_bucket(bucket_at(&x->table, address(&x->table, hash)));
    for (; s.n > 0; s = of_node(x, s.next))
        for (unsigned m = slots_with(s, GROUP_TAG); m != 0; m &= m - 1) {
            uint32_t c = s.k[__builtin_ctz(m)];
            if (cell_at(x, c)->group.value == value)
                return c;
        }
    return DW_NIL;
}

static int group_add(dw_index *x, uint32_t group, uint32_t k) {
    uint64_t hash = mix(k);
    return table_add(x, cell_at(x, group)->group.table, hash, tag_of(hash), k);
}

static void group_free(dw_index *x, uint32_t group) {
    struct table *t = cell_at(x, group)->group.table;
    table_empty(x, t);
    table_free(x, t);
    release(x, t, sizeof *t);
    cell_put(x, group);
}

static uint32_t group_new(dw_index *x, uint64_t value) {
    uint32_t c = cell_get(x);
    if (c == DW_NIL)
        return DW_NIL;
    struct table *t = get(x, sizeof *t);
    if (t != NULL && table_init(x, t, true) == DW_OK) {
        cell_at(x, c)->group = (struct group){.value = value, .table = t};
        return c;
    }
    release(x, t, sizeof *t);
    cell_put(x, c);
    return DW_NIL;
}

/* Adds the entries of the chain that have the value to the group; how many, or DW_ENOMEM. */
static int group_fill(dw_index *x, uint32_t group, struct bucket *b, uint64_t hash) {
    uint64_t value = cell_at(x, group)->group.value;
    int n = 0;
    for (struct slots s = of_bucket(b); s.n > 0; s = of_node(x, s.next))
        for (unsigned m = slots_with(s, tag_of(hash)); m != 0; m &= m - 1) {
            uint32_t k = s.k[__builtin_ctz(m)];
            if (value_of(x, k) != value)
                continue;
            if (group_add(x, group, k) != DW_OK)
                return DW_ENOMEM;
            n++;
        }
    return n;
}

static uint32_t chain_count(const dw_index *x, struct bucket *b, uint64_t hash, uint64_t value) {
    uint32_t n = 0;
    for (struct slots s = of_bucket(b); s.n > 0; s = of_node(x, s.next))
        for (unsigned m = slots_with(s, tag_of(hash)); m != 0; m &= m - 1)
            n += value_of(x, s.k[__builtin_ctz(m)]) == value;
    return n;
}

static void chain_remove_value(dw_index *x, struct bucket *b, uint64_t hash, uint64_t value) {
    struct slots s = of_bucket(b);
    while (s.n > 0) {
        unsigned m = slots_with(s, tag_of(hash));
        while (m != 0 && value_of(x, s.k[__builtin_ctz(m)]) != value)
            m &= m - 1;
        if (m == 0) {
            s = of_node(x, s.next);
            continue;
        }
        /* What fills the hole may have the value too, and may be of a node that then is gone; so
         * begin again. The chain is some GROUP_DEPTH nodes long. */
        chain_remove(x, b, s, (unsigned)__builtin_ctz(m));
        x->table.slots--;
        s = of_bucket(b);
    }
}

/* Moves the entries with the value out of a long chain into a group, if they are many. If there is
 * no memory for that everything stays where it is. */
static uint32_t group_form(dw_index *x, uint64_t hash, uint64_t value) {
    struct bucket *b = bucket_at(&x->table, address(&x->table, hash));
    if (b->next == DW_NIL || cell_at(x, b->next)->node.depth < GROUP_DEPTH ||
        chain_count(x, b, hash, value) < GROUP_ENTRIES)
        return DW_NIL;
    uint32_t group = group_new(x, value);
    if (group == DW_NIL)
        return DW_NIL;
    if (group_fill(x, group, b, hash) < 0) {
        group_free(x, group);
        return DW_NIL;
    }
    chain_remove_value(x, b, hash, value);
    int rc = chain_add(x, b, GROUP_TAG, group);
    (void)DW_INVARIANT(rc == DW_OK); /* there is room where its entries were */
    x->table.slots++;
    x->groups++;
    return group;
}

static void group_remove(dw_index *x, uint32_t group, uint64_t hash, uint32_t k) {
    if (!DW_INVARIANT(group != DW_NIL))
        return;
    struct table *t = cell_at(x, group)->group.table;
    uint64_t h = mix(k);
    unsigned i = 0;
    struct slots s = table_find(x, t, h, tag_of(h), k, &i);
    if (!DW_INVARIANT(s.n > 0))
        return;
    table_remove(x, t, h, s, i);
    if (t->slots > 0)
        return;
    s = table_find(x, &x->table, hash, GROUP_TAG, group, &i);
    if (!DW_INVARIANT(s.n > 0))
        return;
    table_remove(x, &x->table, hash, s, i);
    group_free(x, group);
    x->groups--;
}

/* At most max of the group's entries, beginning where the last search ended, so that one who finds
 * and deletes them in turn does not pass all the emptied buckets each time. */
static uint64_t group_some(const dw_index *x, uint32_t group, uint32_t *out, uint64_t max) {
    struct group *g = &cell_at(x, group)->group;
    const struct table *t = g->table;
    uint64_t n = 0;
    if (g->from >= t->buckets)
        g->from = 0;
    uint32_t b = g->from;
    for (uint32_t passed = 0; passed < t->buckets && n < max; passed++) {
        g->from = b;
        for (struct slots s = of_bucket(bucket_at(t, b)); s.n > 0; s = of_node(x, s.next)) {
            unsigned used = slots_used(s);
            for (unsigned i = 0; i < used && n < max; i++)
                out[n++] = s.k[i];
        }
        b = b + 1 < t->buckets ? b + 1 : 0;
    }
    return n;
}

/* ---- the index */

dw_index *dw_index_new(const struct dw_alloc *alloc, const dw_slab *slab,
                       enum dw_index_field field) {
    dw_index *x = dw_get(alloc, sizeof *x);
    if (x == NULL)
        return NULL;
    *x = (dw_index){
        .alloc = *alloc, .slab = slab, .field = field, .bytes = sizeof *x, .cells_free = DW_NIL};
    if (table_init(x, &x->table, false) != DW_OK) {
        dw_release(alloc, x);
        return NULL;
    }
    return x;
}

void dw_index_free(dw_index *x) {
    if (x == NULL)
        return;
    for (uint32_t i = 0; x->groups > 0 && i < x->table.buckets; i++)
        for (struct slots s = of_bucket(bucket_at(&x->table, i)); s.n > 0; s = of_node(x, s.next))
            for (unsigned m = slots_with(s, GROUP_TAG); m != 0; m &= m - 1) {
                struct table *t = cell_at(x, s.k[__builtin_ctz(m)])->group.table;
                table_free(x, t);
                release(x, t, sizeof *t);
            }
    table_free(x, &x->table);
    for (uint32_t i = 0; i < x->cells_max; i++)
        release(x, x->cells[i], lines_bytes(NODES_SEGMENT * sizeof(union cell)));
    release(x, x->cells, x->cells_max * sizeof *x->cells);
    (void)DW_INVARIANT(x->bytes == sizeof *x);
    const struct dw_alloc alloc = x->alloc;
    dw_release(&alloc, x);
}

int dw_index_put(dw_index *x, uint32_t k) {
    uint64_t value = value_of(x, k), hash = mix(value);
    uint32_t group = DW_NIL;
    if (x->field == DW_BY_KEY) {
        group = group_find(x, hash, value);
        if (group == DW_NIL)
            group = group_form(x, hash, value);
    }
    int rc =
        group == DW_NIL ? table_add(x, &x->table, hash, tag_of(hash), k) : group_add(x, group, k);
    if (rc == DW_OK)
        x->entries++;
    return rc;
}

uint32_t dw_index_find(const dw_index *x, uint64_t value) {
    uint64_t hash = mix(value);
    struct slots s = of_bucket(bucket_at(&x->table, address(&x->table, hash)));
    for (; s.n > 0; s = of_node(x, s.next))
        for (unsigned m = slots_with(s, tag_of(hash)); m != 0; m &= m - 1) {
            uint32_t k = s.k[__builtin_ctz(m)];
            if (value_of(x, k) == value)
                return k;
        }
    uint32_t group = group_find(x, hash, value), k = DW_NIL;
    if (group != DW_NIL)
        group_some(x, group, &k, 1);
    return k;
}

void dw_index_del(dw_index *x, uint32_t k) {
    uint64_t value = value_of(x, k), hash = mix(value);
    unsigned i = 0;
    struct slots s = table_find(x, &x->table, hash, tag_of(hash), k, &i);
    if (s.n > 0)
        table_remove(x, &x->table, hash, s, i);
    else
        group_remove(x, group_find(x, hash, value), hash, k);
    x->entries--;
}

uint64_t dw_index_all(const dw_index *x, uint64_t value, uint32_t *out, uint64_t max) {
    uint64_t hash = mix(value), n = 0;
    struct slots s = of_bucket(bucket_at(&x->table, address(&x->table, hash)));
    for (; s.n > 0; s = of_node(x, s.next))
        for (unsigned m = slots_with(s, tag_of(hash)); m != 0; m &= m - 1) {
            uint32_t k = s.k[__builtin_ctz(m)];
            if (value_of(x, k) != value)
                continue;
            if (n < max)
                out[n] = k;
            n++;
        }
    uint32_t group = group_find(x, hash, value);
    if (group != DW_NIL) {
        if (n < max)
            group_some(x, group, out + n, max - n);
        n += cell_at(x, group)->group.table->slots;
    }
    return n;
}

uint64_t dw_index_count(const dw_index *x) {
    return x->entries;
}

size_t dw_index_bytes(const dw_index *x) {
    return x->bytes;
}

/* ---- for tests */

struct tally {
    uint64_t slots, entries;
    uint32_t cells, groups;
};

static const char *check_table(const dw_index *x, const struct table *t, const uint64_t *value,
                               struct tally *sum);

static const char *check_slot(const dw_index *x, const struct table *t, uint32_t b, uint8_t tag,
                              uint32_t k, const uint64_t *value, struct tally *sum) {
    sum->slots++;
    uint64_t hash = hash_of_slot(x, t, tag, k);
    if (address(t, hash) != b)
        return "a slot in the wrong bucket";
    if (tag != GROUP_TAG) {
        sum->entries++;
        if (tag != tag_of(hash))
            return "a wrong tag";
        if (k >= dw_slab_limit(x->slab) || dw_slab_at(x->slab, k)->state == DW_FREE)
            return "a number that is not in use";
        return value == NULL || value_of(x, k) == *value ? NULL : "an entry in another's group";
    }
    if (t->by_number)
        return "a group in a group";
    const struct group *g = &cell_at(x, k)->group;
    struct tally in = {0};
    const char *wrong = check_table(x, g->table, &g->value, &in);
    sum->entries += in.entries;
    sum->cells += in.cells + 1;
    sum->groups++;
    return wrong != NULL ? wrong : in.slots == 0 ? "an empty group" : NULL;
}

static const char *check_table(const dw_index *x, const struct table *t, const uint64_t *value,
                               struct tally *sum) {
    if (t->buckets < t->half || t->buckets >= 2 * t->half)
        return "wrong number of buckets";
    for (uint32_t b = 0; b < t->buckets; b++) {
        struct bucket *bucket = bucket_at(t, b);
        for (struct slots s = of_bucket(bucket); s.n > 0; s = of_node(x, s.next)) {
            unsigned used = slots_used(s);
            if (s.n == NODE_SLOTS)
                sum->cells++;
            if (used < s.n && s.tag != open_end(x, bucket).tag)
                return "a hole in a chain";
            if (used == 0 && s.n == NODE_SLOTS)
                return "an empty node";
            for (unsigned i = used; i < s.n; i++)
                if (s.tag[i] != 0)
                    return "a hole between slots";
            for (unsigned i = 0; i < used; i++) {
                const char *wrong = check_slot(x, t, b, s.tag[i], s.k[i], value, sum);
                if (wrong != NULL)
                    return wrong;
            }
        }
    }
    return sum->slots == t->slots ? NULL : "a table's count of slots is wrong";
}

const char *dw_index_check(const dw_index *x) {
    struct tally sum = {0};
    const char *wrong = check_table(x, &x->table, NULL, &sum);
    if (wrong != NULL)
        return wrong;
    if (sum.entries != x->entries)
        return "the count of entries is wrong";
    if (sum.groups != x->groups)
        return "the count of groups is wrong";
    for (uint32_t c = x->cells_free; c != DW_NIL; c = cell_at(x, c)->free)
        sum.cells++;
    return sum.cells == x->cells_limit ? NULL : "a cell is lost";
}

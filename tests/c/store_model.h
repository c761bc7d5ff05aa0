/* SPDX-License-Identifier: MPL-2.0 */
#ifndef STORE_MODEL_H
#define STORE_MODEL_H

#include "dw_batch.h"
#include "dw_store.h"
#include "fault_alloc.h"

/* What a store should hold, kept in the dumbest way: an array of records, searched from one end to
 * the other. And the changes that made it so, as Raft's log would have them, to be replayed.
 *
 * Every function fails the cmocka test if the store does not do what the model does. */

struct model_record {
    uint64_t id;
    uint64_t due;
    uint64_t until; /* when it comes out: due, or as postponed */
    uint64_t key_hash;
    uint32_t length;
    uint16_t encoding;
    bool taken;
    bool moved;        /* postponed, rescheduled or untaken: among equals, in any order */
    bool corrupt;      /* damaged by the test: it may come out as such */
    uint64_t released; /* index of the change that did so last, 0: none */
};

enum model_kind {
    MODEL_INSERT,
    MODEL_INSERT_KEYED,
    MODEL_SETTLE,
    MODEL_SETTLE_DUE,
    MODEL_SETTLE_DUE_BY,
    MODEL_PURGE,
    MODEL_RESCHEDULE,
    MODEL_RESCHEDULE_MANY,
    MODEL_NOTE
};

/* A change, as in Raft's log. */
struct model_change {
    enum model_kind kind;
    uint64_t index;
    uint64_t base_ms; /* insert */
    uint8_t *bytes;   /* insert: batch; settle: ids; with due times: struct dw_id_due */
    size_t length;
    uint64_t id; /* reschedule */
    uint64_t due;
};

struct model {
    struct model_record *records;
    size_t count, capacity;
    struct model_change *changes;
    size_t change_count, change_capacity;
    uint64_t index; /* of the last change */
    bool may_break; /* any call may end with DW_EBROKEN: no more are made than were asked for */
};

/* Collects what a store hands out, and checks the bodies. */
struct collected {
    struct dw_record *records;
    bool *corrupt;
    uint32_t count, capacity;
    uint32_t refuse_at; /* the number of the record for which there is no memory, from 1; 0: none */
    uint64_t refused;   /* how often that was */
    uint8_t *body;
    char file[256]; /* of the last corrupt one */
    uint64_t offset;
};

void collected_free(struct collected *collected);
struct dw_sink collected_sink(struct collected *collected); /* empties it */

/* The body of each record is made from its id. */
void model_body(uint64_t id, uint32_t length, uint8_t *out);

struct model_new_record {
    uint64_t when;
    bool absolute;
    uint64_t key_hash;
    uint32_t length; /* of a cancel and a release 0 */
    uint16_t encoding;
    enum dw_on_key on_key; /* DW_KEEP but in keyed batches */
};

/* Has it no body? */
static inline bool model_is_empty(enum dw_on_key on_key) {
    return on_key == DW_CANCEL || on_key == DW_RELEASE;
}

/* A batch for Raft index `index`; to be freed. */
uint8_t *model_batch(uint64_t index, const struct model_new_record *records, size_t n,
                     size_t *bytes);

void model_free(struct model *model);

/* The next change, in the model and, unless NULL, the store; what the store answers is what is
 * returned. If that is not DW_OK, the model has not changed. */
int model_insert(struct model *model, dw_store *store, uint64_t base_ms,
                 const struct model_new_record *records, size_t n);
int model_insert_keyed(struct model *model, dw_store *store, uint64_t base_ms,
                       const struct model_new_record *records, size_t n);
int model_settle(struct model *model, dw_store *store, const uint64_t *ids, size_t n);
int model_settle_due(struct model *model, dw_store *store, const struct dw_id_due *released,
                     size_t n);
int model_settle_due_by(struct model *model, dw_store *store, const struct dw_id_due *released,
                        size_t n);
int model_purge(struct model *model, dw_store *store);
int model_reschedule(struct model *model, dw_store *store, uint64_t id, uint64_t due);
/* In the model alone. */
void model_reschedule_many(struct model *model, const struct dw_id_due *dues, size_t n);
void model_note(struct model *model, dw_store *store);

/* That one change, in the store alone; as the store answers. */
int model_apply(dw_store *store, const struct model_change *change);

/* Takes from both; as the store answers. *n: how many came out. */
int model_take(struct model *model, dw_store *store, uint64_t now_ms, uint32_t max_n,
               uint64_t max_bytes, struct collected *collected);
int model_postpone(struct model *model, dw_store *store, uint64_t id, uint64_t until);
int model_untake(struct model *model, dw_store *store);

/* The store was opened anew at dw_store_applied(): replays the changes after that, or after
 * `from` if that is earlier, to it. In the model nothing is taken or postponed any more. */
void model_replay(struct model *model, dw_store *store, uint64_t from);

/* Does the store hold what the model does, seen in every way there is? With `bodies` reads each. */
void model_compare(const struct model *model, dw_store *store, bool bodies);

struct model_record *model_find(const struct model *model, uint64_t id);
uint64_t model_next_due(const struct model *model);
uint64_t model_digest(const struct model *model);

/* xorshift64*, from a state that is not 0 */
uint64_t model_random(uint64_t *state);

#endif

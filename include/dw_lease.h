/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_LEASE_H
#define DW_LEASE_H

#include "dw_store.h"

/* Who in this process has which store open.
 *
 * Two openings of one directory would ruin it, and whoever opens one cannot know whether an older
 * opening is still there: an Erlang process that died leaves its handle to the garbage collector,
 * and a handle may also lie in a table or a message. So each opening is a lease on its directory,
 * and the next one fences it: the older store is closed, what is under way in it ends first, and
 * only then is the directory opened again. Against other processes of the operating system the
 * directory is flock()ed.
 *
 * Leases are counted references. The last one to be dropped closes and frees the store, which may
 * mean many files and hundreds of MB; dropping happens in destructors on scheduler threads, so
 * that work is done by a thread that is started when there is some and ends when there is none.
 *
 * Any call from any thread. Those marked [I/O] may wait for files, and for other openings of the
 * same directory; the others take a lock for a few instructions. */

enum { DW_EBUSY = -64 }; /* somebody else is doing that just now */

typedef struct dw_leases dw_leases; /* all leases of a process, counted as well */
typedef struct dw_lease dw_lease;

dw_leases *dw_leases_new(const struct dw_alloc *alloc); /* with one reference; NULL: no memory */
/* The budget of descriptors for stores that are to share one; of as many as there can be, until
 * dw_budget_limit() says otherwise. */
dw_budget *dw_leases_budget(const dw_leases *leases);
void dw_leases_keep(dw_leases *leases);
void dw_leases_drop(dw_leases *leases); /* freed with the last reference and the last lease */

/* Whether who calls, in this thread, is no longer there to take an answer: an Erlang process that
 * is killed leaves a call that waits or runs behind, and what follows it may be first. Asked when
 * it is the call's turn in its directory. Set before the first opening. */
void dw_leases_ask(dw_leases *leases, bool (*is_gone)(void));

/* flock()s `root` against other processes, for all stores below it that are opened from then on:
 * they hold no lock, and so no descriptor, of their own. Until it is given back and these are
 * closed. One at a time. DW_OK, DW_ENOMEM, DW_EIO, DW_EACCES; *os_error EWOULDBLOCK: another
 * process has it. [I/O] */
int dw_leases_claim(dw_leases *leases, const char *root, int *os_error);
void dw_leases_give_back(dw_leases *leases);

/* Opens the store in `dir`, fencing any older lease on it. As dw_store_open(); config->log_ctx, if
 * any, must come from `alloc` and is the lease's from here on, also on failure. *os_error is the
 * errno behind DW_EIO, DW_ENOSPC, DW_EACCES; EWOULDBLOCK: another process has it. DW_ECLOSED: the
 * caller has gone, and nothing is fenced. [I/O] */
int dw_lease_open(dw_leases *leases, const char *dir, const struct dw_config *config,
                  dw_lease **out, struct dw_recovery *report, int *os_error);

/* dw_store_restore() on a directory whose lease, if there is one, is fenced first. DW_ECLOSED: the
 * caller has gone, and nothing is changed. [I/O] */
int dw_lease_restore(dw_leases *leases, const char *dir, const char *snapshot_dir, int *os_error);

/* The store; its calls answer DW_ECLOSED once it was fenced or closed. */
dw_store *dw_lease_store(const dw_lease *lease);
bool dw_lease_closed(const dw_lease *lease);
void dw_lease_close(dw_lease *lease); /* idempotent; closed when it returns. [I/O] */

void dw_lease_keep(dw_lease *lease);
void dw_lease_drop(dw_lease *lease);

/* The store's writer is whoever has begun and not ended; false: there is one already. */
bool dw_lease_write_begin(dw_lease *lease);
void dw_lease_write_end(dw_lease *lease);

/* Begins a checkpoint, which stays with the lease under a number. One that was begun before and
 * that nobody is finishing is given up: whoever wanted it has died or changed his mind. The caller
 * is the writer. As dw_store_checkpoint(), and DW_EBUSY. [I/O] */
int dw_lease_checkpoint(dw_lease *lease, uint64_t *number, uint64_t *applied, int *os_error);

/* Finishes checkpoint `number` and ends it, also on failure. As dw_checkpoint_finish(), and
 * DW_EBUSY; DW_ENOENT: finished before or given up. [I/O] */
int dw_lease_finish(dw_lease *lease, uint64_t number, const char *snapshot_dir, int *os_error);

#endif

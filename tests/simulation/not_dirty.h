/* SPDX-License-Identifier: MPL-2.0 */
#ifndef NOT_DIRTY_H
#define NOT_DIRTY_H

/* Included before the sources: each native call is done by the scheduler that it is made on. To
 * switch threads for it would take most of a simulation's time. */

#include <erl_nif.h>

#define ERL_NIF_DIRTY_JOB_CPU_BOUND 0
#define ERL_NIF_DIRTY_JOB_IO_BOUND 0

#endif

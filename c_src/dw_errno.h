/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_ERRNO_H
#define DW_ERRNO_H

/* The name of an error number as Erlang writes it, "enospc", or "unknown". Any thread. */
const char *dw_errno_name(int number);

#endif

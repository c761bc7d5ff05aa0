/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_error.h"

/* The names of errors: for ever, as callers match on them. */

const char *dw_strerror(int error) {
    switch ((enum dw_error)error) {
    case DW_OK:
        return "ok";
    case DW_ENOMEM:
        return "enomem";
    case DW_EIO:
        return "eio";
    case DW_ENOSPC:
        return "enospc";
    case DW_EACCES:
        return "eacces";
    case DW_ECORRUPT:
        return "ecorrupt";
    case DW_EVERSION:
        return "eversion";
    case DW_EINVAL:
        return "einval";
    case DW_ETOOBIG:
        return "etoobig";
    case DW_ENOENT:
        return "enoent";
    case DW_EFULL:
        return "efull";
    case DW_ECLOSED:
        return "eclosed";
    case DW_ELATE:
        return "elate";
    case DW_EBROKEN:
        return "ebroken";
    }
    return "unknown";
}

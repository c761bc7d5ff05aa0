/* SPDX-License-Identifier: MPL-2.0 */
#ifndef DW_ERROR_H
#define DW_ERROR_H

/* What any function that can fail answers: DW_OK, or one of these, all negative. */
enum dw_error {
    DW_OK = 0,
    DW_ENOMEM = -1,   /* the allocator said no; nothing was changed */
    DW_EIO = -2,      /* the operating system said no: see dw_store_errno() */
    DW_ENOSPC = -3,   /* no space left on the device, or over quota */
    DW_EACCES = -4,   /* no permission on a file or directory */
    DW_ECORRUPT = -5, /* bytes on disk are not what was written */
    DW_EVERSION = -6, /* written by a later version than this one reads */
    DW_EINVAL = -7,   /* an argument is out of its stated range */
    DW_ETOOBIG = -8,  /* a record is larger than max_record_bytes */
    DW_ENOENT = -9,   /* no such id, or no such file */
    DW_EFULL = -10,   /* a fixed limit is reached: 2^32-2 entries, 4,095 partitions */
    DW_ECLOSED = -11, /* the store was closed */
    DW_ELATE = -12,   /* the wheel has passed this due time */
    DW_EBROKEN = -13, /* the store found itself to be wrong and was closed; the log says where */
};

/* A short English name, never NULL: "ok", "enomem", ... */
const char *dw_strerror(int error);

#endif

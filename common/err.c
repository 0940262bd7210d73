#include "common/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

const char *err_text(enum err err)
{
    switch (err) {
    case ERR_OK:
        return "success";
#define X(name, value, text)                                                                                                               \
    case ERR_##name:                                                                                                                       \
        return text;
        ERR_MAP(X)
#undef X
    }
    return "unknown error";
}

enum err err_from_errno(int errnum)
{
    switch (errnum) {
    case 0:
        return ERR_OK;
    case ENOMEM:
        return ERR_NOMEM;
    case ENOSPC:
    case EDQUOT:
        return ERR_NOSPACE;
    case ENOENT:
        return ERR_NOTFOUND;
    case EEXIST:
        return ERR_EXISTS;
    case EINVAL:
        return ERR_INVALID;
    case EACCES:
    case EPERM:
    case EROFS:
        return ERR_PERMISSION;
    case EAGAIN:
        return ERR_AGAIN;
    default:
        return ERR_IO;
    }
}

enum err err_set(struct errmsg *msg, enum err err, const char *format, ...)
{
    va_list args;
    if (!msg)
        return err;
    va_start(args, format);
    vsnprintf(msg->text, sizeof msg->text, format, args);
    va_end(args);
    return err;
}

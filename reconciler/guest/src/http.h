/* The part of HTTP/1.0 that the agent speaks: one request, one answer, then the end. */
#ifndef BANGER_HTTP_H
#define BANGER_HTTP_H

#include "guest.h"

enum { REQUEST_MAX = 2048, BODY_MAX = 16384, ANSWER_MAX = BODY_MAX + 256 };

/* What stands in the buffer so far. */
enum request_state {
    REQUEST_PARTIAL, /* read on */
    REQUEST_BAD,     /* will never become a request */
    REQUEST_WHOLE,
};

/* Parse `length` bytes. `ended`: the peer sends no more, so what is there is all.
 * A whole request leaves its path, without query, NUL-terminated in `path`. */
enum request_state http_parse(const char *bytes, size_t length, bool ended, char path[REQUEST_MAX]);

/* Write a whole answer. A body that does not fit becomes a 500. */
void http_answer(struct text *answer, const char *status, const char *type, const char *body,
                 size_t length);

#endif

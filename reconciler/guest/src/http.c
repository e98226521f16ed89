/* Requests come from whoever reaches the socket: any bytes, any length, NULs included. So nothing
 * here treats a request as a string before it has been checked. */
#include "http.h"

#include <string.h>

/* The end of the request line, without its line end; NULL while it is not whole. */
static const char *line_end(const char *bytes, size_t length, bool ended)
{
    const char *end = memchr(bytes, '\n', length);
    if (end == NULL)
        return ended ? bytes + length : NULL;
    return end > bytes && end[-1] == '\r' ? end - 1 : end;
}

/* The headers end at an empty line. None of them matters to the agent. */
static bool headers_ended(const char *bytes, size_t length)
{
    for (size_t i = 1; i < length; i++) {
        if (bytes[i] != '\n')
            continue;
        if (bytes[i - 1] == '\n' || (i >= 2 && bytes[i - 1] == '\r' && bytes[i - 2] == '\n'))
            return true;
    }
    return false;
}

static bool starts_with(const char *bytes, size_t length, const char *prefix)
{
    size_t wanted = strlen(prefix);
    return length >= wanted && memcmp(bytes, prefix, wanted) == 0;
}

/* "GET /path[?query] HTTP/1.x" between `line` and `end`. */
static bool parse_line(const char *line, const char *end, char path[REQUEST_MAX])
{
    size_t length = (size_t)(end - line);
    if (length >= REQUEST_MAX || !starts_with(line, length, "GET /"))
        return false;
    const char *start = line + strlen("GET ");
    const char *space = memchr(start, ' ', (size_t)(end - start));
    if (space == NULL || !starts_with(space, (size_t)(end - space), " HTTP/1."))
        return false;
    size_t used = 0;
    for (const char *at = start; at < space && *at != '?'; at++) {
        if (*at <= ' ' || *at > '~')
            return false;
        path[used++] = *at;
    }
    path[used] = '\0';
    return true;
}

enum request_state http_parse(const char *bytes, size_t length, bool ended, char path[REQUEST_MAX])
{
    const char *end = line_end(bytes, length, ended);
    if (end == NULL)
        return length < REQUEST_MAX ? REQUEST_PARTIAL : REQUEST_BAD;
    if (!parse_line(bytes, end, path))
        return REQUEST_BAD;
    if (ended || headers_ended(bytes, length))
        return REQUEST_WHOLE;
    return length < REQUEST_MAX ? REQUEST_PARTIAL : REQUEST_BAD;
}

void http_answer(struct text *answer, const char *status, const char *type, const char *body,
                 size_t length)
{
    answer->length = 0;
    answer->cut = false;
    text_add(answer, "HTTP/1.0 ");
    text_add(answer, status);
    text_add(answer, "\r\nContent-Type: ");
    text_add(answer, type);
    text_add(answer, "\r\nContent-Length: ");
    text_add_number(answer, length);
    text_add(answer, "\r\nConnection: close\r\n\r\n");
    text_add_bytes(answer, body, length);
    if (!answer->cut)
        return;
    static const char sorry[] = "answer too long\n";
    http_answer(answer, "500 Internal Server Error", "text/plain", sorry, sizeof sorry - 1);
}

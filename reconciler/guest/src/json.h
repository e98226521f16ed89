/* A reader of JSON (RFC 8259) that decodes strings in place: they never become longer. */
#ifndef BANGER_JSON_H
#define BANGER_JSON_H

#include <stdbool.h>
#include <stddef.h>

/* Where the reader stands; the text ends with a NUL. */
struct json {
    char *at;
};

/* Each takes what it names from the text, or returns false: then the text is not to be used. */
bool json_string(struct json *json, char **string);
/* At most `most` strings; `null` is an empty list. */
bool json_list(struct json *json, char **strings, size_t most, size_t *count);
bool json_skip(struct json *json);
/* The members of an object: call json_open, then json_member until `*key` is NULL. */
bool json_open(struct json *json);
bool json_member(struct json *json, char **key);
/* Nothing but blanks is left. */
bool json_ended(struct json *json);

#endif

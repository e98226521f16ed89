/* JSON from a file that the guest may have changed: any bytes, any depth. */
#include "json.h"

#include <string.h>

enum { DEEPEST = 32 };

static char next(struct json *json)
{
    json->at += strspn(json->at, " \t\r\n");
    return *json->at;
}

static bool take(struct json *json, char wanted)
{
    if (next(json) != wanted)
        return false;
    json->at++;
    return true;
}

static bool hex4(const char *at, unsigned int *value)
{
    *value = 0;
    for (int i = 0; i < 4; i++) {
        char digit = at[i];
        unsigned int bits;
        if (digit >= '0' && digit <= '9')
            bits = (unsigned int)(digit - '0');
        else if ((digit | 32) >= 'a' && (digit | 32) <= 'f')
            bits = (unsigned int)((digit | 32) - 'a') + 10;
        else
            return false;
        *value = *value << 4 | bits;
    }
    return true;
}

static char *utf8(char *out, unsigned int code)
{
    if (code < 0x80) {
        *out++ = (char)code;
        return out;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char starts[] = {0, 0xc0, 0xe0, 0xf0};
    *out++ = (char)(starts[more] | code >> (6 * more));
    while (more-- > 0)
        *out++ = (char)(0x80 | (code >> (6 * more) & 0x3f));
    return out;
}

/* \uXXXX, or two of them for what lies beyond the basic plane. NUL cannot stand in a C string. */
static bool unicode(const char **in, char **out)
{
    unsigned int code, low;
    if (!hex4(*in, &code) || code == 0)
        return false;
    *in += 4;
    if (code >= 0xdc00 && code < 0xe000)
        return false;
    if (code >= 0xd800 && code < 0xdc00) {
        if ((*in)[0] != '\\' || (*in)[1] != 'u' || !hex4(*in + 2, &low) || low < 0xdc00 ||
            low >= 0xe000)
            return false;
        *in += 6;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *out = utf8(*out, code);
    return true;
}

static bool escape(const char **in, char **out)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char name = *(*in)++;
    if (name == 'u')
        return unicode(in, out);
    const char *found = name != '\0' ? strchr(names, name) : NULL;
    if (found == NULL)
        return false;
    *(*out)++ = values[found - names];
    return true;
}

bool json_string(struct json *json, char **string)
{
    if (!take(json, '"'))
        return false;
    const char *in = json->at;
    char *out = json->at;
    *string = out;
    while (*in != '"') {
        if ((unsigned char)*in < ' ')
            return false;
        if (*in != '\\') {
            *out++ = *in++;
            continue;
        }
        in++;
        if (!escape(&in, &out))
            return false;
    }
    json->at += in + 1 - json->at;
    *out = '\0';
    return true;
}

static bool take_null(struct json *json)
{
    if (next(json) != 'n' || strncmp(json->at, "null", 4) != 0)
        return false;
    json->at += 4;
    return true;
}

bool json_list(struct json *json, char **strings, size_t most, size_t *count)
{
    *count = 0;
    if (take_null(json))
        return true;
    if (!take(json, '['))
        return false;
    if (take(json, ']'))
        return true;
    do {
        if (*count == most || !json_string(json, &strings[*count]))
            return false;
        ++*count;
    } while (take(json, ','));
    return take(json, ']');
}

static bool skip_word(struct json *json)
{
    size_t length = strspn(json->at, "+-.0123456789abcdefghijklmnopqrstuvwxyzE");
    json->at += length;
    return length > 0;
}

static bool skip(struct json *json, int depth)
{
    char *ignored, open = next(json);
    if (open == '"')
        return json_string(json, &ignored);
    if (open != '{' && open != '[')
        return skip_word(json);
    char close = open == '{' ? '}' : ']';
    json->at++;
    if (depth == DEEPEST)
        return false;
    if (take(json, close))
        return true;
    do {
        if (open == '{' && !(json_string(json, &ignored) && take(json, ':')))
            return false;
        if (!skip(json, depth + 1))
            return false;
    } while (take(json, ','));
    return take(json, close);
}

bool json_skip(struct json *json)
{
    return skip(json, 0);
}

bool json_open(struct json *json)
{
    return take(json, '{');
}

bool json_member(struct json *json, char **key)
{
    *key = NULL;
    if (take(json, '}'))
        return true;
    take(json, ',');
    return json_string(json, key) && take(json, ':');
}

bool json_ended(struct json *json)
{
    return next(json) == '\0';
}

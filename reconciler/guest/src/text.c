/* Bounded text and the few words that a role says. Instead of stdio: it is smaller, and it cannot
 * write past an end. */
#include "guest.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

struct text text_in(char *data, size_t size)
{
    return (struct text){.data = data, .size = size, .length = 0, .cut = false};
}

void text_add_bytes(struct text *text, const char *bytes, size_t length)
{
    if (text->cut || length > text->size - text->length) {
        text->cut = true;
        return;
    }
    if (length > 0)
        memcpy(text->data + text->length, bytes, length);
    text->length += length;
}

void text_add(struct text *text, const char *string)
{
    text_add_bytes(text, string, strlen(string));
}

void text_add_number(struct text *text, unsigned long long number)
{
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    text_add_bytes(text, digits + at, sizeof digits - at);
}

void text_add_json(struct text *text, const char *string)
{
    static const char hex[] = "0123456789abcdef";
    text_add(text, "\"");
    for (; *string != '\0'; string++) {
        unsigned char byte = (unsigned char)*string;
        char escape[6] = {'\\', 'u', '0', '0', hex[byte >> 4], hex[byte & 15]};
        bool plain = byte >= ' ' && byte <= '~' && byte != '"' && byte != '\\';
        text_add_bytes(text, plain ? string : escape, plain ? 1 : sizeof escape);
    }
    text_add(text, "\"");
}

/* Decimal digits only, at most `maximum`. */
bool parse_number(const char *string, unsigned long maximum, unsigned long *number)
{
    uint64_t value = 0;
    if (*string == '\0')
        return false;
    for (; *string != '\0'; string++) {
        if (*string < '0' || *string > '9')
            return false;
        uint64_t digit = (uint64_t)(*string - '0');
        if (value > maximum / 10 || digit > maximum - value * 10)
            return false;
        value = value * 10 + digit;
    }
    *number = (unsigned long)value;
    return true;
}

static void write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, bytes, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return; /* nobody to tell */
        bytes += written;
        length -= (size_t)written;
    }
}

static const char *speaker = "guest";

void speak_as(const char *role)
{
    speaker = role;
}

void say(const char *what, const char *about, int error)
{
    char line[512];
    struct text text = text_in(line, sizeof line - 1);
    text_add(&text, "banger-");
    text_add(&text, speaker);
    text_add(&text, ": ");
    text_add(&text, what);
    if (about != NULL) {
        text_add(&text, ": ");
        text_add(&text, about);
    }
    if (error != 0) {
        text_add(&text, ": ");
        text_add(&text, strerror(error));
    }
    line[text.length] = '\n';
    write_all(STDERR_FILENO, line, text.length + 1);
}

void say_number(const char *what, unsigned long long number)
{
    char digits[24];
    struct text text = text_in(digits, sizeof digits - 1);
    text_add_number(&text, number);
    digits[text.length] = '\0';
    say(what, digits, 0);
}

void print(const char *string)
{
    write_all(STDOUT_FILENO, string, strlen(string));
}

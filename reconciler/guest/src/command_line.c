/* The kernel's command line: words between blanks, the last one of a name counts. Whoever starts the
 * machine writes it, so it is trusted to be meant well, and not to be right. */
#include "guest.h"

#include <errno.h>
#include <string.h>

bool read_command_line(char line[COMMAND_LINE_MAX])
{
    if (read_file("/proc/cmdline", line, COMMAND_LINE_MAX) >= 0)
        return true;
    say("cannot read the kernel command line", NULL, errno);
    return false;
}

static bool is_blank(char character)
{
    return character == ' ' || character == '\t' || character == '\n';
}

/* The next word from `*at` on: its start, its length in `length`; NULL at the end. */
static const char *next_word(const char **at, size_t *length)
{
    const char *word = *at;
    while (is_blank(*word))
        word++;
    const char *end = word;
    while (*end != '\0' && !is_blank(*end))
        end++;
    *at = end;
    *length = (size_t)(end - word);
    return end > word ? word : NULL;
}

bool command_line_value(const char *line, const char *name, char value[VALUE_MAX])
{
    size_t length, wanted = strlen(name);
    const char *word;
    bool found = false;
    while ((word = next_word(&line, &length)) != NULL) {
        if (length <= wanted || strncmp(word, name, wanted) != 0 || word[wanted] != '=')
            continue;
        size_t rest = length - wanted - 1;
        found = rest < VALUE_MAX;
        if (found)
            memcpy(value, word + wanted + 1, rest);
        value[found ? rest : 0] = '\0';
    }
    return found;
}

bool command_line_has(const char *line, const char *wanted)
{
    size_t length;
    const char *word;
    while ((word = next_word(&line, &length)) != NULL)
        if (length == strlen(wanted) && memcmp(word, wanted, length) == 0)
            return true;
    return false;
}

size_t split(char *list, char separator, char **parts, size_t most)
{
    size_t count = 0;
    while (count < most) {
        parts[count++] = list;
        list = strchr(list, separator);
        if (list == NULL)
            break;
        *list++ = '\0';
    }
    return count;
}

bool command_line_hostname(const char *line, char name[VALUE_MAX])
{
    char value[VALUE_MAX], *fields[6];
    if (command_line_value(line, "banger.hostname", name))
        return name[0] != '\0';
    if (!command_line_value(line, "ip", value))
        return false;
    if (split(value, ':', fields, 6) < 5 || fields[4][0] == '\0')
        return false;
    memmove(name, fields[4], strlen(fields[4]) + 1);
    return true;
}

bool is_hostname(const char *name)
{
    if (*name == '-' || *name == '.' || *name == '\0' || strlen(name) > 64)
        return false;
    for (; *name != '\0'; name++) {
        bool letter = (*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z');
        if (!letter && !(*name >= '0' && *name <= '9') && *name != '-' && *name != '.')
            return false;
    }
    return true;
}

/* Names of users are those of the image, so they are looked up in its files and nowhere else. */
#include "users.h"
#include "guest.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

enum { FILE_BYTES = 1 << 20, FIELDS = 7, NUMBER_MAX = 0xfffffffe };

/* The lines of one file, cut at colons, one after the other. */
struct table {
    char content[FILE_BYTES];
    char *at;
    char *fields[FIELDS];
    size_t count;
};

static bool open_table(struct table *table, const char *path)
{
    table->at = table->content;
    if (read_file(path, table->content, sizeof table->content) >= 0)
        return true;
    table->content[0] = '\0';
    if (errno == ENOENT)
        return true;
    say("cannot read", path, errno);
    return false;
}

static bool next_line(struct table *table)
{
    if (*table->at == '\0')
        return false;
    char *line = table->at, *end = strchr(line, '\n');
    table->at = end != NULL ? end + 1 : line + strlen(line);
    if (end != NULL)
        *end = '\0';
    table->count = split(line, ':', table->fields, FIELDS);
    return true;
}

static bool number(const char *text, unsigned int *value)
{
    unsigned long parsed;
    if (!parse_number(text, NUMBER_MAX, &parsed))
        return false;
    *value = (unsigned int)parsed;
    return true;
}

static bool find_user(struct table *table, const char *name, struct user *user)
{
    unsigned int wanted, uid, gid;
    bool numeric = number(name, &wanted);
    if (!open_table(table, "/etc/passwd"))
        return false;
    while (next_line(table)) {
        if (table->count < 6 || !number(table->fields[2], &uid) || !number(table->fields[3], &gid))
            continue;
        if (strcmp(table->fields[0], name) != 0 && !(numeric && uid == wanted))
            continue;
        user->uid = uid;
        user->gid = gid;
        size_t length = strlen(table->fields[5]);
        if (length > 0 && length < sizeof user->home)
            memcpy(user->home, table->fields[5], length + 1);
        return true;
    }
    if (numeric)
        user->uid = wanted; /* a number needs no entry */
    else
        say("no such user in the image", name, 0);
    return numeric;
}

static bool find_group(struct table *table, const char *name, struct user *user)
{
    unsigned int gid;
    if (number(name, &gid)) {
        user->gid = gid;
        return true;
    }
    if (!open_table(table, "/etc/group"))
        return false;
    while (next_line(table)) {
        if (table->count >= 3 && strcmp(table->fields[0], name) == 0 &&
            number(table->fields[2], &gid)) {
            user->gid = gid;
            return true;
        }
    }
    say("no such group in the image", name, 0);
    return false;
}

/* The groups that list a user among their members. */
static bool add_groups(struct table *table, const char *name, struct user *user)
{
    char *members[MOST_GROUPS];
    unsigned int gid;
    if (!open_table(table, "/etc/group"))
        return false;
    while (next_line(table) && user->group_count < MOST_GROUPS) {
        if (table->count < 4 || !number(table->fields[2], &gid))
            continue;
        size_t count = split(table->fields[3], ',', members, MOST_GROUPS);
        for (size_t i = 0; i < count && user->group_count < MOST_GROUPS; i++)
            if (strcmp(members[i], name) == 0)
                user->groups[user->group_count++] = gid;
    }
    return true;
}

bool user_find(const char *spec, struct user *user)
{
    static struct table table;
    char copy[VALUE_MAX], root[] = "0", *parts[2] = {root, NULL};
    memset(user, 0, sizeof *user);
    memcpy(user->home, "/", 2);
    if (strlen(spec) >= sizeof copy) {
        say("the name of the user is too long", NULL, 0);
        return false;
    }
    memcpy(copy, spec, strlen(spec) + 1);
    size_t count = *copy != '\0' ? split(copy, ':', parts, 2) : 1;
    if (*parts[0] == '\0')
        parts[0] = root;
    if (!find_user(&table, parts[0], user))
        return false;
    if (count == 2 && *parts[1] != '\0')
        return find_group(&table, parts[1], user);
    return add_groups(&table, parts[0], user);
}

/* /ports: the sockets that listen, by the tables in /proc/net, with the process that holds each. */
#include "reports.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { SOCKETS_MAX = 256, FIELDS = 10, TCP_LISTEN = 0x0A, UDP_UNCONNECTED = 0x07 };

struct socket_entry {
    const char *protocol;
    int family;
    unsigned char address[16];
    unsigned int port;
    unsigned long inode;
    unsigned long pid;
};

struct sockets {
    struct socket_entry items[SOCKETS_MAX];
    size_t count;
    bool cut;
};

/* Lines of a file that may be long, one bounded buffer at a time. */
struct lines {
    int fd;
    size_t used, at;
    char data[4096];
};

/* The next line without its end; NULL at the end. Lines longer than the buffer are dropped. */
static char *next_line(struct lines *lines)
{
    for (;;) {
        char *start = lines->data + lines->at;
        char *end = memchr(start, '\n', lines->used - lines->at);
        if (end != NULL) {
            *end = '\0';
            lines->at += (size_t)(end + 1 - start);
            return start;
        }
        memmove(lines->data, start, lines->used - lines->at);
        lines->used -= lines->at;
        lines->at = 0;
        if (lines->used == sizeof lines->data)
            lines->used = 0;
        ssize_t count = read(lines->fd, lines->data + lines->used, sizeof lines->data - lines->used);
        if (count <= 0)
            return NULL;
        lines->used += (size_t)count;
    }
}

static bool parse_hex(const char *digits, size_t length, unsigned long *value)
{
    *value = 0;
    for (size_t i = 0; i < length; i++) {
        char digit = digits[i];
        bool decimal = digit >= '0' && digit <= '9';
        if (!decimal && !(digit >= 'A' && digit <= 'F'))
            return false;
        *value = *value << 4 | (unsigned long)(decimal ? digit - '0' : digit - 'A' + 10);
    }
    return length > 0;
}

/* "0100007F:1F90": words of four bytes in the order of this machine, then the port. */
static bool parse_local(const char *field, struct socket_entry *entry)
{
    const char *colon = strchr(field, ':');
    size_t digits = entry->family == AF_INET ? 8 : 32;
    unsigned long value;
    if (colon == NULL || (size_t)(colon - field) != digits)
        return false;
    for (size_t at = 0; at < digits; at += 8) {
        if (!parse_hex(field + at, 8, &value))
            return false;
        uint32_t word = (uint32_t)value;
        memcpy(entry->address + at / 2, &word, sizeof word);
    }
    if (!parse_hex(colon + 1, strlen(colon + 1), &value) || value > 0xffff)
        return false;
    entry->port = (unsigned int)value;
    return true;
}

static size_t cut_words(char *line, char **words, size_t most)
{
    size_t count = 0;
    for (char *at = line; count < most; count++) {
        at += strspn(at, " ");
        if (*at == '\0')
            break;
        words[count] = at;
        at += strcspn(at, " ");
        if (*at != '\0')
            *at++ = '\0';
    }
    return count;
}

/* proc(5): sl local remote state tx:rx timer:when retransmits uid timeout inode. */
static bool parse_line(char *line, struct socket_entry *entry)
{
    char *words[FIELDS];
    unsigned long state, wanted = entry->protocol[0] == 't' ? TCP_LISTEN : UDP_UNCONNECTED;
    return cut_words(line, words, FIELDS) == FIELDS &&
           parse_hex(words[3], strlen(words[3]), &state) && state == wanted &&
           parse_local(words[1], entry) && parse_number(words[9], ~0UL, &entry->inode);
}

static void read_table(struct sockets *sockets, const char *path, const char *protocol, int family)
{
    struct lines lines = {.fd = open(path, O_RDONLY | O_CLOEXEC)};
    char *line;
    if (lines.fd < 0)
        return;
    while ((line = next_line(&lines)) != NULL) {
        struct socket_entry entry = {.protocol = protocol, .family = family};
        if (!parse_line(line, &entry))
            continue;
        sockets->cut |= sockets->count == SOCKETS_MAX;
        if (sockets->count < SOCKETS_MAX)
            sockets->items[sockets->count++] = entry;
    }
    close(lines.fd);
}

static void note_holder(struct sockets *sockets, char *link, unsigned long pid)
{
    static const char start[] = "socket:[";
    unsigned long inode;
    size_t length = strlen(link);
    if (strncmp(link, start, sizeof start - 1) != 0 || link[length - 1] != ']')
        return;
    link[length - 1] = '\0';
    if (!parse_number(link + sizeof start - 1, ~0UL, &inode))
        return;
    for (size_t i = 0; i < sockets->count; i++)
        if (sockets->items[i].inode == inode && sockets->items[i].pid == 0)
            sockets->items[i].pid = pid;
}

static void look_at_process(struct sockets *sockets, int proc, const char *name, unsigned long pid)
{
    char path[VALUE_MAX + 8], link[64];
    const struct dirent *entry;
    struct text text = text_in(path, sizeof path - 1);
    text_add(&text, name);
    text_add(&text, "/fd");
    path[text.length] = '\0';
    int folder = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = folder >= 0 ? fdopendir(folder) : NULL;
    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        ssize_t length = readlinkat(folder, entry->d_name, link, sizeof link - 1);
        if (length <= 0)
            continue;
        link[length] = '\0';
        note_holder(sockets, link, pid);
    }
    if (stream != NULL)
        closedir(stream);
}

static void find_holders(struct sockets *sockets)
{
    const struct dirent *entry;
    unsigned long pid;
    DIR *proc = opendir("/proc");
    while (proc != NULL && (entry = readdir(proc)) != NULL)
        if (parse_number(entry->d_name, 0x7fffffff, &pid))
            look_at_process(sockets, dirfd(proc), entry->d_name, pid);
    if (proc != NULL)
        closedir(proc);
}

static void add_process(struct text *body, unsigned long pid)
{
    char path[64], name[64];
    struct text text = text_in(path, sizeof path - 1);
    text_add(&text, "/proc/");
    text_add_number(&text, pid);
    text_add(&text, "/comm");
    path[text.length] = '\0';
    text_add(body, ",\"pid\":");
    text_add_number(body, pid);
    ssize_t length = read_file(path, name, sizeof name);
    if (length <= 0)
        return;
    name[length - 1] = '\0';
    text_add(body, ",\"process\":");
    text_add_json(body, name);
}

static void add_socket(struct text *body, const struct socket_entry *entry)
{
    char address[INET6_ADDRSTRLEN];
    text_add(body, "{\"protocol\":");
    text_add_json(body, entry->protocol);
    text_add(body, ",\"address\":");
    text_add_json(body, inet_ntop(entry->family, entry->address, address, sizeof address));
    text_add(body, ",\"port\":");
    text_add_number(body, entry->port);
    if (entry->pid != 0)
        add_process(body, entry->pid);
    text_add(body, "}");
}

void ports_report(struct text *body)
{
    static const char end[] = "],\"truncated\":false}\n", cut_end[] = "],\"truncated\":true}\n";
    static struct sockets sockets;
    sockets.count = 0;
    sockets.cut = false;
    read_table(&sockets, "/proc/net/tcp", "tcp", AF_INET);
    read_table(&sockets, "/proc/net/tcp6", "tcp", AF_INET6);
    read_table(&sockets, "/proc/net/udp", "udp", AF_INET);
    read_table(&sockets, "/proc/net/udp6", "udp", AF_INET6);
    find_holders(&sockets);
    body->size -= sizeof end; /* the end always finds room */
    text_add(body, "{\"ports\":[");
    size_t i = 0;
    for (; i < sockets.count; i++) {
        struct text before = *body;
        text_add(body, i == 0 ? "" : ",");
        add_socket(body, &sockets.items[i]);
        if (!body->cut)
            continue;
        *body = before;
        break;
    }
    body->size += sizeof end;
    text_add(body, sockets.cut || i < sockets.count ? cut_end : end);
}

/* The names of failed units, asked of systemd on its private socket: no systemctl, no bus daemon, no
 * child. D-Bus specification, "Message Protocol"; one call, one answer, little-endian. */
#include "reports.h"

#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { MESSAGE_MAX = 65536, FIXED_HEADER = 16, RETURNED = 2, FAILED = 3 };

struct cursor {
    const unsigned char *bytes;
    size_t length, at;
};

static const char hello[] = "\0AUTH EXTERNAL 30\r\nBEGIN\r\n";

/* A call of ListUnitsFiltered(["failed"]), spelled out: it never differs. */
static const unsigned char call[] =
    "l\1\0\1" "\xf\0\0\0" "\1\0\0\0" "\x80\0\0\0"
    "\1\1o\0" "\x19\0\0\0" "/org/freedesktop/systemd1" "\0\0\0\0\0\0\0"
    "\2\1s\0" "\x20\0\0\0" "org.freedesktop.systemd1.Manager" "\0\0\0\0\0\0\0\0"
    "\3\1s\0" "\x11\0\0\0" "ListUnitsFiltered" "\0\0\0\0\0\0\0"
    "\x8\1g\0" "\2as\0"
    "\xb\0\0\0" "\6\0\0\0" "failed\0";

static int reach_systemd(void)
{
    const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/systemd/private"};
    const struct timeval patience = {.tv_sec = 3};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    close(fd);
    return -1;
}

static bool receive(int fd, unsigned char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t count = recv(fd, bytes, length, 0);
        if (count <= 0)
            return false;
        bytes += count;
        length -= (size_t)count;
    }
    return true;
}

static bool receive_line(int fd)
{
    unsigned char byte = 0;
    for (int count = 0; count < 512 && byte != '\n'; count++)
        if (!receive(fd, &byte, 1))
            return false;
    return byte == '\n';
}

/* The call only after the greeting was answered: systemd leaves what came along with it unread until
 * more comes. */
static bool ask(int fd)
{
    return send(fd, hello, sizeof hello - 1, MSG_NOSIGNAL) == (ssize_t)sizeof hello - 1 &&
           receive_line(fd) &&
           send(fd, call, sizeof call - 1, MSG_NOSIGNAL) == (ssize_t)sizeof call - 1;
}

static uint32_t number_at(const unsigned char *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
           (uint32_t)bytes[3] << 24;
}

/* The body of the next message: its length and its type; -1 when there is none that fits. */
static ssize_t receive_message(int fd, unsigned char body[MESSAGE_MAX], unsigned char *type)
{
    unsigned char header[FIXED_HEADER];
    if (!receive(fd, header, sizeof header) || header[0] != 'l')
        return -1;
    uint32_t fields = number_at(header + 12), length = number_at(header + 4);
    *type = header[1];
    if (fields > MESSAGE_MAX - 8 || length > MESSAGE_MAX || !receive(fd, body, (fields + 7u) & ~7u))
        return -1;
    return receive(fd, body, length) ? (ssize_t)length : -1;
}

static bool align(struct cursor *cursor, size_t to)
{
    cursor->at = (cursor->at + to - 1) & ~(to - 1);
    return cursor->at <= cursor->length;
}

static bool take_number(struct cursor *cursor, uint32_t *number)
{
    if (!align(cursor, 4) || cursor->length - cursor->at < 4)
        return false;
    *number = number_at(cursor->bytes + cursor->at);
    cursor->at += 4;
    return true;
}

static bool take_string(struct cursor *cursor, const char **string)
{
    uint32_t length;
    if (!take_number(cursor, &length) || length >= cursor->length - cursor->at ||
        cursor->bytes[cursor->at + length] != '\0')
        return false;
    *string = (const char *)cursor->bytes + cursor->at;
    cursor->at += (size_t)length + 1;
    return true;
}

/* One unit is (ssssssouso); its name comes first. */
static bool take_unit(struct cursor *cursor, const char **name)
{
    const char *ignored;
    uint32_t number;
    if (!align(cursor, 8) || !take_string(cursor, name))
        return false;
    for (int i = 0; i < 6; i++)
        if (!take_string(cursor, &ignored))
            return false;
    return take_number(cursor, &number) && take_string(cursor, &ignored) &&
           take_string(cursor, &ignored);
}

static bool list_units(const unsigned char *body, size_t length, struct text *to)
{
    struct cursor cursor = {.bytes = body, .length = length};
    uint32_t bytes;
    const char *name;
    if (!take_number(&cursor, &bytes) || !align(&cursor, 8))
        return false;
    text_add(to, "[");
    for (bool first = true; cursor.at < cursor.length; first = false) {
        if (!take_unit(&cursor, &name))
            return false;
        text_add(to, first ? "" : ",");
        text_add_json(to, name);
    }
    text_add(to, "]");
    return true;
}

bool failed_units(struct text *body)
{
    static unsigned char message[MESSAGE_MAX];
    unsigned char type = 0;
    ssize_t length = -1;
    int fd = reach_systemd();
    if (fd < 0)
        return false;
    if (ask(fd))
        do
            length = receive_message(fd, message, &type);
        while (length >= 0 && type != RETURNED && type != FAILED);
    close(fd);
    if (length < 0 || type != RETURNED)
        return false;
    struct text before = *body;
    if (list_units(message, (size_t)length, body))
        return true;
    *body = before;
    return false;
}

/* Where the agent can be reached: vsock for the host, a unix socket or TCP on loopback for tests and
 * for guests without vsock. */
#include "listen.h"
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 128 };

static int open_socket(int family)
{
    return socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

static int give_up(int fd, const char *what, const char *about)
{
    say(what, about, errno);
    if (fd >= 0)
        close(fd);
    return -1;
}

static void say_port(const char *where, unsigned int port)
{
    char line[64];
    struct text text = text_in(line, sizeof line - 1);
    text_add(&text, where);
    text_add_number(&text, port);
    line[text.length] = '\0';
    say("listening on", line, 0);
}

int listen_vsock(unsigned int port)
{
    struct sockaddr_vm address = {0};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_ANY;
    address.svm_port = port;
    int fd = open_socket(AF_VSOCK);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(fd, BACKLOG) < 0)
        return give_up(fd, "cannot listen on vsock", NULL);
    say_port("vsock port ", port);
    return fd;
}

/* A socket that nobody listens on is left over from an agent that was killed. */
static bool remove_stale(const struct sockaddr_un *address)
{
    struct stat status;
    if (lstat(address->sun_path, &status) < 0 || !S_ISSOCK(status.st_mode))
        return false;
    int fd = open_socket(AF_UNIX);
    if (fd < 0)
        return false;
    bool dead = connect(fd, (const struct sockaddr *)address, sizeof *address) < 0 &&
                errno == ECONNREFUSED;
    close(fd);
    return dead && unlink(address->sun_path) == 0;
}

static int bind_unix(int fd, const struct sockaddr_un *address)
{
    mode_t before = umask(0177); /* only root talks to it */
    int result = bind(fd, (const struct sockaddr *)address, sizeof *address);
    if (result < 0 && errno == EADDRINUSE) {
        if (remove_stale(address))
            result = bind(fd, (const struct sockaddr *)address, sizeof *address);
        else
            errno = EADDRINUSE;
    }
    umask(before);
    return result;
}

int listen_unix(const char *path)
{
    struct sockaddr_un address = {0};
    address.sun_family = AF_UNIX;
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address.sun_path) {
        errno = length == 0 ? EINVAL : ENAMETOOLONG;
        return give_up(-1, "cannot listen on unix socket", path);
    }
    memcpy(address.sun_path, path, length);
    int fd = open_socket(AF_UNIX);
    if (fd < 0 || bind_unix(fd, &address) < 0 || listen(fd, BACKLOG) < 0)
        return give_up(fd, "cannot listen on unix socket", path);
    say("listening on unix socket", path, 0);
    return fd;
}

int listen_tcp(unsigned short port)
{
    struct sockaddr_in address = {0};
    socklen_t length = sizeof address;
    int on = 1;
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = open_socket(AF_INET);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, BACKLOG) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        return give_up(fd, "cannot listen on 127.0.0.1", NULL);
    say_port("127.0.0.1:", ntohs(address.sin_port));
    return fd;
}

/* The vsock agent: one thread, one poll loop, a fixed table of peers.
 *
 * A peer costs a fixed buffer and a few seconds at most. When the table is full the peer that has
 * been here longest goes, so that idle connections cannot lock out the host. After an answer the
 * peer's rest is read and thrown away for a moment: closing over unread bytes would reset the
 * connection and could destroy the answer on its way.
 */
#include "guest.h"
#include "http.h"
#include "listen.h"
#include "routes.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    DEFAULT_PORT = 42070,
    LISTENERS_MAX = 3,
    PEERS_MAX = 32,
    REQUEST_MS = 5000, /* from connect to the last byte of the answer */
    LINGER_MS = 1000,
    ACCEPT_PAUSE_MS = 100,
};

#define PORT_FILE "/etc/banger/vsock-port"

enum phase { FREE = 0, READING, ANSWERING, LINGERING };

struct peer {
    enum phase phase;
    int fd;
    long long deadline;
    size_t received, sent, answer_length;
    char request[REQUEST_MAX];
    char answer[ANSWER_MAX];
};

struct agent {
    int listeners[LISTENERS_MAX];
    size_t listener_count;
    long long accept_after; /* no descriptors left: do not spin on accept */
    struct peer peers[PEERS_MAX];
};

struct options {
    bool vsock;
    unsigned long port;
    const char *unix_path;
    bool tcp;
    unsigned long tcp_port;
};

static volatile sig_atomic_t stopping;

static void stop(int signal)
{
    (void)signal;
    stopping = 1;
}

static void drop(struct peer *peer)
{
    close(peer->fd);
    peer->phase = FREE;
}

/* One peer. */

static void send_answer(struct peer *peer)
{
    ssize_t count = send(peer->fd, peer->answer + peer->sent, peer->answer_length - peer->sent,
                         MSG_NOSIGNAL);
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR)
            drop(peer);
        return;
    }
    peer->sent += (size_t)count;
    if (peer->sent < peer->answer_length)
        return;
    shutdown(peer->fd, SHUT_WR);
    peer->phase = LINGERING;
    peer->deadline = now_ms() + LINGER_MS;
}

static void consider_request(struct peer *peer, bool ended)
{
    char path[REQUEST_MAX];
    struct text answer = text_in(peer->answer, sizeof peer->answer);
    switch (http_parse(peer->request, peer->received, ended, path)) {
    case REQUEST_PARTIAL:
        return;
    case REQUEST_BAD:
        http_answer(&answer, "400 Bad Request", "text/plain", "bad request\n", 12);
        break;
    case REQUEST_WHOLE:
        answer_path(&answer, path);
        break;
    }
    peer->answer_length = answer.length;
    peer->sent = 0;
    peer->phase = ANSWERING;
    send_answer(peer);
}

static void receive(struct peer *peer)
{
    ssize_t count = recv(peer->fd, peer->request + peer->received,
                         sizeof peer->request - peer->received, 0);
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR)
            drop(peer);
        return;
    }
    if (count == 0 && peer->received == 0) {
        drop(peer);
        return;
    }
    peer->received += (size_t)count;
    consider_request(peer, count == 0);
}

static void discard(struct peer *peer)
{
    ssize_t count = recv(peer->fd, peer->request, sizeof peer->request, 0);
    if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR))
        drop(peer);
}

static void serve(struct peer *peer)
{
    switch (peer->phase) {
    case FREE:
        return;
    case READING:
        receive(peer);
        return;
    case ANSWERING:
        send_answer(peer);
        return;
    case LINGERING:
        discard(peer);
        return;
    }
}

/* All peers. */

static struct peer *free_place(struct agent *agent)
{
    struct peer *oldest = &agent->peers[0];
    for (size_t i = 0; i < PEERS_MAX; i++) {
        struct peer *peer = &agent->peers[i];
        if (peer->phase == FREE)
            return peer;
        if (peer->deadline < oldest->deadline)
            oldest = peer;
    }
    drop(oldest);
    return oldest;
}

/* One connection per listener and round, so that those who wait are served in between. */
static void admit(struct agent *agent, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            agent->accept_after = now_ms() + ACCEPT_PAUSE_MS;
        return;
    }
    struct peer *peer = free_place(agent);
    peer->phase = READING;
    peer->fd = fd;
    peer->deadline = now_ms() + REQUEST_MS;
    peer->received = 0;
}

static void drop_late(struct agent *agent)
{
    long long now = now_ms();
    for (size_t i = 0; i < PEERS_MAX; i++)
        if (agent->peers[i].phase != FREE && agent->peers[i].deadline <= now)
            drop(&agent->peers[i]);
}

/* Until when poll may sleep: the first deadline. Returns false when there is none. */
static bool sleep_time(const struct agent *agent, struct timespec *time)
{
    long long now = now_ms();
    long long until = agent->accept_after > now ? agent->accept_after : -1;
    for (size_t i = 0; i < PEERS_MAX; i++) {
        const struct peer *peer = &agent->peers[i];
        if (peer->phase != FREE && (until < 0 || peer->deadline < until))
            until = peer->deadline;
    }
    long long rest = until > now ? until - now : 0;
    time->tv_sec = (time_t)(rest / 1000);
    time->tv_nsec = (long)(rest % 1000) * 1000000;
    return until >= 0;
}

static void set_polls(const struct agent *agent, struct pollfd *polls)
{
    bool paused = agent->accept_after > now_ms();
    for (size_t i = 0; i < agent->listener_count; i++)
        polls[i] = (struct pollfd){.fd = paused ? -1 : agent->listeners[i], .events = POLLIN};
    for (size_t i = 0; i < PEERS_MAX; i++) {
        const struct peer *peer = &agent->peers[i];
        polls[agent->listener_count + i] = (struct pollfd){
            .fd = peer->phase == FREE ? -1 : peer->fd,
            .events = peer->phase == ANSWERING ? POLLOUT : POLLIN,
        };
    }
}

static void run_round(struct agent *agent, const sigset_t *while_waiting)
{
    struct pollfd polls[LISTENERS_MAX + PEERS_MAX];
    struct timespec time;
    nfds_t count = (nfds_t)(agent->listener_count + PEERS_MAX);
    set_polls(agent, polls);
    bool bounded = sleep_time(agent, &time);
    if (ppoll(polls, count, bounded ? &time : NULL, while_waiting) < 0)
        return; /* a signal */
    for (size_t i = 0; i < PEERS_MAX; i++)
        if (polls[agent->listener_count + i].revents != 0)
            serve(&agent->peers[i]);
    drop_late(agent);
    for (size_t i = 0; i < agent->listener_count; i++)
        if (polls[i].revents != 0)
            admit(agent, agent->listeners[i]);
}

/* Stop signals are let in only while the loop waits, so none is lost between check and wait. */
static void catch_signals(sigset_t *while_waiting)
{
    struct sigaction action = {0};
    sigset_t blocked;
    action.sa_handler = stop;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigprocmask(SIG_BLOCK, &blocked, while_waiting);
    sigdelset(while_waiting, SIGTERM);
    sigdelset(while_waiting, SIGINT);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

/* The command line. */

static bool parse_option(struct options *options, const char *name, const char *value)
{
    if (strcmp(name, "--port") == 0) {
        options->vsock = true;
        return parse_number(value, 0xfffffffeUL, &options->port);
    }
    if (strcmp(name, "--tcp") == 0) {
        options->tcp = true;
        return parse_number(value, 0xffff, &options->tcp_port);
    }
    if (strcmp(name, "--unix") == 0) {
        options->unix_path = value;
        return true;
    }
    return false;
}

/* The port that the image was built with. */
static unsigned long configured_port(void)
{
    char content[16];
    unsigned long port;
    ssize_t length = read_file(PORT_FILE, content, sizeof content);
    if (length < 1)
        return DEFAULT_PORT;
    content[length - 1] = '\0'; /* the line's end */
    return parse_number(content, 0xfffffffeUL, &port) ? port : DEFAULT_PORT;
}

static bool parse_options(struct options *options, int argc, char **argv)
{
    *options = (struct options){.port = configured_port()};
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc || !parse_option(options, argv[i], argv[i + 1])) {
            say("wrong option, try --help", argv[i], 0);
            return false;
        }
    }
    if (options->unix_path == NULL && !options->tcp)
        options->vsock = true;
    return true;
}

static bool add_listener(struct agent *agent, int fd)
{
    if (fd < 0)
        return false;
    agent->listeners[agent->listener_count++] = fd;
    return true;
}

static bool open_listeners(struct agent *agent, const struct options *options)
{
    if (options->vsock && !add_listener(agent, listen_vsock((unsigned int)options->port)))
        return false;
    if (options->unix_path != NULL && !add_listener(agent, listen_unix(options->unix_path)))
        return false;
    return !options->tcp || add_listener(agent, listen_tcp((unsigned short)options->tcp_port));
}

int agent_main(int argc, char **argv)
{
    static struct agent agent; /* too large for a small stack */
    struct options options;
    sigset_t while_waiting;
    speak_as("agent");
    if (!parse_options(&options, argc, argv))
        return EXIT_USAGE;
    catch_signals(&while_waiting);
    if (!open_listeners(&agent, &options))
        return EXIT_FAILED;
    while (!stopping)
        run_round(&agent, &while_waiting);
    if (options.unix_path != NULL)
        unlink(options.unix_path);
    return EXIT_OK;
}

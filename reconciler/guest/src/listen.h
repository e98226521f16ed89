/* Listening sockets of the agent, all non-blocking and close-on-exec. Each function returns a
 * descriptor, or -1 after it has said why. */
#ifndef BANGER_LISTEN_H
#define BANGER_LISTEN_H

int listen_vsock(unsigned int port);
int listen_unix(const char *path);
int listen_tcp(unsigned short port);

#endif

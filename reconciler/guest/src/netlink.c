/* rtnetlink(7): one request, one acknowledgement, on a socket of its own. Setting what is set already
 * is no error, so that running it again changes nothing. */
#include "netlink.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

struct request {
    struct nlmsghdr header;
    union {
        struct ifinfomsg link;
        struct ifaddrmsg address;
        struct rtmsg route;
    } body;
    char attributes[64];
};

static struct request new_request(unsigned short type, unsigned short flags, size_t body)
{
    struct request request;
    memset(&request, 0, sizeof request);
    request.header.nlmsg_len = (unsigned int)NLMSG_LENGTH(body);
    request.header.nlmsg_type = type;
    request.header.nlmsg_flags = (unsigned short)(NLM_F_REQUEST | NLM_F_ACK | flags);
    return request;
}

static void add(struct request *request, unsigned short type, const void *data, size_t length)
{
    size_t at = NLMSG_ALIGN(request->header.nlmsg_len);
    struct rtattr attribute = {.rta_len = (unsigned short)RTA_LENGTH(length), .rta_type = type};
    memcpy((char *)request + at, &attribute, sizeof attribute);
    memcpy((char *)request + at + RTA_LENGTH(0), data, length);
    request->header.nlmsg_len = (unsigned int)(at + RTA_LENGTH(length));
}

static int exchange(int fd, const struct request *request)
{
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        char rest[512];
    } answer;
    if (send(fd, request, request->header.nlmsg_len, 0) < 0)
        return errno;
    ssize_t count = recv(fd, &answer, sizeof answer, 0);
    if (count < 0)
        return errno;
    if ((size_t)count < sizeof answer.header + sizeof answer.error.error ||
        answer.header.nlmsg_type != NLMSG_ERROR)
        return EPROTO;
    return -answer.error.error;
}

static int transact(const struct request *request)
{
    struct timeval patience = {.tv_sec = 5};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        return errno;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    int error = exchange(fd, request);
    close(fd);
    return error;
}

static size_t address_length(const struct address *address)
{
    return address->family == AF_INET ? 4 : 16;
}

int link_up(unsigned int device)
{
    struct request request = new_request(RTM_NEWLINK, 0, sizeof request.body.link);
    request.body.link.ifi_index = (int)device;
    request.body.link.ifi_flags = IFF_UP;
    request.body.link.ifi_change = IFF_UP;
    return transact(&request);
}

/* A duplicate would be the fault of whoever gave the address: no IPv6 probe to wait for. */
int address_set(unsigned int device, const struct address *address)
{
    struct request request =
        new_request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof request.body.address);
    request.body.address.ifa_family = (unsigned char)address->family;
    request.body.address.ifa_prefixlen = address->prefix;
    request.body.address.ifa_index = device;
    if (address->family == AF_INET6)
        request.body.address.ifa_flags = IFA_F_NODAD;
    add(&request, IFA_LOCAL, address->bytes, address_length(address));
    add(&request, IFA_ADDRESS, address->bytes, address_length(address));
    return transact(&request);
}

int gateway_set(unsigned int device, const struct address *gateway)
{
    struct request request =
        new_request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof request.body.route);
    request.body.route.rtm_family = (unsigned char)gateway->family;
    request.body.route.rtm_table = RT_TABLE_MAIN;
    request.body.route.rtm_protocol = RTPROT_STATIC;
    request.body.route.rtm_scope = RT_SCOPE_UNIVERSE;
    request.body.route.rtm_type = RTN_UNICAST;
    add(&request, RTA_GATEWAY, gateway->bytes, address_length(gateway));
    add(&request, RTA_OIF, &device, sizeof device);
    return transact(&request);
}

/* Just enough rtnetlink to bring up a device. Each function returns 0, or an errno value. */
#ifndef BANGER_NETLINK_H
#define BANGER_NETLINK_H

#include <stddef.h>

/* An address of either family, with the bits of its prefix. */
struct address {
    int family;
    unsigned char bytes[16];
    unsigned char prefix;
};

int link_up(unsigned int device);
int address_set(unsigned int device, const struct address *address);
int gateway_set(unsigned int device, const struct address *gateway);

#endif

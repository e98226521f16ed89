/* The image's own /etc/passwd and /etc/group. */
#ifndef BANGER_USERS_H
#define BANGER_USERS_H

#include <stdbool.h>
#include <sys/types.h>

enum { MOST_GROUPS = 64 };

struct user {
    uid_t uid;
    gid_t gid;
    gid_t groups[MOST_GROUPS];
    size_t group_count;
    char home[256];
};

/* Resolve "name", "uid", "name:group" or "uid:gid", as the OCI image specification has it ("User"):
 * without a group, the user's own and supplementary groups. False after it has said why. */
bool user_find(const char *spec, struct user *user);

#endif

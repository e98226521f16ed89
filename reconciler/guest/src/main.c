/* Picks the role: by the name that the program was called by, else by the first argument. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>

struct role {
    const char *name;
    int (*run)(int argc, char **argv);
};

static const struct role roles[] = {
    {"vsock-agent", agent_main},
};

static const char usage[] =
    "usage: banger-guest ROLE [OPTION...] | --version | --help\n"
    "\n"
    "  vsock-agent [--port N] [--unix PATH] [--tcp PORT]\n"
    "      Answer GET /ping over vsock (port 42070), and over a unix socket or on 127.0.0.1\n"
    "      when told to. With --unix or --tcp, vsock is used only if --port is given too.\n";

static const struct role *find_role(const char *name)
{
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strcmp(roles[i].name, name) == 0)
            return &roles[i];
    return NULL;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

int main(int argc, char **argv)
{
    const struct role *role = argc > 0 ? find_role(base_name(argv[0])) : NULL;
    if (role != NULL)
        return role->run(argc, argv);
    if (argc < 2) {
        say("no role given, try --help", NULL, 0);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        print("banger-guest " BANGER_GUEST_VERSION "\n");
        return EXIT_OK;
    }
    if (strcmp(argv[1], "--help") == 0) {
        print(usage);
        return EXIT_OK;
    }
    role = find_role(argv[1]);
    if (role == NULL) {
        say("no such role, try --help", argv[1], 0);
        return EXIT_USAGE;
    }
    return role->run(argc - 1, argv + 1);
}

/* Picks the role: by the name that the program was called by, else by the first argument. The kernel
 * calls /init of an initramfs, and /sbin/init of an image. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>

struct role {
    const char *name;
    int (*run)(int argc, char **argv);
};

static const struct role roles[] = {
    {"vsock-agent", agent_main}, {"network", network_main}, {"first-boot", first_boot_main},
    {"grow", grow_main},         {"run", run_main},         {"init", init_main},
};

static const char usage[] =
    "usage: banger-guest ROLE [OPTION...] | --version | --help\n"
    "\n"
    "  vsock-agent [--port N] [--unix PATH] [--tcp PORT]\n"
    "      Answer GET /ping, /health and /ports over vsock, and over a unix socket or on\n"
    "      127.0.0.1 when told to. With --unix or --tcp, vsock is used only if --port is given\n"
    "      too. The port comes from /etc/banger/vsock-port, else it is 42070.\n"
    "  network      Set the network as ip= or banger.ip= on the kernel command line say.\n"
    "  first-boot   Give this clone an identity of its own and all of its disk, once.\n"
    "  grow [PATH]  Grow the mounted ext4 filesystem (/) to its disk.\n"
    "  run [FILE]   Become the image's program, as /etc/banger/image.json says.\n"
    "  init         PID 1 of an image that has no init. Called /init, that of an initramfs.\n";

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
    if (argc > 0 && strcmp(argv[0], "/init") == 0)
        return initramfs_main(argc, argv);
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

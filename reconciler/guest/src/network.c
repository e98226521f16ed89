/* The role "network": static network from the kernel command line, for images whose own tools know
 * nothing of it, without any tool of the image.
 *
 *   ip=ADDRESS::GATEWAY:NETMASK:HOSTNAME:DEVICE:off:DNS:DNS      as the kernel documents it
 *   banger.ip=ADDRESS/PREFIX[,...] banger.gw=ADDRESS[,...] banger.dns=ADDRESS[,...]
 *   banger.hostname=NAME
 *
 * Without them, or when they ask for DHCP, the field is left to what the image has. Everything is
 * checked before anything is set. Running it again changes nothing.
 */
#include "guest.h"
#include "netlink.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 8, DEVICE_TRIES = 100, DEVICE_PAUSE_MS = 100 };

#define RESOLV_CONF "/etc/resolv.conf"
#define MARK "# Written by banger-network from the kernel command line\n"
#define RESOLVED_FOLDER "/run/systemd/resolved.conf.d"

struct list {
    struct address items[MOST];
    size_t count;
};

struct plan {
    struct list addresses, gateways, servers;
    char hostname[VALUE_MAX];
    char device[VALUE_MAX];
};

/* Reading the command line. */

static bool parse_address(const char *text, struct address *address)
{
    memset(address, 0, sizeof *address);
    address->family = strchr(text, ':') != NULL ? AF_INET6 : AF_INET;
    address->prefix = address->family == AF_INET ? 32 : 128;
    return inet_pton(address->family, text, address->bytes) == 1;
}

static bool parse_prefixed(char *text, struct address *address)
{
    unsigned long prefix;
    char *slash = strchr(text, '/');
    if (slash != NULL)
        *slash = '\0';
    if (!parse_address(text, address))
        return false;
    if (slash == NULL)
        return true;
    if (!parse_number(slash + 1, address->prefix, &prefix))
        return false;
    address->prefix = (unsigned char)prefix;
    return true;
}

/* Bits of a netmask; those of the address's class when it is empty, as the kernel has it. */
static bool mask_prefix(const char *mask, struct address *address)
{
    struct in_addr bits;
    if (*mask == '\0') {
        address->prefix = address->bytes[0] < 128 ? 8 : address->bytes[0] < 192 ? 16 : 24;
        return true;
    }
    if (inet_pton(AF_INET, mask, &bits) != 1)
        return false;
    unsigned int value = ntohl(bits.s_addr), rest = ~value;
    if ((rest & (rest + 1)) != 0)
        return false;
    address->prefix = (unsigned char)__builtin_popcount(value);
    return true;
}

static bool append(struct list *list, const struct address *address)
{
    if (list->count == MOST)
        return false;
    list->items[list->count++] = *address;
    return true;
}

static bool complain(const char *what, const char *about)
{
    say(what, about, 0);
    return false;
}

/* ip=: nothing is taken from it unless it is static and an address. */
static bool read_kernel_syntax(struct plan *plan, const char *line)
{
    char value[VALUE_MAX], *fields[9], empty[] = "";
    struct address address, other;
    if (!command_line_value(line, "ip", value))
        return true;
    size_t count = split(value, ':', fields, 9);
    for (; count < 9; count++)
        fields[count] = empty;
    const char *how = fields[6];
    bool is_static = *how == '\0' || strcmp(how, "off") == 0 || strcmp(how, "none") == 0 ||
                     strcmp(how, "static") == 0;
    if (!is_static || !parse_address(fields[0], &address))
        return true;
    if (!mask_prefix(fields[3], &address))
        return complain("wrong netmask", fields[3]);
    append(&plan->addresses, &address);
    if (parse_address(fields[2], &other))
        append(&plan->gateways, &other);
    else if (*fields[2] != '\0')
        return complain("wrong gateway", fields[2]);
    for (size_t i = 7; i < 9; i++)
        if (parse_address(fields[i], &other))
            append(&plan->servers, &other);
    memcpy(plan->device, fields[5], strlen(fields[5]) + 1);
    return true;
}

/* A list of our own syntax takes the place of what ip= gave. */
static bool read_list(struct list *list, const char *line, const char *name, bool prefixed)
{
    char value[VALUE_MAX], *parts[MOST + 1];
    if (!command_line_value(line, name, value) || *value == '\0')
        return true;
    size_t count = split(value, ',', parts, MOST + 1);
    list->count = 0;
    for (size_t i = 0; i < count; i++) {
        struct address address;
        bool good = prefixed ? parse_prefixed(parts[i], &address) : parse_address(parts[i], &address);
        if (!good || !append(list, &address))
            return complain("not a list of addresses", name);
    }
    return true;
}

static bool read_plan(struct plan *plan, const char *line)
{
    if (!read_kernel_syntax(plan, line) ||
        !read_list(&plan->addresses, line, "banger.ip", true) ||
        !read_list(&plan->gateways, line, "banger.gw", false) ||
        !read_list(&plan->servers, line, "banger.dns", false))
        return false;
    if (command_line_hostname(line, plan->hostname) && !is_hostname(plan->hostname))
        return complain("not a host name", plan->hostname);
    return true;
}

/* Applying it. */

/* The device of a bus with the first name, else any Ethernet-like one. */
static bool find_device(char device[VALUE_MAX])
{
    char path[VALUE_MAX + 32], type[16];
    bool best_on_bus = false, found = false;
    DIR *folder = opendir("/sys/class/net");
    const struct dirent *entry;
    while (folder != NULL && (entry = readdir(folder)) != NULL) {
        struct text text = text_in(path, sizeof path - 8);
        text_add(&text, "/sys/class/net/");
        text_add(&text, entry->d_name);
        if (entry->d_name[0] == '.' || strcmp(entry->d_name, "lo") == 0 || text.cut)
            continue;
        memcpy(path + text.length, "/type", sizeof "/type");
        bool ethernet = read_file(path, type, sizeof type) >= 0 && strcmp(type, "1\n") == 0;
        memcpy(path + text.length, "/device", sizeof "/device");
        bool on_bus = exists(path);
        if ((!ethernet && !on_bus) || on_bus < best_on_bus)
            continue;
        if (found && on_bus == best_on_bus && strcmp(entry->d_name, device) > 0)
            continue;
        memcpy(device, entry->d_name, strlen(entry->d_name) + 1);
        best_on_bus = on_bus;
        found = true;
    }
    if (folder != NULL)
        closedir(folder);
    return found;
}

/* Drivers may still be on their way. */
static unsigned int wait_for_device(char device[VALUE_MAX])
{
    const struct timespec pause = {.tv_nsec = DEVICE_PAUSE_MS * 1000000L};
    for (int tries = 0; tries < DEVICE_TRIES; tries++) {
        if (*device != '\0' || find_device(device)) {
            unsigned int index = if_nametoindex(device);
            if (index != 0)
                return index;
        }
        nanosleep(&pause, NULL);
    }
    say("no network device", *device != '\0' ? device : NULL, 0);
    return 0;
}

static bool report(const char *what, int error)
{
    if (error != 0)
        say(what, NULL, error);
    return error == 0;
}

static bool apply_addresses(struct plan *plan)
{
    unsigned int device = wait_for_device(plan->device);
    if (device == 0 || !report("cannot bring up the device", link_up(device)))
        return false;
    for (size_t i = 0; i < plan->addresses.count; i++)
        if (!report("cannot set the address", address_set(device, &plan->addresses.items[i])))
            return false;
    for (size_t i = 0; i < plan->gateways.count; i++)
        if (!report("cannot set the gateway", gateway_set(device, &plan->gateways.items[i])))
            return false;
    say("set as the kernel command line says", plan->device, 0);
    return true;
}

static void add_servers(struct text *text, const struct list *servers, const char *before,
                        const char *after)
{
    for (size_t i = 0; i < servers->count; i++) {
        char address[INET6_ADDRSTRLEN];
        inet_ntop(servers->items[i].family, servers->items[i].bytes, address, sizeof address);
        text_add(text, before);
        text_add(text, address);
        text_add(text, after);
    }
}

/* The file belongs to systemd-resolved, which is not running yet, so that the link dangles. */
static bool has_resolved(void)
{
    char target[VALUE_MAX];
    ssize_t length = readlink(RESOLV_CONF, target, sizeof target - 1);
    if (length < 0 || !exists("/lib/systemd/systemd-resolved"))
        return false;
    target[length] = '\0';
    return strstr(target, "run/systemd/resolve/") != NULL;
}

/* Of no use (empty, missing, a dangling link), or ours from an earlier boot. */
static bool may_replace_resolv_conf(void)
{
    char start[sizeof MARK];
    struct stat status;
    if (stat(RESOLV_CONF, &status) < 0 || status.st_size == 0)
        return true;
    ssize_t length = read_file(RESOLV_CONF, start, sizeof start);
    return (length >= 0 || errno == EFBIG) && strncmp(start, MARK, sizeof MARK - 1) == 0;
}

static bool apply_servers(const struct list *servers)
{
    char content[1024];
    struct text text = text_in(content, sizeof content - 1);
    bool resolved = has_resolved();
    text_add(&text, resolved ? "[Resolve]\n" : MARK);
    add_servers(&text, servers, resolved ? "DNS=" : "nameserver ", "\n");
    content[text.length] = '\0';
    if (resolved) {
        make_folder("/run/systemd", 0755);
        make_folder(RESOLVED_FOLDER, 0755);
        if (replace_file(RESOLVED_FOLDER "/banger.conf", content, 0644))
            return true;
    } else if (!may_replace_resolv_conf() || replace_file(RESOLV_CONF, content, 0644)) {
        return true;
    }
    say("cannot write the name servers", NULL, errno);
    return false;
}

int network_main(int argc, char **argv)
{
    static char line[COMMAND_LINE_MAX];
    static struct plan plan;
    speak_as("network");
    if (argc > 1) {
        say("takes no arguments", argv[1], 0);
        return EXIT_USAGE;
    }
    if (!read_command_line(line) || !read_plan(&plan, line))
        return EXIT_FAILED;
    if (plan.hostname[0] != '\0' && sethostname(plan.hostname, strlen(plan.hostname)) < 0)
        say("cannot set the host name", plan.hostname, errno);
    unsigned int loopback = if_nametoindex("lo");
    if (loopback != 0)
        link_up(loopback);
    if (plan.addresses.count == 0)
        say("no static address on the kernel command line: left to the image", NULL, 0);
    else if (!apply_addresses(&plan))
        return EXIT_FAILED;
    return plan.servers.count == 0 || apply_servers(&plan.servers) ? EXIT_OK : EXIT_FAILED;
}

/* The role of /init in an initramfs that banger-reconcile made: load the modules that the root disk
 * needs, mount it, and hand over to its init. Whatever fails is said, and then the kernel panics,
 * which is what panic= on its command line is for.
 */
#include "guest.h"

#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

enum { MODULES_MAX = 256, LIST_BYTES = 32768, ROOT_TRIES = 600, PAUSE_MS = 50 };

#define MODULES "/modules/"
#define LIST MODULES "list"
#define NEW_ROOT "/disk"

static void load_module(const char *name)
{
    char path[VALUE_MAX];
    struct text text = text_in(path, sizeof path - 1);
    text_add(&text, MODULES);
    text_add(&text, name);
    path[text.length] = '\0';
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        say("cannot load the module", name, errno);
    if (fd >= 0)
        close(fd);
}

/* One name a line, in an order in which each finds what it depends on. */
static void load_modules(void)
{
    static char list[LIST_BYTES];
    char *names[MODULES_MAX];
    if (read_file(LIST, list, sizeof list) < 0) {
        say("cannot read", LIST, errno);
        return;
    }
    size_t count = split(list, '\n', names, MODULES_MAX);
    for (size_t i = 0; i < count; i++)
        if (*names[i] != '\0')
            load_module(names[i]);
}

static bool wait_for_device(const char *path)
{
    const struct timespec pause = {.tv_nsec = PAUSE_MS * 1000000L};
    struct stat status;
    for (int tries = 0; tries < ROOT_TRIES; tries++) {
        if (stat(path, &status) == 0 && S_ISBLK(status.st_mode))
            return true;
        nanosleep(&pause, NULL);
    }
    say("no such disk; root= on the kernel command line names it", path, 0);
    return false;
}

static bool mount_root(const char *line)
{
    char device[VALUE_MAX], type[VALUE_MAX], options[VALUE_MAX];
    if (!command_line_value(line, "root", device))
        memcpy(device, "/dev/vda", sizeof "/dev/vda");
    if (!command_line_value(line, "rootfstype", type))
        memcpy(type, "ext4", sizeof "ext4");
    bool given = command_line_value(line, "rootflags", options);
    unsigned long flags = command_line_has(line, "rw") ? 0 : MS_RDONLY;
    if (!wait_for_device(device))
        return false;
    make_folder(NEW_ROOT, 0755);
    if (mount(device, NEW_ROOT, type, flags, given ? options : NULL) == 0)
        return true;
    say("cannot mount the root disk", device, errno);
    return false;
}

/* The kernel keeps an initramfs in memory for good: empty it before leaving. Only its own files. */
static void remove_below(int folder, dev_t device)
{
    const struct dirent *entry;
    struct stat status;
    DIR *stream = fdopendir(folder);
    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
            fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) < 0 || status.st_dev != device)
            continue;
        if (S_ISDIR(status.st_mode)) {
            int below = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (below >= 0)
                remove_below(below, device);
            unlinkat(folder, name, AT_REMOVEDIR);
        } else {
            unlinkat(folder, name, 0);
        }
    }
    if (stream != NULL)
        closedir(stream);
}

static void empty_initramfs(void)
{
    struct statfs filesystem;
    struct stat status;
    int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum { RAMFS = 0x858458f6, TMPFS = 0x01021994 };
    if (root < 0)
        return;
    bool in_memory = fstatfs(root, &filesystem) == 0 && fstat(root, &status) == 0 &&
                     ((unsigned long)filesystem.f_type == (unsigned long)RAMFS ||
                      (unsigned long)filesystem.f_type == (unsigned long)TMPFS);
    if (in_memory)
        remove_below(root, status.st_dev);
    else
        close(root);
}

static void carry_mount(const char *from, const char *to)
{
    make_folder(to, 0755);
    if (mount(from, to, NULL, MS_MOVE, NULL) < 0)
        umount2(from, MNT_DETACH); /* the init of the root disk mounts its own */
}

static bool switch_root(void)
{
    carry_mount("/dev", NEW_ROOT "/dev");
    carry_mount("/proc", NEW_ROOT "/proc");
    carry_mount("/sys", NEW_ROOT "/sys");
    empty_initramfs();
    if (chdir(NEW_ROOT) == 0 && mount(".", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 &&
        chdir("/") == 0)
        return true;
    say("cannot change to the root disk", NULL, errno);
    return false;
}

/* init=, else what the kernel itself would try. */
static void start_init(const char *line)
{
    static const char *const places[] = {"/sbin/init", "/etc/init", "/bin/init", "/bin/sh"};
    char program[VALUE_MAX];
    char *arguments[] = {program, NULL};
    if (command_line_value(line, "init", program)) {
        execv(program, arguments);
        say("cannot run", program, errno);
    }
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        memcpy(program, places[i], strlen(places[i]) + 1);
        execv(program, arguments);
    }
    say("the root disk has no init that runs", NULL, errno);
}

int initramfs_main(int argc, char **argv)
{
    static char line[COMMAND_LINE_MAX];
    (void)argc;
    speak_as("initramfs");
    if (getpid() != 1) {
        say("only the kernel starts this", argv[0], 0);
        return EXIT_USAGE;
    }
    mount_on("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    mount_on("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_on("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    load_modules();
    if (read_command_line(line) && mount_root(line) && switch_root())
        start_init(line);
    return EXIT_FAILED;
}

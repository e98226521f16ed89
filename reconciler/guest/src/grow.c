/* The role "grow": the root filesystem grows to the size of its disk while it is mounted, by the
 * kernel's own EXT4_IOC_RESIZE_FS, with no e2fsprogs in the guest. */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { EXT4_MAGIC = 0xEF53, EXT4_ROOT_INODE = 2, SECTOR = 512 };

#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t) /* fs/ext4/ext4.h: the new size in blocks */

/* The size of the block device with this number, in bytes; 0 when it is no block device. */
static uint64_t device_size(dev_t device)
{
    char path[64], content[32];
    struct text text = text_in(path, sizeof path - 1);
    unsigned long sectors;
    text_add(&text, "/sys/dev/block/");
    text_add_number(&text, major(device));
    text_add(&text, ":");
    text_add_number(&text, minor(device));
    text_add(&text, "/size");
    path[text.length] = '\0';
    ssize_t length = read_file(path, content, sizeof content);
    if (length < 1)
        return 0;
    content[length - 1] = '\0'; /* the line's end */
    return parse_number(content, ULONG_MAX / SECTOR, &sectors) ? (uint64_t)sectors * SECTOR : 0;
}

static int resize(const char *path, uint64_t blocks)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = ioctl(fd, EXT4_IOC_RESIZE_FS, &blocks) < 0 ? errno : 0;
    close(fd);
    return error;
}

static void report(const struct statfs *before, const char *path)
{
    struct statfs after;
    uint64_t mib = 1024 * 1024;
    if (statfs(path, &after) == 0 && after.f_blocks > before->f_blocks)
        say_number("grown; MiB for files now", after.f_blocks * (uint64_t)after.f_bsize / mib);
}

int grow_main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "/";
    struct statfs before;
    struct stat status;
    speak_as("grow");
    if (argc > 2) {
        say("too many arguments", argv[2], 0);
        return EXIT_USAGE;
    }
    if (statfs(path, &before) < 0 || stat(path, &status) < 0) {
        say("cannot look at", path, errno);
        return EXIT_FAILED;
    }
    uint64_t size = device_size(status.st_dev);
    /* a folder in somebody's filesystem, as in a container, is not ours to grow */
    if (before.f_type != EXT4_MAGIC || status.st_ino != EXT4_ROOT_INODE || size == 0) {
        say("not the top of an ext4 filesystem on a disk, left as it is", path, 0);
        return EXIT_OK;
    }
    int error = resize(path, size / (uint64_t)before.f_bsize);
    if (error != 0) {
        say("cannot grow the filesystem", path, error);
        return EXIT_FAILED;
    }
    report(&before, path);
    return EXIT_OK;
}

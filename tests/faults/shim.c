/* From the n-th call on, one kind of call fails with EIO and keeps failing, as a dying disk does.
   SHIM_CALL: fsync or write; SHIM_FROM: n; SHIM_PATH: only files whose path holds this. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int calls;

static int fails(const char *call, int fd)
{
    const char *wanted = getenv("SHIM_CALL"), *part = getenv("SHIM_PATH"), *from = getenv("SHIM_FROM");
    char link[64], path[4096];
    ssize_t length;

    if (!wanted || !from || strcmp(wanted, call) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (part && !strstr(path, part))
        return 0;
    if (__sync_add_and_fetch(&calls, 1) < atoi(from))
        return 0;
    errno = EIO;
    return 1;
}

#define NEXT(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

int fsync(int fd) { return fails("fsync", fd) ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return fails("fsync", fd) ? -1 : NEXT(fdatasync)(fd); }

ssize_t write(int fd, const void *data, size_t size)
{
    return fails("write", fd) ? -1 : NEXT(write)(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    return fails("write", fd) ? -1 : NEXT(pwrite)(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    return fails("write", fd) ? -1 : NEXT(pwrite64)(fd, data, size, at);
}

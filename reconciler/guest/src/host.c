/* Small files, mounts and children: what every role but the agent does to its machine. */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

ssize_t read_file(const char *path, char *data, size_t size)
{
    size_t length = 0;
    ssize_t count = 1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -1;
    while (count > 0 && length < size) {
        count = read(fd, data + length, size - length);
        if (count > 0)
            length += (size_t)count;
    }
    int error = count < 0 ? errno : EFBIG;
    close(fd);
    if (count < 0 || length == size) {
        errno = error;
        return -1;
    }
    data[length] = '\0';
    return (ssize_t)length;
}

static bool write_out(int fd, const char *content)
{
    size_t rest = strlen(content);
    while (rest > 0) {
        ssize_t count = write(fd, content, rest);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return false;
        content += count;
        rest -= (size_t)count;
    }
    return true;
}

bool write_file(const char *path, const char *content)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool written = write_out(fd, content);
    int error = errno;
    close(fd);
    errno = error;
    return written;
}

bool replace_file(const char *path, const char *content, mode_t mode)
{
    char temporary[VALUE_MAX];
    struct text name = text_in(temporary, sizeof temporary - 1);
    text_add(&name, path);
    text_add(&name, ".banger");
    if (name.cut) {
        errno = ENAMETOOLONG;
        return false;
    }
    temporary[name.length] = '\0';
    unlink(temporary);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    bool good = write_out(fd, content) && fchmod(fd, mode) == 0 && fsync(fd) == 0;
    int error = errno;
    close(fd);
    if (good && rename(temporary, path) == 0)
        return true;
    errno = good ? errno : error;
    error = errno;
    unlink(temporary);
    errno = error;
    return false;
}

bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool make_folder(const char *path, mode_t mode)
{
    return mkdir(path, mode) == 0 || errno == EEXIST;
}

bool mount_on(const char *source, const char *target, const char *type, unsigned long flags,
              const char *options)
{
    make_folder(target, 0755);
    if (mount(source, target, type, flags, options) == 0 || errno == EBUSY)
        return true;
    say("cannot mount", target, errno);
    return false;
}

int wait_for(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return EXIT_FAILED;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* The role "first-boot": what makes a clone of an image a machine of its own. It runs until it has
 * succeeded once, and removes its marker then.
 *
 * A step that failed is said and tried again at the next boot; those that are done are not, so that
 * identities do not change with every try. Executables in /etc/banger/first-boot.d run in the order
 * of their names; the first that fails ends that series, because later ones may build on it.
 */
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DONE_FOLDER STATE_FOLDER "/first-boot.done/"
#define OWN_STEPS "/etc/banger/first-boot.d/"
#define SSH_FOLDER "/etc/ssh/"
#define NEW_KEYS SSH_FOLDER ".banger-new"
#define NEW_KEYS_FOLDER NEW_KEYS "/etc/ssh/"

enum { PATH_BYTES = 512, ID_DIGITS = 32, NAME_DIGITS = 8 };

static bool join(char path[PATH_BYTES], const char *folder, const char *name)
{
    struct text text = text_in(path, PATH_BYTES - 1);
    text_add(&text, folder);
    text_add(&text, name);
    path[text.length] = '\0';
    return !text.cut;
}

static bool run(const char *program, char *const *arguments)
{
    pid_t child = fork();
    if (child == 0) {
        execv(program, arguments);
        say("cannot run", program, errno);
        _exit(127);
    }
    int status = child < 0 ? 127 : wait_for(child);
    if (status != 0)
        say_number("it ended with status", (unsigned long long)status);
    return status == 0;
}

/* Names of a folder in order, without a list of them: the smallest that is greater than `after`. */
static bool next_name(const char *folder, char name[VALUE_MAX])
{
    char best[VALUE_MAX] = "";
    const struct dirent *entry;
    DIR *stream = opendir(folder);
    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        if (entry->d_name[0] == '.' || strcmp(entry->d_name, name) <= 0)
            continue;
        if (best[0] == '\0' || strcmp(entry->d_name, best) < 0)
            memcpy(best, entry->d_name, strlen(entry->d_name) + 1);
    }
    if (stream != NULL)
        closedir(stream);
    memcpy(name, best, sizeof best);
    return best[0] != '\0';
}

/* An id that came with the image would be shared by all its clones. systemd leaves a sign when there
 * was none and it has made a new one in this very boot. */
static bool machine_id(void)
{
    char uuid[64], id[ID_DIGITS + 2];
    struct stat status;
    if (exists("/run/systemd/first-boot") && stat("/etc/machine-id", &status) == 0 &&
        status.st_size > 0)
        return true;
    if (read_file("/proc/sys/kernel/random/uuid", uuid, sizeof uuid) < 0)
        return false;
    size_t used = 0;
    for (const char *at = uuid; *at != '\0' && used < ID_DIGITS; at++)
        if (*at != '-' && *at != '\n')
            id[used++] = *at;
    id[used++] = '\n';
    id[used] = '\0';
    if (!replace_file("/etc/machine-id", id, 0444))
        return false;
    if (lstat("/var/lib/dbus/machine-id", &status) < 0 || !S_ISREG(status.st_mode))
        return true;
    return replace_file("/var/lib/dbus/machine-id", id, 0444);
}

static bool is_host_key(const char *name)
{
    return strncmp(name, "ssh_host_", strlen("ssh_host_")) == 0 && strstr(name, "_key") != NULL;
}

/* Remove the host keys of a folder, or move them to another. */
static bool each_key(const char *folder, const char *destination)
{
    char name[VALUE_MAX] = "", from[PATH_BYTES], to[PATH_BYTES];
    bool good = true;
    while (next_name(folder, name)) {
        if (!is_host_key(name) || !join(from, folder, name))
            continue;
        if (destination == NULL)
            good &= unlink(from) == 0;
        else
            good &= join(to, destination, name) && rename(from, to) == 0;
    }
    return good;
}

static void remove_new_keys(void)
{
    each_key(NEW_KEYS_FOLDER, NULL);
    rmdir(NEW_KEYS_FOLDER);
    rmdir(NEW_KEYS "/etc");
    rmdir(NEW_KEYS);
}

/* New keys are complete before the old ones go. */
static bool ssh_host_keys(void)
{
    char program[] = "ssh-keygen", quiet[] = "-q", all[] = "-A", below[] = "-f", root[] = NEW_KEYS;
    char *arguments[] = {program, quiet, all, below, root, NULL};
    const char *keygen = exists("/usr/bin/ssh-keygen") ? "/usr/bin/ssh-keygen" : "/bin/ssh-keygen";
    if (!exists(keygen) || !exists(SSH_FOLDER))
        return true;
    remove_new_keys();
    bool good = make_folder(NEW_KEYS, 0700) && make_folder(NEW_KEYS "/etc", 0700) &&
                make_folder(NEW_KEYS_FOLDER, 0700) && run(keygen, arguments) &&
                each_key(SSH_FOLDER, NULL) && each_key(NEW_KEYS_FOLDER, SSH_FOLDER);
    remove_new_keys();
    return good;
}

static bool grow(void)
{
    char name[] = "grow";
    char *arguments[] = {name, NULL};
    bool good = grow_main(1, arguments) == EXIT_OK;
    speak_as("first-boot");
    return good;
}

/* An image without any name gets one of its machine id. */
static bool name_of_id(char name[VALUE_MAX])
{
    char id[ID_DIGITS + 8];
    if (read_file("/etc/machine-id", id, sizeof id) < NAME_DIGITS)
        return false;
    struct text text = text_in(name, VALUE_MAX - 1);
    text_add(&text, "guest-");
    text_add_bytes(&text, id, NAME_DIGITS);
    name[text.length] = '\0';
    return true;
}

/* The command line's name is kept; else the image's own stays. */
static bool set_hostname(void)
{
    static char line[COMMAND_LINE_MAX];
    char name[VALUE_MAX], content[VALUE_MAX + 2];
    struct stat status;
    if (!read_command_line(line))
        return false;
    if (!command_line_hostname(line, name)) {
        if (stat("/etc/hostname", &status) == 0 && status.st_size > 0)
            return true;
        if (!name_of_id(name))
            return false;
    }
    if (!is_hostname(name)) {
        say("not a host name", name, 0);
        return false;
    }
    struct text text = text_in(content, sizeof content - 1);
    text_add(&text, name);
    text_add(&text, "\n");
    content[text.length] = '\0';
    return replace_file("/etc/hostname", content, 0644) && sethostname(name, strlen(name)) == 0;
}

/* Run a step, unless an earlier boot did: either a function or a program of the image. */
static bool step(const char *name, bool (*function)(void), const char *program)
{
    char done[PATH_BYTES], argument[PATH_BYTES];
    char *arguments[] = {argument, NULL};
    if (!join(done, DONE_FOLDER, name))
        return false;
    if (exists(done))
        return true;
    say(name, NULL, 0);
    errno = 0;
    bool good = function != NULL ? function() : join(argument, "", program) && run(program, arguments);
    if (!good)
        say("this step failed", name, errno);
    return good && replace_file(done, "", 0644);
}

static bool own_steps(void)
{
    char name[VALUE_MAX] = "", path[PATH_BYTES], label[PATH_BYTES];
    struct stat status;
    while (next_name(OWN_STEPS, name)) {
        bool runnable = join(path, OWN_STEPS, name) && stat(path, &status) == 0 &&
                        S_ISREG(status.st_mode) && access(path, X_OK) == 0;
        if (runnable && (!join(label, "own-", name) || !step(label, NULL, path)))
            return false;
    }
    return true;
}

static void remove_done(void)
{
    char name[VALUE_MAX] = "", path[PATH_BYTES];
    while (next_name(DONE_FOLDER, name))
        if (join(path, DONE_FOLDER, name))
            unlink(path);
    rmdir(DONE_FOLDER);
}

int first_boot_main(int argc, char **argv)
{
    speak_as("first-boot");
    if (argc > 1) {
        say("takes no arguments", argv[1], 0);
        return EXIT_USAGE;
    }
    if (!exists(FIRST_BOOT_MARKER)) {
        say("done in an earlier boot", NULL, 0);
        return EXIT_OK;
    }
    setenv("PATH", DEFAULT_PATH, 1);
    if (!make_folder(DONE_FOLDER, 0755)) {
        say("cannot make", DONE_FOLDER, errno);
        return EXIT_FAILED;
    }
    bool good = step("machine-id", machine_id, NULL);
    good &= step("grow", grow, NULL);
    good &= step("ssh-host-keys", ssh_host_keys, NULL);
    good &= step("hostname", set_hostname, NULL);
    good = own_steps() && good;
    if (!good || unlink(FIRST_BOOT_MARKER) < 0) {
        say("not finished, tried again at the next boot", NULL, 0);
        return EXIT_FAILED;
    }
    remove_done();
    sync();
    say("finished", NULL, 0);
    return EXIT_OK;
}

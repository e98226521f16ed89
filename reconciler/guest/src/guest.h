/* banger-guest: the one program that banger-reconcile puts into a guest image.
 *
 * Roles share this header. A role is a function of (argc, argv) with argv[0] its name; main.c picks
 * it. The program is static, allocates nothing on the heap, and trusts nobody who connects to it.
 */
#ifndef BANGER_GUEST_H
#define BANGER_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Raised when the behaviour changes. Not the package's version: a release that leaves the guest
 * alone must leave these bytes, and with them every image's id, alone too. */
#define BANGER_GUEST_VERSION "3"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 64 };

/* Where things lie in a guest. */
#define STATE_FOLDER "/var/lib/banger"
#define FIRST_BOOT_MARKER STATE_FOLDER "/first-boot-pending"
#define APPLICATION_STATE "/run/banger/application"
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* The roles. */
int agent_main(int argc, char **argv);
int network_main(int argc, char **argv);
int first_boot_main(int argc, char **argv);
int grow_main(int argc, char **argv);
int init_main(int argc, char **argv);
int initramfs_main(int argc, char **argv);
int run_main(int argc, char **argv);

/* text.c: bounded text. Once something did not fit, `cut` is set and nothing more is added. */
struct text {
    char *data;
    size_t size;
    size_t length;
    bool cut;
};

struct text text_in(char *data, size_t size);
void text_add(struct text *text, const char *string);
void text_add_bytes(struct text *text, const char *bytes, size_t length);
void text_add_number(struct text *text, unsigned long long number);
/* A JSON string with its quotes; bytes outside printable ASCII are escaped one by one. */
void text_add_json(struct text *text, const char *string);
bool parse_number(const char *string, unsigned long maximum, unsigned long *number);

/* Who speaks in `say`: the role's name in place of "guest". */
void speak_as(const char *role);
/* Say one line on standard error; `error` is an errno value, or 0 for none. */
void say(const char *what, const char *about, int error);
/* The same, with a number behind it. */
void say_number(const char *what, unsigned long long number);
/* Print one string on standard output. */
void print(const char *string);

/* host.c: small files, mounts and children. */

/* Read a whole small file as a string. Returns its length, or -1: errno says why; EFBIG when it
 * does not fit. */
ssize_t read_file(const char *path, char *data, size_t size);
/* Replace a file's content by way of a temporary name beside it. */
bool replace_file(const char *path, const char *content, mode_t mode);
/* Write to a file that is there, as those below /proc are. */
bool write_file(const char *path, const char *content);
bool exists(const char *path);
/* Make a directory; one that is there is good. */
bool make_folder(const char *path, mode_t mode);
/* Mount, making the mount point. What is a mount point of that type already stays. */
bool mount_on(const char *source, const char *target, const char *type, unsigned long flags,
              const char *options);
/* Wait for one child: its exit status, or 128 and the signal that ended it. */
int wait_for(pid_t child);

/* command_line.c: the kernel's command line. */

enum { COMMAND_LINE_MAX = 8192, VALUE_MAX = 256 };

/* Read /proc/cmdline; false after it has said why. */
bool read_command_line(char line[COMMAND_LINE_MAX]);
/* What stands behind the last `name=`: false when there is none, or none that fits. */
bool command_line_value(const char *line, const char *name, char value[VALUE_MAX]);
/* Whether a word stands there by itself. */
bool command_line_has(const char *line, const char *word);
/* The host name that it gives, by banger.hostname= or the fifth field of ip=; false: none. */
bool command_line_hostname(const char *line, char name[VALUE_MAX]);
/* Letters, digits, points and hyphens, as hostname(7) has it. */
bool is_hostname(const char *name);
/* Cut a list at `separator`: at most `most` parts, in place. Returns their number. */
size_t split(char *list, char separator, char **parts, size_t most);

#endif

/* banger-guest: the one program that banger-reconcile puts into a guest image.
 *
 * Roles share this header. A role is a function of (argc, argv) with argv[0] its name; main.c picks
 * it. The program is static, allocates nothing on the heap, and trusts nobody who connects to it.
 */
#ifndef BANGER_GUEST_H
#define BANGER_GUEST_H

#include <stdbool.h>
#include <stddef.h>

/* Raised when the behaviour changes. Not the package's version: a release that leaves the guest
 * alone must leave these bytes, and with them every image's id, alone too. */
#define BANGER_GUEST_VERSION "1"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 64 };

/* The roles. */
int agent_main(int argc, char **argv);

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
bool parse_number(const char *string, unsigned long maximum, unsigned long *number);

/* Say one line on standard error; `error` is an errno value, or 0 for none. */
void say(const char *what, const char *about, int error);
/* Print one string on standard output. */
void print(const char *string);

#endif

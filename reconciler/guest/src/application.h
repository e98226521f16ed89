/* The image's own program, as /etc/banger/image.json has it. */
#ifndef BANGER_APPLICATION_H
#define BANGER_APPLICATION_H

#include "guest.h"

enum { MOST_STRINGS = 1024 };

#define IMAGE_CONFIG "/etc/banger/image.json"

struct application {
    char *arguments[2 * MOST_STRINGS + 1]; /* Entrypoint, then Cmd; NULL at the end */
    size_t count;
    char *variables[MOST_STRINGS]; /* NAME=VALUE */
    size_t variable_count;
    char *user;
    char *folder;
    char *stop_signal;
};

/* Read it; only one at a time. False after it has said why. No file: nothing to run. */
bool application_read(const char *path, struct application *application);
/* The number of its stop signal; SIGTERM when it names none or one that is not known. */
int application_stop_signal(const struct application *application);
/* Become it: user, folder, environment, program. Returns an exit status after it has said why. */
int application_become(const struct application *application);

#endif

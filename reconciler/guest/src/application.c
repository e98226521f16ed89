/* The role "run", and what PID 1 starts: become the image's own program, as its config says. The user
 * is resolved here, in the guest, where the image's own /etc/passwd is. */
#include "application.h"
#include "json.h"
#include "users.h"

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CONFIG_MAX = 1 << 20, NOT_RUNNABLE = 126, NOT_FOUND = 127 };

struct strings {
    char *items[MOST_STRINGS];
    size_t count;
};

struct config {
    struct strings entrypoint, command;
};

static bool read_member(struct json *json, const char *key, struct config *config,
                        struct application *to)
{
    if (strcmp(key, "Entrypoint") == 0)
        return json_list(json, config->entrypoint.items, MOST_STRINGS, &config->entrypoint.count);
    if (strcmp(key, "Cmd") == 0)
        return json_list(json, config->command.items, MOST_STRINGS, &config->command.count);
    if (strcmp(key, "Env") == 0)
        return json_list(json, to->variables, MOST_STRINGS, &to->variable_count);
    if (strcmp(key, "User") == 0)
        return json_string(json, &to->user);
    if (strcmp(key, "WorkingDir") == 0)
        return json_string(json, &to->folder);
    if (strcmp(key, "StopSignal") == 0)
        return json_string(json, &to->stop_signal);
    return json_skip(json);
}

static bool read_members(char *content, struct config *config, struct application *to)
{
    struct json json = {.at = content};
    char *key;
    if (!json_open(&json))
        return false;
    for (;;) {
        if (!json_member(&json, &key))
            return false;
        if (key == NULL)
            return json_ended(&json);
        if (!read_member(&json, key, config, to))
            return false;
    }
}

static void append(struct application *to, const struct strings *strings)
{
    for (size_t i = 0; i < strings->count; i++)
        to->arguments[to->count++] = strings->items[i];
}

bool application_read(const char *path, struct application *application)
{
    static char content[CONFIG_MAX]; /* the strings of the result lie in it */
    static struct config config;
    memset(application, 0, sizeof *application);
    memset(&config, 0, sizeof config);
    ssize_t length = read_file(path, content, sizeof content);
    if (length < 0 && errno == ENOENT)
        return true;
    if (length < 0) {
        say("cannot read", path, errno);
        return false;
    }
    if (strlen(content) != (size_t)length || !read_members(content, &config, application)) {
        say("not the config of an image", path, 0);
        memset(application, 0, sizeof *application);
        return false;
    }
    append(application, &config.entrypoint);
    append(application, &config.command);
    return true;
}

int application_stop_signal(const struct application *application)
{
    static const struct {
        const char *name;
        int number;
    } known[] = {
        {"TERM", SIGTERM}, {"INT", SIGINT},   {"QUIT", SIGQUIT}, {"HUP", SIGHUP},
        {"KILL", SIGKILL}, {"USR1", SIGUSR1}, {"USR2", SIGUSR2}, {"WINCH", SIGWINCH},
        {"ABRT", SIGABRT}, {"ALRM", SIGALRM}, {"CONT", SIGCONT}, {"PWR", SIGPWR},
    };
    static const char rtmin[] = "RTMIN+";
    const char *name = application->stop_signal;
    unsigned long number;
    if (name == NULL || *name == '\0')
        return SIGTERM;
    if (parse_number(name, (unsigned long)SIGRTMAX, &number) && number > 0)
        return (int)number;
    if (strncmp(name, "SIG", 3) == 0)
        name += 3;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(known[i].name, name) == 0)
            return known[i].number;
    if (strncmp(name, rtmin, sizeof rtmin - 1) == 0 &&
        parse_number(name + sizeof rtmin - 1, (unsigned long)(SIGRTMAX - SIGRTMIN), &number))
        return SIGRTMIN + (int)number;
    say("unknown stop signal, SIGTERM is used", application->stop_signal, 0);
    return SIGTERM;
}

static void set_environment(const struct application *application, const struct user *user)
{
    setenv("PATH", DEFAULT_PATH, 1);
    setenv("HOME", user->home, 1);
    for (size_t i = 0; i < application->variable_count; i++)
        if (strchr(application->variables[i], '=') != NULL)
            putenv(application->variables[i]);
}

/* A working directory that is missing is made, as container runtimes do. */
static bool enter(char *folder)
{
    for (char *at = folder + 1; *at != '\0'; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        mkdir(folder, 0755);
        *at = '/';
    }
    mkdir(folder, 0755);
    return chdir(folder) == 0;
}

/* Who is that user already stays what it is: so the role also runs where nobody may change. */
static bool become_user(const struct user *user)
{
    if (geteuid() == user->uid && getegid() == user->gid && user->uid != 0)
        return true;
    return setgroups(user->group_count, user->groups) == 0 && setgid(user->gid) == 0 &&
           setuid(user->uid) == 0;
}

int application_become(const struct application *application)
{
    static struct user user;
    char root[] = "/", *folder = application->folder;
    if (folder == NULL || *folder != '/')
        folder = root;
    if (!user_find(application->user != NULL ? application->user : "", &user))
        return NOT_RUNNABLE;
    if (!enter(folder)) {
        say("cannot enter the working directory", folder, errno);
        return NOT_RUNNABLE;
    }
    clearenv();
    set_environment(application, &user);
    if (!become_user(&user)) {
        say("cannot become the image's user", application->user, errno);
        return NOT_RUNNABLE;
    }
    execvp(application->arguments[0], application->arguments);
    int error = errno;
    say("cannot run", application->arguments[0], error);
    return error == ENOENT ? NOT_FOUND : NOT_RUNNABLE;
}

int run_main(int argc, char **argv)
{
    static struct application application;
    speak_as("run");
    if (argc > 2) {
        say("too many arguments", argv[2], 0);
        return EXIT_USAGE;
    }
    if (!application_read(argc > 1 ? argv[1] : IMAGE_CONFIG, &application))
        return EXIT_FAILED;
    if (application.count == 0) {
        say("the image has neither entrypoint nor command", NULL, 0);
        return EXIT_FAILED;
    }
    return application_become(&application);
}

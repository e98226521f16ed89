/* The role "init": PID 1 of images that have no init of their own.
 *
 * Mounts, network, agent and first boot; then the image's own program, or a shell on the console when
 * it has none. PID 1 reaps whatever ends, hands a request to stop on to the program, and ends the
 * machine after it, with the program's exit status on the console.
 */
#include "application.h"
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    STOP_SECONDS = 10,        /* as container runtimes wait */
    FAREWELL_MS = 1000,       /* for processes that the program left behind */
    AGENT_PAUSE_SECONDS = 1,
};

struct machine {
    struct application application;
    sigset_t signals;
    pid_t program, agent;
    bool ended;
    int status;
    bool restart; /* at the end, in place of power-off */
    time_t kill_at, agent_at;
};

static time_t seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static void mount_all(void)
{
    const unsigned long safe = MS_NOSUID | MS_NODEV;
    mount_on("proc", "/proc", "proc", safe | MS_NOEXEC, NULL);
    mount_on("sysfs", "/sys", "sysfs", safe | MS_NOEXEC, NULL);
    mount_on("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    mount_on("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666");
    mount_on("tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777");
    mount_on("tmpfs", "/run", "tmpfs", safe, "mode=0755");
    mount_on("tmpfs", "/tmp", "tmpfs", safe, "mode=1777");
    symlink("/proc/self/fd", "/dev/fd");
    symlink("/proc/self/fd/0", "/dev/stdin");
    symlink("/proc/self/fd/1", "/dev/stdout");
    symlink("/proc/self/fd/2", "/dev/stderr");
    make_folder("/run/banger", 0755);
}

static pid_t fork_clean(void)
{
    sigset_t none;
    pid_t child = fork();
    if (child != 0) {
        if (child < 0)
            say("cannot fork", NULL, errno);
        return child;
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    return 0;
}

/* A role as a child. Waited for when `name` is not that of the agent. */
static pid_t start_role(int (*role)(int argc, char **argv), const char *name)
{
    char word[32];
    char *arguments[] = {word, NULL};
    pid_t child = fork_clean();
    if (child != 0)
        return child;
    struct text text = text_in(word, sizeof word - 1);
    text_add(&text, name);
    word[text.length] = '\0';
    prctl(PR_SET_NAME, word);
    _exit(role(1, arguments));
}

static void run_role(int (*role)(int argc, char **argv), const char *name)
{
    pid_t child = start_role(role, name);
    int status = child > 0 ? wait_for(child) : EXIT_FAILED;
    if (status != 0)
        say("this step failed, going on without it", name, 0);
}

static void note_application(const char *state, unsigned long long number)
{
    char content[64];
    struct text text = text_in(content, sizeof content - 1);
    text_add(&text, state);
    text_add(&text, " ");
    text_add_number(&text, number);
    text_add(&text, "\n");
    content[text.length] = '\0';
    if (!replace_file(APPLICATION_STATE, content, 0644))
        say("cannot write", APPLICATION_STATE, errno);
}

/* The console by its own name: only there can a shell control its jobs. */
static void open_console(void)
{
    char names[128], path[160];
    struct text text = text_in(path, sizeof path - 1);
    text_add(&text, "/dev/");
    ssize_t length = read_file("/sys/class/tty/console/active", names, sizeof names);
    if (length <= 1)
        return;
    names[length - 1] = '\0';
    const char *last = strrchr(names, ' ');
    text_add(&text, last != NULL ? last + 1 : names);
    path[text.length] = '\0';
    int fd = open(path, O_RDWR);
    if (fd < 0)
        return;
    for (int standard = 0; standard < 3; standard++)
        dup2(fd, standard);
    if (fd > 2)
        close(fd);
    ioctl(0, TIOCSCTTY, 1);
}

static void start_program(struct machine *machine)
{
    static char shell[] = "/bin/sh";
    struct application *application = &machine->application;
    bool interactive = application->count == 0;
    if (interactive) {
        say("the image names no program: a shell on the console", NULL, 0);
        application->arguments[application->count++] = shell;
    }
    machine->program = fork_clean();
    if (machine->program == 0) {
        if (interactive)
            open_console();
        _exit(application_become(application));
    }
    machine->ended = machine->program < 0;
    machine->status = EXIT_FAILED;
    if (!machine->ended)
        note_application("running", (unsigned long long)machine->program);
}

static void start_agent(struct machine *machine)
{
    machine->agent = start_role(agent_main, "vsock-agent");
    machine->agent_at = machine->agent < 0 ? seconds() + AGENT_PAUSE_SECONDS : 0;
}

static void reap(struct machine *machine)
{
    int status;
    pid_t child;
    while ((child = waitpid(-1, &status, WNOHANG)) > 0) {
        if (child == machine->agent) {
            machine->agent = 0;
            machine->agent_at = seconds() + AGENT_PAUSE_SECONDS;
        }
        if (child == machine->program) {
            machine->ended = true;
            machine->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        }
    }
}

static void ask_to_stop(struct machine *machine, int received)
{
    machine->restart = received == SIGINT; /* what the kernel sends for ctrl-alt-del */
    kill(machine->program, application_stop_signal(&machine->application));
    if (machine->kill_at == 0)
        machine->kill_at = seconds() + STOP_SECONDS;
}

/* A freshly booted vsock may come late: the agent is tried again until it stays. */
static void attend(struct machine *machine)
{
    const struct timespec tick = {.tv_sec = 1};
    while (!machine->ended) {
        int received = sigtimedwait(&machine->signals, NULL, &tick);
        if (received > 0 && received != SIGCHLD)
            ask_to_stop(machine, received);
        reap(machine);
        if (machine->kill_at != 0 && seconds() >= machine->kill_at)
            kill(machine->program, SIGKILL);
        if (machine->agent_at != 0 && seconds() >= machine->agent_at)
            start_agent(machine);
    }
}

/* Who is left is our child, or the child of one; signalling all would reach the kernel's own, too,
 * so it is by having no child that we know. */
static void end_the_others(void)
{
    const struct timespec pause = {.tv_nsec = 10 * 1000000L};
    kill(-1, SIGTERM);
    for (int waited = 0; waited < FAREWELL_MS; waited += 10) {
        pid_t child;
        while ((child = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        if (child < 0 && errno == ECHILD)
            return;
        nanosleep(&pause, NULL);
    }
    kill(-1, SIGKILL);
}

static _Noreturn void end_machine(bool restart)
{
    end_the_others();
    sync();
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    reboot(restart ? RB_AUTOBOOT : RB_POWER_OFF);
    say("the machine does not end", NULL, errno);
    for (;;)
        pause();
}

/* banger.end=reboot is for machines that know no other end, such as Firecracker's. */
static bool ends_by_reboot(void)
{
    static char line[COMMAND_LINE_MAX];
    char value[VALUE_MAX];
    return read_command_line(line) && command_line_value(line, "banger.end", value) &&
           strcmp(value, "reboot") == 0;
}

static void catch_signals(sigset_t *signals)
{
    static const int wanted[] = {SIGCHLD, SIGTERM, SIGINT, SIGPWR, SIGUSR1, SIGUSR2};
    sigemptyset(signals);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        sigaddset(signals, wanted[i]);
    sigprocmask(SIG_BLOCK, signals, NULL);
    reboot(RB_DISABLE_CAD); /* SIGINT in place of a sudden end */
}

int init_main(int argc, char **argv)
{
    static struct machine machine;
    (void)argc;
    speak_as("init");
    if (getpid() != 1) {
        say("only the kernel starts this", argv[0], 0);
        return EXIT_USAGE;
    }
    catch_signals(&machine.signals);
    mount_all();
    run_role(network_main, "network");
    if (exists(FIRST_BOOT_MARKER))
        run_role(first_boot_main, "first-boot");
    start_agent(&machine);
    if (!application_read(IMAGE_CONFIG, &machine.application))
        say("the image's program is not known", NULL, 0);
    start_program(&machine);
    attend(&machine);
    note_application("ended", (unsigned long long)machine.status);
    say_number("the application ended with status", (unsigned long long)machine.status);
    end_machine(machine.restart || ends_by_reboot());
}

/* /health: how long the guest is up, whether its first boot is done, and what in it has failed. */
#include "reports.h"

#include <string.h>
#include <time.h>

static void add_member(struct text *body, const char *name)
{
    text_add(body, body->length == 1 ? "\"" : ",\"");
    text_add(body, name);
    text_add(body, "\":");
}

static void add_uptime(struct text *body)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    add_member(body, "uptime_seconds");
    text_add_number(body, (unsigned long long)now.tv_sec);
}

static void add_boot_id(struct text *body)
{
    char id[64];
    ssize_t length = read_file("/proc/sys/kernel/random/boot_id", id, sizeof id);
    if (length <= 0)
        return;
    id[length - 1] = '\0';
    add_member(body, "boot_id");
    text_add_json(body, id);
}

/* PID 1 of ours leaves "running PID" or "ended STATUS". */
static void add_application(struct text *body)
{
    char note[64], *parts[2];
    unsigned long number;
    ssize_t length = read_file(APPLICATION_STATE, note, sizeof note);
    if (length <= 0)
        return;
    note[length - 1] = '\0';
    if (split(note, ' ', parts, 2) != 2 || !parse_number(parts[1], 0xffffffffUL, &number))
        return;
    add_member(body, "application");
    text_add(body, "{\"state\":");
    text_add_json(body, parts[0]);
    text_add(body, strcmp(parts[0], "running") == 0 ? ",\"pid\":" : ",\"status\":");
    text_add_number(body, number);
    text_add(body, "}");
}

void health_report(struct text *body)
{
    char names[8192];
    struct text units = text_in(names, sizeof names);
    bool known = failed_units(&units) && !units.cut;
    text_add(body, "{");
    add_member(body, "status");
    text_add_json(body, known && units.length > 2 ? "degraded" : "ok");
    add_uptime(body);
    add_boot_id(body);
    add_member(body, "first_boot");
    text_add_json(body, exists(FIRST_BOOT_MARKER) ? "pending" : "done");
    if (known) {
        add_member(body, "failed_units");
        text_add_bytes(body, units.data, units.length);
    }
    add_application(body);
    text_add(body, "}\n");
}

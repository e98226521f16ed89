/* A report looks at the whole guest, so it is made once a second at most, however many peers ask. */
#include "routes.h"
#include "http.h"
#include "reports.h"

#include <string.h>
#include <time.h>

enum { REPORT_MS = 1000 };

long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static const struct route {
    const char *path;
    void (*report)(struct text *body);
} routes[] = {
    {"/health", health_report},
    {"/ports", ports_report},
};

static struct report {
    long long good_until;
    size_t length;
    char body[BODY_MAX];
} reports[sizeof routes / sizeof routes[0]];

static void answer_report(struct text *answer, size_t number)
{
    struct report *report = &reports[number];
    if (now_ms() >= report->good_until) {
        struct text body = text_in(report->body, sizeof report->body);
        routes[number].report(&body);
        report->length = body.length;
        report->good_until = now_ms() + REPORT_MS;
    }
    http_answer(answer, "200 OK", "application/json", report->body, report->length);
}

void answer_path(struct text *answer, const char *path)
{
    if (strcmp(path, "/ping") == 0) {
        http_answer(answer, "200 OK", "text/plain", "pong", 4);
        return;
    }
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (strcmp(routes[i].path, path) == 0) {
            answer_report(answer, i);
            return;
        }
    }
    http_answer(answer, "404 Not Found", "text/plain", "not found\n", 10);
}

/* What the agent tells about its guest: each writes one JSON document. */
#ifndef BANGER_REPORTS_H
#define BANGER_REPORTS_H

#include "guest.h"

void health_report(struct text *body);
void ports_report(struct text *body);

/* systemd.c: the names of failed units as a JSON list; false when systemd does not answer. */
bool failed_units(struct text *body);

#endif

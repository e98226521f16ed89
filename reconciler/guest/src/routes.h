/* What the agent answers to which path. */
#ifndef BANGER_ROUTES_H
#define BANGER_ROUTES_H

#include "guest.h"

/* Milliseconds of a clock that is never set. */
long long now_ms(void);
/* Write the whole answer to a request for `path`. */
void answer_path(struct text *answer, const char *path);

#endif

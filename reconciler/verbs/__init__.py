"""The verbs of the command line: each takes what `cli` parsed, and returns its exit code."""

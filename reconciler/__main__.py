"""`python -m reconciler` is `banger-reconcile`."""

from reconciler.cli import main

main()

"""Kernels: the catalog, the local store, and what the files are by their bytes."""

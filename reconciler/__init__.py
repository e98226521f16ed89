"""banger-reconcile keeps a host's Firecracker guest images equal to what banger.toml says."""

__version__ = "0.1.0"

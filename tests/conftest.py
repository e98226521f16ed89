"""Fixtures for all tests: a registry on loopback, the guest binary under sanitizers."""

pytest_plugins = ["support.guest", "support.registry"]

"""Fixtures for all tests: a registry on loopback, started once a session."""

pytest_plugins = ["support.registry"]

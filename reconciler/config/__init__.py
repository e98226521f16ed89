"""banger.toml: from bytes to a frozen Config, or to all of its problems at once."""

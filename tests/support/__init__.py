"""What several test modules share: images made by hand, registries on loopback."""

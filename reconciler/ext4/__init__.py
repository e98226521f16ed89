"""Our own dealings with ext4 images: reading them, sizing them, scripting debugfs."""

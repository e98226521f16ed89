"""The direct builder: layers stream into the blocks of an ext4 filesystem, with no staging tree."""

"""What goes into a guest image, and the source of the guest binary."""

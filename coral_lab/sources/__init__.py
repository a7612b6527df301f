"""Where products and queries come from: MERIT's files, the hub, what ships with the package; and writing them."""

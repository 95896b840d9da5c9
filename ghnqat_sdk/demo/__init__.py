"""A comparison that needs nothing but the package: a predicted start and a random one, on images
that ship with it."""

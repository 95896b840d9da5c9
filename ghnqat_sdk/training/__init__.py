"""Training of hypernetworks: architecture space, data, loop, evaluation. Nothing in the core imports it."""

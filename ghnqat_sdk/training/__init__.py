"""Training of hypernetworks: spaces of networks, loop, evaluation. Only commands import it."""

"""Spaces of networks to train on and to evaluate."""

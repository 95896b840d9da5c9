"""Bits for each layer under a budget, and networks ranked by predicted accuracy."""

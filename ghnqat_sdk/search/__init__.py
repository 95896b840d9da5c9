"""Bits for each layer under a budget, and networks ranked by predicted accuracy.

suggestion.py  `suggest_bits`
ranking.py     `rank_architectures`
costs.py       what layers cost for one image
"""

"""Bits for each layer under a budget, and networks ranked by predicted accuracy.

suggestion.py  `suggest_bits`
ranking.py     `rank_architectures`
ranked.py      its table and picture
costs.py       what layers cost for one image
"""

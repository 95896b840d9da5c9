"""Bits for each layer under a budget, and networks ranked by predicted accuracy.

suggestion.py  `suggest_bits`
ranking.py     `rank_architectures`
measuring.py   one network of a ranking
ranked.py      a ranking's table and picture
budget.py      what a network may cost
costs.py       what layers and networks cost
"""

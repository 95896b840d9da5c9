"""Bits for each layer under a budget, networks ranked by predicted accuracy, and both together.

suggestion.py  `suggest_bits`
ranking.py     `rank_architectures`
measuring.py   one network of a ranking
scores.py      how well it does
promise.py     how far a short training will bring it
identity.py    whether it is the one that is known
results.py     the file of what is known
processes.py   many networks at once
joint.py       `search_architectures`
ranked.py      a ranking's table and picture
budget.py      what a network may cost
costs.py       what layers and networks cost
"""

"""Spaces of networks to train on and to evaluate.

protocol.py        what a space and an architecture are to the rest of training
described.py       what described architectures share
blocks.py          descriptions of layers, each of which builds its module and counts its cost
cost.py            that cost
drawing.py         draws with integer odds
custom.py          spaces of users
resized.py         a space for images of another size

deepnets.py        ConvNets-250K (re-created): the space
deepnet.py         one network of it
cells.py           its cells, drawn by `genotypes.py`

families.py        networks as people write them: the space
family_recipes.py  the families, and the odds by which they are drawn
family_draw.py     a recipe becomes a plan
family_network.py  a plan becomes a network: stem, rows of `family_rows.py`, head
family_blocks.py   its blocks, of `family_layers.py` and `family_modules.py`
"""

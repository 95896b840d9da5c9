"""Graph hypernetworks: graphs in, tensors out.

ghn.py          the whole, and its config
encoders.py     a batch of graphs to an embedding for each node
attention.py    attention among nodes, for the transformer
decoder.py      embeddings to tensors
tiles.py        how a parameter is cut into tiles
places.py       where channels stand in tiles, and what tells their places
tasks.py        tensors of one kind and what decodes them; weights of many tiles
banks.py        tables that all networks share, mixed by depth
assemble.py     tiles to tensors and back, in copies
scaling.py      how large a tensor becomes

pretrained.py   saved and loaded, from `weights/`, a folder or the Hub
config_file.py  config.json
hub.py          downloads, and errors that say what to do
card.py         model cards
names.py        what hypernetworks and files are called
"""

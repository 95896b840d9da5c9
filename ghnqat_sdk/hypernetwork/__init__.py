"""Graph hypernetworks: graphs in, tensors out.

`ghn.py` is the whole: `encoders.py` embeds the nodes, `decoder.py` makes tensors of embeddings,
`scaling.py` their size. `pretrained.py` and `hub.py` keep them in files.
"""

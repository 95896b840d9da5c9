"""Computation graphs of CNNs.

ops.py          the table of node types: a new one is a row there
layers.py       which modules can be fake-quantized
graph.py        nodes and edges
trace.py        a model becomes a graph
refusals.py     which models do not
merge.py        graphs of two modes become one
recorder.py     sees the calls meanwhile
caches.py       what the run leaves beside the model is gone afterwards
heads.py        where it ends in the scores of classes
channels.py     where the channels come from that a layer reads
torch_calls.py  what one call says of itself
annotate.py     bits written into a graph
batch.py        graphs as tensors, for encoders
draw.py         a picture, laid out by `layout.py`
"""

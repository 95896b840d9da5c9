"""Computation graphs of CNNs.

`ops.py` is the table of node types: a new one is a row there. `trace.py` makes a `graph.py` of a
model, `recorder.py` sees the calls meanwhile, `annotate.py` writes bits into it, and `batch.py`
makes tensors of it.
"""

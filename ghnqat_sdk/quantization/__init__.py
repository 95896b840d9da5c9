"""Fake quantization.

`ranges.py` says where values are clipped and `roundings.py` how they come to levels, with the
arithmetic of `functional.py`. `quantizers.py` does it to one tensor, `layers.py` to a layer, and
`convert.py` makes such layers of torch's. `norms.py` says why batch norm is special before
`calibrate.py` has run.
"""

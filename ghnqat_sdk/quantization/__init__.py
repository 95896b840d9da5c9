"""Fake quantization.

functional.py  the arithmetic: scale, zero point, rounding with a gradient
ranges.py      between which ends values are clipped; functional.py clamps
roundings.py   how they come to levels
quantizers.py  does both to one tensor
layers.py      to a layer: its input and its weight
norms.py       why batch norm is special before `calibrate`
unfused.py     transformer encoders that call their layers
classes.py     which class stands for which of torch's or a user's
convert.py     a model becomes fake-quantized, and float again
unquantized.py what it computes in float, by its graph
added.py       what was put in afterwards
computed.py    weights that are computed at each call, and what stores them
state.py       what the layers of one model know in common
lookup.py      the layers of a model, and running them at other bits

calibrate.py   norm statistics and input ranges, from what `observers.py` sees
calibration_report.py  what it fixed
chunks.py      images that share statistics
normalized.py  whether images are normalized
histograms.py  ranges by percentile and by least error
report.py      what quantization does to each layer, by `outputs.py`
store.py       a model on disk, with the `settings.py` of its layers
"""

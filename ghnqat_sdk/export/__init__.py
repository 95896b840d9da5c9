"""Calibrated models for other runtimes: ONNX and torchao PT2E.

onnx.py           `export_onnx`, from the model to the checked file
arguments.py      what is asked of it, checked before anything slow
layers.py         which layers can be exported
program.py        the model as torch exports it, with ONNX's quantizers
recorded.py       the model as torch records it, for which sizes
onnx_graph.py     an ONNX graph, and changes that keep what it computes
integer_nodes.py  which operations can compute with integers
edges.py          which values are integers at run time
observe.py        the ranges of these, seen on images
integer.py        the form that runs in integers
norms.py          batch norms that follow no layer
weights.py        stored weights the way round in which they are read, in signed bytes
storage.py        weights of few bits, packed
sizes.py          which sizes of images it is right for
runtime.py        what ONNX Runtime makes of a file
report.py         what was exported, and how outputs compare
facts.py          what a file says of its images and scores
classifier.py     an exported file on image files
pt2e.py           weights and settings for torchao's PT2E flow
foldable.py       what torchao folds, and where that goes wrong
scales.py         scales and zero points of these
xnnpack.py        what XNNPACK needs quantized beside the inputs of layers
"""

from ghnqat_sdk.export.onnx import export_onnx
from ghnqat_sdk.export.pt2e import pt2e_quantizer
from ghnqat_sdk.export.report import OnnxReport

__all__ = ["OnnxReport", "export_onnx", "pt2e_quantizer"]

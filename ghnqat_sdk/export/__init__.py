"""Calibrated models for other runtimes: ONNX and torchao PT2E."""

from ghnqat_sdk.export.onnx import export_onnx
from ghnqat_sdk.export.pt2e import pt2e_quantizer
from ghnqat_sdk.export.report import OnnxReport

__all__ = ["OnnxReport", "export_onnx", "pt2e_quantizer"]

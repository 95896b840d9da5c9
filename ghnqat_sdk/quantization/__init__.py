"""Fake quantization: numerics, modules, conversion, calibration."""

"""Computation graphs of CNNs: vocabulary, values, tracing."""

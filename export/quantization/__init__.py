"""Quantized weights: options, rounding, formats for each runtime, and the measured cost."""

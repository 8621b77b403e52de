"""Weights in fewer bits: what can be asked for, how matrices are rounded and stored, and what it costs."""

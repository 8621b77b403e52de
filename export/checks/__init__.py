"""Comparison of exported graphs with PyTorch, before a bundle is written."""

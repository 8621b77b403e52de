"""The steps of ``python -m benchmarks.gpu_run``: what runs in which order, within the budget, and the tables."""

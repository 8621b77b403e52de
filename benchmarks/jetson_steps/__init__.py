"""The parts of ``python -m benchmarks.jetson``: the board's state, its power sensors, and decoding beside them."""

"""The parts of ``benchmarks/gpu.py``, each a process of its own that tells what it finds line by line (`rows.py`)."""

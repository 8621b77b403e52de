"""The parts of ``benchmarks/compare.py``: shapes, workload, captions, systems, results, tables, chart."""

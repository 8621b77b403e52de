"""The parts of ``benchmarks/compare.py``: shapes, workload, systems, results, tables, chart."""

"""Scripts behind the published figures, run from the checkout: ``python -m benchmarks.compare``. Not installed."""

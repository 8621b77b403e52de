"""The rate of matrix products is that of the fastest."""

from __future__ import annotations

from flamingo_rt.product_rate import product_rate


def test_the_rate_is_that_of_the_fastest_product() -> None:
    times, products = iter([0.0, 2.0, 2.0, 2.5, 2.5, 5.5]), []
    rate = product_rate(lambda: products.append(1), 1000, repeats=3, clock=lambda: next(times))
    assert rate == 1000 / 0.5
    assert len(products) == 3

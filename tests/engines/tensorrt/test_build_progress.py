"""Progress of a build, from the phases that TensorRT reports."""

from __future__ import annotations

from flamingo_rt.engines.tensorrt.callbacks import Shares


def test_nested_phases_are_one_share_that_never_goes_back() -> None:
    shares, seen = Shares(), []
    shares.start("all", None, 2)
    for step in range(2):
        shares.start("part", "all", 4)
        for inner in range(4):
            shares.step("part", inner)
            seen.append(shares.reached)
        shares.finish("part")
        shares.step("all", step)
        seen.append(shares.reached)
    assert seen == [1 / 8, 2 / 8, 3 / 8, 4 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1.0, 1.0]


def test_phases_nobody_started_are_no_error() -> None:
    shares = Shares()
    shares.step("unknown", 3)
    shares.finish("unknown")
    assert shares.reached == 0.0

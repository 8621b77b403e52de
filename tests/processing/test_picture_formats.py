"""Each kind of picture file shows what its specification says of the samples it was written from."""

from __future__ import annotations

import numpy as np
import pytest
from picture_arithmetic import Case
from picture_cases import cases

from flamingo_rt.errors import DataError
from flamingo_rt.processing.pictures import open_picture

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_picture_is_what_its_format_says(case: Case) -> None:
    if isinstance(case.expected, str):
        with pytest.raises(DataError, match=case.expected):
            open_picture(case.content)
    else:
        picture = np.asarray(open_picture(case.content)).astype(int)
        np.testing.assert_allclose(picture, case.expected, atol=case.tolerance, rtol=0)


def test_no_combination_stands_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES)

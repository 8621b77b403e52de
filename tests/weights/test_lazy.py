"""A lazy tensor reads when asked, converts when read, and refuses to turn numbers into infinities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.regions import Region

FILE = Path("weights.pt")


def lazy(values: Tensor) -> LazyTensor:
    return LazyTensor(tuple(values.shape), values.dtype, FILE, values.clone, "visual.weight")


@pytest.mark.parametrize(
    ("shape", "dtype", "nbytes"),
    [((3, 4), torch.float32, 48), ((), torch.bfloat16, 2), ((0, 5), torch.int64, 0), ((2,), torch.complex64, 16)],
)
def test_the_size_of_a_tensor_is_known_without_reading(shape, dtype, nbytes):
    def read() -> Tensor:
        raise AssertionError("read")

    assert LazyTensor(shape, dtype, FILE, read).nbytes == nbytes


def test_nothing_is_read_by_a_conversion_before_the_read():
    reads = []

    def read() -> Tensor:
        reads.append(1)
        return torch.ones(2)

    half = LazyTensor((2,), torch.float32, FILE, read).to(torch.float16)
    assert (half.dtype, half.nbytes, half.shape, reads) == (torch.float16, 4, (2,), [])
    assert torch.equal(half.read(), torch.ones(2, dtype=torch.float16))
    assert reads == [1]


def test_the_same_type_is_no_conversion():
    tensor = lazy(torch.ones(2))
    assert tensor.to(torch.float32) is tensor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2, torch.complex64])
def test_conversion_is_that_of_torch(dtype):
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lazy(values).to(dtype).read().view(torch.uint8), values.to(dtype).view(torch.uint8))


def test_infinities_and_nans_of_the_file_are_kept():
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    assert torch.equal(lazy(values).to(torch.float16).read(), values.half()) is False  # NaN differs from itself
    assert lazy(values).to(torch.float16).read().tolist()[:2] == [torch.inf, -torch.inf]
    assert lazy(values).to(torch.float16).read()[2].isnan()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (torch.tensor([1.0, -70000.0]), torch.float16),
        (torch.tensor([1.0, 70000.0, torch.inf]), torch.float16),
        (torch.tensor([1e300, 1.0], dtype=torch.float64), torch.float32),
        (torch.tensor([100000]), torch.float16),
        (torch.tensor([1e6]), torch.float8_e5m2),
    ],
)
def test_a_number_that_would_become_infinite_is_refused_by_name(values, dtype):
    with pytest.raises(DataError, match=rf"weights\.pt: tensor visual\.weight holds .*too large for {dtype}: keep"):
        lazy(values).to(dtype).read()


def test_a_tensor_without_a_name_is_named_by_its_file():
    with pytest.raises(DataError, match=r"^weights\.pt: a tensor holds 70000"):
        LazyTensor((), torch.float32, FILE, lambda: torch.tensor(70000.0)).to(torch.float16).read()


def test_complex_numbers_do_not_lose_half_of_themselves():
    with pytest.raises(DataError, match=r"complex64, which torch.float32 cannot hold"):
        lazy(torch.ones(2, dtype=torch.complex64)).to(torch.float32).read()


@pytest.mark.parametrize("strides", [(2**63, 1), (True, 1), (-1, 1)])
def test_a_stride_that_torch_cannot_take_is_refused(tmp_path: Path, strides: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"tensor weight has the shape .* and strides"):
        Region(tmp_path / "weights.bin", 0, 16).tensor("weight", torch.float32, (1, 4), strides)

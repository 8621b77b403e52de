"""Tensors of safetensors files: the library checks the header, `flamingo_rt.weights.regions` reads the values.

``safe_open`` maps the file. Kept open, it adds every page that was read to the process's memory: 1.3 GB for a file of
1.07 GB, against 0.4 GB here. Reopened for each tensor it costs a copy more, and a file that is cut short while it is
mapped ends the process with SIGBUS instead of an error.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from flamingo_rt.errors import DataError
from flamingo_rt.json_files import parse_json
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.regions import AGAIN, Region

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Room for 80,000 tensors at 200 bytes each; the largest models have some thousands. Parsing takes ten times as much.
MOST_HEADER_BYTES = 16_000_000


def open_safetensors(file: Path) -> dict[str, LazyTensor]:
    """Tensors of a safetensors file by name, in the file's order, with nothing read yet.

    Raises `DataError` when the file is damaged or has a type that torch lacks, `OSError` when it can't be read.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MOST_HEADER_BYTES:
            raise DataError(
                f"cannot read {file}: damaged, or not a safetensors file (its header has {length} bytes, at most "
                f"{MOST_HEADER_BYTES} are read); {AGAIN}"
            )
        try:
            # The library checks the header: sizes, overlaps, the file's length.
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, ValueError) as error:
            raise DataError(f"cannot read {file}: damaged, or not a safetensors file ({error}); {AGAIN}") from error
        opened.seek(8)
        try:
            header = parse_json(opened.read(length))
        except ValueError as error:
            raise DataError(f"cannot read {file}: its header is not valid JSON ({error}); {AGAIN}") from error
    header.pop("__metadata__", None)
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if entry["dtype"] not in DTYPES:
            raise DataError(f"{file}: tensor {name} is {entry['dtype']}, which is not read: convert it first")
        begin, end = entry["data_offsets"]
        region = Region(file, 8 + length + begin, end - begin)
        found[name] = region.tensor(name, DTYPES[entry["dtype"]], entry["shape"])
    return found

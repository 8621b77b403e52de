"""Memory of reading a picture: at most a few times its 8-bit pixels, whatever its depth."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from picture_writers import png

from flamingo_rt.errors import DataError
from flamingo_rt.processing import pictures
from flamingo_rt.processing.pictures import FEWER_PIXELS, MAX_PIXELS, open_picture

SIDE = 1200
FIXED = 14_000_000  # bytes that strips and libraries take whatever the size
GREATEST = 1_200_000_000  # bytes, for the largest picture of each kind

# Each picture is read in a process of its own, forked when all is imported: its peak less that of one that reads none.
MEASURE = """
import json, os, resource, sys
import PIL.ImageCms, PIL.Image
from flamingo_rt.processing.pictures import open_picture
PIL.Image.init()
peaks = {}
for path in [None, *sys.argv[1:]]:
    child = os.fork()
    if not child:
        if path is not None:
            open_picture(path)
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    assert status == 0, path
    peaks[path or "none"] = usage.ru_maxrss * 1024
print(json.dumps(peaks))
"""


def of_16_bits(path: Path, colour: int, channels: int, trns: bytes = b"") -> None:
    small = png(np.zeros((1, 1, channels) if channels > 1 else (1, 1), np.int64), 16, colour, trns)
    header = small.index(b"IHDR")
    fields = struct.pack(">II", SIDE, SIDE) + small[header + 12 : header + 17]
    rows = zlib.compress((b"\0" + bytes([0x12, 0x34] * channels * SIDE)) * SIDE)
    data = small.index(b"IDAT")
    path.write_bytes(small[:header] + b"IHDR" + fields + struct.pack(">I", zlib.crc32(b"IHDR" + fields))
                     + small[header + 21 : data - 4] + struct.pack(">I", len(rows)) + b"IDAT" + rows
                     + struct.pack(">I", zlib.crc32(b"IDAT" + rows)) + struct.pack(">I4sI", 0, b"IEND", 0xAE426082))


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_no_picture_within_the_limits_takes_more_than_a_gigabyte_and_some(tmp_path: Path) -> None:
    rgba = PIL.Image.new("RGBA", (SIDE, SIDE), (10, 200, 30, 100))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    floats = PIL.Image.fromarray(np.full((SIDE, SIDE), 0.5, np.float32))
    of_16_bits(tmp_path / "grey16.png", 0, 1)
    of_16_bits(tmp_path / "transparent16.png", 2, 3, bytes(6))
    of_16_bits(tmp_path / "rgba16.png", 6, 4)
    rgb.quantize(4).save(tmp_path / "palette.png", transparency=bytes([1, 2, 3, 4]))
    floats.save(tmp_path / "float.tif")
    rgba.save(tmp_path / "rgba.tif", compression="tiff_deflate")
    rgb.save(tmp_path / "rgb.jpg")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    rgba.save(tmp_path / "rgba.webp", lossless=True, method=0)
    rgba.save(tmp_path / "rgba.jp2")
    grey.save(tmp_path / "grey.gif")
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    limits = {"webp": FEWER_PIXELS["WEBP"], "jp2": FEWER_PIXELS["JPEG2000"]}
    for file in files:
        a_pixel = (peaks[file] - peaks["none"] - FIXED) / SIDE**2
        assert a_pixel * limits.get(file.rsplit(".")[-1], MAX_PIXELS) < GREATEST, (file, a_pixel)


@pytest.mark.parametrize("kind", ["WEBP", "JPEG2000"])
def test_formats_whose_decoders_take_more_have_a_lower_limit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pictures.FEWER_PIXELS, kind, 99)
    PIL.Image.new("RGB", (10, 10)).save(tmp_path / "a", kind)
    with pytest.raises(DataError, match="10 x 10 pixels, more than the 99 that are read"):
        open_picture(tmp_path / "a")


def test_the_size_of_a_jpeg_2000_file_is_that_of_its_codestream(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (10, 10)).save(tmp_path / "a.jp2")
    content = bytearray((tmp_path / "a.jp2").read_bytes())
    at = content.index(b"\xff\x4f\xff\x51") + 8
    content[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(DataError, match="its codestream 60000 x 60000"):
        open_picture(bytes(content))


def test_bytes_in_a_box_before_it_are_not_taken_for_the_codestream(tmp_path: Path) -> None:
    PIL.Image.new("L", (10, 10), 77).save(tmp_path / "a.jp2")
    content = (tmp_path / "a.jp2").read_bytes()
    at, note = content.index(b"jp2c") - 4, b"\xff\x4f\xff\x51" + bytes(60)
    noted = content[:at] + struct.pack(">I4s", 8 + len(note), b"free") + note + content[at:]
    assert open_picture(noted).getpixel((3, 3)) == (77, 77, 77)


def test_strips_give_what_the_whole_picture_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from flamingo_rt.processing import picture_strips

    random = np.random.default_rng(5)
    sources = [PIL.Image.fromarray(random.integers(0, 256, (37, 23, 4), dtype=np.uint8)),
               PIL.Image.fromarray(random.integers(0, 65536, (37, 23), dtype=np.uint16)),
               PIL.Image.fromarray(random.random((37, 23), dtype=np.float32) * 255)]
    whole = [np.asarray(open_picture(source)) for source in sources]
    for pixels in (1, 7, 23, 60):
        monkeypatch.setattr(picture_strips, "STRIP_PIXELS", pixels)
        for source, expected in zip(sources, whole, strict=True):
            np.testing.assert_array_equal(np.asarray(open_picture(source)), expected)

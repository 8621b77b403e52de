"""Pictures of every common kind are read rightly; whatever cannot be read is refused with its name and a remedy."""

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_or_refused import may_be_refused

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing import pictures
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.video import read_frames
from flamingo_rt.processing.visuals import Image, Video

RAMP16 = np.linspace(0, 65535, 20).round().astype(np.uint16).reshape(4, 5)
RAMP8 = np.rint(RAMP16 / 257).astype(np.uint8)
COLOURS = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    """The bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source):
    picture = open_picture(source)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def grey(values):
    return np.stack([values] * 3, -1).astype(int)


def png(width, height, depth, colour, data=b"", extra=b""):
    """A PNG file from its parts; Pillow cannot write all of them."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data))
            + chunk(b"IEND", b""))


def rows(values):
    """PNG image data, 16 bits, of uint16 [H, ...], with filter 0."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


# --- read rightly


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG2000"])
def test_colours_of_lossless_formats_are_exact(kind):
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    np.testing.assert_array_equal(pixels(encode(PIL.Image.fromarray(COLOURS), kind, **options)), COLOURS)


def test_jpeg_colours_are_close():
    smooth = np.zeros((16, 16, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    np.testing.assert_allclose(pixels(encode(PIL.Image.fromarray(smooth), "JPEG", quality=95)), smooth, atol=3)


@pytest.mark.parametrize("make", [str, lambda path: path, lambda path: path.read_bytes(), PIL.Image.open])
def test_path_bytes_and_pillow_image_read_alike(tmp_path, make):
    path = tmp_path / "a.png"
    path.write_bytes(encode(PIL.Image.fromarray(COLOURS)))
    np.testing.assert_array_equal(pixels(make(path)), COLOURS)


def test_arrays_are_rgb_or_grey():
    np.testing.assert_array_equal(pixels(COLOURS), COLOURS)
    np.testing.assert_array_equal(pixels(COLOURS[::-1, ::2]), COLOURS[::-1, ::2])
    np.testing.assert_array_equal(pixels(RAMP8), grey(RAMP8))


def test_arrays_of_opencv_are_bgr_if_one_says_so():
    np.testing.assert_array_equal(np.asarray(open_picture(COLOURS, "BGR")), COLOURS[..., ::-1])
    np.testing.assert_array_equal(np.asarray(open_picture(RAMP8, "BGR")), grey(RAMP8))
    read = visual_pixels(Image(COLOURS, channels="BGR"), FlamingoConfig())
    np.testing.assert_array_equal(read, visual_pixels(Image(COLOURS[..., ::-1]), FlamingoConfig()))
    for clip in (np.stack([COLOURS, COLOURS]), [COLOURS, COLOURS]):
        frames = read_frames(Video(clip, frames=2, channels="BGR"))
        np.testing.assert_array_equal(np.stack(frames), np.stack([COLOURS[..., ::-1]] * 2))


@pytest.mark.parametrize("source", ["a.png", b"x", PIL.Image.new("RGB", (2, 2))], ids=["path", "bytes", "Pillow"])
def test_channels_are_for_arrays_alone(source):
    with pytest.raises(UsageError, match="is not an array"):
        Image(source, channels="BGR")
    with pytest.raises(DataError, match=r"frame 0 .* is not an array"):
        read_frames(Video([source], channels="BGR"))
    with pytest.raises(UsageError, match="is not an array"):
        Video("a.mp4", channels="BGR")


@pytest.mark.parametrize("channels", ["bgr", "RGBA", None, 3, ["BGR"]], ids=str)
def test_channels_of_another_name_are_refused(channels):
    for make in (Image, Video):
        with pytest.raises(UsageError, match="'RGB' or, for frames of OpenCV, 'BGR'"):
            make(COLOURS, channels=channels)


def test_grey_is_repeated_over_the_channels():
    np.testing.assert_array_equal(pixels(encode(PIL.Image.fromarray(RAMP8))), grey(RAMP8))


def test_black_and_white_becomes_0_and_255():
    image = PIL.Image.fromarray(RAMP8).point(lambda value: 255 * (value > 99), "1")
    np.testing.assert_array_equal(pixels(encode(image)), grey(np.where(RAMP8 > 99, 255, 0)))


def test_palette_colours_are_exact():
    image = PIL.Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 0, 5, 250, 6])
    expected = [[[10, 20, 30], [200, 100, 0]], [[5, 250, 6], [200, 100, 0]]]
    np.testing.assert_array_equal(pixels(encode(image)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    np.testing.assert_array_equal(pixels(encode(PIL.Image.fromarray(RAMP16), kind)), grey(RAMP8))


def test_16_bit_pgm_is_scaled_however_dark():
    """Pillow gives it in mode I, which by itself does not say how many bits there are."""
    np.testing.assert_array_equal(pixels(b"P5 5 4 65535\n" + RAMP16.astype(">u2").tobytes()), grey(RAMP8))
    np.testing.assert_array_equal(pixels(b"P5 1 2 65535\n" + bytes([0, 255, 0, 255])), 1)


def test_big_endian_16_bit_tiff_is_scaled():
    data = RAMP16.astype(">u2").tobytes()
    entries = [(256, 4, 5), (257, 4, 4), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16), (273, 4, 8),
               (277, 3, 1 << 16), (278, 4, 4), (279, 4, len(data))]
    directory = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", t, k, 1, v) for t, k, v in entries)
    tiff = b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + directory + bytes(4)
    np.testing.assert_array_equal(pixels(tiff), grey(RAMP8))


def test_16_bit_rgb_keeps_its_high_bytes():
    """Pillow gives the high byte, at most 1 below the rounded value."""
    values = np.stack([RAMP16, RAMP16[::-1], 65535 - RAMP16], -1)
    np.testing.assert_allclose(pixels(png(5, 4, 16, 2, rows(values))), values / 257, atol=1)


def test_16_bit_grey_with_alpha_is_scaled():
    values = np.stack([RAMP16, np.full_like(RAMP16, 65535)], -1)
    np.testing.assert_allclose(pixels(png(5, 4, 16, 4, rows(values))), grey(RAMP8), atol=1)


def test_16_bit_grey_with_a_transparent_value_shows_white_there():
    file = png(5, 4, 16, 0, rows(RAMP16), b"\0\0\0\x02tRNS\0\0" + struct.pack(">I", zlib.crc32(b"tRNS\0\0")))
    np.testing.assert_array_equal(pixels(file), grey(np.where(RAMP16 == 0, 255, RAMP8)))


@pytest.mark.parametrize("white", [255, 65535])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_modes_i_and_f_are_scaled_by_the_white_that_holds_them(dtype, white):
    image = PIL.Image.fromarray((RAMP8.astype(np.int64) * (white // 255)).astype(dtype))
    np.testing.assert_array_equal(pixels(image), grey(RAMP8))
    np.testing.assert_array_equal(pixels(encode(image, "TIFF")), grey(RAMP8))


def test_floats_from_0_to_1_are_scaled():
    np.testing.assert_array_equal(pixels(PIL.Image.fromarray((RAMP8 / 255).astype(np.float32))), grey(RAMP8))


def test_cmyk_is_converted_and_adobe_jpeg_is_not_inverted():
    image = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    np.testing.assert_array_equal(pixels(encode(image, "TIFF")), np.broadcast_to([255, 0, 0], (16, 16, 3)))
    jpeg = encode(image, "JPEG", quality=95)
    assert b"Adobe" in jpeg
    np.testing.assert_allclose(pixels(jpeg), np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=3)


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "P", "RGB", "La", "RGBa"])
def test_transparent_parts_are_white_and_opaque_parts_are_kept(mode):
    rgba = np.array([[[90, 90, 90, 255], [0, 0, 0, 0]]], np.uint8)
    image = PIL.Image.fromarray(rgba)
    if mode in ("P", "PA"):
        image = PIL.Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
        image.putpalette([90, 90, 90, 0, 0, 0])
        if mode == "P":
            image.info["transparency"] = 1
        else:
            image.putalpha(PIL.Image.fromarray(rgba[..., 3]))
        assert image.mode == mode
    elif mode == "RGB":
        image = image.convert("RGB")
        image.info["transparency"] = (0, 0, 0)
    elif mode == "La":
        image = image.convert("LA").convert("La")
    else:
        image = image.convert(mode)
    np.testing.assert_array_equal(pixels(image), [[[90] * 3, [255] * 3]])
    if mode in ("LA", "RGBA", "P", "RGB"):
        np.testing.assert_array_equal(pixels(encode(image, transparency=image.info.get("transparency"))),
                                      [[[90] * 3, [255] * 3]])


def test_palette_with_an_alpha_per_colour_is_composited():
    image = PIL.Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(pixels(encode(image, transparency=bytes([255, 128, 0])))[0, :, 0], [0, 127, 255], atol=1)


def test_half_transparent_black_is_grey_on_white():
    np.testing.assert_allclose(pixels(PIL.Image.new("RGBA", (1, 1), (0, 0, 0, 128))), 127, atol=1)


# EXIF 2.32, 4.6.4: where the 0th row and column of the stored picture are, undone here with numpy alone.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_undone_once(orientation, kind):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encode(PIL.Image.fromarray(COLOURS), kind, exif=exif, **options)
    once = open_picture(file)
    np.testing.assert_array_equal(np.asarray(once), UPRIGHT[orientation](COLOURS))
    np.testing.assert_array_equal(pixels(once), UPRIGHT[orientation](COLOURS))


def test_rotated_jpeg_of_a_phone_is_upright():
    stored = np.zeros((16, 32), np.uint8)
    stored[:, :16] = 255  # left half white: with orientation 6 the upper half, upright
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    upright = np.zeros((32, 16), np.uint8)
    upright[:16] = 255
    np.testing.assert_allclose(pixels(encode(PIL.Image.fromarray(stored), "JPEG", exif=exif)), grey(upright), atol=3)


def test_rotated_16_bit_png_is_scaled_and_upright():
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    np.testing.assert_array_equal(pixels(encode(PIL.Image.fromarray(RAMP16), exif=exif)), grey(UPRIGHT[8](RAMP8)))


def test_damaged_exif_does_not_refuse_the_picture():
    file = encode(PIL.Image.fromarray(COLOURS), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(file), COLOURS)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind):
    frames = [PIL.Image.new("RGB", (6, 4), colour) for colour in [(250, 0, 0), (0, 250, 0), (0, 0, 250)]]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert PIL.Image.open(io.BytesIO(file)).n_frames == 3
    np.testing.assert_array_equal(pixels(file), np.broadcast_to([250, 0, 0], (4, 6, 3)))


def test_the_source_image_is_left_as_it_was():
    image = PIL.Image.new("RGB", (2, 2), "red")
    open_picture(image).putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 0, 0)


# --- refused


def refusal(source):
    with pytest.raises(DataError) as caught:
        open_picture(source)
    message = str(caught.value)
    assert Image(source).label in message
    assert "\n" not in message
    return message


def test_missing_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.png")
    assert "does not exist" in refusal(str(tmp_path / "none" / "a.png"))


def test_directory_is_refused(tmp_path):
    assert "is a directory" in refusal(tmp_path)


def test_path_with_a_null_byte_is_refused():
    with pytest.raises(DataError, match="cannot be opened"):
        open_picture("a\0b.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe" in refusal(tmp_path / "pipe.png")


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "a.png")
    assert "0 bytes" in refusal(b"")


def test_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode(PIL.Image.fromarray(COLOURS)))
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything

        def denied(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", denied)
    assert "permission denied" in refusal(path)


def test_text_named_png_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("hello world")
    message = refusal(tmp_path / "a.png")
    assert "hello world" in message
    assert "JPEG" in message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_truncated_file_is_refused(tmp_path, kind):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind.lower()}"
    content = encode(PIL.Image.fromarray(noise), kind)
    path.write_bytes(content[: len(content) // 2])
    refusal(path)


def test_postscript_is_not_handed_to_ghostscript():
    assert "not a picture" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 0, 3), np.uint8), np.zeros((0, 5), np.uint8), np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), bool), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8), np.zeros(4, np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_arrays_that_are_no_pictures_are_refused(array):
    refusal(array)


@pytest.mark.parametrize("source", [None, 7, ["a.png"], io.BytesIO(b"")], ids=lambda source: type(source).__name__)
def test_other_types_are_refused(source):
    assert "give a path" in refusal(source)


@pytest.mark.parametrize("values", [[-1.0, 5.0], [0.0, 70000.0], [0.0, np.nan], [0.0, np.inf]], ids=str)
def test_floats_of_unknown_white_are_refused(values):
    assert "white" in refusal(PIL.Image.fromarray(np.array([values], np.float32)))


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_001, 10_000), (65_000, 65_000)])
def test_too_many_pixels_are_refused_from_the_header(width, height):
    assert "more than the 100,000,000" in refusal(png(width, height, 8, 2))


def test_too_many_pixels_in_an_array_are_refused():
    assert "more than" in refusal(np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20_000, 20_000, 3)))


def test_size_that_pillow_warns_of_is_not_refused_for_its_size(recwarn):
    assert "cannot be decoded" in refusal(png(9_500, 10_000, 8, 2))
    assert not recwarn.list


def test_pillow_limit_is_left_alone():
    before = PIL.Image.MAX_IMAGE_PIXELS
    refusal(png(20_000, 20_000, 8, 2))
    assert before == PIL.Image.MAX_IMAGE_PIXELS


def test_closed_and_empty_pillow_images_are_refused():
    with PIL.Image.open(io.BytesIO(encode(PIL.Image.fromarray(COLOURS)))) as closed:
        pass
    refusal(closed)
    refusal(PIL.Image.new("RGB", (0, 3)))


def test_truncated_pillow_image_is_refused():
    content = encode(PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    refusal(PIL.Image.open(io.BytesIO(content[:2000])))


# --- silence


def test_pillow_warnings_do_not_reach_the_user(recwarn, capfd):
    tiff = encode(PIL.Image.fromarray(COLOURS), "TIFF")
    for cut in range(8, len(tiff), 7):
        with contextlib.suppress(DataError):
            open_picture(tiff[:cut])
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_libtiff_messages_do_not_reach_the_user(capfd):
    tiff = encode(NOISE, "TIFF", compression="tiff_lzw")
    for where in range(8, len(tiff), 5):
        with contextlib.suppress(DataError):
            open_picture(tiff[:where] + b"\xff\xff" + tiff[where + 2 :])
    assert capfd.readouterr() == ("", "")
    os.write(2, b"stderr is back")
    assert capfd.readouterr().err == "stderr is back"


def test_warning_filters_are_restored_when_threads_overlap():
    before = list(warnings.filters)
    file = encode(PIL.Image.fromarray(COLOURS))
    threads = [threading.Thread(target=lambda: [open_picture(file) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


# --- any bytes at all

NOISE = PIL.Image.fromarray(np.random.default_rng(2).integers(0, 256, (24, 20, 3), dtype=np.uint8))
FILES = {
    "png": encode(NOISE),
    "png palette": encode(NOISE.quantize(8), transparency=3),
    "png 16": encode(PIL.Image.fromarray(RAMP16)),
    "apng": encode(NOISE, save_all=True, append_images=[NOISE.rotate(180)]),
    "jpeg": encode(NOISE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    "jpeg cmyk": encode(NOISE.convert("CMYK"), "JPEG"),
    "gif": encode(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(180)]),
    "webp": encode(NOISE, "WEBP"),
    "tiff": encode(NOISE, "TIFF"),
    "tiff lzw": encode(NOISE, "TIFF", compression="tiff_lzw"),
    "tiff float": encode(NOISE.convert("F"), "TIFF"),
    "bmp": encode(NOISE, "BMP"),
    "jpeg2000": encode(NOISE, "JPEG2000"),
}


def is_picture_or_data_error(content):
    with may_be_refused("<bytes>"):
        picture = open_picture(content)
        assert picture.mode == "RGB"
        assert min(picture.size) > 0


@pytest.fixture
def small_limit(monkeypatch):
    """Headers may claim any size; decoding 100 million pixels would take the time of the whole suite."""
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1_000_000)


@given(content=st.binary(max_size=200))
@settings(derandomize=True, max_examples=100, deadline=None, database=None)
def test_random_bytes_give_a_picture_or_a_data_error(content):
    is_picture_or_data_error(content)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_give_a_picture_or_a_data_error(kind, small_limit):
    @given(data=st.data())
    @settings(derandomize=True, max_examples=50, deadline=None, database=None)
    def check(data):
        content = bytearray(FILES[kind])
        place = st.one_of(st.integers(0, min(120, len(content) - 1)), st.integers(0, len(content) - 1))
        for where in data.draw(st.lists(place, max_size=4)):
            content[where] = data.draw(st.integers(0, 255))
        end = data.draw(st.one_of(st.just(len(content)), st.integers(1, len(content))))
        is_picture_or_data_error(bytes(content[:end]))

    check()

"""Pillow images of every mode, given as they are, show what their mode says of their values."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import PIL.Image
import pytest
from picture_arithmetic import Case, encoded, lab_to_rgb, samples, shown, ycc_to_rgb
from picture_cases import cases

from flamingo_rt.errors import DataError
from flamingo_rt.processing.pictures import open_picture

GREY, ALPHA = samples(8), samples(8, seed=1)
RGB, FOUR = samples(8, 3), samples(8, 4)
PALETTE = np.random.default_rng(4).integers(0, 256, (256, 4), dtype=np.uint8)
OPAQUE_RGB = shown(RGB, 255)
OVER_WHITE = shown(FOUR[..., :3], 255, FOUR[..., 3] / 255)


def merged(mode: str, values: np.ndarray) -> PIL.Image.Image:
    bands = [PIL.Image.fromarray(values[..., band].astype(np.uint8)) for band in range(values.shape[2])]
    return PIL.Image.merge(mode, bands)


def indexed(mode: str = "RGB", transparency: object = None) -> PIL.Image.Image:
    image = PIL.Image.frombytes("P", GREY.shape[::-1], GREY.astype(np.uint8).tobytes())
    image.putpalette(PALETTE[:, : len(mode)].tobytes(), mode)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def palette_with_alpha() -> PIL.Image.Image:
    image = indexed()
    image.putalpha(PIL.Image.fromarray(ALPHA.astype(np.uint8)))
    assert image.mode == "PA"
    return image


def with_transparency(image: PIL.Image.Image, value: object) -> PIL.Image.Image:
    image.info["transparency"] = value
    return image


GREY_ALPHA = np.stack([GREY, ALPHA], -1)
HSV = np.array([[colorsys.hsv_to_rgb(*pixel) for pixel in row] for row in RGB / 255])
LAB = np.stack([GREY // 2 + 70, 120 + ALPHA // 16, 120 + RGB[..., 0] // 16], -1)
YCC = np.stack([GREY // 2 + 60, ALPHA // 8 + 112, RGB[..., 0] // 8 + 112], -1)
HIDDEN = int(GREY[2, 2])

MODES = {
    "1": (PIL.Image.fromarray(GREY > 99), shown(GREY > 99, 1), 0),
    "L": (PIL.Image.fromarray(GREY.astype(np.uint8)), shown(GREY, 255), 0),
    "L, transparent value": (with_transparency(PIL.Image.fromarray(GREY.astype(np.uint8)), HIDDEN),
                             shown(GREY, 255, GREY != HIDDEN), 0),
    "LA": (merged("LA", GREY_ALPHA), shown(GREY, 255, ALPHA / 255), 1),
    "La": (merged("LA", GREY_ALPHA).convert("La"), shown(GREY, 255, ALPHA / 255), 2),
    "P": (indexed(), PALETTE[GREY][..., :3], 0),
    "P, transparent index": (indexed(transparency=HIDDEN), shown(PALETTE[GREY][..., :3], 255, GREY != HIDDEN), 0),
    "P, alpha of each index": (indexed(transparency=PALETTE[:, 3].tobytes()),
                               shown(PALETTE[GREY][..., :3], 255, PALETTE[GREY][..., 3] / 255), 1),
    "P, RGBA palette": (indexed("RGBA"), shown(PALETTE[GREY][..., :3], 255, PALETTE[GREY][..., 3] / 255), 1),
    "PA": (palette_with_alpha(),
           shown(PALETTE[GREY][..., :3], 255, ALPHA / 255), 1),
    "RGB": (merged("RGB", RGB), OPAQUE_RGB, 0),
    "RGB, transparent colour": (with_transparency(merged("RGB", RGB), tuple(RGB[2, 2].tolist())),
                                shown(RGB, 255, (RGB[2, 2] != RGB).any(-1)), 0),
    "RGBX": (merged("RGBX", FOUR), shown(FOUR[..., :3], 255), 0),
    "RGBA": (merged("RGBA", FOUR), OVER_WHITE, 1),
    "RGBa": (merged("RGBA", FOUR).convert("RGBa"), OVER_WHITE, 2),
    "CMYK": (merged("CMYK", FOUR), shown((1 - FOUR[..., :3] / 255) * (1 - FOUR[..., 3:] / 255), 1), 1),
    "YCbCr": (merged("YCbCr", YCC), ycc_to_rgb(YCC), 1),
    "HSV": (merged("HSV", RGB), shown(HSV, 1), 3),
    "LAB": (merged("LAB", LAB), lab_to_rgb((LAB - [0, 128, 128]) * [100 / 255, 1, 1]), 3),
    "I, 8 bits": (PIL.Image.fromarray(GREY.astype(np.int32)), shown(GREY, 255), 0),
    "I, 16 bits": (PIL.Image.fromarray((GREY * 257).astype(np.int32)), shown(GREY, 255), 0),
    "F, to 1": (PIL.Image.fromarray((GREY / 255).astype(np.float32)), shown(GREY, 255), 0),
    "F, to 255": (PIL.Image.fromarray(GREY.astype(np.float32)), shown(GREY, 255), 0),
    **{mode: (PIL.Image.frombytes(mode, GREY.shape[::-1], (GREY * 257).astype(order).tobytes()),
              shown(GREY, 255), 0) for mode, order in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"))},
}


@pytest.mark.parametrize("name", MODES)
def test_a_pillow_image_shows_what_its_mode_says(name: str) -> None:
    image, expected, tolerance = MODES[name]
    assert image.mode == name.split(",")[0]
    before = image.tobytes()
    picture = open_picture(image)
    assert picture.mode == "RGB"
    assert picture is not image
    np.testing.assert_allclose(np.asarray(picture).astype(int), expected, atol=tolerance, rtol=0)
    assert image.tobytes() == before


OPENED = [case for case in cases() if case.container in ("PNG", "TIFF", "GIF", "JPEG2000")
          and not isinstance(case.expected, str)]


def test_an_opened_file_shows_the_same_before_it_is_decoded_as_the_file_itself() -> None:
    def differs(case: Case) -> bool:
        return (np.asarray(open_picture(PIL.Image.open(io.BytesIO(case.content)))).tobytes()
                != np.asarray(open_picture(case.content)).tobytes())

    assert [case.name for case in OPENED if differs(case)] == []


def test_an_opened_file_can_still_be_decoded_and_shows_the_same_each_time() -> None:
    for case in OPENED[::7]:
        image = PIL.Image.open(io.BytesIO(case.content))
        first, second = (np.asarray(open_picture(image)) for _ in range(2))
        np.testing.assert_array_equal(first, second, err_msg=case.name)
        image.load()


def test_a_later_frame_of_an_opened_animation_is_that_frame() -> None:
    frames = [PIL.Image.new("RGB", (6, 4), colour) for colour in [(250, 0, 0), (0, 250, 0)]]
    image = PIL.Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    np.testing.assert_array_equal(np.asarray(open_picture(image)), np.asarray(frames[1]))


def test_a_decoded_16_bit_png_whose_transparent_colour_is_lost_is_refused() -> None:
    case = next(case for case in OPENED if case.name.startswith("PNG RGB tRNS 16 256/512/768"))
    image = PIL.Image.open(io.BytesIO(case.content))
    image.load()
    with pytest.raises(DataError, match=r"colour \(256, 512, 768\) can no longer be found: give the file itself"):
        open_picture(image)


def test_an_opened_file_that_is_closed_is_refused() -> None:
    for case in (next(case for case in OPENED if case.container == container) for container in ("PNG", "TIFF", "GIF")):
        file = io.BytesIO(case.content)
        image = PIL.Image.open(file)
        file.close()
        with pytest.raises(DataError, match=r"cannot be decoded: .*closed"):
            open_picture(image)

"""Reading of containers' headers, on files of a few bytes; every container that is accepted can be read."""

import io
import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_clips import frame, reds, write_clip

from flamingo_rt.processing.containers import FORMATS, Declared, declared
from flamingo_rt.processing.video import read_frames
from flamingo_rt.processing.visuals import Video

# --- headers


def box(kind, *content):
    inside = b"".join(content)
    return struct.pack(">I4s", 8 + len(inside), kind) + inside


def matrix(a, b, c, d):
    return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


SAME, FLIPPED = matrix(65536, 0, 0, 65536), matrix(-65536, 0, 0, 65536)


def track(turned, handler=b"vide", version=0):
    header = bytes([version]) + bytes(51 if version else 39) + turned + bytes(8)
    return box(b"trak", box(b"tkhd", header), box(b"mdia", box(b"hdlr", bytes(8), handler, bytes(13))))


def mp4(*tracks, movie=SAME):
    header = box(b"mvhd", bytes(36), movie, bytes(28))
    return box(b"ftyp", b"isom", bytes(4)) + box(b"mdat", bytes(100)) + box(b"moov", header, *tracks)


MP4S = {
    "not mirrored": (mp4(track(SAME)), False),
    "mirrored": (mp4(track(FLIPPED)), True),
    "mirrored, with 64-bit times": (mp4(track(FLIPPED, version=1)), True),
    "the sound is mirrored": (mp4(track(FLIPPED, b"soun"), track(SAME)), False),
    "the second picture is mirrored": (mp4(track(SAME), track(FLIPPED)), False),
    "behind a sound": (mp4(track(SAME, b"soun"), track(FLIPPED)), True),
    "all of the movie is mirrored": (mp4(track(SAME), movie=FLIPPED), True),
    "mirrored twice": (mp4(track(FLIPPED), movie=FLIPPED), False),
    "cut short": (mp4(track(FLIPPED))[:-40], False),
    "a box of no end": (box(b"ftyp", b"isom") + struct.pack(">I4s", 0, b"moov") + track(FLIPPED), True),
    "a box that says 3 bytes": (box(b"ftyp", b"isom") + struct.pack(">I4s", 3, b"moov") + track(FLIPPED), False),
    "a box of 64 bits": (
        box(b"ftyp", b"isom") + struct.pack(">I4sQ", 1, b"moov", 16 + len(track(FLIPPED))) + track(FLIPPED), True
    ),
    "old QuickTime, without a type": (box(b"moov", track(FLIPPED)), True),
}


@pytest.mark.parametrize(("content", "mirrored"), MP4S.values(), ids=MP4S)
def test_a_mirror_in_an_mp4_is_seen(content, mirrored):
    assert declared(io.BytesIO(content)) == Declared(mirrored=mirrored)


def element(name, *content, unknown=False):
    inside = b"".join(content)
    size = b"\x01" + b"\xff" * 7 if unknown else (len(inside) | 1 << 28).to_bytes(4, "big")
    return bytes.fromhex(name) + size + inside


def entry(kind, *video):
    return element("ae", element("83", bytes([kind])), *([element("e0", *video)] if video else []))


def matroska(*entries, unknown=False):
    tracks = element("1654ae6b", element("bf", bytes(4)), *entries)  # with a checksum before them
    return element("1a45dfa3", bytes(8)) + element("18538067", tracks, element("1f43b675"), unknown=unknown)


def pose(yaw, form=">d"):
    return element("7670", element("7673", struct.pack(form, yaw)))


ALPHA = element("53c0", b"\x01")
MATROSKAS = {
    "plain": (matroska(entry(1, element("b0", b"\x40"))), Declared()),
    "transparent": (matroska(entry(1, ALPHA)), Declared(transparent=True)),
    "alpha of 0": (matroska(entry(1, element("53c0", b"\x00"))), Declared()),
    "transparent, live": (matroska(entry(1, ALPHA), unknown=True), Declared(transparent=True)),
    "behind a sound": (matroska(entry(2), entry(1, ALPHA)), Declared(transparent=True)),
    "the second picture is transparent": (matroska(entry(1, element("b0", b"\x40")), entry(1, ALPHA)), Declared()),
    "seen from behind": (matroska(entry(1, pose(180))), Declared(mirrored=True)),
    "seen from behind, 32 bits": (matroska(entry(1, pose(-180, ">f"))), Declared(mirrored=True)),
    "turned a little": (matroska(entry(1, pose(30))), Declared()),
    "no picture": (matroska(entry(2)), Declared()),
}


@pytest.mark.parametrize(("content", "expected"), MATROSKAS.values(), ids=MATROSKAS)
def test_transparency_and_mirrors_in_matroska_are_seen(content, expected):
    assert declared(io.BytesIO(content)) == expected


@given(data=st.data())
def test_a_damaged_header_declares_something_and_ends(data):
    content = bytearray(data.draw(st.sampled_from([mp4(track(FLIPPED)), matroska(entry(2), entry(1, ALPHA))])))
    for where in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[where] = data.draw(st.integers(0, 255))
    assert isinstance(declared(io.BytesIO(content[: data.draw(st.integers(0, len(content)))])), Declared)


# --- every container

CONTAINERS = {
    "mov": ("a.mov", None, "libx264", "yuv420p"),
    "mp4": ("a.mp4", None, "libx264", "yuv420p"),
    "3gp": ("a.3gp", None, "libx264", "yuv420p"),
    "matroska": ("a.mkv", None, "libx264", "yuv420p"),
    "webm": ("a.webm", None, "libvpx", "yuv420p"),
    "avi": ("a.avi", None, "mpeg4", "yuv420p"),
    "mpegts": ("a.ts", None, "libx264", "yuv420p"),
    "mpeg": ("a.mpg", None, "mpeg2video", "yuv420p"),
    "flv": ("a.flv", None, "flv1", "yuv420p"),
    "asf": ("a.wmv", None, "wmv2", "yuv420p"),
    "ogg": ("a.ogg", "ogg", "libvpx", "yuv420p"),
    "nut": ("a.nut", None, "mpeg4", "yuv420p"),
    "mxf": ("a.mxf", None, "mpeg2video", "yuv420p"),
    "ivf": ("a.ivf", None, "libvpx", "yuv420p"),
    "rm": ("a.rm", None, "rv10", "yuv420p"),
    "dv": ("a.dv", None, "dvvideo", "yuv420p"),
    "mpegvideo": ("a.m2v", None, "mpeg2video", "yuv420p"),
    "m4v": ("a.m4v", "m4v", "mpeg4", "yuv420p"),
    "h264": ("a.h264", None, "libx264", "yuv420p"),
    "hevc": ("a.hevc", None, "libx265", "yuv420p"),
    "mjpeg": ("a.mjpeg", None, "mjpeg", "yuvj420p"),
    "yuv4mpegpipe": ("a.y4m", None, "wrapped_avframe", "yuv420p"),
}
SIZES = {"dv": (720, 576), "rm": (176, 144)}  # the only sizes that these codecs have


def test_every_container_that_is_let_through_has_a_case():
    assert set(FORMATS) == CONTAINERS.keys() - {"mp4", "3gp"}


@pytest.mark.parametrize("library", ["pyav", "opencv"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_is_read(tmp_path, monkeypatch, container, library):
    name, muxer, codec, layout = CONTAINERS[container]
    pictures = [frame(index, *SIZES.get(container, (64, 48))) for index in range(16)]
    clip = write_clip(tmp_path / name, codec, layout, container=muxer, frames=pictures, rate=25, options={"b": "4M"})
    if library == "opencv":
        monkeypatch.setitem(sys.modules, "av", None)
        if container == "dv":  # interlaced, which test_clips_as_they_are_shown looks at
            return
    found = reds(read_frames(Video(clip, frames=4)))
    np.testing.assert_allclose(found, reds([pictures[index] for index in (2, 6, 10, 14)]), atol=8)

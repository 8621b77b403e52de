"""Clips: video files, moving pictures, and what FFmpeg takes for a list of other files."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from pathlib import Path
from random import Random

import cv2
import numpy as np
import PIL.Image

from flamingo_rt.processing.video import read_frames
from flamingo_rt.processing.visuals import Video

from ..corpus.clips import CASES, NAME, write_clip
from ..kind import MEGABYTE, Kind, Seeds, WrongAnswer
from ..mutators import containers, raw
from ..sandbox import Sandbox

SIDE, COUNT, FRAMES = 32, 5, 4
NAMES = ("clip.mp4", "clip.avi", "clip.mkv", "clip.webm", "clip.gif", "clip.png", "clip.m3u8", "clip.mov",
         "clip.ffconcat",
         "clip", "take:1.mp4", "img-%d.png", "clip.sdp", "clip.txt", "clip.mpd", "clip.jpg", "-clip.mp4", "\udcff.mp4")
LISTS = (
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{0}'\n",
    "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\nconcat:{0}|{0}\n#EXT-X-ENDLIST\n",
    "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period><AdaptationSet><Representation><BaseURL>"
    "{0}</BaseURL></Representation></AdaptationSet></Period></MPD>", "RIFF....AVI #EXTM3U\n{0}\n", "{0}\n",
    "[playlist]\nFile1={0}\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n# {0}\n",
)


@contextmanager
def _quiet():
    """Context that hides FFmpeg's own messages about unusual pairs of codec and container."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _seeds(folder: Path) -> Seeds:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) // 4 + 40 * index for index in range(COUNT)]
    frames = [cv2.GaussianBlur(frame.astype(np.uint8), (9, 9), 3) for frame in frames]
    seeds = {}
    with _quiet():
        for name, code in (
            ("part4.mp4", "mp4v"), ("still.avi", "MJPG"), ("exact.avi", "FFV1"), ("part4.mkv", "mp4v"),
            ("part4.mov", "mp4v"),
            ("vp8.webm", "VP80"), ("vp9.webm", "VP90"), ("huff.avi", "HFYU"), ("div3.avi", "DIV3"), ("png.mov", "png "),
        ):
            writer = cv2.VideoWriter(str(folder / name), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 5, (SIDE, SIDE))
            for frame in frames:
                writer.write(frame)
            writer.release()
            if (folder / name).exists() and (folder / name).stat().st_size:
                seeds[name] = (folder / name).read_bytes()
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    for name in ("moving.gif", "moving.png", "moving.webp"):
        file = io.BytesIO()
        pictures[0].save(file, name.rpartition(".")[2], save_all=True, append_images=pictures[1:], duration=100)
        seeds[name] = file.getvalue()
    return seeds


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    seed = rng.choice(sorted(seeds))
    content = seeds[seed]
    name = f"clip{Path(seed).suffix}"
    if rng.random() < 0.15:
        place = rng.choice((
            "../outside/secret.mp4", str(sandbox.outside / "secret.mp4"), f"file:{sandbox.outside}/secret.mp4",
            sandbox.url,
            f"subfile,,start,0,end,9,,:{sandbox.outside}/secret.mp4", f"crypto:{sandbox.outside}/secret.mp4",
        ))
        content = rng.choice(LISTS).format(place).encode()
        name = rng.choice(NAMES)
        if rng.random() < 0.3:
            content = raw.mutate(rng, content)
    else:
        content = containers.mutate(rng, content, seeds[rng.choice(sorted(seeds))])
        name = rng.choice(NAMES) if rng.random() < 0.15 else name
    write_clip(sandbox, name, content)


def _run(sandbox: Sandbox) -> list[PIL.Image.Image]:
    os.chdir(sandbox.input)
    name = (sandbox.input / NAME).read_text(encoding="utf-8", errors="surrogateescape")
    frames = read_frames(Video(name, FRAMES))
    if len(frames) != FRAMES or any(frame.mode != "RGB" for frame in frames):
        raise WrongAnswer(f"{len(frames)} frames, {frames[0].mode}")
    return frames


CLIPS = Kind("clips", _seeds, _write, _run, CASES, memory=900 * MEGABYTE, first=250)

"""A clip is one file: none that a stranger writes or names makes a reader open another, or a connection."""

import socket
import sys

import numpy as np
import PIL.Image
import pytest
from written_clips import level, reds, write_clip

from flamingo_rt.errors import DataError
from flamingo_rt.processing.video import read_frames
from flamingo_rt.processing.visuals import Video

SECRET = [np.full((48, 64, 3), 250, np.uint8)] * 4


@pytest.fixture(params=["pyav", "opencv"], autouse=True)
def reader(request, monkeypatch):
    """Every clip is read by both libraries."""
    if request.param == "opencv":
        monkeypatch.setitem(sys.modules, "av", None)
    return request.param


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a secret clip beside it and one in it."""
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in ("secret.ts", "secret.mp4"):
        write_clip(tmp_path / name, frames=SECRET)
        write_clip(inside / name, frames=SECRET)
    monkeypatch.chdir(inside)
    return inside


@pytest.fixture
def listener():
    """A server that nobody may connect to."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0)
        yield server


def connections(server):
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return 0
    return 1


def playlist(segment):
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{segment}\n#EXT-X-ENDLIST\n"


TEXTS = {
    "playlist": ("clip.m3u8", playlist("../secret.ts")),
    "playlist named as a clip": ("clip.mp4", playlist("../secret.ts")),
    "playlist of a file URL": ("clip.m3u8", playlist("file:../secret.ts")),
    "list of playlists": ("clip.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nother.m3u8\n"),
    "ffconcat": ("clip.mp4", "ffconcat version 1.0\nfile secret.mp4\n"),
    "ffconcat named as text": ("clip.ffconcat", "ffconcat version 1.0\nfile secret.mp4\n"),
    "session": ("clip.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
                            "a=rtpmap:96 H264/90000\n"),
    "DASH": ("clip.mpd", '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
                         'mediaPresentationDuration="PT1S"><Period><AdaptationSet><Representation id="1" '
                         'mimeType="video/mp4"><BaseURL>secret.mp4</BaseURL></Representation></AdaptationSet>'
                         "</Period></MPD>"),
}


@pytest.mark.parametrize(("name", "text"), TEXTS.values(), ids=TEXTS)
def test_a_text_that_names_other_files_is_refused(folder, name, text):
    (folder / "other.m3u8").write_text(playlist("../secret.ts"))
    (folder / name).write_text(text)
    with pytest.raises(DataError, match="is not a video this can read"):
        read_frames(Video(folder / name))


def test_a_playlist_of_addresses_connects_to_nobody(folder, listener):
    (folder / "clip.m3u8").write_text(playlist(f"http://127.0.0.1:{listener.getsockname()[1]}/clip.ts"))
    with pytest.raises(DataError, match="is not a video this can read"):
        read_frames(Video(folder / "clip.m3u8"))
    assert connections(listener) == 0


def test_a_name_with_a_number_in_it_is_no_series_of_pictures(folder):
    for index in range(3):
        PIL.Image.new("RGB", (64, 48), "white").save(folder / f"img-{index}.png")
    (folder / "img-%d.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="is not a video this can read"):
        read_frames(Video("img-%d.png"))


NAMES = ["take:1.mp4", "concat:secret.mp4", "subfile,,start,0,end,0,,:secret.mp4", "file:secret.mp4",
         "cache:secret.mp4", "secret|.mp4", "format_whitelist;hls|a.mp4", "a%20b.mp4", "-.mp4", "é☃.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_with_the_syntax_of_an_address_is_a_file_name(folder, name):
    write_clip(folder / "a.mp4").rename(folder / name)
    np.testing.assert_allclose(reds(read_frames(Video(name, frames=2))), [level(4), level(12)], atol=40)
    np.testing.assert_allclose(reds(read_frames(Video(folder / name, frames=1))), [level(8)], atol=40)


def test_a_name_that_is_not_utf_8_is_read(folder):
    content = write_clip(folder / "a.mp4").read_bytes()
    try:
        with open(b"\xff\xfe.mp4", "wb") as file:
            file.write(content)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert len(read_frames(Video("\udcff\udcfe.mp4", frames=2))) == 2


def test_a_folder_that_looks_like_an_address_is_read_and_nothing_is_fetched(folder, listener):
    path = f"http:/127.0.0.1:{listener.getsockname()[1]}"
    (folder / path).mkdir(parents=True)
    write_clip(folder / path / "clip.mp4")
    assert len(read_frames(Video(f"{path}/clip.mp4", frames=2))) == 2
    assert connections(listener) == 0


def test_opencv_options_of_the_environment_do_not_let_a_playlist_open_files(folder, monkeypatch):
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file,http,tcp|format_whitelist;hls,mpegts")
    (folder / "clip.m3u8").write_text(playlist("../secret.ts"))
    with pytest.raises(DataError, match="is not a video this can read"):
        read_frames(Video(folder / "clip.m3u8"))


def test_a_clip_is_read_where_the_working_folder_is_gone(folder, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert len(read_frames(Video(clip, frames=2))) == 2
    with pytest.raises(DataError, match="does not exist"):
        read_frames(Video("clip.mp4"))
    monkeypatch.chdir(tmp_path)

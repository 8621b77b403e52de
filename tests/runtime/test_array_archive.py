"""Arrays of a stranger's archive: nothing is read, or made, that the expected type and shape do not need."""

import io
import zipfile

import numpy as np
import pytest

from flamingo_rt.runtime.array_archive import ArrayArchive

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def with_header(header: str, values: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + values


def archive(path, content: bytes, compression: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x.npy", content)
    return path


def read(path, dtype="float32", shape=(2, 3)):
    with ArrayArchive(path) as file:
        return file.array("x", dtype, shape)


@pytest.mark.parametrize("array", [
    VALUES, VALUES.astype(np.float16), np.arange(5), np.zeros((1, 2, 0, 4), np.float32), np.float32(3.0).reshape(()),
    np.arange(4, dtype=np.uint16),
], ids=lambda array: f"{array.dtype}{list(array.shape)}")
def test_an_archive_written_by_numpy_is_read(array, tmp_path):
    np.savez(tmp_path / "a.npz", x=array)
    found = read(tmp_path / "a.npz", str(array.dtype), array.shape)
    assert found.dtype == array.dtype
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("content", [
    b"", b"\x93NUMPY", npy(VALUES)[:20], npy(VALUES)[:-1], npy(VALUES) + b"\0", npy(VALUES.T.copy().T),
    npy(VALUES.astype(">f4")), npy(VALUES.astype(np.float64)), npy(VALUES[:1]), npy(np.array(["abc", "def"])),
    with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000000,), }\n"),
    with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'shape': (9**9**9,), }\n"),
    with_header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }\n", bytes(24)),
    with_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3), }\n", bytes(24)),
    with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3), }\n", bytes(24)),
    with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "(" * 500, bytes(24)),
    with_header("\u00b2" * 40, bytes(24)), with_header("", bytes(24), version=b"\x03\x00"),
], ids=lambda content: repr(content[6:60]))
def test_an_array_that_is_not_the_expected_one_is_refused(content, tmp_path):
    with pytest.raises((ValueError, EOFError)):
        read(archive(tmp_path / "a.npz", content))


def test_a_compressed_array_is_refused_before_it_is_inflated(tmp_path):
    path = archive(tmp_path / "a.npz", npy(np.zeros((1000, 1000), np.float32)), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="x is compressed"):
        read(path, shape=(1000, 1000))


def test_a_length_in_the_directory_that_the_file_does_not_have_is_refused(tmp_path):
    path = archive(tmp_path / "a.npz", npy(VALUES))
    content, size = path.read_bytes(), len(npy(VALUES))
    # Both sizes of the central directory; the expected array is as long as they say.
    path.write_bytes(content.replace(size.to_bytes(4, "little") * 2, (size - 24 + 4000).to_bytes(4, "little") * 2))
    with pytest.raises((ValueError, EOFError, zipfile.BadZipFile)):
        read(path, shape=(1000,))


def test_values_that_were_changed_are_noticed(tmp_path):
    path = archive(tmp_path / "a.npz", npy(VALUES))
    path.write_bytes(path.read_bytes().replace(VALUES[1].tobytes(), VALUES[0].tobytes()))
    with pytest.raises(zipfile.BadZipFile):
        read(path)


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", npy(VALUES))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", npy(VALUES + 1))
    with pytest.raises(ValueError, match="twice"):
        ArrayArchive(tmp_path / "a.npz")


def test_a_vector_has_a_longest_length(tmp_path):
    path = archive(tmp_path / "a.npz", npy(np.arange(8)))
    with ArrayArchive(path) as file:
        assert file.vector("x", "int64", 8).tolist() == list(range(8))
        for longest in (7, 0):
            with pytest.raises(ValueError, match=r"x has the shape \[8\]"):
                file.vector("x", "int64", longest)

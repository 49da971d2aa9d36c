"""What is written is there whole, or what was there before is."""

import errno
import os
import shutil
import stat

import pytest

from codet5p_jax.files import new_file, new_folder, write_text


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_mount_that_cannot_sync_folders(tmp_path, monkeypatch, number, fails):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if fails:
        with pytest.raises(OSError, match="Input/output error"):
            write_text(tmp_path / "a", "new")
    else:
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail():
        with new_file(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "old"
            partial.write_text("\ud800")

    with pytest.raises(UnicodeEncodeError):
        fail()
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a.json", "old")]
    write_text(path, "new")
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a.json", "new")]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def make(fail):
        with new_folder(tmp_path / "made") as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / "file").write_text("x")
            assert not (tmp_path / "made").exists()
            if fail:
                raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        make(fail=True)
    assert not list(tmp_path.iterdir())
    make(fail=False)
    assert (tmp_path / "made/inner/file").read_text() == "x"
    with pytest.raises(FileExistsError, match="made exists; name another folder"):
        make(fail=False)
    assert [f.name for f in tmp_path.iterdir()] == ["made"]


def test_a_disk_without_room_is_named_before_and_while_writing(tmp_path, monkeypatch):
    def write(error=None):
        with new_folder(tmp_path / "made", size=2_000_000) as partial:
            (partial / "file").write_text("x")
            if error is not None:
                raise error

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (full, ValueError(f"RESOURCE_EXHAUSTED: {os.strerror(errno.ENOSPC)}")):
        with pytest.raises(OSError, match=r"the disk was full before .*made was complete"):
            write(error)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"made takes 2.0 MB, and .* has 2.0 MB free"):
        write()
    assert not list(tmp_path.iterdir())


def test_a_file_replaces_a_file_alone(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "way").symlink_to(tmp_path / "pipe")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for name, found in [("pipe", "device"), ("way", "device"), ("lost", "a link that leads now")]:
        with pytest.raises(ValueError, match=f"expected a file, found .*{found}"):
            write_text(tmp_path / name, "new")


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "link"):
        pass


def test_of_two_that_make_one_folder_the_first_stays(tmp_path):
    def make(name, meanwhile=None):
        with new_folder(tmp_path / "made") as partial:
            (partial / name).touch()
            if meanwhile:
                meanwhile()

    with pytest.raises(FileExistsError, match="made was made by another process meanwhile"):
        make("second", meanwhile=lambda: make("first"))
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]

"""One process at a time, with file locks and without; what is damaged is set aside."""

import errno
import fcntl
from pathlib import Path

import pytest

from lib.runtime.disk import _say_soft, exclusive, set_aside, written_below


@pytest.fixture(params=[None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def locks(request, monkeypatch):
    """A file system with locks, and several without."""
    _say_soft.cache_clear()

    def none(handle, how):
        raise OSError(request.param, "no locks")

    if request.param:
        monkeypatch.setattr(fcntl, "flock", none)
    return request.param is None


def test_one_at_a_time_with_locks_and_without(locks, tmp_path, capsys):
    for _ in range(2):
        with exclusive(tmp_path / "a"), exclusive(tmp_path / "b"), pytest.raises(BlockingIOError):
            exclusive(tmp_path / "a", wait=False).__enter__()
    with exclusive(tmp_path / "a", wait=False):
        pass
    assert capsys.readouterr().out.count("no file locks here") == (0 if locks else 1), "said once"
    assert not (tmp_path / "a" / ".lock.held").exists()


def test_another_error_is_no_lack_of_locks(tmp_path, monkeypatch):
    def broken(handle, how):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="the disk is broken"):
        exclusive(tmp_path).__enter__()


def test_an_error_inside_leaves_no_lock_behind(locks, tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path):
        raise KeyError
    with exclusive(tmp_path, wait=False):
        pass


def test_what_is_set_aside_keeps_its_content_and_never_replaces_another(tmp_path):
    for number in (1, 2):
        (tmp_path / "key").mkdir()
        (tmp_path / "key" / "about.json").write_text(str(number))
        assert (set_aside(tmp_path / "key") / "about.json").read_text() == str(number)
    assert set_aside(tmp_path / "gone").name == "gone.damaged1"


def test_one_variable_says_where_everything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("STUDY_OUT", raising=False)
    assert written_below(tmp_path) == tmp_path
    monkeypatch.setenv("STUDY_OUT", "~/out")
    assert written_below(tmp_path) == Path.home() / "out"

"""Tensors in files: whole or not there, read as they were written, mapped, and known by their recorded digests."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.runtime.disk import ROOT
from lib.runtime.keys import digest
from lib.vectors import mapped
from lib.vectors.mapped import in_words, is_mapped, mapped_rows, new_file, read_file, remove_unfinished

ROWS = {"labels": (torch.int64, (5,)), "images": (torch.uint8, (5, 3, 7, 7))}


def test_a_file_is_read_as_it_was_written_and_mapped(tmp_path):
    images = torch.randint(0, 256, (5, 3, 7, 7), dtype=torch.uint8)
    with new_file(tmp_path / "set.safetensors", ROWS) as file:
        for row in (3, 0, 4, 1, 2):
            file.write("images", row, images[row].numpy())
        file.write("labels", 0, np.arange(5))
        file.digests["images"] = "0123"
    tensors = read_file(tmp_path / "set.safetensors")
    assert torch.equal(tensors["images"], images) and tensors["labels"].tolist() == [0, 1, 2, 3, 4]
    if os.path.exists("/proc/self/maps"):
        assert str(tmp_path / "set.safetensors") in Path("/proc/self/maps").read_text()


def test_a_digest_that_was_recorded_is_not_computed_until_the_values_change(tmp_path):
    for name, text in (("one", "same"), ("two", "same"), ("three", "other")):
        with new_file(tmp_path / name, ROWS) as file:
            file.digests["images"] = text
    one, two, three = (read_file(tmp_path / name)["images"] for name in ("one", "two", "three"))
    assert digest(one) == digest(two) != digest(three)
    assert digest(one) != digest(one.clone()) == digest(two[:])  # these are hashed themselves
    two[0, 0, 0, 0] = 1
    assert digest(two) == digest(two.clone()) != digest(one)
    assert read_file(tmp_path / "two")["images"].max() == 0  # the file is as it was


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "set", ROWS) as file:
        file.write("labels", 0, np.arange(5))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".set.killed").write_bytes(b"half")
    remove_unfinished(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda _: type("", (), {"free": 10})())
    with pytest.raises(OSError, match=r"has 0\.0 MB free, set takes .*: make room, or link data/cache"):
        new_file(tmp_path / "set", ROWS).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_an_error_and_no_crash(tmp_path):
    """A process that writes to a map of a file without room would be ended by the system."""
    code = (
        "import resource, sys, torch; from pathlib import Path; from lib.vectors.mapped import new_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "with new_file(Path(sys.argv[1]) / 'set', {'rows': (torch.float32, (1000, 1000))}):\n"
        "    print('entered')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and "OSError" in run.stderr and not run.stdout
    assert list(tmp_path.iterdir()) == []


def test_room_is_reserved(tmp_path, monkeypatch):
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system cannot reserve room")
    with new_file(tmp_path / "set", {"rows": (torch.float32, (1000, 1000))}):
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.stat().st_blocks * 512 >= 4 * 10**6

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(mapped.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no space left"):
        new_file(tmp_path / "other", ROWS).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("length", [0, 5, 60, 130, 500, 800, 900, -1])
def test_a_file_that_is_not_whole_is_an_error(tmp_path, length):
    with new_file(tmp_path / "set", ROWS) as file:
        file.digests["images"] = "0123"
    content = (tmp_path / "set").read_bytes()
    (tmp_path / "set").write_bytes(content[:length])
    with pytest.raises(ValueError, match="not whole"):
        read_file(tmp_path / "set")


def test_any_numpy_reads_the_tensors(tmp_path):
    with new_file(tmp_path / "set", ROWS) as file:
        file.write("labels", 1, np.array([7, 8]))
        file.write("images", 4, np.ones((3, 7, 7), np.uint8))
    images = np.load(tmp_path / "set")
    assert images.shape == (5, 3, 7, 7) and images.sum() == images[4].size
    assert read_file(tmp_path / "set")["labels"].tolist() == [0, 7, 8, 0, 0]


def test_rows_are_mapped_once_and_made_one_by_one(tmp_path):
    rows = torch.randn(3, 4)
    first = mapped_rows(tmp_path, iter(rows), (3, 4), ["these"])
    again = mapped_rows(tmp_path, iter(()), (3, 4), ["these"])  # not read again
    assert torch.equal(first, rows) and torch.equal(again, rows)
    assert is_mapped(first) and not is_mapped(rows)
    assert digest(first) == digest(again) != digest(mapped_rows(tmp_path, iter(rows), (3, 4), ["others"]))

    def killed():
        yield rows[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped_rows(tmp_path, killed(), (3, 4), ["half"])
    assert torch.equal(mapped_rows(tmp_path, iter(rows), (3, 4), ["half"]), rows)


def test_sizes_in_words():
    assert [in_words(size) for size in (18e6, 3.04e9)] == ["18.0 MB", "3.0 GB"]

"""Free memory in containers and jobs: limits of control groups, without what files left in the cache."""

import psutil
import pytest

from lib.runtime.memory import FILES_1, FILES_2, free_memory

GB = 10**9


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Write a control group's files; the machine has 100 GB free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": 100 * GB}))

    def write(place, files, limit, used, cached):
        folder = tmp_path / "groups" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / files[0]).write_text(f"{limit}\n")
        (folder / files[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\ntotal_inactive_file {cached}\n")

    return write


def free(tmp_path, own):
    (tmp_path / "own").write_text(own)
    return free_memory(tmp_path / "groups", tmp_path / "own")


def test_what_mapped_files_left_in_the_cache_counts_as_free(group, tmp_path):
    group("", FILES_2, 8 * GB, int(7.9 * GB), 7 * GB)
    assert free(tmp_path, "0::/\n") == pytest.approx(7.1 * GB)


def test_a_limit_of_any_group_above_holds(group, tmp_path):
    group("", FILES_2, "max", 90 * GB, 0)
    group("slurm/job_7", FILES_2, 20 * GB, 5 * GB, GB)
    group("slurm/job_7/step_0", FILES_2, "max", 5 * GB, GB)
    assert free(tmp_path, "0::/slurm/job_7/step_0\n") == 16 * GB
    assert free(tmp_path, "0::/elsewhere\n") == 100 * GB


def test_version_1_is_read_too(group, tmp_path):
    group("memory", FILES_1, 2**63 - 4096, 90 * GB, 0)
    group("memory/docker/a", FILES_1, 8 * GB, 6 * GB, 2 * GB)
    own = "9:name=systemd:/\n4:cpu,memory:/docker/a\n3:cpuset:/b\n0::/\n"
    assert free(tmp_path, own) == 4 * GB
    group("memory", FILES_1, 3 * GB, 1 * GB, 0)
    assert free(tmp_path, own.replace("/docker/a", "/not/seen/from/inside")) == 2 * GB


def test_outside_of_linux_there_are_none(group, tmp_path):
    assert free_memory(tmp_path / "groups", tmp_path / "none") == 100 * GB

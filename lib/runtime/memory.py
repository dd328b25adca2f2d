"""How much main memory this process can still have: of the machine, and of the containers and jobs that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

# How Linux tells of a control group, version 2 and 1: its limit, what it holds, and what of that files have left in the
# cache. The latter is given back when memory is asked for, and mapped images fill it, so it counts as free.
FILES_2 = ("memory.max", "memory.current", "inactive_file")
FILES_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of main memory that are free."""
    return min([psutil.virtual_memory().available, *_left(groups, own)])


def _left(groups: Path, own: Path) -> Iterator[int]:
    """What each control group with a limit leaves, of those that this process is in; none outside of Linux."""
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, kinds, place = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top, files = (groups / "memory", FILES_1) if kinds else (groups, FILES_2)
        # Inside a container its own group is the top, and the path may be one of the world outside.
        folder = top / place.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(top):
                yield from _left_in(group, *files)


def _left_in(group: Path, limit: str, used: str, cached: str) -> Iterator[int]:
    try:
        most, held = (group / limit).read_text().strip(), int((group / used).read_text())
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    if most.isdigit():  # else "max": no limit
        yield int(most) - held + int(told.get(cached, 0))

"""The state of a loop that may be killed, and from which it continues."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from lib.runtime import ranks
from lib.runtime.disk import atomic_path, set_aside

SHARE = 20  # a save is paid for by so many times its duration of work, so that saving costs at most 5 % of the time


class Checkpoint:
    """The state of an unfinished loop: saved now and then, atomically, and loaded without running any code.

    Args:
        path: of the file; None keeps nothing.
        every: seconds between two saves, at least, and more where saving takes long (see `SHARE`); 0 for every step.
    """

    def __init__(self, path: Path | None, every: float = 10.0) -> None:
        self.path, self.every = path, every
        self._last, self._took = time.monotonic(), 0.0

    def load(self) -> dict | None:
        """The saved state, or None when there is none; a damaged one is set aside, named, and stands for none."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            # Onto the CPU, whatever device wrote it: each loop takes its state from there to where it runs now.
            return torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as error:
            if isinstance(error, MemoryError | OSError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            aside = set_aside(self.path)
            print(f"checkpoint {self.path} is damaged ({reason}): it is now {aside.name}, and work starts afresh")
            return None

    def save(self, state: Callable[[], dict]) -> None:
        """Save `state()` when enough time has passed since the last time."""
        if self.path is None or not self._due():
            return
        began = time.monotonic()
        self._write(state())
        self._last = time.monotonic()
        self._took = self._last - began

    def _due(self) -> bool:
        return time.monotonic() - self._last >= (self.every and max(self.every, SHARE * self._took))

    def _write(self, state: dict) -> None:
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)


class SharedCheckpoint(Checkpoint):
    """The checkpoint of a loop that several processes run together: one file, written by the first process.

    They all save in the same step, that which the first one's clock says, so `state` may send messages. What it gives
    is the state of the whole, the same as of one process, and any number of processes can continue from it.
    """

    def load(self) -> dict | None:
        """As one process does; whether there is a file is seen by the first."""
        return super().load() if ranks.of_first(self.path.is_file()) else None

    def _due(self) -> bool:
        return ranks.of_first(super()._due())

    def _write(self, state: dict) -> None:
        if ranks.number() == 0:
            super()._write(state)

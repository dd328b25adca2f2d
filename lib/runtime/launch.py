"""What torchrun has told this process. It needs no torch, so that starting a notebook does not wait for it.

    torchrun --standalone --nproc-per-node 4 -m scripts.run_notebook IN OUT

starts the same program four times and numbers the processes in their environment; what they then do together is in
`lib.runtime.ranks`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """A process among those that one torchrun started.

    Attributes:
        rank: its number; process 0 writes and shows things.
        processes: how many there are; 1 without torchrun.
        here: its number among those on this machine.
        processes_here: how many are on this machine.
    """

    rank: int = 0
    processes: int = 1
    here: int = 0
    processes_here: int = 1


def launched() -> Launch:
    """This process among those started by torchrun, from the environment; the only one if torchrun did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # other launchers set WORLD_SIZE too, and mean something else by it
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))

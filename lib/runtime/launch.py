"""What torchrun has told this process. It needs no torch, so that starting a notebook does not wait for it.

    torchrun --standalone --nproc-per-node 4 -m scripts.run_notebook IN OUT

starts the same program four times and numbers the processes in their environment; what they then do together is in
`lib.runtime.ranks`.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from datetime import timedelta

# How torch words it when a message to or from another process fails, which says nothing about why that one is gone.
OTHER_PROCESS = re.compile(r"gloo/|NCCL|Dist(?:Backend|Network|Store)?Error|Connection (?:closed|reset) by peer")
LONG = 30.0  # seconds, in which torchrun notices that a process has ended


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

    def patience(self, error: str) -> float:
        """Seconds to keep an error to oneself.

        One that all have is for the first process to tell; one that only lost another process lets that one speak.
        """
        lost = LONG if self.processes > 1 and OTHER_PROCESS.search(error) else 0.0
        return lost + 2.0 * self.rank

    def may_tell(self, error: str) -> bool:
        """Whether this process is the one to say why the run failed, so that it is said once.

        torchrun ends all processes as soon as one has failed, so one that may not tell must not go first: it waits.
        """
        time.sleep(self.patience(error))
        if self.processes == 1 or _first_to_ask():
            return True
        time.sleep(LONG)
        return False


def _first_to_ask() -> bool:
    """Whether no other process of this run has asked before; torchrun itself keeps count."""
    from torch.distributed import TCPStore  # now, when nothing is left to wait for it

    try:
        counter = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(seconds=30))
        return counter.add("study/failed", 1) == 1
    except RuntimeError:  # torchrun is gone, and with it whoever else might tell
        return True


def launched() -> Launch:
    """This process among those started by torchrun, from the environment; the only one if torchrun did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # other launchers set WORLD_SIZE too, and mean something else by it
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))

"""A run that is interrupted."""

from lib.runtime.checkpoint import Checkpoint


class StopsAtThree(Checkpoint):
    """Interrupts the loop as soon as three steps are saved."""

    def save(self, state):
        super().save(state)
        if state()["step"] == 3:
            raise KeyboardInterrupt

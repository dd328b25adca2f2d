"""A run that is interrupted."""

from lib.runtime.checkpoint import Checkpoint


class StopsAtThree(Checkpoint):
    """Interrupts the loop as soon as three steps are saved."""

    def save(self, state):
        super().save(state)
        if state()["step"] == 3:
            raise KeyboardInterrupt


def dies_at(stop, call):
    """The same function, whose last argument is the number of a step, interrupted at one of them."""

    def until_then(*arguments):
        if arguments[-1] == stop:
            raise KeyboardInterrupt
        return call(*arguments)

    return until_then

"""Equivalence with other libraries, run by `make test-peers`. Without them these tests fail: they are never skipped."""

import pytest
from comparison import ERRORS, PROBLEMS, make


@pytest.fixture(scope="session", params=PROBLEMS)
def problem(request):
    """A model and its experts: random ones of several shapes, and the shipped tiny CLIP, in both precisions."""
    return make(*PROBLEMS[request.param])


@pytest.fixture(scope="session")
def many_layers():
    """A model on which "density of a layer" and "density of the model" differ."""
    return make(*PROBLEMS["linear-3-float64"])


def pytest_terminal_summary(terminalreporter):
    """Print how equal everything was."""
    if ERRORS:
        terminalreporter.section("largest relative error, method against peer")
        for (method, peer), error in sorted(ERRORS.items()):
            terminalreporter.write_line(f"{method:20} {peer:20} {error:.1e}")

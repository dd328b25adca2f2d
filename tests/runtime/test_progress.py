import io
import itertools

import pytest

from lib.runtime import progress as module
from lib.runtime.progress import duration, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves one second per look; nobody watches."""
    monkeypatch.setattr(module.time, "monotonic", itertools.count().__next__)
    monkeypatch.setattr(module, "_somebody_watches", lambda: False)


def test_yields_everything_unchanged_and_works_with_enumerate(clock):
    assert list(enumerate(progress("abc", "letters"))) == [(0, "a"), (1, "b"), (2, "c")]


def test_a_quick_loop_prints_one_line_only(monkeypatch, capsys):
    monkeypatch.setattr(module, "_somebody_watches", lambda: False)
    list(progress(range(500), "steps"))
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert captured.out.startswith("steps  500/500  100 %  ")
    assert captured.err == ""


def test_lines_are_at_least_every_apart_and_tell_the_time_left(clock, capsys):
    list(progress(range(10), "steps", every=4))  # the clock: item i is finished at second i
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "steps  4/10  40 %  4.0 s, about 6.0 s left",
        "steps  8/10  80 %  8.0 s, about 2.0 s left",
        "steps  10/10  100 %  11.0 s",
    ]


def test_a_slow_first_item_does_not_spoil_the_time_left(monkeypatch, capsys):
    times = itertools.chain([0, 30], itertools.count(31))
    monkeypatch.setattr(module.time, "monotonic", times.__next__)
    monkeypatch.setattr(module, "_somebody_watches", lambda: False)
    list(progress(range(10), "steps", every=4))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["steps  1/10  10 %  30.0 s", "steps  5/10  50 %  34.0 s, about 5.0 s left"]


def test_without_a_length_there_is_no_share(clock, capsys):
    list(progress(iter(range(3)), "steps", every=2))
    assert capsys.readouterr().out.splitlines() == ["steps  2  2.0 s", "steps  3  4.0 s"]


def test_a_given_total_serves_iterators(clock, capsys):
    list(progress(iter(range(2)), "steps", total=4))
    assert capsys.readouterr().out == "steps  2/4  50 %  3.0 s\n"


def test_extra_words_are_asked_for_per_line(clock, capsys):
    losses = []
    for step in progress(range(6), "steps", every=2, postfix=lambda: f"loss {losses[-1]}"):
        losses.append(10 - step)
    assert [line.split("loss ")[1] for line in capsys.readouterr().out.splitlines()] == ["9", "7", "5"]


def test_a_loop_that_breaks_off_says_how_far_it_came(clock, capsys):
    for item in progress(range(10), "steps"):
        if item == 3:
            break
    assert capsys.readouterr().out.startswith("steps  3/10  30 %")


def test_an_empty_loop_is_no_error(clock, capsys):
    assert list(progress([], "steps")) == []
    assert capsys.readouterr().out == "steps  0  1.0 s\n"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(module.sys, "stderr", terminal)
    assert list(progress(range(3), "steps", postfix=lambda: "loss 1")) == [0, 1, 2]
    assert "steps: 100%" in terminal.getvalue()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (59.9, "59.9 s"), (59.96, "1 min 00 s"), (125.2, "2 min 05 s"), (3725, "1 h 02 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words

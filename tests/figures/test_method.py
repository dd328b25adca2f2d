"""The picture of the whole method can be read: its texts stand inside, apart from each other, and name every part."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from lib import figures
from lib.study.study import ROOT


@pytest.fixture(scope="module")
def drawn():
    """The figure and (text, box in pixels) of everything that is written in it."""
    figure = figures.method()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    return figure, [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in axes.texts if
                    text.get_text()]  # fmt: skip


def test_every_text_stands_inside_the_picture(drawn):
    figure, texts = drawn
    frame = figure.axes[0].get_window_extent()
    for text, box in texts:
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1, text
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1, text


def test_no_two_texts_overlap(drawn):
    _, texts = drawn
    for (first, one), (second, other) in itertools.combinations(texts, 2):
        assert not one.overlaps(other), f"{first!r} and {second!r}"


def test_every_text_can_be_read_where_a_page_shows_the_picture_800_pixels_wide(drawn):
    figure, _ = drawn
    pixels_per_point = 800 / figure.get_figwidth() / 72
    for text in figure.axes[0].texts:
        assert text.get_fontsize() * pixels_per_point >= 10 or text.get_text() == r"$\vdots$", text.get_text()


def test_every_step_of_the_method_is_named(drawn):
    words = " ".join(text for text, _ in drawn[1])
    for part in ("Experts", "Task vectors", "shared mask", "without labels", "inner level", "upper level", "One model"):
        assert part in words
    assert r"$\theta = \theta_0 + \hat m \odot S$" in words


def test_the_committed_picture_is_the_one_that_is_drawn(tmp_path):
    """Two versions of a font's renderer may differ in a few pixels of a letter's edge."""
    new, committed = (
        np.asarray(Image.open(path).convert("L"), float)
        for path in (
            figures.save(figures.method(), tmp_path / "method.png"),
            ROOT / "figures" / "tiny-full" / "method.png",
        )
    )
    assert new.shape == pytest.approx(committed.shape, abs=4)
    height, width = np.minimum(new.shape, committed.shape)
    assert abs(new[:height, :width] - committed[:height, :width]).mean() < 1, "run `make figures`"

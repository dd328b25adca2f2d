"""The published figures that the study cites, and what stands in their place here."""

import pandas as pd
import pytest

from lib.figures.plotting import ORDER
from lib.study.profiles import DRAWN_TASKS, GLUE_TASKS, PROFILES, REAL_TASKS, VisionProfile, get_profile
from lib.study.reference import PLACES, PUBLISHED, beside_published, model_like, published, standing_in
from worlds.images.corruptions import CORRUPTIONS

TABLE = pd.read_csv(PUBLISHED)
UNSEEN = {"unseen tasks A": ("mnist", "eurosat"), "unseen tasks B": ("resisc45", "svhn")}
# Printed means that are not the mean of the printed scores: (lineage, experiment, method, mean), see the README there.
ODD = {
    ("task-vectors", "unseen tasks A", "Concrete Task Arithmetic", "mean seen"),
    ("task-vectors", "unseen tasks A", "Concrete AdaMerging (layer-wise)", "mean unseen"),
}


def test_every_row_says_what_it_is_and_where_it_was_read():
    assert not TABLE.isna().any(axis=None)
    assert not TABLE.duplicated(["lineage", "model", "experiment", "corruption", "method", "task"]).any()
    assert set(TABLE["lineage"]) == {"task-vectors", "hugging-face", "lora-16", "unstated"}
    assert TABLE["source"].str.contains("arXiv:").all()
    assert TABLE["score"].between(0, 100).all()
    assert set(TABLE["task"]) == {*PLACES, *GLUE_TASKS.split(), "mean", "mean seen", "mean unseen"}
    assert set(TABLE["corruption"]) == {"clean", *CORRUPTIONS}
    known = {*ORDER, "Concrete AdaMerging (task-wise)"}
    assert set(TABLE["method"]) <= known, "a published method is not named as in this study"


def test_means_are_those_of_the_tasks():
    checked = odd = 0
    for (lineage, _, experiment, _, method), rows in TABLE.groupby(
        ["lineage", "model", "experiment", "corruption", "method"]
    ):
        scores = rows.set_index("task")["score"]
        tasks = scores.drop([name for name in scores.index if name.startswith("mean")])
        unseen = tasks.index.isin(UNSEEN.get(experiment, ()))
        parts = {"mean": tasks, "mean seen": tasks[~unseen], "mean unseen": tasks[unseen]}
        for name in scores.index.intersection(list(parts)) if len(tasks) else ():
            agrees = abs(parts[name].mean() - scores[name]) < 0.2
            assert agrees == ((lineage, experiment, method, name) not in ODD), (lineage, experiment, method, name)
            checked, odd = checked + 1, odd + (not agrees)
    assert checked > 40
    assert odd == len(ODD)


def test_the_papers_own_numbers():
    eight = published(lineage="task-vectors", model="ViT-B/32", experiment="eight tasks")
    means = eight[eight["task"] == "mean"].set_index("method")["score"]
    assert means["Task Arithmetic"] == 69.0
    assert means["Concrete AdaMerging (layer-wise)"] == 84.0
    other = published(lineage="hugging-face", model="ViT-B/32", experiment="eight tasks")
    assert set(other["lineage"]) == {"hugging-face"}
    assert other.set_index(["method", "task"]).loc[("Concrete AdaMerging (layer-wise)", "mean"), "score"] == 84.4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ("task-vector", "ViT-B/32", "eight tasks"),
            "lineage 'task-vector' .did you mean 'task-vectors'.*hugging-face",
        ),
        (("task-vectors", "ViT-B-32", "eight tasks"), "model 'ViT-B-32' for lineage 'task-vectors'.*known: .*ViT-L/14"),
        (
            ("hugging-face", "ViT-L/14", "robustness"),
            "experiment 'robustness' for lineage 'hugging-face' model 'ViT-L/14'; known: eight tasks$",
        ),
    ],
)
def test_a_name_that_is_not_there_is_one_clear_error(asked, message):
    lineage, model, experiment = asked
    with pytest.raises(ValueError, match=message):
        published(lineage=lineage, model=model, experiment=experiment)


def test_every_task_of_the_profiles_has_a_place():
    drawn, real = DRAWN_TASKS.split(), REAL_TASKS.split()
    assert standing_in(list(PLACES), drawn) == tuple(drawn)
    assert standing_in(list(PLACES), real) == tuple(real)
    assert standing_in(("mnist", "eurosat"), drawn) == ("handwritten_digits", "land_cover")
    assert standing_in(("resisc45", "svhn"), [*real, "svhn"]) == ("resisc45", "svhn")  # the set itself goes first


def test_without_a_counterpart_the_last_tasks_stand_in():
    assert standing_in(("mnist", "eurosat"), ["one", "two", "three"]) == ("three", "two")
    assert standing_in(("mnist", "eurosat"), ["one", "two", "eurosat"]) == ("two", "eurosat")
    assert standing_in(("mnist", "eurosat", "svhn"), ["one"]) == ("one",)


def test_shares_of_the_experts_stand_beside_each_other():
    accuracy = {"Experts": (0.8, 0.9), "Task Arithmetic": (0.4, 0.9), "Ours alone": (0.5, 0.5), "Zero-shot": (0.2, 0.3)}
    results = pd.DataFrame(
        {
            "method": method,
            "task": task,
            "split": split,
            "seed": seed,
            "accuracy": value / (1 if split == "test" else 2),
        }
        for method, by_seed in accuracy.items()
        for seed, value in enumerate(by_seed)
        for task in ("a", "b")
        for split in ("test", "adaptation")
    )
    table = beside_published(results)
    assert table["method"].tolist() == ["Zero-shot", "Zero-shot", "Task Arithmetic", "Task Arithmetic"]
    assert table["here"].tolist() == pytest.approx([25, 100 / 3, 50, 100])
    assert table["published"].iloc[-1] == pytest.approx(100 * 69.0 / 90.5)
    assert set(table["lineage"]) == {"task-vectors"}
    with pytest.raises(ValueError, match="no published experts of lineage 'unstated'"):
        beside_published(results, lineage="unstated")


def test_no_method_is_above_the_experts_of_its_lineage():
    """Such a score would be of other checkpoints: what happened when lineages were mixed."""
    means = TABLE[(TABLE["experiment"] == "eight tasks") & (TABLE["task"] == "mean")]
    for lineage, model in {*zip(means["lineage"], means["model"], strict=True)} - {
        ("unstated", m) for m in means["model"]
    }:
        rows = means[(means["lineage"] == lineage) & (means["model"] == model)].set_index("method")["score"]
        assert rows.drop("Experts").max() < rows["Experts"], (lineage, model)


def test_a_profile_is_compared_with_the_published_model_of_its_own_size():
    assert model_like(get_profile("clip-vit-l-14").model) == "ViT-L/14"
    assert model_like(get_profile("clip-vit-b-32").model) == model_like("") == "ViT-B/32"
    for name in (profile.model for profile in PROFILES.values() if isinstance(profile, VisionProfile)):
        assert len(published(lineage="task-vectors", model=model_like(name), experiment="eight tasks"))

"""Registered image sets: compared with the official ones, from a mirror, from the hub, and the real mirror itself."""

import os
import time

import pytest
from mirrors import make_mirror

from lib.files import sets
from lib.files.folders import DataError
from lib.files.registry import read_registry
from lib.files.splits import SPLITS
from lib.study.profiles import REAL_TASKS
from lib.vision.registry import REGISTRY, RealSet
from lib.vision.tasks import load_split, load_task


def register(monkeypatch, **changes):
    options = {
        "name": "pets",
        "title": "Pets",
        "hub": "zoo/pets",
        "classes": 3,
        "train": 60,
        "test": 20,
        "templates": ("a {}.",),
    }
    monkeypatch.setitem(REGISTRY, "pets", RealSet(**options | changes))


def test_an_official_set_needs_no_note(root, monkeypatch, capsys):
    register(monkeypatch)
    task = load_task("pets", data_root=str(root))
    assert (task.note, task.title, task.templates) == ("", "Pets", ("a {}.",)) and capsys.readouterr().out == ""


def test_a_local_subset_is_reported_in_one_line(root, monkeypatch, capsys):
    register(monkeypatch, classes=397, train=19_850)
    note = load_task("pets", data_root=str(root)).note
    assert note == (
        "pets: a local subset, 3 of 397 classes, 60 of 19,850 training images, 20 of 20 test images; "
        "scores are not comparable with published ones"
    )
    assert capsys.readouterr().out == note + "\n"


def test_more_classes_than_official_are_an_error(root, monkeypatch):
    register(monkeypatch, classes=2)
    with pytest.raises(
        DataError, match=r"pets.data holds 3 of 2 classes, .* not the official set; use a mirror of that"
    ):
        load_task("pets", data_root=str(root))


def test_the_hub_must_hold_the_official_set(root, monkeypatch, tmp_path):
    options = {"sizes": {}, "image_size": 16, "cache": tmp_path / "cache"}
    monkeypatch.setattr(sets, "download", lambda hub, folder, splits: root / "pets" / folder)
    register(monkeypatch)
    task = load_task("pets")
    assert task.source == "hub:zoo/pets" and len(load_split(task, "train", **options).labels) == 54
    for change in ({"classes": 4}, {"train": 61}, {"test": 19}):
        register(monkeypatch, **change)
        with pytest.raises(
            DataError, match=r"hub:zoo/pets holds 3 of . classes, 60 of .. training .* not the official"
        ):
            load_task("pets")


def test_the_registry_is_in_order():
    assert list(REGISTRY) == [
        "sun397",
        "stanford_cars",
        "resisc45",
        "eurosat",
        "svhn",
        "gtsrb",
        "mnist",
        "dtd",
        "cifar10",
    ]
    for official in REGISTRY.values():
        assert official.templates and all(t.count("{}") == 1 and t == t.strip() for t in official.templates)
        assert len(set(official.templates)) == len(official.templates)
        assert not any(t.format("x").count("{") for t in official.templates)


GOOD = 'title = "Pets"\nhub = "zoo/pets"\nclasses = 3\ntrain = 60\ntest = 20\ntemplates = ["a {}."]\n'


def test_a_set_is_added_in_the_file(tmp_path):
    path = tmp_path / "images.toml"
    path.write_text(f'[pets]\n{GOOD}[pets.prompted]\nred_fox = "fox"\n')
    known = read_registry(path, RealSet)
    assert known == {"pets": RealSet("pets", "Pets", "zoo/pets", 3, 60, 20, ("a {}.",), prompted={"red_fox": "fox"})}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("classes = 3", "classes = true"), r"entry pets\.classes: .*integer, not True"),
        (GOOD.replace('["a {}."]', '["a {}.", 3]'), r"entry pets\.templates\.1: .*string, not 3"),
        (GOOD.replace('title = "Pets"\n', ""), r"entry pets\.title: Field required; correct"),
        (GOOD + "clases = 3\n", r"entry pets\.clases: Unexpected"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, text, message):
    path = tmp_path / "images.toml"
    path.write_text(f"[pets]\n{text}")
    with pytest.raises(ValueError, match=message) as caught:
        read_registry(path, RealSet)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_class_names_are_prompted_as_the_registry_says(tmp_path, monkeypatch):
    register(monkeypatch, prompted={"red_fox": "fox"})
    make_mirror(tmp_path, "pets")
    assert load_task("pets", data_root=str(tmp_path)).class_names == ("fox", "owl", "newt")


def test_a_copy_of_a_hub_repository_keeps_its_own_folder_name(tmp_path, monkeypatch):
    register(monkeypatch, folder="plain")
    make_mirror(tmp_path, "pets").rename(tmp_path / "pets" / "plain")
    assert load_task("pets", data_root=str(tmp_path)).source.endswith("plain")


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("STUDY_DATA_ROOT"), reason="STUDY_DATA_ROOT names no mirror of the real sets")
def test_the_real_mirror_loads_whole_and_again_from_the_cache(tmp_path):
    root, sizes = os.environ["STUDY_DATA_ROOT"], dict.fromkeys(SPLITS, 10_000)
    for turn in ("cold", "warm"):
        started = time.monotonic()
        real = [load_task(name, data_root=root) for name in REAL_TASKS.split()]
        for task in real:
            parts = [
                load_split(task, split, sizes=sizes, image_size=32, data_root=root, cache=tmp_path) for split in SPLITS
            ]
            assert all(part.images.shape[1:] == (3, 32, 32) for part in parts)
            assert set(parts[0].labels.tolist()) == set(range(len(task.class_names)))
            assert all(0.1 < part.images.float().mean() / 255 < 0.9 for part in parts)
            print(f"{turn} {task.name}: {len(task.class_names)} classes, {[len(part.labels) for part in parts]}")
        seconds = time.monotonic() - started
        print(f"{turn}: {seconds:.1f} s")
    assert seconds < 10, "the second time must come from the cache"

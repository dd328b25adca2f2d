"""Tasks and their four splits: drawn, from a mirror, and a user's own; disjoint, repeatable, cached."""

import shutil
import sys

import datasets
import numpy as np
import pytest
import torch
from mirrors import make_mirror, picture, write_split

import worlds.images
from lib.files.folders import DataError
from lib.files.splits import SPLITS, choose_rows, stratified_order
from lib.runtime import keys
from lib.runtime.names import named_rng
from lib.study.profiles import DRAWN_TASKS, REAL_TASKS
from lib.vision import tasks
from lib.vision.registry import REGISTRY
from lib.vision.tasks import load_split, load_splits, load_task
from worlds.images import Job, draw_split, draw_splits

STAND_IN = """
import numpy as np
from worlds.images.canvas import SIZE
CLASSES = ("dark", "middle", "light")
ALIASES = {name: ("night", "day") for name in CLASSES}
TEMPLATES = ("a {} square",)
def draw(rng, label, wild):
    return np.clip(rng.integers(0, 40, (SIZE, SIZE, 3)) + 90 * label, 0, 255).astype(np.uint8)
"""
SIZES = {"train": 40, "validation": 10, "adaptation": 8, "test": 6}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A drawn task named "stand_in", whose module a worker process can import too."""
    (tmp_path / "stand_in_drawing.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(worlds.images.MODULES, "stand_in", "stand_in_drawing")
    monkeypatch.setattr(keys, "OURS", (*keys.OURS, "stand_in_drawing."))
    monkeypatch.setattr(keys, "STARTED", float("inf"))  # it is edited while in use
    yield tmp_path / "stand_in_drawing.py"
    sys.modules.pop("stand_in_drawing", None)
    forget_code()


def forget_code():
    keys.code_of.cache_clear()
    keys._source.cache_clear()


@pytest.fixture
def load(tmp_path):
    """`load_split` with the arguments that do not matter filled in."""

    def call(task, split, root="", **options):
        options = {"sizes": SIZES, "image_size": 32, "cache": tmp_path / "cache"} | options
        return load_split(task, split, data_root=str(root), **options)

    return call


def as_set(images):
    return {image.numpy().tobytes() for image in images}


# --- drawn tasks


def test_a_drawn_task_comes_from_its_module(stand_in, load):
    task = load_task("stand_in")
    assert task == tasks.Task("stand_in", "Stand in", ("dark", "middle", "light"), ("a {} square",), "drawn")
    split = load(task, "train")
    assert split.images.shape == (40, 3, 32, 32) and split.images.dtype == torch.uint8
    assert split.labels.shape == (40,) and split.labels.dtype == torch.int64
    assert sorted(torch.bincount(split.labels).tolist()) == [13, 13, 14]
    assert split.labels.tolist() != sorted(split.labels.tolist())
    assert load(task, "train", image_size=48).images.shape == (40, 3, 48, 48)


def test_drawn_splits_never_overlap(stand_in, load):
    seen = [as_set(load(load_task("stand_in"), split).images) for split in SPLITS]
    assert len(set.union(*seen)) == sum(SIZES.values())


def test_drawing_repeats_and_follows_its_names(stand_in):
    images, labels = draw_split("stand_in", "train", 100, seed=1)
    again, same = draw_split("stand_in", "train", 100, seed=1)
    assert np.array_equal(images, again) and np.array_equal(labels, same)
    for other in (draw_split("stand_in", "train", 100, seed=2), draw_split("stand_in", "test", 100, seed=1)):
        assert not np.array_equal(images, other[0])


def test_two_processes_draw_the_same_as_one(stand_in):
    jobs = [Job("stand_in", "train", 150), Job("stand_in", "test", 1), Job("stand_in", "web", 70, 3, 1.0)]
    for one, two in zip(draw_splits(jobs, workers=1), draw_splits(jobs, workers=2), strict=True):
        assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


def test_without_worker_processes_this_one_draws(stand_in, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no more processes")

    expected = draw_split("stand_in", "train", 150, workers=1)
    monkeypatch.setattr(worlds.images, "ProcessPoolExecutor", refuse)
    assert np.array_equal(draw_split("stand_in", "train", 150, workers=2)[0], expected[0])


def test_names_make_seeds_that_do_not_run_together():
    first = named_rng("a", "b", 1).integers(1 << 60)
    assert first == named_rng("a", "b", 1).integers(1 << 60)
    assert len({first, *(named_rng(*n).integers(1 << 60) for n in (("ab", 1), ("a", "b1"), ("a", "b", "1")))}) == 4


def test_an_edited_drawing_never_meets_old_images(stand_in, load):
    task = load_task("stand_in")
    old = load(task, "test")
    stand_in.write_text(STAND_IN.replace("90 * label", "60 * label + 1"))
    sys.modules.pop("stand_in_drawing")
    worlds.images.importlib.invalidate_caches()
    forget_code()
    assert not torch.equal(load(task, "test").images, old.images)


def test_the_second_time_comes_from_the_cache(stand_in, load, monkeypatch):
    task = load_task("stand_in")
    first = load(task, "validation")
    monkeypatch.setattr(tasks, "draw_splits", lambda jobs: [pytest.fail("drew again") for _ in jobs])
    second = load(task, "validation")
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


def test_loading_fills_the_cache_and_makes_again_what_is_damaged(stand_in, tmp_path, load, capsys):
    task, cache = load_task("stand_in"), tmp_path / "cache"
    for split in SPLITS:
        load_splits([task], split, sizes=SIZES, image_size=32, cache=cache)
    files = sorted(path.name for path in (cache / "splits").iterdir())
    assert len(files) == 4 and all(name.endswith(".npy") and not name.startswith(".") for name in files)
    first, split = load(task, files[0].split("-")[1]), files[0].split("-")[1]
    first = first.images.clone()
    (cache / "splits" / files[0]).write_bytes(b"cut off")
    assert torch.equal(load(task, split).images, first), "made again"
    assert (
        f"{files[0]} is damaged (it is not whole): it is now {files[0]}.damaged1, and made" in capsys.readouterr().out
    )
    assert len(list((cache / "splits").iterdir())) == 5


def test_a_drawing_of_the_wrong_shape_is_refused(stand_in):
    stand_in.write_text(STAND_IN.replace(".astype(np.uint8)", ""))
    with pytest.raises(ValueError, match=r"stand_in_drawing\.draw gave int64 \(32, 32, 3\) .* not uint8"):
        draw_split("stand_in", "train", 4)


def test_the_profiles_name_known_tasks():
    assert tuple(DRAWN_TASKS.split()) == tuple(worlds.images.MODULES)
    assert set(REAL_TASKS.split()) <= set(REGISTRY)


# --- real tasks


def test_a_folder_of_ones_own_becomes_a_task(root, load):
    task = load_task("pets", data_root=str(root))
    assert task.class_names == ("red fox", "owl", "newt")  # underscores are no words
    assert task.templates == ("a photo of a {}.",) and task.note == ""
    counts = {split: len(load(task, split, root).labels) for split in SPLITS}
    assert counts == {"train": 40, "validation": 6, "adaptation": 8, "test": 6}


def test_real_splits_never_overlap_and_use_every_row(root, load):
    task, roomy = load_task("pets", data_root=str(root)), dict.fromkeys(SPLITS, 1000)
    parts = {split: load(task, split, root, sizes=roomy) for split in SPLITS}
    assert {split: len(part.labels) for split, part in parts.items()} == {
        "train": 54,
        "validation": 6,
        "adaptation": 10,
        "test": 10,
    }
    assert len(set.union(*(as_set(part.images) for part in parts.values()))) == 80
    assert torch.bincount(parts["validation"].labels).tolist() == [2, 2, 2]


def test_a_validation_split_of_its_own_is_used(root, load):
    write_split(root / "pets" / "data", "validation", [0, 1, 2] * 3)
    task = load_task("pets", data_root=str(root))
    assert len(load(task, "validation", root).labels) == 9
    assert len(load(task, "train", root, sizes={}).labels) == 60


def test_labels_stay_with_their_images(tmp_path, load):
    flat = [picture(np.random.default_rng(i), (32, 32)) for i in range(3)]
    labels = [i % 3 for i in range(30)]
    for split in ("train", "test"):
        write_split(tmp_path / "root/flat/data", split, labels, pictures=[flat[label] for label in labels])
    task = load_task("flat", data_root=str(tmp_path / "root"))
    for split in SPLITS:
        part = load(task, split, tmp_path / "root")
        for label in part.labels.unique():
            assert len(as_set(part.images[part.labels == label])) == 1
    assert len(as_set(load(task, "train", tmp_path / "root").images)) == 3


def test_real_splits_repeat_and_follow_the_seed(root, load, tmp_path):
    task = load_task("pets", data_root=str(root))
    first = load(task, "test", root)
    assert torch.equal(first.images, load(task, "test", root, cache=tmp_path / "elsewhere").images)
    assert not torch.equal(first.images, load(task, "test", root, seed=1).images)


def test_changed_files_are_read_anew(root, load):
    task = load_task("pets", data_root=str(root))
    load(task, "test", root)
    write_split(root / "pets" / "data", "test", [0, 1, 2, 0])
    assert len(load(task, "test", root).labels) == 2


def test_subsets_keep_the_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [600, 300, 3])
    order = stratified_order(labels, np.random.default_rng(0), "all")
    assert sorted(order) == list(range(903))
    assert set(labels[order[:3]]) == {0, 1, 2}
    assert np.bincount(labels[order[:301]]).tolist() == [200, 100, 1]
    assert 2 not in labels[stratified_order(labels, np.random.default_rng(0), "common")[:90]]


@pytest.mark.parametrize("seed", range(5))
def test_a_class_with_one_image_stays_in_train_and_two_are_shared_between_the_halves(seed):
    labels = {"train": np.array([0] * 30 + [1]), "test": np.array([0] * 8 + [1, 1])}
    file_split, rows = choose_rows(labels, "odd", "train", {}, seed)
    assert file_split == "train" and 30 in rows
    for split in ("adaptation", "test"):
        file_split, rows = choose_rows(labels, "odd", split, {}, seed)
        assert file_split == "test" and np.sum(rows >= 8) == 1


# --- errors


@pytest.mark.parametrize("name", ["petz", "", "../root/pets", "."])
def test_an_unknown_task_lists_what_there_is(root, name):
    with pytest.raises(DataError, match=r"unknown task .*scenes, vehicles.*sun397, stanford_cars.*root: pets"):
        load_task(name, data_root=str(root))
    with pytest.raises(DataError, match=r"unknown task .*set data_root"):
        load_task(name)


def test_a_missing_set_or_root_is_named(root, tmp_path):
    with pytest.raises(
        DataError, match=r"root/mnist/data does not exist, .*root holds pets; set data_root .* or drop 'mnist'"
    ):
        load_task("mnist", data_root=str(root))
    with pytest.raises(DataError, match=r"data_root .*nowhere is not a folder"):
        load_task("mnist", data_root=str(tmp_path / "nowhere"))
    (root / "hollow").mkdir()
    with pytest.raises(DataError, match=r"root/hollow: nothing of split 'train', there is neither a table"):
        load_task("hollow", data_root=str(root))


def test_a_folder_named_like_a_drawn_task_is_refused(root, stand_in):
    make_mirror(root, "stand_in")
    with pytest.raises(DataError, match=r"has the name of a drawn task; rename the folder"):
        load_task("stand_in", data_root=str(root))


def test_class_names_must_differ_as_prompts(root):
    make_mirror(root, "twins", names=["red_fox", "red fox"])
    with pytest.raises(DataError, match=r"class names are empty or the same twice"):
        load_task("twins", data_root=str(root))


def test_a_wrong_split_or_size_is_named(stand_in, load, root):
    task = load_task("stand_in")
    with pytest.raises(DataError, match=r"unknown split 'dev'; the splits are train, validation, adaptation, test"):
        load(task, "dev")
    with pytest.raises(DataError, match=r"stand_in: sizes names no number of images to draw for split 'test'"):
        load(task, "test", sizes={"train": 4})
    pets = load_task("pets", data_root=str(root))
    with pytest.raises(DataError, match=r"pets was loaded from folder:.*; pass the same data_root"):
        make_mirror(root / "other", "pets")
        load(pets, "test", root / "other")


def test_too_few_images_for_a_split_are_an_error(tmp_path, load):
    make_mirror(tmp_path, "few", train=6, test=1)
    task = load_task("few", data_root=str(tmp_path))
    with pytest.raises(DataError, match=r"1 images of 'test' are too few to make 'test'; add some"):
        load(task, "test", tmp_path)


# --- what is said


def test_images_that_come_twice_or_in_two_splits_are_counted(tmp_path, load, capsys):
    pictures = [picture(np.random.default_rng(row)) for row in range(30)]
    for split in ("train", "validation"):
        write_split(tmp_path / "leak/data", split, [0, 1, 2] * 10, pictures=pictures if split == "train" else None)
    write_split(tmp_path / "leak/data", "test", [0, 1, 2] * 3, pictures=[*pictures[:3], *pictures[:6]])
    task = load_task("leak", data_root=str(tmp_path))
    for split in SPLITS:
        load(task, split, tmp_path, sizes={})
    lines = [line for line in capsys.readouterr().out.splitlines() if "pixel by pixel" in line]
    assert "leak: 5 of 5 images of adaptation are also in train, pixel by pixel" in lines
    assert "leak: 4 of 4 images of test are also in train, pixel by pixel" in lines
    twice = [line for line in lines if "come more than once" in line or "test are also in adaptation" in line]
    assert twice and not any("of validation" in line or "of train" in line for line in lines)
    for split in SPLITS:
        load(task, split, tmp_path, sizes={})
    assert "pixel by pixel" not in capsys.readouterr().out  # said once


def test_a_part_of_train_becomes_test_and_all_splits_stay_apart(tmp_path, load, capsys):
    write_split(tmp_path / "lone/data", "train", [0, 1, 2] * 20)
    task = load_task("lone", data_root=str(tmp_path))
    assert capsys.readouterr().out == "lone: there is no labelled test split: 12 images of train are held out as test\n"
    parts = {split: load(task, split, tmp_path, sizes={}) for split in SPLITS}
    assert {split: len(part.labels) for split, part in parts.items()} == {
        "train": 43,
        "validation": 5,
        "adaptation": 6,
        "test": 6,
    }
    assert len(set.union(*(as_set(part.images) for part in parts.values()))) == 60


def test_odd_names_and_images_are_told(tmp_path, load, capsys):
    names = ["3", "größe", "owl"]
    pictures = [picture(np.random.default_rng(row), mode="RGBA") for row in range(9)]
    write_split(tmp_path / "odd/data", "train", [0, 1, 2] * 3, names=names, pictures=pictures)
    write_split(tmp_path / "odd/data", "test", [0, 1, 2], names=names)
    task = load_task("odd", data_root=str(tmp_path))
    assert capsys.readouterr().out.splitlines() == [
        "odd: 1 class names are numbers (3); head=class-mean needs no prompts",
        "odd: 1 class names are not English (größe); head=class-mean needs no prompts",
    ]
    load(task, "train", tmp_path, sizes={})
    assert "odd, train: 8 of 8 images with transparency, laid on white" in capsys.readouterr().out


def test_chosen_columns_are_another_task(tmp_path, load, capsys):
    rng = np.random.default_rng(0)
    rows = {"left": [picture(rng) for _ in range(12)], "right": [picture(rng) for _ in range(12)], "label": [0, 1] * 6}
    types = {"left": datasets.Image(), "right": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    (tmp_path / "pairs").mkdir()
    rows |= {side: [{"bytes": data, "path": None} for data in rows[side]] for side in ("left", "right")}
    datasets.Dataset.from_dict(rows, features=datasets.Features(types)).to_parquet(tmp_path / "pairs" / "train.parquet")
    seen = []
    for column in ("left", "right", "left"):
        seen.append(load(load_task("pairs", data_root=str(tmp_path), columns=(column, "")), "train", tmp_path).images)
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])
    assert "no column" not in capsys.readouterr().out


def test_a_set_in_an_archive_is_a_task(root, load, monkeypatch):
    monkeypatch.setenv("STUDY_OUT", str(root.parent / "out"))
    shutil.make_archive(str(root / "packed"), "zip", root / "pets")
    loose, packed = (load_task(name, data_root=str(root)) for name in ("pets", "packed"))
    assert packed.source == f"folder:{root}/packed.zip"
    seen = [
        set.union(*(as_set(load(task, split, root, sizes={}).images) for split in SPLITS)) for task in (loose, packed)
    ]
    assert seen[0] == seen[1]
    with pytest.raises(DataError, match=r"unknown task 'pecked'.*root: packed, pets"):
        load_task("pecked", data_root=str(root))


def test_a_set_on_the_hub_needs_only_its_name(tmp_path, load, monkeypatch):
    folder = make_mirror(tmp_path, "pets").parent
    monkeypatch.setattr(tasks, "download", lambda hub: folder if hub == "zoo/pets" else None)
    task = load_task("zoo/pets")
    assert task.source == "hub:zoo/pets" and task.class_names == ("red fox", "owl", "newt")
    assert len(load(task, "test").labels) == 6

"""GLUE from files: splits, errors with place and mend, official counts; drawn tasks; the real mirror if there is."""

import dataclasses
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import datasets
import pytest

from lib.files import sets
from lib.files.folders import DataError
from lib.files.splits import SPLITS
from lib.language.examples import Examples, find_files, load_examples, note
from lib.language.registry import DRAWN, GLUE

ROOMY = dict.fromkeys(SPLITS, 1000)
COLA, STSB, MNLI = GLUE["cola"], GLUE["stsb"], GLUE["mnli"]


def write(root: Path, task, file, rows, *, label=None):
    """Write one file of a task: rows of (text, ..., label)."""
    label = label or (datasets.ClassLabel(names=list(task.classes)) if task.words else datasets.Value("float32"))
    columns = dict(zip((*task.columns, "label"), map(list, zip(*rows, strict=True)), strict=True))
    features = datasets.Features({name: datasets.Value("string") for name in task.columns} | {"label": label})
    path = root / "glue" / task.glue / f"{file}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def make(root: Path, task, train=60, test=21):
    """A small mirror of a task; every row has texts of its own."""
    labels = range(len(task.words)) if task.words else (0.0, 1.25, 2.5, 3.799999952316284, 5.0)
    for file, count in (("train", train), (task.held_out, test)):
        rows = [
            (*(f"{file} {column} {row}" for column in task.columns), labels[row % len(labels)]) for row in range(count)
        ]
        write(root, task, file, rows)
    return root


def load(root, task=COLA, split="train", sizes=ROOMY, **options):
    return load_examples(task, split, sizes=sizes, data_root=str(root), **options)


# --- splits


@pytest.mark.parametrize("task", GLUE.values(), ids=lambda task: task.name)
def test_splits_are_disjoint_and_use_every_row(tmp_path, task):
    make(tmp_path, task)
    parts = {split: load(tmp_path, task, split) for split in SPLITS}
    counts = {split: len(part.prompts) for split, part in parts.items()}
    assert counts == {"train": 54, "validation": 6, "adaptation": 11, "test": 10}
    assert all(len(part.prompts) == len(part.targets) for part in parts.values())
    assert len({prompt for part in parts.values() for prompt in part.prompts}) == 81
    for split, part in parts.items():
        file = task.held_out if split in ("adaptation", "test") else "train"
        assert all(f"{file} {task.columns[0]} " in prompt for prompt in part.prompts)
    if task.words:
        assert all(set(part.targets) == set(task.words) for part in parts.values())


def test_targets_stay_with_their_prompts(tmp_path):
    make(tmp_path, MNLI)
    for split in SPLITS:
        part = load(tmp_path, MNLI, split)
        for prompt, target in zip(part.prompts, part.targets, strict=True):
            assert target == MNLI.words[int(prompt.split("premise ")[1].split("'")[0]) % 3]


def test_grades_have_one_decimal_and_every_part_their_whole_range(tmp_path):
    make(tmp_path, STSB, train=300, test=100)
    for split in SPLITS:
        part = load(tmp_path, STSB, split, sizes=dict.fromkeys(SPLITS, 25))
        counts = Counter(part.targets)
        assert set(counts) == {"0.0", "1.2", "2.5", "3.8", "5.0"}
        # 1.25 -> 1; 2.5 -> 2; 3.8 -> 4: five strata, so five of each
        assert set(counts.values()) == {5}


def test_sizes_limit_and_keep_the_classes_in_proportion(tmp_path):
    make(tmp_path, COLA, train=400, test=100)
    sizes = {"train": 30, "validation": 10, "adaptation": 8, "test": 6}
    for split, size in sizes.items():
        part = load(tmp_path, split=split, sizes=sizes)
        assert Counter(part.targets) == {"acceptable": size // 2, "unacceptable": size // 2}
    assert len(load(tmp_path, sizes={"validation": 10}).prompts) == 390  # the rest, without a limit of its own


def test_splits_repeat_are_shuffled_and_follow_the_seed(tmp_path):
    make(tmp_path, COLA)
    for split in SPLITS:
        first = load(tmp_path, split=split)
        assert first == load(tmp_path, split=split) and isinstance(first, Examples)
        assert set(first.prompts) != set(load(tmp_path, split=split, seed=1).prompts)
    assert list(load(tmp_path).prompts) != sorted(load(tmp_path).prompts)


def test_text_of_the_held_out_file_is_dropped_from_train_and_repeats_too(tmp_path):
    write(tmp_path, STSB, "validation", [("a", "b", 1.0), ("c", "d", 2.0), ("e", "f", 2.0)])
    leaked = [("a", "b", 4.0), ("c", "d", 2.0)]  # with another label and with the same
    own = [("a", "x", 1.0), ("b", "a", 2.0), ("g", "h", 3.0), ("g", "h", 5.0)]
    write(tmp_path, STSB, "train", leaked + own)
    parts = [load(tmp_path, STSB, split) for split in ("train", "validation")]
    found = {prompt: target for part in parts for prompt, target in zip(part.prompts, part.targets, strict=True)}
    wanted = [STSB.prompt.format(sentence1=one, sentence2=two) for one, two, _ in own[:3]]
    assert sum(len(part.prompts) for part in parts) == 3
    assert found == dict(zip(wanted, ("1.0", "2.0", "3.0"), strict=True))


def test_text_is_kept_as_it_is(tmp_path):
    make(tmp_path, COLA)
    write(tmp_path, COLA, "validation", [(' {sentence} "It\'s" 100 % {} ', 1), ("naïve café\n", 0)])
    prompts = {load(tmp_path, split=split).prompts[0] for split in ("adaptation", "test")}
    start, end = COLA.prompt.split("{sentence}")
    assert prompts == {f'{start} {{sentence}} "It\'s" 100 % {{}} {end}', f"{start}naïve café\n{end}"}


def test_several_files_and_plain_number_labels_are_read(tmp_path):
    make(tmp_path, COLA)
    first = write(
        tmp_path, COLA, "train", [(f"new {row}", row % 2) for row in range(30)], label=datasets.Value("int32")
    )
    first.rename(first.with_name("train-00001-of-00002.parquet"))
    second = write(tmp_path, COLA, "train", [(f"old {row}", row % 2) for row in range(30)])
    second.rename(second.with_name("train-00000-of-00002.parquet"))
    parts = [load(tmp_path, split=split) for split in ("train", "validation")]
    assert sum(len(part.prompts) for part in parts) == 60


@pytest.mark.parametrize("form", ["csv", "jsonl", "saved"])
def test_text_is_read_from_every_form_of_table(tmp_path, form):
    make(tmp_path, COLA)
    expected = {split: load(tmp_path, split=split) for split in SPLITS}
    for path in sorted((tmp_path / "glue" / "cola").iterdir()):
        rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
        name = path.with_name(path.name.split("-")[0])
        if form == "csv":
            rows.to_csv(name.with_suffix(".csv"))
        elif form == "jsonl":
            rows.to_json(name.with_suffix(".jsonl"))
        else:
            rows.save_to_disk(name)
        path.unlink()
    assert {split: load(tmp_path, split=split) for split in SPLITS} == expected


# --- official counts


@pytest.fixture
def small_cola():
    """CoLA as if 60 and 21 rows were all of it."""
    return dataclasses.replace(COLA, train=60, test=21)


def test_a_whole_mirror_has_no_note_and_a_smaller_one_tells_its_share(tmp_path, small_cola):
    make(tmp_path, COLA)
    assert note(small_cola, str(tmp_path)) == ""
    assert note(COLA, str(tmp_path)) == (
        "cola: a local subset, 60 of 8,551 training rows, 21 of 1,043 held-out rows; "
        "scores are not comparable with published ones"
    )
    assert note(DRAWN["sentiment"]) == ""


@pytest.mark.parametrize("counts", [{"train": 61}, {"test": 22}])
def test_a_mirror_with_more_rows_than_the_official_set_is_refused(tmp_path, small_cola, counts):
    make(tmp_path, COLA, **counts)
    with pytest.raises(DataError, match=r"glue/cola holds 6\d of 60 training rows, 2\d of 21 held-out rows: it is not"):
        load(tmp_path, small_cola)


def test_the_hub_must_hold_the_official_rows(tmp_path, small_cola, monkeypatch):
    make(tmp_path, COLA)
    asked = []
    monkeypatch.setattr(sets, "download", lambda *where: asked.append(where) or tmp_path / "glue" / "cola")
    assert load("", small_cola) == load(tmp_path, small_cola) and asked[0][:2] == ("nyu-mll/glue", "cola")
    with pytest.raises(DataError, match=r"hub:nyu-mll/glue holds 60 of 8,551 training .* use a mirror of that"):
        load("")


@pytest.mark.parametrize("name", ["cola", "mnli"])
def test_the_two_labelled_files_are_fetched_from_the_hub(tmp_path, monkeypatch, name):
    patterns = []
    sets.download.cache_clear()
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *_, allow_patterns, **__: patterns.extend(allow_patterns) or tmp_path,
    )
    with pytest.raises(DataError, match=rf"{tmp_path / name}: nothing of split 'train'"):  # nothing was fetched
        find_files(GLUE[name])
    assert patterns == [f"{name}/train-*.parquet", f"{name}/{GLUE[name].held_out}-*.parquet"]
    sets.download.cache_clear()


# --- errors


def spoil(kind, root):
    """Spoil a sound mirror of CoLA in one way."""
    train = root / "glue" / "cola" / "train-00000-of-00001.parquet"
    good, words = [(f"text {row}", row % 2) for row in range(20)], datasets.Value("string")
    if kind == "no text column":
        train.unlink()
        datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).to_parquet(train)
    elif kind == "no label column":
        datasets.Dataset.from_dict({"sentence": ["a"], "class": [1]}).to_parquet(train)
    elif kind == "second file without a column":
        train.rename(train.with_name("train-00000-of-00002.parquet"))
        datasets.Dataset.from_dict({"sentence": ["a"]}).to_parquet(train.with_name("train-00001-of-00002.parquet"))
    elif kind == "empty text":
        write(root, COLA, "train", [*good, (" \n", 1)])
    elif kind == "missing text":
        write(root, COLA, "train", [good[0], (None, 1), *good])
    elif kind == "number for text":
        datasets.Dataset.from_dict({"sentence": [7], "label": [1]}).to_parquet(train)
    elif kind == "hidden label":
        write(root, COLA, "train", [*good[:3], ("text", -1)])
    elif kind == "label outside":
        write(root, COLA, "train", [("text", 7), *good], label=datasets.Value("int64"))
    elif kind == "missing label":
        write(root, COLA, "train", [*good, ("text", None)])
    elif kind == "word for label":
        write(root, COLA, "train", [("text", "acceptable")], label=words)
    elif kind == "turned classes":
        write(root, COLA, "train", good, label=datasets.ClassLabel(names=["acceptable", "unacceptable"]))
    elif kind == "no parquet":
        train.write_bytes(b"this is no parquet file")
    elif kind == "cut off":
        train.write_bytes(train.read_bytes()[: train.stat().st_size // 2])
    elif kind == "no file":
        train.unlink()
    elif kind == "too few":
        write(root, COLA, "train", good[:1])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no text column", r"train-00000-of-00001\.parquet has no column 'sentence'; its columns are text, label; ren"),
        ("no label column", r"train-00000-of-00001\.parquet has no column 'label'; its columns are sentence, class"),
        ("second file without a column", r"train-00001-of-00002\.parquet has no column 'label'"),
        ("empty text", r"train-00000-of-00001\.parquet, row 20: column 'sentence' holds no text \(' \\n'\); drop that"),
        ("missing text", r"row 1: column 'sentence' holds no text \(None\); drop that row or correct it"),
        ("number for text", r"row 0: column 'sentence' holds no text \(7\)"),
        ("hidden label", r"parquet, row 3: label -1 is not one of the 2 classes \(0 to 1\); drop .*-1 means no label"),
        ("label outside", r"parquet, row 0: label 7 is not one of the 2 classes \(0 to 1\)"),
        ("missing label", r"parquet, row 20: label None is not one of the 2 classes"),
        ("word for label", r"parquet, row 0: label 'acceptable' is not one of the 2 classes"),
        ("turned classes", r"classes of column 'label' are acceptable, unacceptable, those of CoLA are unacceptable, "),
        ("no parquet", r"train-00000-of-00001\.parquet cannot be read as parquet .*copy the file again"),
        ("cut off", r"train-00000-of-00001\.parquet cannot be read as parquet"),
        ("no file", r"glue/cola: nothing of split 'train', there is validation; call"),
        ("too few", r"glue/cola: 1 usable rows are too few to make split 'train'; add some"),
    ],
)
def test_one_clear_error_names_the_place_and_how_to_correct_it(tmp_path, kind, message):
    make(tmp_path, COLA)
    spoil(kind, tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("grade", [-0.5, 5.5, float("nan"), None])
def test_a_grade_outside_its_range_is_named(tmp_path, grade):
    make(tmp_path, STSB)
    write(tmp_path, STSB, "validation", [("a", "b", 3.0), ("c", "d", grade)])
    with pytest.raises(DataError, match=r"stsb/validation-.*\.parquet, row 1: label .* is no number from 0 to 5; drop"):
        load(tmp_path, STSB, "test")


def test_a_graded_task_takes_no_words_and_no_classes(tmp_path):
    make(tmp_path, STSB)
    write(tmp_path, STSB, "validation", [("a", "b", "high")], label=datasets.Value("string"))
    with pytest.raises(DataError, match=r"row 0: label 'high' is no number from 0 to 5"):
        load(tmp_path, STSB, "test")
    write(tmp_path, STSB, "validation", [("a", "b", 1)], label=datasets.ClassLabel(names=["low", "high"]))
    with pytest.raises(DataError, match=r"classes of column 'label' are low, high, those of STS-B are numbers"):
        load(tmp_path, STSB, "test")


def test_a_missing_folder_names_what_is_there(tmp_path):
    with pytest.raises(
        DataError, match=r"data_root .*/nowhere is not a folder; set data_root to the folder that holds "
    ):
        load(tmp_path / "nowhere")
    (tmp_path / "vision").mkdir()
    with pytest.raises(DataError, match=rf"glue/cola does not exist, {tmp_path} holds vision; set data_root"):
        load(tmp_path)
    make(tmp_path, STSB)
    with pytest.raises(DataError, match=r"/glue holds stsb; set data_root .*glue/cola/, or drop 'cola'"):
        load(tmp_path)


def test_mnli_needs_its_matched_file(tmp_path):
    make(tmp_path, MNLI)
    folder = tmp_path / "glue" / "mnli"
    (folder / "validation_matched-00000-of-00001.parquet").rename(folder / "validation-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"mnli: nothing of split 'validation_matched', there is train, validation;"):
        load(tmp_path, MNLI)


def test_an_unknown_split_is_named(tmp_path):
    for task in (COLA, DRAWN["inference"]):
        with pytest.raises(DataError, match=r"unknown split 'dev'; the splits are train, validation, adaptation, test"):
            load(tmp_path, task, "dev")


# --- drawn tasks


def test_a_drawn_task_calls_the_drawing(monkeypatch):
    calls = []

    def draw(*names):
        calls.append(names)
        return [{"premise": "a dog runs", "hypothesis": "a {dog} moves", "label": row % 3} for row in range(names[2])]

    stand_in = ModuleType("worlds.text.drawn")
    stand_in.draw = draw
    monkeypatch.setitem(sys.modules, "worlds.text.drawn", stand_in)
    part = load_examples(DRAWN["inference"], "test", sizes={"test": 4}, seed=3)
    assert calls == [("inference", "test", 4, 3)]
    assert part.prompts == ("relation: a dog runs / a {dog} moves",) * 4
    assert part.targets == ("entailment", "neutral", "contradiction", "entailment")
    with pytest.raises(DataError, match=r"inference: sizes names no number of texts to draw for split 'train'"):
        load_examples(DRAWN["inference"], "train", sizes={"test": 4})


@pytest.mark.parametrize("task", DRAWN.values(), ids=lambda task: task.name)
def test_drawn_rows_become_examples(task):
    parts = {split: load_examples(task, split, sizes=dict.fromkeys(SPLITS, 30)) for split in SPLITS}
    assert all(len(part.prompts) == len(part.targets) == 30 for part in parts.values())
    assert len({prompt for part in parts.values() for prompt in part.prompts}) == 120
    if task.words:
        assert Counter(parts["train"].targets) == dict.fromkeys(task.words, 30 // len(task.words))
    else:
        assert all(0 <= float(target) <= 5 for target in parts["train"].targets)


# --- the real mirror


def real_root():
    """The folder with GLUE: the one that STUDY_DATA_ROOT names, or the one that holds it beside the image sets."""
    named = os.environ.get("STUDY_DATA_ROOT")
    places = [Path(named), Path(named).parent] if named else []
    return next((place for place in places if (place / "glue").is_dir()), None)


@pytest.mark.real
@pytest.mark.skipif(real_root() is None, reason="STUDY_DATA_ROOT names no mirror with GLUE")
@pytest.mark.parametrize("task", GLUE.values(), ids=lambda task: task.name)
def test_the_real_mirror_loads_whole(task):
    root, everything = real_root(), dict.fromkeys(SPLITS, 1_000_000)
    parts = {split: load(root, task, split, sizes=everything) for split in SPLITS}
    texts = {split: set(part.prompts) for split, part in parts.items()}
    for split, others in (("train", SPLITS[1:]), ("validation", SPLITS[2:])):
        assert not any(texts[split] & texts[other] for other in others)
    assert 0 <= len(parts["adaptation"].prompts) - len(parts["test"].prompts) <= 1
    for part in parts.values():
        assert len(set(part.targets)) == (len(task.words) or len(set(part.targets)))
    print(task.name, {split: len(part.prompts) for split, part in parts.items()}, note(task, str(root)))

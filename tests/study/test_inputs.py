"""Tables of other data or other experts lie apart: what identifies inputs is their content."""

import json
import os
import shutil

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from lib.study.inputs import LITTLE, MANY, TAIL, chosen, difference, fingerprint, inputs_of, label_of, without_data
from lib.study.profiles import get_profile
from lib.study.study import Study, open_study

TABLE = pd.DataFrame({"method": ["a"], "task": ["mnist"], "accuracy": [0.5]})


@pytest.fixture
def root(tmp_path):
    """A mirror with two tasks, of three and two rows."""
    for task, rows in (("mnist", 3), ("dtd", 2)):
        folder = tmp_path / "mirror" / task / "data"
        folder.mkdir(parents=True)
        parquet.write_table(pa.table({"label": list(range(rows))}), folder / "train-00000-of-00001.parquet")
    return tmp_path / "mirror"


@pytest.fixture
def profile():
    return get_profile("tiny-real", tasks="mnist dtd")


def test_drawn_tasks_need_no_name_for_their_data(root):
    assert label_of(get_profile("tiny"), str(root)) == "tiny"
    assert label_of(get_profile("tiny-real")) == "tiny-real"
    assert chosen(get_profile("tiny-real")) == {}


def test_a_label_names_the_content_of_the_data(root, profile, tmp_path):
    label = label_of(profile, str(root))
    assert without_data(label) == profile.label
    assert label.removeprefix(f"{profile.label}+data=").isalnum()
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "copy" / ".cache").mkdir()
    (tmp_path / "copy" / "mnist" / ".lock").touch()
    os.utime(tmp_path / "copy" / "dtd" / "data" / "train-00000-of-00001.parquet", (1, 1))
    assert label_of(profile, str(tmp_path / "copy")) == label, "a copy is the same data, whatever its times"
    other = tmp_path / "copy" / "dtd" / "data" / "train-00000-of-00001.parquet"
    before = other.stat().st_size
    parquet.write_table(pa.table({"label": [1, 0]}), other)
    assert other.stat().st_size == before
    assert label_of(profile, str(tmp_path / "copy")) != label, "another file of the same size is other data"
    assert label_of(get_profile("tiny-real", tasks="mnist"), str(root)) == label_of(
        get_profile("tiny-real", tasks="mnist"), str(tmp_path / "copy")
    )


def test_an_archive_is_data_too_and_chosen_columns_are_in_the_name(root, profile):
    shutil.make_archive(str(root / "mnist"), "zip", root / "mnist")
    as_folder = chosen(profile, str(root))
    shutil.rmtree(root / "mnist")
    assert chosen(profile, str(root)) == as_folder | {"mnist": fingerprint(root / "mnist.zip")}
    columns = get_profile("tiny-real", tasks="mnist dtd", image_column="left")
    assert columns.label == f"{profile.label}+image_column=left"


def test_language_reads_below_glue(root):
    profile = get_profile("tiny-t5-real", tasks="cola")
    assert label_of(profile, str(root)) == profile.label
    shutil.copytree(root / "dtd" / "data", root / "glue" / "cola")
    assert list(chosen(profile, str(root))) == ["cola"]


def test_experts_are_told_apart_by_their_files(tmp_path):
    pattern = str(tmp_path / "{task}.pt")
    profile = get_profile("clip-vit-b-32", tasks="mnist", experts=pattern)
    absent = label_of(profile)
    (tmp_path / "MNIST.pt").write_bytes(bytes(1000))
    first = label_of(profile)
    (tmp_path / "MNIST.pt").write_bytes(bytes(999) + b"1")
    assert len({absent, first, label_of(profile)}) == 3
    on_hub = get_profile("clip-vit-b-32", tasks="mnist", experts="hugging-face")
    assert chosen(on_hub) == {"expert of mnist": "hub:tanganke/clip-vit-base-patch32_mnist"}
    adapters = get_profile("flan-t5-base", tasks="cola", adapters=str(tmp_path / "{task}"))
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola" / "adapter_model.safetensors").write_bytes(b"1")
    assert chosen(adapters) == {"expert of cola": fingerprint(tmp_path / "cola")}


def test_places_whose_names_look_alike_in_a_label_lie_apart():
    one, other = (get_profile("clip-vit-b-32", experts=f"~/gone/{place}/{{task}}") for place in ("a/b", "a_b"))
    assert one.label == other.label and label_of(one) != label_of(other)


def test_weights_in_a_file_are_told_apart_too(tmp_path):
    weights = tmp_path / "model.safetensors"
    profile = get_profile("deit-tiny", tasks="mnist", pretrained=str(weights))
    absent = label_of(profile)
    weights.write_bytes(bytes(1000))
    first = label_of(profile)
    weights.write_bytes(bytes(999) + b"1")
    assert len({absent, first, label_of(profile)}) == 3
    assert list(chosen(profile)) == ["file of pretrained"]
    assert chosen(get_profile("tiny-t5", model=str(tmp_path))) == {"file of model": fingerprint(tmp_path)}


def test_about_json_says_what_the_tables_were_made_from(root, profile, tmp_path):
    study = Study(profile, data_root=str(root), root=tmp_path)
    study.save(TABLE, "fusion")
    noted = json.loads((study.results / "about.json").read_text())["inputs"]
    assert noted == inputs_of(profile, str(root))
    assert (noted["data_root"], noted["rows of mnist"], noted["rows of dtd"]) == (str(root), 3, 2)
    assert noted["mnist"] == fingerprint(root / "mnist")


def test_the_revision_of_the_hub_is_noted_once_something_was_downloaded(profile, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert inputs_of(profile) == {}
    (tmp_path / "datasets--ylecun--mnist" / "refs").mkdir(parents=True)
    (tmp_path / "datasets--ylecun--mnist" / "refs" / "main").write_text("0123abc")
    assert inputs_of(profile) == {"revision of ylecun/mnist": "0123abc"}
    assert label_of(profile) == profile.label, "a download does not move the results"


def test_tables_of_other_inputs_are_not_overwritten(root, profile, tmp_path):
    first = Study(profile, data_root=str(root), root=tmp_path)
    first.save(TABLE, "fusion")
    saved = (first.results / "fusion.csv").read_bytes()
    other = tmp_path / "other"
    shutil.copytree(root / "dtd", other / "dtd")
    shutil.copytree(root / "dtd", other / "mnist")
    second = Study(profile, data_root=str(other), root=tmp_path)
    second.save(TABLE.assign(accuracy=1.0), "fusion")
    assert first.results != second.results
    assert (first.results / "fusion.csv").read_bytes() == saved

    shutil.copytree(root / "dtd", root / "mnist", dirs_exist_ok=True)  # while a notebook runs
    with pytest.raises(ValueError, match=r"made from other inputs \('mnist' was \w+, is \w+\): move that folder away"):
        first.save(TABLE.assign(accuracy=1.0), "fusion")
    assert (first.results / "fusion.csv").read_bytes() == saved
    assert Study(profile, data_root=str(root), root=tmp_path).results not in (first.results,)


def test_only_what_both_know_can_differ():
    old, new = {"data_root": "/a", "mnist": "1"}, {"data_root": "/b", "mnist": "1", "revision of x/y": "2"}
    assert difference(old, new) == difference({}, new) == ""
    assert difference(new, old | {"revision of x/y": "3"}) == "'revision of x/y' was 2, is 3"


@pytest.mark.parametrize("many", [False, True])
def test_a_corrected_label_is_seen_wherever_it_stands(tmp_path, many):
    """Of the same length, in the first lines of a long table, beside few or many images."""
    for number in range(MANY if many else 2):
        (tmp_path / f"{number}.png").touch()
    table, found = tmp_path / "metadata.csv", set()
    for first in ("0", "1"):
        table.write_text(f"file_name,label\n0.png,{first}\n" + "1.png,1\n" * TAIL)
        os.utime(table, (1, 1 + int(first)))
        found.add(fingerprint(tmp_path))
    assert len(found) == 2
    os.utime(table, (3, 3))
    assert fingerprint(tmp_path) in found


def test_a_layer_of_a_file_that_is_not_read_whole_is_seen_by_its_time(tmp_path, monkeypatch):
    weights, found = tmp_path / "model.safetensors", set()
    for little in (LITTLE, 100):
        monkeypatch.setattr("lib.study.inputs.LITTLE", little)
        for number in range(2):
            weights.write_bytes(bytes([number]) + bytes(2 * TAIL))
            os.utime(weights, (number, number))
            found.add(fingerprint(weights))
    assert len(found) == 4


def test_rows_are_counted_whatever_form_a_set_has(tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.csv").write_text("image,label\n" + "a.png,b\n" * 5)
    (tmp_path / "table" / "test.csv").write_text("image,label\n" + "a.png,b\n" * 2)
    for number in range(3):
        (tmp_path / "images" / "train" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "train" / f"class{number % 2}" / f"{number}.png").touch()
    (tmp_path / "images" / "train" / "metadata.csv").touch()
    datasets.Dataset.from_dict({"label": [1, 2, 3, 4]}).save_to_disk(tmp_path / "saved" / "train")
    told = inputs_of(get_profile("tiny-real", tasks="table images saved gone"), str(tmp_path))
    assert {name: rows for name, rows in told.items() if "rows" in name} == {
        "rows of table": 7, "rows of images": 3, "rows of saved": 4,
    }  # fmt: skip


@pytest.mark.parametrize(("content", "why"), [(b"version https://git-lfs", "`git lfs pull` fetches"), (b"", "")])
def test_a_table_that_cannot_be_read_is_named_when_the_study_opens(root, content, why):
    (root / "dtd" / "data" / "train-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=rf"dtd/data/train-00000-of-00001.parquet cannot be read as parquet .*{why}"):
        open_study({"profile": "tiny-real", "tasks": "mnist dtd", "data_root": str(root)})

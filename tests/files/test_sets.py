"""Reading parquet files of real sets: decoding, checks, and one clear error for each thing that can be wrong."""

import io
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from mirrors import make_mirror, picture, read_images, write_split
from PIL import Image

from lib.files import sets
from lib.files.contents import read_contents
from lib.files.folders import DataError
from lib.files.sets import Source, find_source
from lib.vision.decoding import decode, fit


@pytest.fixture
def source(tmp_path):
    return Source("pets", make_mirror(tmp_path, "pets"))


def encoded(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_contents_are_those_of_the_files(source):
    contents = read_contents(source)
    assert contents.class_names == ("red_fox", "owl", "newt")
    assert {split: len(labels) for split, labels in contents.labels.items()} == {"train": 60, "test": 20}
    assert contents.labels["train"].tolist() == [i % 3 for i in range(60)]
    assert contents.labels["train"].dtype == np.int64


def test_rows_come_in_the_order_asked_for_across_files(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [picture(rng, (8, 8)) for _ in range(10)]
    write_split(tmp_path, "train", [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], pictures=pictures, files=3)
    images = read_images(Source("pets", tmp_path), "train", np.array([9, 0, 5]), 8)
    for image, row in zip(images, (9, 0, 5), strict=True):
        assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(pictures[row]))).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("size", [(40, 32), (20, 70), (32, 32), (9, 7)])
def test_every_kind_of_image_becomes_three_square_channels(mode, size):
    image = decode({"bytes": picture(np.random.default_rng(1), size, mode), "path": None}, 32)
    assert image.shape == (3, 32, 32) and image.dtype == np.uint8
    if mode == "L":
        assert np.array_equal(image[0], image[2])


def test_the_centre_is_kept_and_the_aspect_too():
    wide = np.zeros((64, 192, 3), dtype=np.uint8)
    wide[:, 64:128] = 200  # the middle third, which is all that a square crop sees
    assert np.all(fit(Image.fromarray(wide), 32)[:, :, 2:-2] == 200)


def test_shrinking_averages_instead_of_skipping_pixels():
    chess = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(fit(Image.fromarray(chess), 32).astype(int) - 127).max() < 6


def test_sixteen_bit_grey_is_scaled_not_clipped():
    deep = Image.fromarray(np.full((32, 32), 128 * 256, dtype=np.uint16))
    assert np.all(decode(encoded(deep), 32) == 128)


def test_text_labels_become_classes_in_sorted_order(tmp_path):
    text = datasets.Value("string")
    write_split(tmp_path, "train", ["owl", "newt", "owl", "fox"], label_feature=text)
    write_split(tmp_path, "test", ["fox", "newt"], label_feature=text)
    contents = read_contents(Source("pets", tmp_path))
    assert contents.class_names == ("fox", "newt", "owl")
    assert contents.labels["train"].tolist() == [2, 1, 2, 0] and contents.labels["test"].tolist() == [0, 1]
    write_split(tmp_path, "test", ["fox", "cat"], label_feature=text)
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet, row 1: label 'cat' that train has not"):
        read_contents(Source("pets", tmp_path))


def test_the_image_column_may_be_called_img(tmp_path):
    folder = make_mirror(tmp_path, "pets", column="img")
    assert read_images(Source("pets", folder), "test", np.arange(3), 16).shape == (3, 3, 16, 16)


def test_the_fingerprint_follows_the_files(source):
    before = source.fingerprint
    assert replace(source).fingerprint == before
    write_split(source.folder, "test", [0, 1, 2, 2])
    assert replace(source).fingerprint != before


def test_reading_writes_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    before = sorted(tmp_path.rglob("*"))
    read_contents(source)
    read_images(source, "train", np.arange(4), 16)
    assert sorted(tmp_path.rglob("*")) == before


def broken(kind, folder):
    """Spoil a sound mirror in one way."""
    train, _ = (folder / f"{split}-00000-of-00001.parquet" for split in ("train", "test"))
    if kind == "no train file":
        train.unlink()
    elif kind == "git lfs":
        train.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif kind == "not parquet":
        train.write_bytes(b"this is not a parquet file")
    elif kind == "cut off":
        train.write_bytes(train.read_bytes()[: train.stat().st_size // 2])
    elif kind == "map":
        notes = pa.array([[("a", 1)]] * 60, pa.map_(pa.string(), pa.int64()))
        rows = parquet.read_table(train).replace_schema_metadata(None)
        parquet.write_table(rows.append_column("notes", notes), train)
    elif kind == "no image column":
        datasets.Dataset.from_dict({"photo": [1, 2], "label": [0, 1]}).to_parquet(train)
    elif kind == "no label column":
        datasets.Dataset.from_dict({"image": [b"", b""], "score": [0.0, 1.0]}).to_parquet(train)
    elif kind == "empty split":
        write_split(folder, "test", [])
    elif kind == "grades":
        write_split(folder, "train", [0.5, 1.0, 2.0], label_feature=datasets.Value("float64"))
    elif kind == "label outside":
        write_split(folder, "test", [0, 1, -1, 2])
    elif kind == "missing label":
        write_split(folder, "test", [0, None, 1, 2])
    elif kind == "class without images":
        write_split(folder, "train", [0, 0, 2])
    elif kind == "other names":
        write_split(folder, "test", [0, 1, 2], names=["owl", "red_fox", "toad"])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no train file", r"data: nothing of split 'train', there is test; call the files train-"),
        ("not parquet", r"train-00000-of-00001\.parquet cannot be read as parquet .*copy the file again"),
        ("cut off", r"train-00000-of-00001\.parquet cannot be read as parquet"),
        ("map", r"train-00000-of-00001\.parquet cannot be read as parquet \(.*\('notes'\).*\); drop that column"),
        ("git lfs", r"train-00000-of-00001\.parquet cannot .* pointer of Git LFS; `git lfs pull` fetches the file"),
        ("no image column", r"has not one column of images, but photo, label; choose with image_column=<name>"),
        ("no label column", r"has not one column of labels, but image, score; choose with label_column=<name>"),
        ("empty split", r"split 'test' is empty"),
        ("grades", r"train-00000-of-00001\.parquet, row 0: label 0\.5 is no class; correct it"),
        ("label outside", r"test-00000-of-00001\.parquet, row 2: no label \(null, empty and -1 are none\)"),
        ("missing label", r"test-00000-of-00001\.parquet, row 1: no label \(null, empty and -1 are none\)"),
        ("class without images", r"class 'owl' has no training image \(1 of 3 classes have none\)"),
        ("other names", r"test-00000.*\.parquet and .*train-00000.*\.parquet have different classes; write both with"),
    ],
)
def test_one_clear_error_names_the_place_and_how_to_correct_it(source, kind, message):
    broken(kind, source.folder)
    with pytest.raises(DataError, match=message) as caught:
        read_contents(source)
    assert "pets" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"no image at all", b"", None, picture(np.random.default_rng(0))[:200]])
def test_a_bad_image_is_named_by_file_and_row(tmp_path, data):
    pictures = [picture(np.random.default_rng(row)) for row in range(6)]
    pictures[4] = data
    write_split(tmp_path, "train", [0, 1, 2, 0, 1, 2], pictures=pictures, files=2)
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet, row 1: the image cannot be decoded"):
        read_images(Source("pets", tmp_path), "train", np.arange(6), 32)
    read_images(Source("pets", tmp_path), "train", np.array([0, 1, 2, 3, 5]), 32)  # the others are fine


def test_files_of_one_split_may_order_their_classes_each_in_its_way(tmp_path):
    write_split(tmp_path, "train", [0, 1, 2], files=1)
    write_split(tmp_path / "other", "train", [0, 1, 2], names=["owl", "red_fox", "newt"])
    write_split(tmp_path, "test", [1, 1], names=["newt", "owl", "red_fox"])
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "train-00000-of-00002.parquet")
    (tmp_path / "other" / "train-00000-of-00001.parquet").rename(tmp_path / "train-00001-of-00002.parquet")
    (tmp_path / "other").rmdir()
    contents = read_contents(Source("pets", tmp_path))
    assert contents.class_names == ("red_fox", "owl", "newt")
    assert contents.labels["train"].tolist() == [0, 1, 2, 1, 0, 2] and contents.labels["test"].tolist() == [1, 1]


def test_files_of_one_split_may_call_their_columns_each_in_its_way(tmp_path):
    write_split(tmp_path, "train", [0, 1, 2], files=1)
    write_split(tmp_path / "other", "train", [2, 1, 0], column="img")
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "train-00000-of-00002.parquet")
    second = parquet.read_table(tmp_path / "other" / "train-00000-of-00001.parquet")
    told = second.schema.metadata[b"huggingface"].replace(b'"label"', b'"labels"')
    second = second.rename_columns(["img", "labels"]).replace_schema_metadata({"huggingface": told})
    parquet.write_table(second, tmp_path / "train-00001-of-00002.parquet")
    shutil.rmtree(tmp_path / "other")
    write_split(tmp_path, "val", [0, 1, 2])
    write_split(tmp_path, "test", [0, 1, 2])
    source = Source("pets", tmp_path)
    labels = read_contents(source).labels
    assert labels["train"].tolist() == [0, 1, 2, 2, 1, 0] and labels["validation"].tolist() == [0, 1, 2]
    assert read_images(source, "train", np.arange(6), 8).shape == (6, 3, 8, 8)


def test_reading_from_files_asks_no_network(source, monkeypatch):
    asked = []
    monkeypatch.setattr("socket.socket.connect", lambda *address: asked.append(address))
    read_contents(source)
    assert len(read_images(source, "train", np.arange(4), 16)) == 4
    assert asked == []


def test_a_folder_is_found_below_the_root_or_what_is_there_is_named(tmp_path):
    (tmp_path / "pets" / "plain").mkdir(parents=True)
    assert find_source("pets", str(tmp_path), ["pets/data", "pets/plain"]).folder == tmp_path / "pets" / "plain"
    assert find_source("pets", str(tmp_path), ["pets/data"]).folder == tmp_path / "pets"
    with pytest.raises(DataError, match=rf"birds/data does not exist, {tmp_path} holds pets; set data_root"):
        find_source("birds", str(tmp_path), ["birds/data"])


def test_a_hub_out_of_reach_says_to_set_data_root(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    sets.download.cache_clear()
    with pytest.raises(DataError, match=r"cannot fetch 'tanganke/dtd' .* \(ConnectionError\).* set data_root"):
        sets.download("tanganke/dtd", "data")


def test_the_hub_is_asked_only_for_the_files_of_the_three_splits(monkeypatch, tmp_path):
    asked = {}

    def fetch(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    sets.download.cache_clear()
    assert sets.download("some/set", "plain") == tmp_path / "plain"
    assert asked["repository"] == "some/set" and asked["repo_type"] == "dataset"
    assert asked["allow_patterns"][0] == "plain/train-*.parquet" and len(asked["allow_patterns"]) == 3
    sets.download.cache_clear()

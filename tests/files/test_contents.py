"""Sets of one's own in every form that is understood: what is read, what is said, what is refused by name."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
from mirrors import picture, read_images, write_split
from PIL import Image

from lib.files.contents import read_contents
from lib.files.folders import DataError
from lib.files.sets import Source, find_source
from lib.vision.decoding import decode, decode_rows, fit

CLASSES = ("ant", "bee")


def colour(row):
    """An image as PNG, different for every row."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (row % 256, row // 256, 7)).save(stream, "PNG")
    return stream.getvalue()


def class_folders(folder: Path, count=6, first=0):
    """Images in one folder for each class."""
    for row in range(count):
        path = folder / CLASSES[row % 2] / f"{row:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(colour(first + row))


def metadata(folder: Path, kind, first=0):
    """Images in one folder, beside a table that names their classes."""
    folder.mkdir(parents=True)
    rows = [{"file_name": f"{row}.png", "label": CLASSES[row % 2]} for row in range(6)]
    for row in range(6):
        (folder / f"{row}.png").write_bytes(colour(first + row))
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = "".join(f"{row['file_name']},{row['label']}\n" for row in rows)
        (folder / "metadata.csv").write_text("file_name,label\n" + lines)


def saved(folder: Path):
    """What `save_to_disk` writes."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"image": [{"bytes": colour(row), "path": None} for row in range(6)], "label": [row % 2 for row in range(6)]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "dev": whole, "test": whole}).save_to_disk(folder)


def paths(folder: Path):
    """A table of paths, and the images where it says."""
    class_folders(folder / "pictures")
    for split in ("train", "test"):
        rows = "".join(f"pictures/{CLASSES[row % 2]}/{row:03}.png,{CLASSES[row % 2]}\n" for row in range(6))
        (folder / f"{split}.csv").write_text("image,label\n" + rows)


def make(form, folder):
    if form == "class folders":
        class_folders(folder / "train")
        class_folders(folder / "test", first=50)
    elif form == "class folders, other names":
        class_folders(folder / "Training")
        class_folders(folder / "val")
        class_folders(folder / "test2017")
    elif form.startswith("metadata"):
        metadata(folder / "train", form.split()[1])
        metadata(folder / "test", form.split()[1])
    elif form == "saved":
        saved(folder)
    elif form == "paths":
        paths(folder)
    elif form == "parquet in folders":
        for split in ("train", "test"):
            pictures = [colour(row) for row in range(6)]
            write_split(folder / split, "data", [0, 1] * 3, names=list(CLASSES), pictures=pictures)
    elif form == "parquet of paths":
        class_folders(folder)
        images = [{"bytes": None, "path": f"{CLASSES[row % 2]}/{row:03}.png"} for row in range(6)]
        for split in ("train", "test"):
            rows = datasets.Dataset.from_dict({"img": images, "kind": list(CLASSES) * 3})
            rows.to_parquet(folder / f"{split}.parquet")


FORMS = ("class folders", "class folders, other names", "metadata csv", "metadata jsonl", "saved", "paths")


@pytest.mark.parametrize("form", [*FORMS, "parquet in folders", "parquet of paths"])
def test_every_form_gives_the_same_set(tmp_path, form):
    folder = tmp_path / "a [set] é"
    make(form, folder)
    before = sorted(folder.rglob("*"))
    source = Source("insects", folder)
    contents = read_contents(source)
    assert contents.class_names == CLASSES and contents.remarks == (
        () if not contents.stored else contents.remarks[-1:]
    )
    order = [0, 0, 0, 1, 1, 1] if form.startswith("class") else [0, 1] * 3
    assert contents.labels["train"].tolist() == order and contents.labels["test"].tolist() == order
    assert ("validation" in contents.labels) == (form in ("saved", "class folders, other names"))
    rows = [0, 2, 4, 1, 3, 5] if form.startswith("class") else range(6)
    pixels = read_images(source, "train", np.arange(6), 8)
    assert pixels[:, 0, 0, 0].tolist() == list(rows) and sorted(folder.rglob("*")) == before


def test_an_image_folder_that_datasets_wrote_as_parquet_is_read_by_its_paths(tmp_path):
    for split in ("train", "test"):
        class_folders(tmp_path / "images" / split)
    made = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"))
    for split in made:
        made[split].to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    assert parquet.read_table(tmp_path / "set" / "train-00000-of-00001.parquet")["image"][0]["bytes"].as_py() is None
    source = Source("insects", tmp_path / "set")
    assert read_contents(source).class_names == CLASSES
    assert read_images(source, "train", np.arange(6), 8)[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]


def archives(form, root):
    """The set "insects" in archives; gives the folder or file where it is looked for."""
    make(form, root / "loose")
    if not form.startswith("class"):
        shutil.make_archive(str(root / "insects"), "gztar", root, "loose")
        return root / "insects.tar.gz"
    for split, kind in (("train", "zip"), ("test", "xztar")):
        shutil.make_archive(str(root / "insects" / split), kind, root / "loose" / split)
    return root / "insects"


@pytest.mark.parametrize("form", ["class folders", "metadata csv", "saved", "paths", "parquet in folders"])
def test_archives_are_read_as_what_is_in_them(tmp_path, form, monkeypatch, capsys):
    monkeypatch.setenv("STUDY_OUT", str(tmp_path / "out"))
    place = archives(form, tmp_path)
    before = sorted((tmp_path / "insects").rglob("*"))
    loose = Source("insects", tmp_path / "loose")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "out/data/cache/unpacked/.left by a killed one").mkdir(parents=True)
    source = find_source("insects", str(tmp_path), ["insects/data"])
    assert source.folder == place
    first, second = read_contents(loose), read_contents(source)
    assert second.class_names == first.class_names == CLASSES
    for split, labels in first.labels.items():
        assert second.labels[split].tolist() == labels.tolist()
        pixels = (read_images(given, split, np.arange(len(labels)), 8) for given in (loose, source))
        assert np.array_equal(*pixels)
    assert capsys.readouterr().out.count("unpacking") == (2 if form.startswith("class") else 1)
    assert sorted((tmp_path / "insects").rglob("*")) == before  # nothing is written beside the set
    (unpacked,) = (tmp_path / "out/data/cache/unpacked").glob("*/")
    assert Source("insects", place).listed[3] == unpacked and not capsys.readouterr().out  # once for all


def test_nothing_of_an_archive_lands_outside_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_OUT", str(tmp_path / "out"))
    (tmp_path / "1.png").write_bytes(colour(1))
    for name, kind in (("tarred", "tar"), ("zipped", "zip")):
        (tmp_path / name).mkdir()
        with (
            tarfile.open(tmp_path / name / "train.tar", "w")
            if kind == "tar"
            else zipfile.ZipFile(tmp_path / name / "train.zip", "w") as file
        ):
            (file.add if kind == "tar" else file.write)(tmp_path / "1.png", "../../../../1.png")
    with pytest.raises(DataError, match=r"train\.tar cannot be unpacked \(.*outside the destination"):
        read_contents(Source("insects", tmp_path / "tarred"))
    with pytest.raises(DataError, match="nothing of split 'train'"):
        read_contents(Source("insects", tmp_path / "zipped"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "out", "tarred", "zipped"]
    assert not list((tmp_path / "out").rglob("1.png"))


def two_of_each(folder, split="train"):
    """A table with two columns of images and two of classes, none of a usual name."""
    images = [{"bytes": colour(row), "path": None} for row in range(6)], [{"bytes": colour(9), "path": None}] * 6
    classes = datasets.ClassLabel(names=list(CLASSES)), datasets.ClassLabel(names=["small", "large", "huge"])
    columns = {"left": images[0], "right": images[1], "kind": [0, 1] * 3, "size": [0, 1, 2] * 2}
    types = {"left": datasets.Image(), "right": datasets.Image(), "kind": classes[0], "size": classes[1]}
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(types)).to_parquet(folder / f"{split}.parquet")


def test_columns_are_chosen_by_name(tmp_path):
    for split in ("train", "test"):
        two_of_each(tmp_path, split)
    with pytest.raises(DataError, match=r"not one column of images, but left, right; choose with image_column=<name>"):
        read_contents(Source("pairs", tmp_path))
    with pytest.raises(DataError, match=r"not one column of labels, but kind, size; choose with label_column=<name>"):
        read_contents(Source("pairs", tmp_path, columns=("left", "")))
    for image, label, names, red in (("left", "kind", CLASSES, 5), ("right", "size", ("small", "large", "huge"), 9)):
        source = Source("pairs", tmp_path, columns=(image, label))
        contents = read_contents(source)
        assert contents.class_names == names and contents.remarks == ()
        assert read_images(source, "train", np.arange(6), 8)[5, 0, 0, 0] == red


def test_a_set_without_the_chosen_columns_is_read_as_usual(tmp_path):
    for split in ("train", "test"):
        write_split(tmp_path, split, [0, 1, 2])
    contents = read_contents(Source("pets", tmp_path, columns=("left", "label")))
    assert contents.class_names[0] == "red_fox" and contents.remarks == (
        "there is no column 'left', so 'image' is read",
    )


def test_without_names_of_splits_all_is_train_and_test_is_cut_from_it(tmp_path):
    class_folders(tmp_path, count=40)
    source = Source("insects", tmp_path)
    contents = read_contents(source)
    assert contents.remarks == ("there is no labelled test split: 8 images of train are held out as test",)
    assert {split: np.bincount(labels).tolist() for split, labels in contents.labels.items()} == {
        "train": [16, 16],
        "test": [4, 4],
    }
    (_, train), (_, test) = contents.stored["train"], contents.stored["test"]
    assert sorted([*train, *test]) == list(range(40))


def test_an_unlabelled_test_split_gives_way_to_validation(tmp_path):
    for split, labels in (("train", [0, 1] * 3), ("test", [-1] * 4), ("valid", [1, 0, 1])):
        write_split(tmp_path, split, labels, names=list(CLASSES))
    contents = read_contents(Source("insects", tmp_path))
    assert contents.labels["test"].tolist() == [1, 0, 1] and contents.stored["test"][0] == "validation"
    assert "validation" not in contents.labels
    assert contents.remarks[0] == "split 'test' has no labels and is not used"
    assert contents.remarks[1].startswith("there is no labelled test split: validation is used as test")


@pytest.mark.parametrize(
    ("feature", "labels", "names"),
    [
        (datasets.Value("int64"), [3, 7, 101, 7], ("3", "7", "101")),
        (datasets.Value("uint8"), [2, 10, 2, 10], ("2", "10")),
        (datasets.Value("float32"), [1.0, 2.0, 1.0, 2.0], ("1", "2")),
        (datasets.Value("bool"), [True, False, True, False], ("False", "True")),
        (datasets.Value("large_string"), ["NA", "101", "größe", "NA"], ("101", "NA", "größe")),
    ],
)
def test_labels_of_every_kind_become_classes(tmp_path, feature, labels, names):
    for split in ("train", "test"):
        write_split(tmp_path, split, labels, label_feature=feature)
    contents = read_contents(Source("odd", tmp_path))
    assert contents.class_names == names
    given = [str(int(label)) if isinstance(label, float) else str(label) for label in labels]
    assert [names[label] for label in contents.labels["train"]] == given


def test_a_class_called_na_stays_one_in_a_table(tmp_path):
    class_folders(tmp_path / "p")
    rows = "".join(f"p/{CLASSES[row % 2]}/{row:03}.png,{('NA', 'null')[row % 2]}\n" for row in range(6))
    (tmp_path / "train.csv").write_text("\ufeffimage,label\n" + rows)
    assert read_contents(Source("odd", tmp_path)).class_names == ("NA", "null")


def test_missing_shards_are_said_and_two_generations_refused(tmp_path):
    write_split(tmp_path, "train", [0, 1, 2] * 4, files=4)
    write_split(tmp_path, "test", [0, 1, 2])
    (tmp_path / "train-00002-of-00004.parquet").unlink()
    contents = read_contents(Source("pets", tmp_path))
    assert contents.remarks == ("3 of 4 files of 'train' are there",) and len(contents.labels["train"]) == 9
    write_split(tmp_path, "train", [0, 1, 2])
    with pytest.raises(DataError, match=r"files of 'train' were written more than once \(train-00000-of-00001"):
        read_contents(Source("pets", tmp_path))


def test_what_is_not_used_is_said(tmp_path):
    write_split(tmp_path, "train", [0, 1, 2])
    write_split(tmp_path, "test", [0, 1, 2])
    write_split(tmp_path, "extra", [0, 1, 2])
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    assert read_contents(Source("pets", tmp_path)).remarks == ("not used: extra, notes.csv",)


def spoil(kind, folder):
    text, number = datasets.Value("string"), datasets.Value("int64")
    write_split(folder, "train", [0, 1, 2], files=1)
    write_split(folder, "test", [0, 1, 2])
    if kind == "captions":
        write_split(folder, "train", [f"a photo of {row}" for row in range(30)], label_feature=text)
        write_split(folder, "test", ["a photo of 1"], label_feature=text)
    elif kind == "numbers and text":
        write_split(folder, "train", [0, 1, 2], label_feature=number)
        write_split(folder, "test", ["0", "1"], label_feature=text)
    elif kind == "one text missing":
        write_split(folder, "train", ["owl", None, "newt"], label_feature=text)
    elif kind == "beyond the classes":
        write_split(folder, "train", [0, 1, 2, 0], label_feature=number)
        path = folder / "train-00000-of-00001.parquet"
        rows = parquet.read_table(path)
        told = rows.schema.metadata[b"huggingface"].replace(b'"dtype": "int64"', b'"names": ["a", "b"]')
        told = told.replace(b'"names": ["a", "b"], "_type": "Value"', b'"names": ["a", "b"], "_type": "ClassLabel"')
        parquet.write_table(rows.replace_schema_metadata({"huggingface": told}), path)
    elif kind.startswith("archives"):
        for path in folder.iterdir():
            path.unlink()
        (folder / "train.zip").write_bytes(b"version https://git-lfs.github.com/spec/v1" if "lfs" in kind else b"PK")
    elif kind == "flat":
        for path in folder.iterdir():
            path.unlink()
        (folder / "train").mkdir()
        (folder / "train" / "1.png").write_bytes(colour(1))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("captions", r"train-.*parquet: column 'label' holds 30 different values in 30 rows, which are captions"),
        ("numbers and text", r"test-.*parquet has text as labels, .*train-.*parquet has numbers; write both alike"),
        ("one text missing", r"train-.*parquet, row 1: no label \(null, empty and -1 are none\)"),
        ("beyond the classes", r"train-.*parquet, row 2: label 2 is no class of the 2; correct it"),
        ("archives", r"train\.zip cannot be unpacked \(.* is not a zip file\); copy it again"),
        ("archives, lfs", r"train\.zip cannot be unpacked \(it is a pointer of Git LFS; `git lfs pull` fetches"),
        ("flat", r"has not one column of labels, but image; put images into <split>/<class>/"),
    ],
)
def test_one_sentence_names_file_row_and_value(tmp_path, kind, message, monkeypatch):
    monkeypatch.setenv("STUDY_OUT", str(tmp_path / "out"))
    spoil(kind, tmp_path / "pets")
    with pytest.raises(DataError, match=message) as caught:
        read_contents(Source("pets", tmp_path / "pets"))
    assert "\n" not in str(caught.value)


# --- pixels


def stored(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return {"bytes": stream.getvalue(), "path": None}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode):
    image = Image.new("RGBA", (64, 64))
    image.paste((0, 0, 0, 255), (16, 16, 48, 48))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    seen = []
    pixels = decode(stored(image), 32, seen=seen)
    assert pixels[:, 0, 0].tolist() == [255] * 3 and pixels[:, 16, 16].tolist() == [0] * 3
    assert seen == ["with transparency, laid on white"]
    decode(stored(Image.new("RGBA", (8, 8), "red")), 8, seen=seen)
    assert len(seen) == 1  # an alpha channel that hides nothing is none


def test_twelve_bits_in_sixteen_are_spread_over_the_whole_range(tmp_path):
    deep = [stored(Image.fromarray(np.full((8, 8), 2048 * row + 1, dtype=np.uint16)))["bytes"] for row in (0, 1)]
    write_split(tmp_path, "train", [0, 1], names=list(CLASSES), pictures=deep)
    write_split(tmp_path, "test", [0, 1], names=list(CLASSES), pictures=deep[::-1])
    seen = []
    images = np.empty(2, dtype=np.int64)
    for place, image in decode_rows(Source("scan", tmp_path), "train", np.arange(2), 8, seen):
        images[place] = image.mean()
    assert images.tolist() == [0, 128] and seen == ["of 16 bits, of which 12 are used"] * 2


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_of_other_numbers_are_refused(tmp_path, mode):
    deep = Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).convert(mode)
    write_split(tmp_path, "train", [0], names=["ant"], pictures=[stored(deep, "TIFF")["bytes"]])
    with pytest.raises(DataError, match=rf"train-.*parquet, row 0: .*its pixels are {mode}, not 8 bits like others"):
        read_images(Source("scan", tmp_path), "train", np.arange(1), 8)


def test_a_long_thin_image_is_cropped_before_it_is_resized(monkeypatch):
    line = np.zeros((5000, 1, 3), dtype=np.uint8)
    line[2500] = 255
    asked, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest: asked.append(size) or resize(self, size, *rest)
    )
    assert fit(Image.fromarray(line), 224).shape == (3, 224, 224) and asked == [(224, 224)]
    wide = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (10, 1)))
    assert np.abs(fit(wide, 20).astype(int) - fit(wide.crop((20, 0, 80, 10)), 20)).max() <= 1


def test_frames_and_paths_that_lead_nowhere_are_told():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    seen = []
    moving = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(moving, 8, seen=seen)[:, 0, 0].tolist() == [255, 0, 0] and "several frames" in seen[0]
    with pytest.raises(ValueError, match=r"only a path, and no file .*gone\.png; embed_table_storage"):
        decode({"bytes": None, "path": "gone.png"}, 8)
    with pytest.raises(ValueError, match=r"pointer of Git LFS; `git lfs pull`"):
        decode(b"version https://git-lfs.github.com/spec/v1\n", 8)
    assert decode({"bytes": picture(np.random.default_rng(0)), "path": "gone.png"}, 8).shape == (3, 8, 8)

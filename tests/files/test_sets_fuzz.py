"""Whatever lies in a folder: a correct set, or one sentence. FUZZ=2000 FUZZ_SECONDS=300 is the long form."""

import io
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some
from PIL import Image

from lib.files.contents import read_contents
from lib.files.folders import DataError
from lib.files.sets import FILE_SPLITS, Source
from lib.files.splits import SPLITS, choose_rows
from lib.vision.decoding import decode_rows

CASES, SECONDS = int(os.environ.get("FUZZ", "10")), float(os.environ.get("FUZZ_SECONDS", "60"))
STARTED, RAN = time.monotonic(), Counter()
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "cut", "text", "empty", "lfs", "none", "gone")
NAMES = ("ant", "bee", "größe", "日本", "a b", "x[1]*", "101", "NA", "train", "test", "val", "{}", ".hidden", "__it")
FILES = ("train", "test", "validation", "val", "dev", "Training", "train2017", "data", "test_", "x-00000-of-00001")
FORMS = ("parquet", "parquet", "csv", "jsonl", "tsv", "folders", "metadata", "saved", "empty")
PACKED = ("", "", "", "whole.zip", "whole.tar.gz", "each.zip", "each.tar")

numbers = some.one_of(some.integers(-2, 12), some.none(), some.just(3))
words = some.one_of(
    some.sampled_from(NAMES), some.none(), some.text(some.characters(exclude_categories=["Cs"]), max_size=4)
)
kinds = some.one_of(
    some.tuples(some.just("int64"), some.lists(numbers, min_size=1, max_size=6)),
    some.tuples(some.just("classes"), some.lists(some.integers(-1, 2), max_size=6)),
    some.tuples(some.just("string"), some.lists(words, min_size=1, max_size=6)),
    some.tuples(some.just("bool"), some.lists(some.booleans(), min_size=1, max_size=4)),
    some.tuples(some.just("float64"), some.lists(some.sampled_from([0.0, 1.0, 2.5, np.nan, np.inf]), min_size=1)),
    some.tuples(some.just("list"), some.just([[1], [2, 3]])),
    some.tuples(some.just("no labels"), some.just([0, 1])),
)
tables = some.tuples(kinds, some.lists(some.sampled_from(MODES[:8]), min_size=1, max_size=2), some.booleans())
wild = some.fixed_dictionaries(
    {
        "form": some.sampled_from(FORMS),
        "splits": some.dictionaries(some.sampled_from(FILES), tables, min_size=1, max_size=3),
        "odd": some.sampled_from(("", "", "", "", *MODES[8:])),
        "shards": some.sampled_from((0, 0, 0, 1, 2)),
        "column": some.sampled_from(("image", "image", "image", "img", "picture", "file_name")),
        "label": some.sampled_from(("label", "label", "labels", "kind", "image_id")),
        "damage": some.sampled_from((None,) * 8 + ("cut", "lfs", "empty", "noise")),
        "packed": some.sampled_from(PACKED),
        "sound": some.just(False),
    }
)
sound_labels = some.sampled_from(
    (
        ("int64", [3, 7, 101]),
        ("uint8", [10, 2]),
        ("float64", [1.0, 2.0]),
        ("bool", [True, False]),
        ("classes", [0, 1, 2]),
        ("string", ["bee", "größe", "x[1]*"]),
        ("string", ["ant", "a b"]),
    )
)
sound = some.fixed_dictionaries(
    {
        "form": some.sampled_from(FORMS[:-1]),
        "splits": some.tuples(
            sound_labels,
            some.lists(some.sampled_from(("RGB", "L", "P", "RGBA", "LA", "CMYK")), min_size=1, max_size=3),
            some.sampled_from((("train",), ("train", "test"), ("Training", "val"), ("train2017", "dev", "test"))),
            some.sampled_from((6, 9)),
        ).map(
            lambda given: {name: ((given[0][0], (given[0][1] * 5)[: given[3]]), given[1], False) for name in given[2]}
        ),
        "odd": some.just(""),
        "shards": some.sampled_from((0, 1)),
        "column": some.just("image"),
        "label": some.sampled_from(("label", "label", "category")),
        "damage": some.none(),
        "packed": some.sampled_from(PACKED),
        "sound": some.just(True),
    }
).map(lambda case: case | ({"column": "file_name"} if case["form"] == "metadata" else {}))


def encoded(mode, row):
    """A picture of one grey that tells its row, up to twelve, or something that is none."""
    row %= 13
    if mode in ("text", "empty", "lfs", "none", "gone"):
        return {"text": b"no image", "empty": b"", "lfs": b"version https://git-lfs.github.com/spec/v1"}.get(mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((9, 7), 256 * 20 * row, dtype=np.uint16))
    elif mode in ("I", "F"):
        image = Image.fromarray(np.full((9, 7), row, dtype=np.float32)).convert(mode)
    else:
        image = Image.new("L", (9, 7), 20 * row).convert("RGB" if mode == "cut" else mode)
    stream = io.BytesIO()
    image.save(stream, "TIFF" if mode in ("CMYK", "I", "F") else "PNG")
    return stream.getvalue()[: 60 if mode == "cut" else None]


def write(folder, case):
    """A folder as the case says."""
    for file, ((kind, labels), modes, twice) in case["splits"].items():
        modes = [*modes, *([case["odd"]] if case["odd"] else [])]
        pictures = [encoded(modes[row % len(modes)], row) for row in range(len(labels))]
        columns = {case["column"]: pictures, case["label"]: labels} | ({"more": labels} if twice else {})
        if kind == "no labels":
            columns.pop(case["label"])
        if case["form"] in ("parquet", "saved"):
            features = datasets.Features({case["column"]: datasets.Image()})
            classes = datasets.ClassLabel(names=["ant", "bee", "cat"][:: -1 if twice else 1])
            special = {"classes": classes, "list": datasets.List(datasets.Value("int64"))}
            for name in [name for name in columns if name != case["column"]]:
                features[name] = special.get(kind) or datasets.Value(kind.replace("no labels", "int64"))
            path = "gone.png" if "gone" in modes else None
            columns[case["column"]] = [{"bytes": data, "path": path} if data or path else None for data in pictures]
            rows = datasets.Dataset.from_dict(columns, features=features)
            shards = f"-00000-of-0000{case['shards']}" if case["shards"] else ""
            if case["form"] == "parquet":
                rows.to_parquet(folder / f"{file}{shards}.parquet")
            else:
                rows.save_to_disk(folder / file)
            continue
        place = folder if case["form"] in ("csv", "tsv", "jsonl") else folder / file
        for row, (label, data) in enumerate(zip(labels, pictures, strict=True)):
            clean = "".join(letter for letter in str(label) if letter not in "/\0")[:9]
            inside = place / clean if case["form"] == "folders" and clean not in (".", "..") else place
            inside.mkdir(parents=True, exist_ok=True)
            name = inside / f"{file}{row}.png"
            name.write_bytes(data or b"")
            columns[case["column"]][row] = name.name
        if case["form"] == "metadata":
            place.mkdir(exist_ok=True)
            pd.DataFrame(columns).to_csv(place / "metadata.csv", index=False)
        elif case["form"] == "jsonl":
            rows = pd.DataFrame(columns).to_dict("records")
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        elif case["form"] in ("csv", "tsv"):
            tabs = "\t" if case["form"] == "tsv" else ","
            pd.DataFrame(columns).to_csv(folder / f"{file}.{case['form']}", index=False, sep=tabs)
    if case["packed"]:
        pack(folder, *case["packed"].split(".", 1))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if case["damage"] and files:
        data = files[-1].read_bytes()
        changed = {"cut": data[: len(data) // 2], "lfs": encoded("lfs", 0), "noise": data[:9] + os.urandom(40)}
        files[-1].write_bytes(changed.get(case["damage"], b""))


def pack(folder, which, ending):
    """Put a set into one archive, or each of its folders into one."""
    kind = {"tar.gz": "gztar"}.get(ending, ending)
    if which == "each":
        for inside in [path for path in folder.iterdir() if path.is_dir()]:
            shutil.make_archive(str(inside), kind, inside)
            shutil.rmtree(inside)
        return
    shutil.make_archive(str(folder.with_name("whole")), kind, folder)
    shutil.rmtree(folder)
    folder.mkdir()
    folder.with_name(f"whole.{ending}").rename(folder / f"whole.{ending}")


def check(folder, case):
    """All that a study asks of a set; in a sound one, every image, which tells its row, has the label of that row."""
    source = Source("fuzz", folder)
    contents = read_contents(source)
    assert all(contents.class_names) and len({*contents.class_names}) == len(contents.class_names)
    assert {"train", "test"} <= {*contents.labels} <= {*FILE_SPLITS}
    for split in SPLITS:
        stored, rows = choose_rows(contents.labels, "fuzz", split, {}, 0)
        labels = contents.labels[stored][rows]
        stored, own = contents.stored.get(stored, (stored, None))
        pixels = dict(decode_rows(source, stored, rows if own is None else own[rows], 4))
        assert sorted(pixels) == list(range(len(rows)))
        assert all(image.shape == (3, 4, 4) and image.dtype == np.uint8 for image in pixels.values())
        if case["sound"]:
            (kind, given), *_ = next(iter(case["splits"].values()))
            assert len(rows) > 0
            for place, label in enumerate(labels):
                value = given[round(pixels[place].mean() / 20)]
                name = (
                    ["ant", "bee", "cat"][value]
                    if kind == "classes" and case["form"] in ("parquet", "saved")
                    else value
                )
                name = int(name) if kind == "float64" and case["form"] != "folders" else name
                assert contents.class_names[label] == str(name)


@settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # no time for smaller examples
    suppress_health_check=list(HealthCheck),
)
@given(some.one_of(wild, sound))
def test_a_set_or_one_sentence(case):
    if time.monotonic() > STARTED + SECONDS:
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "a set"
        folder.mkdir()
        try:
            write(folder, case)
        except (ValueError, OSError, TypeError):  # not even pandas or datasets writes it
            assert not case["sound"]
            RAN["not written"] += 1
            return
        before = sorted(folder.rglob("*"))
        os.environ["STUDY_OUT"] = place
        try:
            check(folder, case)
            RAN["sets"] += 1
        except DataError as error:
            assert not case["sound"], (case, error)
            RAN["sentences"] += 1
            assert str(error) and "\n" not in str(error), repr(str(error))
        assert sorted(folder.rglob("*")) == before


@pytest.fixture(scope="module", autouse=True)
def tell_how_many_ran():
    before = os.environ.pop("STUDY_OUT", None)
    yield
    os.environ.pop("STUDY_OUT", None)
    os.environ |= {"STUDY_OUT": before} if before else {}
    print(dict(RAN), f"{time.monotonic() - STARTED:.0f} s")

"""Image sets larger than memory: pixels as open_clip's, files that are whole or not there, batches, digests."""

import io
import os
import threading
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from mirrors import make_mirror, picture, write_split
from PIL import Image

from lib.files import sets as sources
from lib.files.sets import DataError, Source
from lib.runtime.keys import digest
from lib.runtime.rng import generator
from lib.vectors import mapped
from lib.vectors.mapped import in_words, new_file, read_file, remove_unfinished
from lib.vision.batches import gather, shifted
from lib.vision.decoding import decode_rows, fit
from lib.vision.tasks import load_split, load_splits, load_task

ROWS = {"labels": (torch.int64, (5,)), "images": (torch.uint8, (5, 3, 7, 7))}


def smooth(rng, size, mode):
    """A picture in which half a pixel of displacement shows everywhere, as JPEG and back."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    image = Image.fromarray(np.cumsum(rng.normal(0, 9, shape), axis=1).astype(np.int64).astype(np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return Image.open(stream)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (500, 375), (333, 499), (64, 101), (225, 224), (97, 31)])
def test_pixels_are_those_of_open_clips_preprocessing(mode, size):
    image = smooth(np.random.default_rng(0), size, mode)
    plain = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (plain(image) * 255).round().to(torch.uint8)
    assert torch.equal(torch.from_numpy(fit(image, 224).copy()), expected)


def test_a_file_is_read_as_it_was_written_and_mapped(tmp_path):
    images = torch.randint(0, 256, (5, 3, 7, 7), dtype=torch.uint8)
    with new_file(tmp_path / "set.safetensors", ROWS) as file:
        for row in (3, 0, 4, 1, 2):
            file.write("images", row, images[row].numpy())
        file.write("labels", 0, np.arange(5))
        file.digests["images"] = "0123"
    tensors = read_file(tmp_path / "set.safetensors")
    assert torch.equal(tensors["images"], images) and tensors["labels"].tolist() == [0, 1, 2, 3, 4]
    if os.path.exists("/proc/self/maps"):
        assert str(tmp_path / "set.safetensors") in Path("/proc/self/maps").read_text()


def test_a_digest_that_was_recorded_is_not_computed_until_the_values_change(tmp_path):
    for name, text in (("one", "same"), ("two", "same"), ("three", "other")):
        with new_file(tmp_path / name, ROWS) as file:
            file.digests["images"] = text
    one, two, three = (read_file(tmp_path / name)["images"] for name in ("one", "two", "three"))
    assert digest(one) == digest(two) != digest(three)
    assert digest(one) != digest(one.clone()) == digest(two[:])  # these are hashed themselves
    two[0, 0, 0, 0] = 1
    assert digest(two) == digest(two.clone()) != digest(one)
    assert read_file(tmp_path / "two")["images"].max() == 0  # the file is as it was


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "set", ROWS) as file:
        file.write("labels", 0, np.arange(5))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".set.killed").write_bytes(b"half")
    remove_unfinished(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda _: type("", (), {"free": 10})())
    with pytest.raises(OSError, match=r"has 0\.0 MB free, set takes .*: make room, or link data/cache"):
        new_file(tmp_path / "set", ROWS).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_sizes_in_words():
    assert [in_words(size) for size in (18e6, 3.04e9)] == ["18.0 MB", "3.0 GB"]


def test_a_broken_image_stops_all_threads_and_leaves_no_file(tmp_path, monkeypatch):
    pictures = [picture(np.random.default_rng(0), (16, 16)) for _ in range(200)]
    pictures[150] = b"no image"
    write_split(tmp_path / "root/bad/data", "train", [0, 1, 2, 0] * 50, pictures=pictures)
    write_split(tmp_path / "root/bad/data", "test", [0, 1, 2, 0])
    task = load_task("bad", data_root=str(tmp_path / "root"))
    threads = threading.active_count()
    with pytest.raises(DataError, match=r"row 150: the image cannot be decoded"):
        load_split(task, "train", sizes={}, image_size=16, data_root=str(tmp_path / "root"), cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "splits").iterdir()] == [".lock"]
    assert threading.active_count() == threads


def test_few_images_wait_in_memory(tmp_path, monkeypatch):
    source = Source("pets", make_mirror(tmp_path, "pets", train=600))
    read, done = [], []
    monkeypatch.setattr(sources.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(Source, "values", lambda *_: (read.append(row) or {"bytes": one} for row in range(600)))
    one = picture(np.random.default_rng(0))
    for _ in decode_rows(source, "train", np.arange(600), 8, lambda place, image: None):
        done.append(0)
        assert len(read) - len(done) <= sources.WAITING * 2
    assert len(done) == 600


def test_the_second_start_maps_and_has_the_same_digest(tmp_path, capsys):
    make_mirror(tmp_path, "pets")
    options = {"sizes": {}, "image_size": 32, "data_root": str(tmp_path), "cache": tmp_path / "cache"}
    tasks = [load_task("pets", data_root=str(tmp_path))]
    first = load_splits(tasks, "train", **options)["pets"]
    assert "decoding pets, train  54/54" in (line := capsys.readouterr().out) and "mapped from now on" in line
    second = load_splits(tasks, "train", **options)["pets"]
    assert "train: 54 images of 1 sets mapped in 0.0" in capsys.readouterr().out
    assert digest(first.images) == digest(second.images) != digest(second.images[:])
    other = load_splits(tasks, "train", **options | {"image_size": 24})["pets"]
    assert digest(other.images) != digest(first.images)


def test_a_batch_of_several_sets():
    sets = [torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8) for count in (9, 5)]
    rows = [torch.tensor([8, 0, 0]), torch.tensor([4, 1])]
    assert torch.equal(gather(sets, rows, "cpu"), torch.cat([sets[0][rows[0]], sets[1][rows[1]]]))


def test_shifted_images_are_windows_of_the_image_with_its_edges_repeated():
    pixels = torch.randint(0, 256, (6, 3, 9, 11), dtype=torch.uint8)
    moves = torch.randint(0, 5, (2, 6), generator=generator("shift", "a", 1)) - 2
    for image, new, down, right in zip(pixels, shifted(pixels, 2, "a", 1), *moves.tolist(), strict=True):
        rows, columns = (torch.arange(9) + down).clamp(0, 8), (torch.arange(11) + right).clamp(0, 10)
        assert torch.equal(new, image[:, rows][:, :, columns])

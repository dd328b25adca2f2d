"""Files of `torch.save`: what they hold is read back, and nothing that they say is run."""

import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.files import safe_pickle, torch_files
from lib.files.safe_pickle import Inert, read_pickle
from lib.files.torch_files import read_tensors
from lib.study.study import ROOT


def read(data: bytes) -> object:
    return read_pickle(io.BytesIO(data))[0]


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(3, 2)
        self.norm = torch.nn.BatchNorm1d(2)
        self.none = torch.nn.Linear(2, 2, bias=False)


class Fake:
    """Stands for torchvision's transforms."""

    def __init__(self, transforms):
        self.transforms = transforms


def convert(image):
    return image


@pytest.fixture
def encoder(monkeypatch):
    """A module whose classes cannot be imported once it is saved, with functions and transforms beside its parts."""
    for name in ("src", "old"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, thing in (("src.modeling", Block), ("old.transforms", Fake), ("old.functions", convert)):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setattr(thing, "__module__", name)
        setattr(sys.modules[name], thing.__name__, thing)
    torch.manual_seed(0)
    made = Block()
    made.blocks = torch.nn.ModuleList([Block() for _ in range(2)])
    made.preprocess = Fake([convert, torch.nn.functional.gelu, torch.float16, {1, 2}, {3: "x"}])
    made.mode = torch.nn.parameter.UninitializedParameter
    return made


@pytest.mark.parametrize("protocol", [1, 2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_modules_tensors_are_read_without_its_classes(encoder, tmp_path, monkeypatch, zipped, protocol):
    path, expected = tmp_path / "finetuned.pt", encoder.state_dict()
    torch.save(encoder, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    for name in ("src", "old", "src.modeling", "old.transforms", "old.functions"):
        monkeypatch.delitem(sys.modules, name)
    found = read_tensors(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype
    some = read_tensors(path, lambda name: name.startswith("blocks.1.lin"))
    assert list(some) == ["blocks.1.lin.weight", "blocks.1.lin.bias"]
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)


@pytest.mark.parametrize("zipped", [True, False])
def test_views_types_and_shared_storages(tmp_path, zipped):
    whole = torch.arange(24.0).view(4, 6)
    state = OrderedDict(
        whole=whole, transposed=whole.T, part=whole[1:3, ::2], half=torch.ones(3).half(), tied=whole,
        number=torch.tensor(7), empty=torch.zeros(0, 3), truth=torch.tensor([True, False]), note="text",
        brain=torch.ones(2).bfloat16(),
    )  # fmt: skip
    torch.save(state, tmp_path / "state.bin", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "state.bin")
    assert found.keys() == state.keys() - {"note"}
    for name, tensor in found.items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.dtype == state[name].dtype


# Pickles that would run something, each as what `__reduce__` of an object says. {} is the file that must not appear.
CALLS = {
    "os.system": lambda mark: (os.system, (f"touch {mark}",)),
    "eval": lambda mark: (eval, (f"open({mark!r}, 'w')",)),
    "exec": lambda mark: (exec, (f"open({mark!r}, 'w')",)),
    "subprocess": lambda mark: (subprocess.Popen, (["touch", mark],)),
    "open": lambda mark: (open, (mark, "w")),
    "copyreg": lambda mark: (copyreg._reconstructor, (io.FileIO, object, mark)),
    "torch": lambda mark: (torch.save, ({}, mark)),
}


class Hostile:
    def __init__(self, reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


# The same by hand: opcodes that `pickle.dumps` would not write this way.
def by_hand(mark: str) -> dict[str, bytes]:
    touch = text(f"touch {mark}")
    return {
        "posix.system": b"cposix\nsystem\n" + touch + b"\x85R.",
        "stack global": b"\x80\x04" + text("posix") + text("system") + b"\x93" + touch + b"\x85R.",
        "inst": b"(" + touch + b"iposix\nsystem\n.",
        "obj": b"(cposix\nsystem\n" + touch + b"o.",
        "newobj": b"\x80\x02cio\nFileIO\n" + text(mark) + text("w") + b"\x86\x81.",
        "newobj_ex": b"\x80\x04cio\nFileIO\n" + text(mark) + text("w") + b"\x86}\x92.",
        "getattr": b"c__builtin__\ngetattr\n(cos\n__dict__\n" + text("system") + b"tR" + touch + b"\x85R.",
        "dotted": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93" + touch + b"\x85R.",
        "build": b"cos\nsystem\n" + touch + b"b.",
        "setstate": b"cposix\nsystem\n)\x81}" + text("__setstate__") + b"cposix\nsystem\nsb" + touch + b"b.",
        "add to": b"cposix\nsystem\n(" + touch + b"e.",
        "dict reduce": b"ccollections\nOrderedDict\n)R" + text("__reduce__") + b"cposix\nsystem\ns.",
        "persistent": b"cposix\nsystem\n" + touch + b"\x85RQ.",
        "ordered": b"ccollections\nOrderedDict\ncposix\nsystem\n" + touch + b"\x85R\x85R.",
        "module": text("module") + b"cposix\nsystem\n" + touch + b"\x85R\x86Q.",
    }


def assert_nothing_runs(data: bytes, tmp_path, mark) -> None:
    """Neither alone nor in a file of either format."""
    read(data)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    header = b"".join(pickle.dumps(part, 2) for part in (torch_files.MAGIC, 1001, {"little_endian": True}))
    (tmp_path / "b.pt").write_bytes(header + data + pickle.dumps([], 2))
    (tmp_path / "c.pt").write_bytes(data)
    for name in ("a.pt", "b.pt", "c.pt"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a file of torch: it .*; download it again"):
            read_tensors(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_that_a_pickle_names_is_called(tmp_path, name, protocol):
    mark = tmp_path / "mark"
    data = pickle.dumps(Hostile(CALLS[name](str(mark))), protocol)
    assert_nothing_runs(data, tmp_path, mark)
    if name in ("os.system", "eval"):  # it would have: the test can fail
        pickle.loads(data)
        assert mark.exists()


@pytest.mark.parametrize("name", by_hand(""))
def test_nothing_runs_by_any_opcode(tmp_path, name):
    mark = tmp_path / "mark"
    assert_nothing_runs(by_hand(str(mark))[name], tmp_path, mark)


def test_reading_imports_nothing(tmp_path):
    (tmp_path / "treacherous.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    code = (
        f"import sys, io; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from lib.files.safe_pickle import read_pickle\n"
        "print(read_pickle(io.BytesIO(b'ctreacherous\\nthing\\n)R.'))[0].name, 'treacherous' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "treacherous.thing False\n", run.stderr
    assert not (tmp_path / "mark").exists()


def test_plain_values_are_what_they_were():
    value = {
        "a": [1, -3, 2**70, 1.5, None, True, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "b": {"c": b"x", "d": "é"},
    }
    for protocol in range(6):
        expected = value if protocol > 2 else value | {"b": {"d": "é"}}  # bytes are a call in old protocols
        found = read(pickle.dumps(value, protocol))
        if protocol <= 2:
            assert isinstance(found["b"].pop("c"), Inert)
        assert found == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x82\x01.", "opcode EXT1 at byte 0"),
        (b"\x84\x01\x00\x00\x00.", "opcode EXT4"),
        (b"\x97.", "opcode NEXT_BUFFER"),
        (b"", "exhausted|too early"),
        (b"(((", "exhausted"),
        (b".", "damaged near opcode 1"),
        (b"R.", "damaged"),
        (b"h\x07.", "damaged"),
        (b"N(N", "exhausted"),
        (b"}(NNNu.", "zip"),
        (b"K\x01K\x02\x93.", "damaged"),
        (b"X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f.", "bytes"),
        (b"\x96" + b"\xff" * 7 + b"\x7f.", "bytes"),
        (b"L" + b"9" * 5000 + b"L\n.", "4300 digits"),
        (b"\xfe.", "unknown"),
    ],
)
def test_a_damaged_pickle_is_one_clear_error(data, message):
    with pytest.raises(ValueError, match=message):
        read(data)


def test_a_memo_index_takes_no_memory():
    """`pickle.loads` asks for 8 bytes times twice the index here; see the module's docstring."""
    assert read(b"Nr\xff\xff\xff\x7f.") is None


def test_laughs_and_depth_are_harmless(monkeypatch):
    laughs = b"]q\x00" + b"".join(
        b"(" + b"h" + bytes([n]) * 1 + b"h" + bytes([n]) + b"tq" + bytes([n + 1]) for n in range(200)
    )
    assert isinstance(read(laughs + b"."), tuple)
    deep = read(b")" + b"\x85" * 300_000 + b".")
    assert len(deep) == 1
    assert read(b"}" + b")" + b"\x85" * 300_000 + b"K\x01s.") == {}  # a key that would be hashed all the way down
    read(b"}" + b"(" + b"".join(b"L%dL\nN" % (n * (2**61 - 1)) for n in range(2000)) + b"u.")
    monkeypatch.setattr(safe_pickle, "OPCODES", 1000)
    with pytest.raises(ValueError, match="more than 1000 opcodes"):
        read(b"N0" * 600 + b"N.")


def module(**parts: bytes) -> bytes:
    """A module's pickle: each of _parameters, _buffers, _modules as opcodes."""
    return b"cx\nY\n)\x81}" + b"".join(text(name) + opcodes + b"s" for name, opcodes in parts.items()) + b"b"


def saved(tmp_path, data: bytes, records: dict[str, bytes], **options):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", **options) as archive:
        for name, content in {"a/data.pkl": data, **records}.items():
            archive.writestr(name, content)
    return tmp_path / "x.pt"


def tensor(numel=4, size=(4,), stride=(1,), offset=0, kind="FloatStorage", key="0", place="torch", extra=()) -> bytes:
    """Opcodes of a tensor as torch writes them, with any claims."""
    identity = (
        b"(" + text("storage") + f"c{place}\n{kind}\n".encode() + text(key) + text("cpu")
        + plain(numel) + b"".join(plain(part) for part in extra) + b"tQ"
    )  # fmt: skip
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + plain(offset) + plain(size) + plain(stride) + b"\x89NtR"


def plain(value) -> bytes:
    return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"")


def one(**claims) -> bytes:
    return module(_parameters=b"}" + text("w") + tensor(**claims) + b"s") + b"."


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({}, ""),
        ({"numel": 2**38}, "claims 274877906944 elements, but has 16 bytes"),
        ({"numel": 2**70}, "without a key or a size"),
        ({"numel": -4}, "without a key or a size"),
        ({"kind": "DoubleStorage"}, "claims 4 elements, but has 16 bytes"),
        ({"kind": "QInt8Storage"}, "storage of type 'QInt8Storage', which is none of FloatStorage"),
        ({"place": "os"}, "storage of type 'FloatStorage'"),
        ({"key": "1"}, "record data/1 is missing"),
        ({"key": "../../../etc/passwd"}, "is missing"),
        ({"extra": (("0", 0, 4),)}, "without a key or a size"),
        ({"extra": (1, 2, 3)}, "no storage"),
        ({"size": (2**40,), "stride": (0,)}, "does not fit into its 4 elements"),
        ({"size": (2**40,) * 7, "stride": (0,) * 7}, "does not fit"),
        ({"size": (5,)}, "does not fit"),
        ({"size": (2,), "stride": (4,)}, "does not fit"),
        ({"offset": 1}, "does not fit"),
        ({"offset": -1}, "impossible shape"),
        ({"size": (-4,)}, "impossible shape"),
        ({"stride": (2**70,)}, "impossible shape"),
        ({"size": (2, 2)}, "has no shape"),
        ({"size": ("a",)}, "impossible shape"),
        ({"size": 4}, "has no shape"),
    ],
)
def test_claims_are_held_against_what_is_there(tmp_path, claims, message):
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    path = saved(tmp_path, one(**claims), {"a/data/0": numbers})
    if not message:
        assert read_tensors(path)["w"].tolist() == [1, 2, 3, 4]
        return
    with pytest.raises(ValueError, match=message):
        read_tensors(path)


@pytest.mark.parametrize("value", [b"cx\nY\n)R", b"K\x01", b"cx\nY\n", b"]", text("a")])
def test_what_is_no_tensor_is_named(tmp_path, value):
    path = saved(tmp_path, module(_parameters=b"}" + text("w") + value + b"s") + b".", {})
    with pytest.raises(ValueError, match=r"'w' is a .* and no dense tensor"):
        read_tensors(path)


def test_modules_inside_themselves_end(tmp_path):
    inside = b"cx\nY\n)\x81q\x00}" + text("_modules") + b"}" + text("a") + b"h\x00ssb."
    with pytest.raises(ValueError, match="modules that contain themselves"):
        read_tensors(saved(tmp_path, inside, {}))
    shared = module(_parameters=b"}") + b"q\x00"
    for n in range(60):  # each module twice in the next: 2^60 names
        get = b"h" + bytes([n])
        shared += b"0" + module(_modules=b"}" + text("a") + get + b"s" + text("b") + get + b"s") + b"q" + bytes([n + 1])
    with pytest.raises(ValueError, match="more than 20000 parts"):
        read_tensors(saved(tmp_path, shared + b".", {}))


def test_bombs_are_refused_before_memory_is_taken(tmp_path):
    compressed = saved(
        tmp_path, one(numel=10**8, size=(10**8,)), {"a/data/0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ValueError, match="is compressed, which torch never does"):
        read_tensors(compressed)
    honest = saved(tmp_path, one(), {"a/data/0": bytes(16)}).read_bytes()
    start = honest.rindex(b"PK\x01\x02")  # the central entry of data/0: both sizes, at 20 and 24, become 4 GB
    (tmp_path / "x.pt").write_bytes(
        honest[: start + 20] + struct.pack("<II", 2**32 - 2, 2**32 - 2) + honest[start + 28 :]
    )
    with pytest.raises(ValueError, match=r"its records claim more than the \d+ bytes that the file has"):
        read_tensors(tmp_path / "x.pt")


def overlapping(path, entries: int, size: int) -> None:
    """An archive whose records are all the same bytes."""
    body = b"PK\x03\x04" + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, 0, size, size, 1, 0) + b"a" + bytes(size)
    names = [f"a/data/{n}".encode() for n in range(entries)]
    central = b"".join(
        b"PK\x01\x02" + struct.pack("<6H3I5H2I", 20, 20, 0, 0, 0, 0, 0, size, size, len(name), 0, 0, 0, 0, 0, 0) + name
        for name in names
    )
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, entries, entries, len(central), len(body), 0)
    path.write_bytes(body + central + end)


def test_records_on_top_of_each_other_are_refused(tmp_path):
    overlapping(tmp_path / "x.pt", 1000, 10_000)
    with pytest.raises(ValueError, match="claim more than"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_off_anywhere_is_one_clear_error(tmp_path, zipped):
    torch.save({"a": torch.ones(50), "b": torch.zeros(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pt").read_bytes()
    for length in {0, 1, 5, *range(20, len(whole), 37), len(whole) - 1}:
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.pt cannot be read as a file of torch: .*; download it again"):
            read_tensors(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b"\x00" * 100]
)
def test_another_kind_of_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.pt cannot be read as a file of torch"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_tensors_or_one_error(tmp_path, zipped, data):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    content = bytearray((tmp_path / "x.pt").read_bytes())
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)
    ):
        content[place] = byte
    (tmp_path / "y.pt").write_bytes(content)
    try:
        found = read_tensors(tmp_path / "y.pt")
    except ValueError as error:
        assert "cannot be read as a file of torch" in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def test_every_step_is_an_opcode():
    import pickletools

    known = {opcode.name for opcode in pickletools.opcodes}
    refused = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "STOP"}
    assert safe_pickle.STEPS.keys() == known - refused

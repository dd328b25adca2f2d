"""Files of `torch.save`: what they hold is read back, and nothing that they say is run."""

import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from lib.files import pickled
from lib.files.pickled import PLAIN, Inert, Unpickler, read_tensors
from lib.runtime.disk import ROOT


def read(data: bytes) -> object:
    return Unpickler(io.BytesIO(data)).load()


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


def in_a_file(path, data: bytes, zipped: bool, records: dict[str, bytes] | None = None, **options):
    """A file of either format whose pickle is `data`; of the older format `records` are ignored."""
    if zipped:
        with zipfile.ZipFile(path, "w", **options) as archive:
            for name, content in {"a/data.pkl": data, "a/version": b"3\n", **(records or {})}.items():
                archive.writestr(name, content)
    else:
        header = b"".join(pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}))
        path.write_bytes(header + data + pickle.dumps([], 2))
    return path


def assert_nothing_runs(data: bytes, tmp_path, mark) -> None:
    """Neither alone nor in a file of either format."""
    in_a_file(tmp_path / "a.pt", data, True)
    in_a_file(tmp_path / "b.pt", data, False)
    (tmp_path / "c.pt").write_bytes(data)
    for name in ("a.pt", "b.pt", "c.pt"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a file of torch: .*; download it again"):
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
    in_a_file(tmp_path / "x.pt", b"ctreacherous\nthing\n)R.", True)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from pathlib import Path\n"
        "from lib.files.pickled import read_tensors\n"
        "try:\n"
        f"    read_tensors(Path({str(tmp_path / 'x.pt')!r}))\n"
        "except ValueError as error:\n"
        "    print('neither a module' in str(error), 'treacherous' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "True False\n", run.stderr
    assert not (tmp_path / "mark").exists()


def test_objects_of_other_code_are_not_taken_from_its_registry(tmp_path):
    """EXT1 would call what some library registered, also when the file's own names are harmless."""
    mark = tmp_path / "mark"
    copyreg.add_extension("posix", "system", 200)
    try:
        pickle.loads(b"\x80\x02\x82\xc8.")  # now in the cache that `pickle` looks into first
        assert_nothing_runs(b"\x80\x02\x82\xc8" + text(f"touch {mark}") + b"\x85R.", tmp_path, mark)
    finally:
        copyreg.remove_extension("posix", "system", 200)
        copyreg.clear_extension_cache()


def test_a_legacy_file_writes_no_patch(tmp_path, monkeypatch):
    """torch.load compares the source of a class with the present one, and may write the difference to a file."""
    monkeypatch.chdir(tmp_path)
    made = b"cx\nY\n)\x81}" + text("dump_patches") + b"\x88s" + text("__name__") + text("mark") + b"sb"
    data = b"(" + text("module") + made + text("file.py") + text("other source") + b"tQ."
    in_a_file(tmp_path / "x.pt", data, False)
    with pytest.raises(ValueError, match="neither a module nor a state dict"):
        read_tensors(tmp_path / "x.pt")
    as_bytes = data.replace(text("module"), b"C\x06module")  # what torch takes for the same word
    in_a_file(tmp_path / "x.pt", as_bytes, False)
    with pytest.raises(ValueError, match="refers to something that is no storage"):
        read_tensors(tmp_path / "x.pt")
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_real_is_changed_by_a_file(tmp_path, zipped):
    """BUILD sets attributes, SETITEM entries: of a function that a file may name, this would outlive the file."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for opcodes in (
        rebuild + b"}" + text("__defaults__") + b"Nsb.",
        rebuild + b"N}" + text("__code__") + b"Ns\x86b.",
        b"ctorch._utils\n_rebuild_parameter\n}" + text("x") + b"K\x01sb.",
        b"ccollections\nOrderedDict\n}" + text("update") + b"Nsb.",
        b"ccollections\nOrderedDict\n" + text("a") + b"K\x01s.",
        b"ctorch\nFloatStorage\n}" + text("_dtype") + b"cposix\nsystem\nsb.",
    ):
        before = [vars(call).copy() for call in pickled.CALLS.values()]
        with pytest.raises(ValueError, match="cannot be read as a file of torch"):
            read_tensors(in_a_file(tmp_path / "x.pt", opcodes, zipped))
        assert [vars(call) for call in pickled.CALLS.values()] == before
        assert not hasattr(OrderedDict, "x") and torch.FloatStorage.dtype == torch.float32


def test_programs_and_old_archives_are_refused(tmp_path):
    """`torch.load` has other readers for these, whose code nobody here has looked at."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(ValueError, match=r"x.pt .*TorchScript program|x.pt .*compressed"):
        read_tensors(tmp_path / "x.pt")
    program = in_a_file(tmp_path / "y.pt", one(), True, {"a/data/0": bytes(16), "a/constants.pkl": b"."})
    with pytest.raises(ValueError, match=r"y.pt .* it is a TorchScript program"):
        read_tensors(program)
    with tarfile.open(tmp_path / "z.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match=r"z.pt .* it is a tar archive"):
        read_tensors(tmp_path / "z.pt")


def test_plain_values_are_what_they_were():
    value = {
        "a": [1, -3, 2**70, 1.5, None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), "ü" * 300],
        "b": {"c": b"x", "d": "é"},
    }
    for protocol in range(1, 6):
        found = read(pickle.dumps(value, protocol))
        if protocol <= 2:  # bytes are a call in old protocols
            assert isinstance(found["b"]["c"], Inert)
            found["b"]["c"] = b"x"
        assert found == value


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x01.", b"\x84\x01\x00\x00\x00.", b"\x97.", b"", b"(((", b".", b"R.", b"h\x07.", b"N(N", b"}(NNNu.",
        b"K\x01K\x02\x93.", b"X\xff\xff\xff\x7fabc.", b"\x8e" + b"\xff" * 7 + b"\x7f.", b"\xfe.",
        b"\x96" + b"\xff" * 7 + b"\x7f.", b"L" + b"9" * 5000 + b"L\n.", b"\x80\x09N.", b"cx\ny\x00z\n.",
        b"\x95" + b"\xff" * 7 + b"\x7f.", b"}Q.", b"NQ.", b"X\x04\x00\x00\x00\xed\xa0\x80xQ.",
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_one_clear_error(tmp_path, data, zipped):
    with pytest.raises(ValueError, match=r"x.pt cannot be read as a file of torch: .+; download it again"):
        read_tensors(in_a_file(tmp_path / "x.pt", data, zipped))


def test_a_memo_index_takes_no_memory():
    """`pickle.loads` asks for 8 bytes times twice the index here; see the module's docstring."""
    assert read(b"Nr\xff\xff\xff\x7f.") is None


DEEP = b")" + b"\x85" * 200_000  # a tuple in a tuple in a tuple ...


def test_laughs_and_depth_are_harmless():
    laughs = b"]q\x00" + b"".join(
        b"(" + b"h" + bytes([n]) * 1 + b"h" + bytes([n]) + b"tq" + bytes([n + 1]) for n in range(200)
    )
    assert isinstance(read(laughs + b"."), tuple)
    assert len(read(DEEP + b".")) == 1
    assert read(b"}" + DEEP + b"K\x01s.") == {}  # a key that would be hashed all the way down
    assert isinstance(read(b"\x8f(" + DEEP + b"\x90."), Inert)  # an element of a set
    assert isinstance(read(b"]" * 100_000 + b"a" * 99_999 + b"."), list)
    assert isinstance(read(b"(" * 100_000 + b"N."), type(None))
    objects = b"cx\nY\nq\x00)\x81" + (b"h\x00)\x81}" + text("a") + b"cx\nY\n)\x81sb") * 1000
    read(objects + b".")
    inside = read(b"cx\nY\nq\x000" + (b"h\x00)\x81}" + text("a")) * 50_000 + b"N" + b"sb" * 50_000 + b".")
    assert isinstance(inside.state["a"].state["a"], Inert)
    read(b"}" + b"(" + b"".join(b"L%dL\nN" % (n * (2**61 - 1)) for n in range(2000)) + b"u.")


@pytest.mark.parametrize(
    "claims",
    [
        {"key": DEEP}, {"numel": DEEP}, {"extra": DEEP}, {"extra": b"(" + DEEP + b"K\x00K\x01t"}, {"size": DEEP},
        {"stride": DEEP}, {"offset": DEEP}, {"kind": DEEP},
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_depth_in_any_place_of_a_tensor_is_harmless(tmp_path, claims, zipped):
    path = in_a_file(tmp_path / "x.pt", one(**claims), zipped, {"a/data/0": bytes(16)})
    with pytest.raises(ValueError, match="cannot be read as a file of torch"):
        read_tensors(path)


def test_depth_around_the_pickle_of_a_legacy_file_is_harmless(tmp_path):
    parts = [pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}, {}, [])]
    for place in range(5):
        for value in (DEEP + b".", b"]" + DEEP + b"a.", b"}" + text("a") + DEEP + b"s."):
            (tmp_path / "x.pt").write_bytes(b"".join([*parts[:place], value, *parts[place + 1 :]]))
            with pytest.raises(ValueError, match="cannot be read as a file of torch"):
                read_tensors(tmp_path / "x.pt")


def test_entries_of_tensors_with_deep_keys_are_harmless(tmp_path):
    data = module(_parameters=b"}" + text("w") + tensor() + DEEP + b"K\x01ss") + b"."
    assert read_tensors(saved(tmp_path, data, {"a/data/0": bytes(16)}))["w"].tolist() == [0, 0, 0, 0]


def module(**parts: bytes) -> bytes:
    """A module's pickle: each of _parameters, _buffers, _modules as opcodes."""
    return b"cx\nY\n)\x81}" + b"".join(text(name) + opcodes + b"s" for name, opcodes in parts.items()) + b"b"


def saved(tmp_path, data: bytes, records: dict[str, bytes], **options):
    return in_a_file(tmp_path / "x.pt", data, True, records, **options)


def tensor(
    numel=4, size=(4,), stride=(1,), offset=0, kind=b"ctorch\nFloatStorage\n", key="0", extra=b"", what="storage"
) -> bytes:
    """Opcodes of a tensor as torch writes them, with any claims, also as opcodes."""
    identity = b"(" + text(what) + kind + plain(key) + text("cpu") + plain(numel) + extra + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + plain(offset) + plain(size) + plain(stride) + b"\x89NtR"


def plain(value) -> bytes:
    return (
        value
        if isinstance(value, bytes)
        else pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"")
    )


def one(**claims) -> bytes:
    return module(_parameters=b"}" + text("w") + tensor(**claims) + b"s") + b"."


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({}, ""),
        ({"numel": 2**38}, "claims 274877906944 elements, but has 16 bytes"),
        ({"numel": 2**70}, "claims .* elements, but has 16 bytes"),
        ({"numel": -4}, "without a key or a size"),
        ({"numel": True}, "without a key or a size"),
        ({"numel": 1.5}, "without a key or a size"),
        ({"kind": b"ctorch\nDoubleStorage\n"}, "claims 4 elements, but has 16 bytes"),
        ({"kind": b"ctorch\nQInt8Storage\n"}, "claims 4 elements, but has 16 bytes"),
        ({"kind": b"cos\nsystem\n"}, "damaged"),
        ({"kind": b"N"}, "damaged"),
        ({"key": "1"}, "claims 4 elements, but has 0 bytes"),
        ({"key": "../../../etc/passwd"}, "has 0 bytes"),
        ({"key": 0}, "without a key or a size"),
        ({"what": "stor"}, "no storage"),
        ({"extra": b"(" + text("0") + b"K\x00K\x04t"}, "no storage"),
        ({"extra": b"K\x01K\x02K\x03"}, "no storage"),
        ({"size": (2**40,), "stride": (0,)}, "does not fit into its 4 elements"),
        ({"size": (2**40,) * 7, "stride": (0,) * 7}, "does not fit"),
        ({"size": (5,)}, "does not fit"),
        ({"size": (2,), "stride": (4,)}, "out of bounds"),
        ({"offset": 1}, "out of bounds"),
        ({"offset": -1}, "invalid storage offset"),
        ({"size": (-4,)}, "overflowed"),
        ({"stride": (2**70,)}, "damaged"),
        ({"stride": (2**62,)}, "overflowed"),
        ({"stride": (-1,)}, "Negative strides"),
        ({"size": (2, 2)}, "mismatch in length"),
        ({"size": ("a",)}, "damaged"),
        ({"size": 4}, "damaged"),
    ],
)
def test_claims_are_compared_with_what_is_there(tmp_path, claims, message):
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    path = saved(tmp_path, one(**claims), {"a/data/0": numbers, "a/data/9": bytes(4096)})
    if not message:
        assert read_tensors(path)["w"].tolist() == [1, 2, 3, 4]
        return
    with pytest.raises(ValueError, match=f"x.pt cannot be read as a file of torch: .*{message}"):
        read_tensors(path)


def test_a_legacy_file_without_a_storage_is_refused(tmp_path):
    """torch.load would hand out whatever was in memory."""
    path = in_a_file(tmp_path / "x.pt", one(extra=b"N"), False)
    with pytest.raises(ValueError, match="the list of its storages does not fit"):
        read_tensors(path)
    whole = path.read_bytes()[: -len(pickle.dumps([], 2))] + pickle.dumps(["0"], 2)
    path.write_bytes(whole + struct.pack("<q4f", 4, 1, 2, 3, 4))
    assert read_tensors(path)["w"].tolist() == [1, 2, 3, 4]
    for rest in (
        struct.pack("<q5f", 5, 1, 2, 3, 4, 5),
        struct.pack("<q3f", 4, 1, 2, 3),
        struct.pack("<q4f", -1, *range(4)),
    ):
        path.write_bytes(whole + rest)
        with pytest.raises(ValueError, match="cannot be read as a file of torch"):
            read_tensors(path)
    path.write_bytes(
        whole.replace(b"little_endianq\x01\x88", b"little_endianq\x01\x89") + struct.pack("<q4f", 4, *range(4))
    )
    with pytest.raises(ValueError, match="not written on a little-endian machine"):
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
    with pytest.raises(ValueError, match="modules that contain themselves"):
        read_tensors(saved(tmp_path, b"}q\x00" + text("a") + b"h\x00s.", {}))
    shared = module(_parameters=b"}") + b"q\x00"
    for n in range(60):  # each module twice in the next: 2^60 names
        get = b"h" + bytes([n])
        shared += b"0" + module(_modules=b"}" + text("a") + get + b"s" + text("b") + get + b"s") + b"q" + bytes([n + 1])
    with pytest.raises(ValueError, match="more than 20000 parts"):
        read_tensors(saved(tmp_path, shared + b".", {}))


def test_what_torch_never_writes_is_refused(tmp_path):
    compressed = saved(
        tmp_path, one(numel=10**8, size=(10**8,)), {"a/data/0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ValueError, match="is compressed, which torch never does"):
        read_tensors(compressed)
    whole = saved(tmp_path, one(), {"a/data/0": struct.pack("<4f", 1, 2, 3, 4)}).read_bytes()
    (tmp_path / "x.pt").write_bytes(whole.replace(struct.pack("<f", 3), struct.pack("<f", 5)))
    with pytest.raises(ValueError, match="its record 'a/data/0' is damaged"):
        read_tensors(tmp_path / "x.pt")
    start = whole.rindex(b"PK\x01\x02")  # the central entry of data/0: both sizes, at 20 and 24, become 4 GB
    (tmp_path / "x.pt").write_bytes(
        whole[: start + 20] + struct.pack("<II", 2**32 - 2, 2**32 - 2) + whole[start + 28 :]
    )
    with pytest.raises(ValueError, match=r"x\.pt cannot be read as a file of torch"):
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


def test_no_opcode_keeps_a_handler_that_nobody_looked_at():
    """Python's handlers of these could call, import or hash more than names and plain values, or end the process."""
    refused = {
        "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "DICT", "FROZENSET", "BYTEARRAY8", "NEXT_BUFFER",
        "READONLY_BUFFER",
    }  # fmt: skip
    replaced = {
        "NEWOBJ", "BUILD", "APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS", "EMPTY_SET", "BINPERSID",
    }  # fmt: skip
    assert not set(PLAIN) & (refused | replaced)
    assert Unpickler.dispatch.keys() == {getattr(pickle, name)[0] for name in {*PLAIN, *replaced}}
    assert not Unpickler.dispatch.keys() & {getattr(pickle, name)[0] for name in refused}


def test_nested_dicts_are_read_and_other_keys_left_out(tmp_path):
    inner = OrderedDict(a=torch.ones(2), b={"c": torch.zeros(1)})
    torch.save({"state_dict": inner, "epoch": 3, 7: torch.ones(1), "rate": [torch.ones(1)]}, tmp_path / "x.pt")
    assert list(read_tensors(tmp_path / "x.pt")) == ["state_dict.a", "state_dict.b.c"]
    for empty in ({}, {"epoch": 3}, [torch.ones(1)], torch.ones(1), 3):
        torch.save(empty, tmp_path / "x.pt")
        with pytest.raises(ValueError, match="neither a module nor a state dict"):
            read_tensors(tmp_path / "x.pt")


def test_a_large_file_is_mapped(tmp_path):
    torch.save({"a": torch.arange(1000.0), "b": torch.zeros(5)}, tmp_path / "x.pt")
    found = read_tensors(tmp_path / "x.pt")
    if os.path.exists("/proc/self/maps"):
        assert str(tmp_path / "x.pt") in Path("/proc/self/maps").read_text()
    found["a"] += 1
    assert torch.equal(read_tensors(tmp_path / "x.pt")["a"], torch.arange(1000.0))  # the file is as it was

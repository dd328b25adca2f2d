"""Keys change with everything that could change a result, and with nothing else."""

import dataclasses
import functools
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from notebook_function import notebook
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib.runtime import keys
from lib.runtime.device import Runtime
from lib.runtime.disk import ROOT
from lib.vectors.flat_model import FlatModel
from lib.vectors.layout import Layout
from lib.vision.models import Preprocess
from lib.vision.objective import ImageObjective


def key(value):
    return keys.key_of({"value": keys.content(value)})


# --- values

VALUES = {
    "whole and real": (1, 1.0),
    "whole and true": (1, True),
    "nothing and its name": (None, "None"),
    "text": ("entropy", "entrpy"),
    "list": ([1, 2], [2, 1]),
    "nested list": ([[1], 2], [[1, 2]]),
    "mapping's value": ({"a": 1}, {"a": 2}),
    "mapping's name": ({"a": 1}, {"b": 1}),
    "type of a mapping's name": ({1: "a"}, {"1": "a"}),
    "set": ({1, 2}, {1, 3}),
    "path": (Path("a"), Path("b")),
    "dtype": (torch.float32, torch.bfloat16),
    "tensor's value": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0000002])),
    "tensor's dtype": (torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.float32)),
    "tensor's shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "array's value": (np.arange(3), np.arange(3) + 1),
    "array's dtype": (np.zeros(2, np.int32), np.zeros(2, np.float32)),
    "table's value": (pd.DataFrame({"a": [1.0]}), pd.DataFrame({"a": [1.0000000000000002]})),
    "table's column": (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})),
    "table's dtype": (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": ["1"]})),
    "dataclass's field": (Preprocess((0.5,) * 3, (0.2,) * 3), Preprocess((0.5,) * 3, (0.25,) * 3)),
    "precision": (Runtime("cpu", "fp32"), Runtime("cpu", "bf16")),
    "layout": (Layout(("a",), ((2,),)), Layout(("a",), ((2,),), parts=2)),
    "partial's argument": (functools.partial(max, 1), functools.partial(max, 2)),
    "partial's option": (functools.partial(max, key=len), functools.partial(max, key=abs)),
    "builtin": (max, min),
    "method's object": (Preprocess((0.5,) * 3, (0.2,) * 3).__call__, Preprocess((0.5,) * 3, (0.3,) * 3).__call__),
}


@pytest.mark.parametrize("one, other", VALUES.values(), ids=VALUES)
def test_a_value_that_differs_makes_another_key(one, other):
    assert key(one) != key(other)
    assert key({"inside": [one]}) != key({"inside": [other]})
    assert key(one) == key(one)


@dataclasses.dataclass
class Inner:
    rate: float


@dataclasses.dataclass
class Outer:
    inner: Inner
    shown: str = dataclasses.field(default="", compare=False)


def test_fields_of_fields_count_and_those_that_are_not_compared_do_not():
    assert key(Outer(Inner(0.1))) != key(Outer(Inner(0.2)))
    assert key(Outer(Inner(0.1), "loudly")) == key(Outer(Inner(0.1), "quietly"))


def test_the_device_does_not_count():
    assert key(Runtime("cpu", "bf16")) == key(Runtime("cuda:1", "bf16"))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN, PLAIN)
def test_plain_values_have_the_same_key_only_if_they_print_the_same(one, other):
    assert (key(one) == key(other)) == (repr(one) == repr(other))


def test_a_collection_inside_itself_ends():
    endless = [1]
    endless.append(endless)
    assert key(endless) != key([1])


def test_an_unknown_object_is_refused_in_one_sentence():
    import threading

    with pytest.raises(ValueError, match="a key cannot tell what determines a ") as caught:
        key({"a": [threading.Lock()]})
    assert "\n" not in str(caught.value)


def test_a_digest_makes_no_second_copy_of_a_large_tensor(monkeypatch):
    """Of a strided view, as of a tensor on a device, only a piece at a time is brought together on the host."""
    monkeypatch.setattr(keys, "PIECE", 4096, raising=False)
    base = torch.arange(60_000, dtype=torch.float32).view(60, 1000)
    copied = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if "clone" in str(function) or "copy" in str(function):
                copied.append(made.nbytes)
            return made

    for tensor in (base, base[:, :1], base[:, :500], base.T, base[0, 0], base[:0], base.bfloat16(), base > 9):
        copied.clear()
        with Copies():
            found = keys.digest(tensor)
        assert all(size <= keys.PIECE for size in copied), list(tensor.shape)
        assert found == keys.digest(tensor.clone(memory_format=torch.contiguous_format)), "strides do not matter"
        with monkeypatch.context() as patch:
            patch.setattr(keys, "PIECE", 1 << 30)
            assert found == keys.digest(tensor), "nor does the size of the pieces"
    assert len({keys.digest(t) for t in (base, base[:, :500], base.T, base.double(), base.flatten())}) == 5
    assert re.fullmatch("[0-9a-f]{16}", keys.digest(base))


def test_a_digest_is_remembered_until_the_tensor_changes():
    images = torch.zeros(4)
    keys.remember_digest(images, "drawn by recipe 7")
    known = keys.digest(images)
    assert known != keys.digest(torch.zeros(4))
    assert keys.digest(images[:]) == keys.digest(torch.zeros(4)), "a slice is a tensor of its own"
    images[0] = 1
    assert keys.digest(images) == keys.digest(torch.tensor([1.0, 0, 0, 0]))


# --- functions

DOUBLE = "def f(x):\n    return 2 * x"
FUNCTIONS = {
    "constant": (DOUBLE, "def f(x):\n    return 3 * x"),
    "operation": (DOUBLE, "def f(x):\n    return 2 + x"),
    "name": ("def f(x):\n    return x.sin()", "def f(x):\n    return x.cos()"),
    "default": ("def f(x, rate=0.1):\n    return x", "def f(x, rate=0.2):\n    return x"),
    "named default": ("def f(x, *, rate=0.1):\n    return x", "def f(x, *, rate=0.2):\n    return x"),
    "global": ("RATE = 1\ndef f(x):\n    return RATE * x", "RATE = 2\ndef f(x):\n    return RATE * x"),
    "global of a function that it calls": (
        "RATE = 1\ndef g(x):\n    return RATE * x\ndef f(x):\n    return g(x)",
        "RATE = 2\ndef g(x):\n    return RATE * x\ndef f(x):\n    return g(x)",
    ),
    "global of a function inside": (
        "RATE = 1\ndef f(x):\n    return [RATE * y for y in x]",
        "RATE = 2\ndef f(x):\n    return [RATE * y for y in x]",
    ),
    "closure": (
        "def make(rate):\n    return lambda x: rate * x\nf = make(1)",
        "def make(rate):\n    return lambda x: rate * x\nf = make(2)",
    ),
    "closure of a closure": (
        "def make(r):\n    def g(x):\n        return r * x\n    return lambda x: g(x)\nf = make(1)",
        "def make(r):\n    def g(x):\n        return r * x\n    return lambda x: g(x)\nf = make(2)",
    ),
}


@pytest.mark.parametrize("one, other", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_of_a_notebook_that_differs_makes_another_key(one, other):
    assert key(notebook(one)) != key(notebook(other))
    assert key(notebook(one)) == key(notebook(one))


def test_neither_comments_nor_lines_nor_unused_names_of_a_notebook_count():
    commented = "OTHER = 7\n\n\n# doubles\ndef f(x):\n    # twice\n\n    return 2 * x"
    assert key(notebook(commented)) == key(notebook(DOUBLE))
    reads = "def f(x):\n    return x.lock"  # an attribute that is called as a global is
    assert key(notebook(reads, lock=sys.stdout)) == key(notebook(reads))


def test_a_function_that_calls_itself_has_a_key():
    assert key(notebook("def f(n):\n    return n and f(n - 1)")) != key(
        notebook("def f(n):\n    return n and f(n - 2)")
    )


def test_a_tensor_that_a_notebooks_function_uses_counts():
    source = "def f(x):\n    return x + shift"
    assert key(notebook(source, shift=torch.zeros(2))) != key(notebook(source, shift=torch.ones(2)))
    with pytest.raises(ValueError, match="a key cannot tell what determines a _io"):
        key(notebook("def f(x):\n    log.write(x)", log=open("/dev/null")))  # noqa: SIM115


# --- torch modules


def attention(heads):
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, heads)


def layer(make, value=0.0):
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        next(module.parameters()).flatten()[0] += value
    return module


def buffered(value):
    module = nn.Module()
    module.register_buffer("scale", torch.tensor(value))
    return module


class Activated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.activation = activation


MODULES = {
    "number of heads, which repr does not show": (attention(2), attention(4)),
    "parameter": (layer(lambda: nn.Linear(2, 2)), layer(lambda: nn.Linear(2, 2), 1e-3)),
    "epsilon": (nn.LayerNorm(2), nn.LayerNorm(2, eps=1e-3)),
    "dropout": (nn.Dropout(0.1), nn.Dropout(0.2)),
    "kind of layer": (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())),
    "buffer": (buffered(1.0), buffered(2.0)),
    "function": (Activated(torch.relu), Activated(torch.tanh)),
}


@pytest.mark.parametrize("one, other", MODULES.values(), ids=MODULES)
def test_a_module_that_differs_makes_another_key(one, other):
    assert key(one) != key(other)
    assert key(nn.Sequential(one)) != key(nn.Sequential(other))


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_where_a_flat_model_stands_and_whether_it_trains_does_not_count():
    model = FlatModel(small_net())
    before = key(model)
    module = model.move_to(model.initial() + 1).train()
    module(torch.randn(8, 4)).sum().backward()  # moves the running statistics, too
    assert key(model) == before == key(FlatModel(small_net()))


def test_frozen_parts_and_the_statistics_at_the_start_of_a_flat_model_count():
    def model(part=0, name="0.weight", more=0.0):
        module = small_net()
        with torch.no_grad():
            module.get_parameter(name).add_(more) if part == 0 else module[1].running_mean.add_(more)
        return FlatModel(module, names=["3.weight"])

    assert key(model()) == key(model())
    assert key(model(more=1.0)) != key(model())
    assert key(model(1, more=1.0)) != key(model())
    assert key(model(name="3.weight", more=1.0)) == key(model()), "that is theta's to say"


# --- objectives


def objective(seed=0, head=0.0, images=0, **options):
    torch.manual_seed(0)
    model = FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)))
    heads, sets = [torch.randn(6, 4) + head], [torch.randint(0, 255, (9, 3, 4, 4)).to(torch.uint8) + images]
    options = {"objective": "information-maximisation", "batch": 3} | options
    return ImageObjective(model, heads, sets, Preprocess((0.5,) * 3, (0.2,) * 3), Runtime(), seed=seed, **options)


def test_what_an_objective_has_seen_does_not_count():
    fresh, used = objective(), objective()
    for step in range(3):
        used(step)(used.model.initial())
    assert used.state()[0] is not None
    assert key(used) == key(fresh) == key(objective(rows_at_once=3))


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"head": 1.0}, {"images": 1}, {"batch": 4}, {"diversity": 0.5}, {"objective": "entropy"}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_an_objective_is_made_of_counts(changed):
    assert key(objective(**changed)) != key(objective())


# --- code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package `toy`, which takes the place of this study."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(keys, "OURS", ("toy.",))
    monkeypatch.setattr(keys, "STARTED", float("inf"))  # these tests edit what they have imported
    (tmp_path / "toy").mkdir()

    def write(**modules):
        for name, source in {"__init__": "", **modules}.items():
            (tmp_path / "toy" / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        keys.code_of.cache_clear()
        keys._source.cache_clear()
        return keys.code_of("toy.a")

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "toy"]:
        del sys.modules[name]
    keys.code_of.cache_clear()
    keys._source.cache_clear()


IMPORTS = [
    "from toy.b import RATE",
    "from toy import b",
    "import toy.b",
    "import toy.b as other",
    "def f():\n    from toy.b import RATE",
    "class A:\n    import toy.b",
    "import toy.c",
]


@pytest.mark.parametrize("line", IMPORTS)
def test_a_constant_of_an_imported_module_counts(package, line):
    """However it is imported, and through another module."""
    between = "from toy.b import RATE"
    before = package(a=line, b="RATE = 1", c=between)
    assert package(a=line, b="RATE = 1", c=between) == before
    assert package(a=line, b="RATE = 2", c=between) != before


def test_what_is_not_imported_and_types_do_not_count(package):
    line = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.b import RATE"
    assert package(a=line, b="RATE = 1") == package(a=line, b="RATE = 2")
    assert package(a="X = 1", b="RATE = 1") == package(a="X = 1", b="RATE = 2")
    assert package(a="X = 1") != package(a="X = 2")


def test_comments_docstrings_and_layout_do_not_count(package):
    plain = """
    RATE = 1
    def f(x):
        return (x + RATE)
    class A:
        def g(self):
            return "text"
    """
    told = '''
    """What this is."""
    RATE = 1  # of learning


    def f(x):
        """Add."""
        # slowly
        return x + RATE


    class A:
        """A class."""

        def g(self):
            """Say."""
            return "text"
    '''
    assert package(a="import toy.b", b=plain) == package(a="import toy.b", b=told)
    assert package(a="import toy.b", b=plain) != package(a="import toy.b", b=plain.replace("text", "word"))


def test_a_module_that_was_edited_while_in_use_is_refused(package, monkeypatch):
    """Its result would be kept as the new code's, and Python goes on with the old."""
    package(a="RATE = 1")
    importlib.import_module("toy.a")
    monkeypatch.setattr(keys, "STARTED", 0)
    keys.code_of.cache_clear()
    keys._source.cache_clear()
    with pytest.raises(ValueError, match=r"a\.py was edited, .* \(toy\.a\): restart the kernel"):
        keys.code_of("toy.a")
    del sys.modules["toy.a"]
    assert keys.code_of("toy.a")


def test_modules_that_import_each_other_end(package):
    before = package(a="import toy.b", b="import toy.a\nX = 1")
    assert package(a="import toy.b", b="import toy.a\nX = 2") != before


def test_foreign_modules_have_no_code_and_those_that_only_run_things_do_not_count():
    assert keys.code_of("torch") == keys.code_of("lib.runtime.progress") == ""
    assert keys.code_of("lib.adaptation.loop") != keys.code_of("lib.vectors.fine_tuning") != ""
    for name in keys.RUNNING:
        assert importlib.util.find_spec(name), f"{name} is no module any more"


ROOM = """
from lib.runtime.index import index

__getattr__, __dir__, __all__ = index(__name__, {"one": "ONE", "two": "TWO"})
"""


def test_a_room_stands_for_what_its_index_names(package, tmp_path):
    """Although its modules are imported only when somebody asks for their names."""
    (tmp_path / "toy" / "room").mkdir()

    def code(line, one=1, two=2):
        for name, text in {"__init__": ROOM, "one": f"ONE = {one}", "two": f"TWO = {two}"}.items():
            (tmp_path / "toy" / "room" / f"{name}.py").write_text(text)
        return package(a=line)

    for line in ("from toy import room", "from toy.room import ONE", "import toy.room"):
        assert code(line, one=7) != code(line) != code(line, two=7)
    line = "from toy.room import one"
    assert code(line, two=7) == code(line) != code(line, one=7)


def test_imports_are_such_as_the_keys_can_follow():
    for path in (*(ROOT / "lib").rglob("*.py"), *(ROOT / "worlds").rglob("*.py")):
        relative = re.search(r"^\s*from \.", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not relative, f"{path}: a relative import"


@pytest.mark.parametrize("family", ["vision", "language"])
def test_an_edit_of_adaptation_or_fusion_makes_no_other_experts(family):
    """What fine-tuning is made of imports neither room, so their code is in no expert's key."""
    program = f"import lib.{family}.training, lib.vectors.fine_tuning, sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "lib.vectors.fine_tuning" in found
    assert not [name for name in found if name.startswith(("lib.adaptation.", "lib.fusion.", "lib.concrete."))]


def test_a_known_function_is_known_by_what_is_said_of_it():
    """Its closure, however large, is not looked at; what is said of it, and its code, are."""

    def double(value):
        return 2 * value

    known = keys.Known(double, {"images": torch.ones(3)})
    assert known(4) == 8
    same, other = keys.Known(double, {"images": torch.ones(3)}), keys.Known(double, {"images": torch.zeros(3)})
    assert keys.content(known) == keys.content(same) != keys.content(other)
    assert "code of the function" in keys.content(known)

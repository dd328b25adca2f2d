"""Read what a pickle describes, and run none of it.

A pickle is a program for a small stack machine, and the machine of Python's `pickle` imports and calls whatever that
program names. The one here has no instruction for that. It follows the opcodes over a stack, as in
https://docs.python.org/3/library/pickletools.html, but where the other would import it writes down a name, and where
the other would call it writes down what with: an `Inert`. So the result is a tree of dicts, lists, tuples, texts,
numbers and `Inert`s, whatever the file says. Why this is safe can be read off the code:

- nothing is imported, looked up with `getattr` or called because of the file: all that a file decides is which of the
  functions in `STEPS` runs next, and these only put plain values together;
- an opcode that is not in `STEPS` is refused, in particular EXT1, EXT2, EXT4 (objects that other code registered);
- the file's length and the number of opcodes are limited, and no opcode makes more than it reads or takes off the
  stack, so memory is limited too.

A subclass of `pickle.Unpickler` with `find_class` and `persistent_load` would be shorter and run no code either, but it
does not see the opcodes: eight bytes that number a memo entry 2^29 make it ask for 8 GiB before any method is called,
a bytearray is allocated before its bytes are there, and an object that EXT1 names may come from a cache.
`torch.load(weights_only=True)` refuses every class that was not allowed by name, and these files are full of them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

LONGEST = 32 * 2**20  # bytes: the pickle of a ViT-L/14 with all its modules, without the tensors, has less than 1 MiB
OPCODES = 1_000_000  # that one has less than 100 000


@dataclass(eq=False, repr=False, slots=True)
class Inert:
    """What stands for an object that was not made.

    Attributes:
        name: the class or function, e.g. "torch._utils._rebuild_tensor_v2", or "persistent id".
        args: what it was to be called with; None if it is only named.
        state: what was to be set on the object.
    """

    name: str
    args: object = None
    state: object = None


@dataclass(slots=True)
class Machine:
    """The state of reading one pickle.

    Attributes:
        stack: values since the last mark.
        below: the stacks before each mark.
        memo: values that the file refers to again.
        persistent: every persistent id, in order.
    """

    stack: list = field(default_factory=list)
    below: list[list] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    persistent: list[object] = field(default_factory=list)

    def pop(self) -> object:
        """Take the topmost value."""
        return self.stack.pop()

    def pop_mark(self) -> list:
        """Take all values since the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def push(self, value: object) -> None:
        """Put a value on top."""
        self.stack.append(value)


def read_pickle(data: BytesIO) -> tuple[object, list[object]]:
    """Read one pickle from the present position on; the position is then behind it.

    Args:
        data: holds the pickle.

    Returns:
        What it describes, and all its persistent ids.

    Raises:
        ValueError: if it is damaged, too long, or has an opcode that no checkpoint needs.
    """
    machine, count = Machine(), 0
    try:
        for opcode, argument, position in pickletools.genops(data):  # decodes the bytes, executes nothing
            count += 1
            if count > OPCODES:
                raise ValueError(f"it has more than {OPCODES} opcodes")
            if opcode.name == "STOP":
                return machine.pop(), machine.persistent
            if opcode.name not in STEPS:
                raise ValueError(f"opcode {opcode.name} at byte {position}, which no checkpoint has")
            STEPS[opcode.name](machine, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError):
        raise ValueError(f"it is damaged near opcode {count}") from None
    raise ValueError("it ends too early")


def _name(machine: Machine, argument: object) -> None:
    """GLOBAL names a module and something in it; that is all that happens."""
    machine.push(Inert(str(argument).replace(" ", ".", 1)))


def _stack_name(machine: Machine, _: object) -> None:
    name, module = machine.pop(), machine.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise TypeError("a name is a text")
    machine.push(Inert(f"{module}.{name}"))


def _call(machine: Machine, args: object, what: object) -> None:
    """REDUCE, NEWOBJ and the like: note what was to be called with which arguments.

    An ordered dictionary becomes a dictionary, because it holds the parameters of every module.
    """
    name = what.name if isinstance(what, Inert) else "a call of no name"
    machine.push({} if name == "collections.OrderedDict" and not args else Inert(name, args))


def _reduce(machine: Machine, _: object) -> None:
    args = machine.pop()
    _call(machine, args, machine.pop())


def _newobj_ex(machine: Machine, _: object) -> None:
    machine.pop()  # arguments by name; no tensor has any
    _reduce(machine, None)


def _inst(machine: Machine, argument: object) -> None:
    args = tuple(machine.pop_mark())
    _call(machine, args, Inert(str(argument).replace(" ", ".", 1)))


def _obj(machine: Machine, _: object) -> None:
    what, *args = machine.pop_mark()
    _call(machine, tuple(args), what)


def _build(machine: Machine, _: object) -> None:
    """BUILD sets the state of an object: it is noted; plain values have none."""
    state = machine.pop()
    if isinstance(machine.stack[-1], Inert):
        machine.stack[-1].state = state


def _set_items(target: object, pairs: list) -> None:
    """Only texts become keys: they name all there is to find, and other keys could be made to hash badly."""
    if isinstance(target, dict):
        target |= {key: value for key, value in zip(pairs[::2], pairs[1::2], strict=True) if isinstance(key, str)}


def _setitem(machine: Machine, _: object) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine.stack[-1], [key, value])


def _setitems(machine: Machine, _: object) -> None:
    pairs = machine.pop_mark()
    _set_items(machine.stack[-1], pairs)


def _append(machine: Machine, values: list) -> None:
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(values)


def _dict(machine: Machine, _: object) -> None:
    pairs, made = machine.pop_mark(), {}
    _set_items(made, pairs)
    machine.push(made)


def _tuple(machine: Machine, length: int) -> None:
    values = tuple(machine.pop() for _ in range(length))
    machine.push(values[::-1])


def _pop(machine: Machine, _: object) -> None:
    machine.pop() if machine.stack else machine.pop_mark()


def _mark(machine: Machine, _: object) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _put(machine: Machine, number: int) -> None:
    machine.memo[number] = machine.stack[-1]


def _persistent(machine: Machine, identity: object) -> None:
    """A persistent id stands for something beside the pickle; that of a module's class, in old files, for the class."""
    if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
        machine.push(identity[1])
        return
    machine.persistent.append(identity)
    machine.push(Inert("persistent id", identity))


Step = Callable[[Machine, object], object]
# Values that stand in the pickle itself.
CONSTANTS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "FLOAT", "BINFLOAT",
)  # fmt: skip
STEPS: dict[str, Step] = {
    **dict.fromkeys(CONSTANTS, Machine.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, number: machine.push(machine.memo[number])),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(Inert("set", ())),  # elements would have to be hashed
    "FROZENSET": lambda machine, _: machine.push(Inert("frozenset", machine.pop_mark())),
    "ADDITEMS": lambda machine, _: _append(machine, machine.pop_mark()),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: _tuple(machine, 1),
    "TUPLE2": lambda machine, _: _tuple(machine, 2),
    "TUPLE3": lambda machine, _: _tuple(machine, 3),
    "DICT": _dict,
    "APPEND": lambda machine, _: _append(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.pop_mark()),
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "GLOBAL": _name,
    "STACK_GLOBAL": _stack_name,
    "INST": _inst,
    "OBJ": _obj,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "BUILD": _build,
    "PERSID": _persistent,
    "BINPERSID": lambda machine, _: _persistent(machine, machine.pop()),
}

"""Results that took long to make, saved once under a key of everything that determines them.

An artifact is a folder `<root>/<kind>/<key>/` with `tensors.safetensors`, optionally `table.csv`, and `about.json`
(parameters, seed, versions, device, seconds, peak memory), written last: a folder without it is unfinished.
While it is being made, the folder holds `checkpoint.pt`, from which a killed run continues.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib import ranks
from lib.lineages import one_lineage


@contextmanager
def atomic_path(path: Path):  # noqa: ANN201 - a context manager over a Path
    """A temporary path beside `path` that is renamed to it on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time inside, for each folder; the others wait. A process that dies leaves no lock behind."""
    folder.mkdir(parents=True, exist_ok=True)
    # a file that can be written, not the folder itself: NFS, on which clusters keep their homes, locks nothing else
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def save_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV, atomically, with numbers short enough to read (6 significant digits)."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return path


def load_table(path: Path) -> pd.DataFrame:
    """Read a saved table.

    Raises:
        FileNotFoundError: naming the table and the command that makes it.
        ValueError: if it mixes experts of several lineages.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no saved table at {path}: run the notebook that makes it, or `make study`")
    table = pd.read_csv(path)
    one_lineage(table)
    return table


def ship(state: Mapping[str, Tensor], weights: Path, note: Path, recipe: object, **metadata: str) -> Path:
    """Save a model that the study ships, in half precision: theta0 is by definition what is in the file.

    Args:
        state: its parameters and buffers.
        weights: the safetensors file; what is there is replaced, atomically.
        note: the JSON file beside it, with the recipe and the SHA-256 of the weights.
        recipe: a dataclass that says how it was made.
        metadata: of the safetensors file.

    Returns:
        `weights`.
    """
    small = {name: (own.half() if own.is_floating_point() else own).contiguous() for name, own in state.items()}
    with atomic_path(weights) as path:
        save_file(small, path, metadata=metadata or None)
    told = {**asdict(recipe), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    with atomic_path(note) as path:
        path.write_text(json.dumps(told, indent=1) + "\n")
    return weights


class Checkpoint:
    """The state of an unfinished loop: saved now and then, atomically, and loaded without running any code."""

    device: str | None = None  # where tensors are loaded to; None for where they were saved

    def __init__(self, path: Path | None, every: float = 10.0) -> None:
        self.path, self.every, self._last = path, every, time.monotonic()

    def load(self) -> dict | None:
        """The saved state, or None when there is none (or it was cut off while being written by the machine)."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            return torch.load(self.path, weights_only=True, map_location=self.device)
        except Exception as error:
            raise ValueError(f"checkpoint {self.path} cannot be read ({error}); delete it to start afresh") from None

    def save(self, state: Callable[[], dict], force: bool = False) -> None:
        """Save `state()` when more than `every` seconds passed since the last time, or at once with `force`."""
        if self.path is None or not self._due(force):
            return
        whole = state()
        self._write(whole)
        self._last = time.monotonic()

    def _due(self, force: bool) -> bool:
        return force or time.monotonic() - self._last >= self.every

    def _write(self, state: dict) -> None:
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)


class SharedCheckpoint(Checkpoint):
    """The checkpoint of a loop that several processes run together: one file, written by the first process.

    They all save in the same step, that which the first one's clock says, so `state` may send messages. What it gives
    is the state of the whole, the same as of one process, and any number of processes can continue from it.
    """

    device = "cpu"

    def load(self) -> dict | None:
        """As one process does; whether there is a file is seen by the first."""
        return super().load() if ranks.of_first(self.path.is_file()) else None

    def _due(self, force: bool) -> bool:
        return ranks.of_first(super()._due(force))

    def _write(self, state: dict) -> None:
        if ranks.number() == 0:
            super()._write(state)


@dataclass(frozen=True)
class Artifact:
    """What came out of the store: tensors, a table (or None) and the notes about their making."""

    tensors: dict[str, Tensor]
    table: pd.DataFrame | None
    about: dict


def key_of(determines: Mapping[str, object]) -> str:
    """A short hash of names and values, independent of their order.

    Raises:
        ValueError: if a value cannot be written as JSON: a key must not depend on an object's address.
    """
    try:
        text = json.dumps(determines, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"an artifact's key may hold only plain values ({error})") from None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(*tensors: Tensor) -> str:
    """A short hash of the tensors' types, shapes and values, for keys.

    What `remember_digest` said of a tensor stands for its values: images that are mapped are not read for it.
    """
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        known, version = getattr(tensor, "_known_digest", ("", 0))
        if known and version == tensor._version:
            total.update(known.encode())
        else:
            total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def remember_digest(tensor: Tensor, text: str) -> None:
    """Let `digest` take `text` for the tensor's values, until they are changed. Slices and copies do not inherit it."""
    tensor._known_digest = (text, tensor._version)


class Store:
    """A folder of artifacts.

    Args:
        root: folder below which they lie; made when first needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, determines: Mapping[str, object]) -> Path:
        """Where the artifact of that kind and key lies, made or not."""
        return self.root / kind / key_of(determines)

    def has(self, kind: str, determines: Mapping[str, object]) -> bool:
        """Whether the artifact is there, finished."""
        return (self.folder(kind, determines) / "about.json").is_file()

    def get(
        self,
        kind: str,
        determines: Mapping[str, object],
        make: Callable[[Checkpoint], tuple[Mapping[str, Tensor], pd.DataFrame | None]],
        *,
        maker: int | None = 0,
    ) -> Artifact:
        """Load the artifact, or make and save it. Two processes that want the same one at once make it once.

        Args:
            kind: e.g. "expert".
            determines: everything that determines the result, plain values only.
            make: called with a checkpoint to continue from; returns tensors and a table or None.
            maker: which of the processes that run this notebook together makes it, while the others wait (see
                `lib.ranks`); None for all of them together, which then must all come here.

        Returns:
            The artifact, read back from disk in either case.
        """
        folder = self.folder(kind, determines)
        if maker is None and ranks.count() > 1:
            with exclusive(folder) if ranks.number() == 0 else nullcontext():
                if not ranks.of_first(self.has(kind, determines)):
                    self._make(folder, kind, determines, make, together=True)
                ranks.everyone(None)  # until the first has saved it
        elif ranks.number() != (maker or 0):
            # No message but the file itself: what one process still has to make, another may have in memory already.
            while not self.has(kind, determines):
                time.sleep(0.2)
        elif not self.has(kind, determines):
            with exclusive(folder):
                if not self.has(kind, determines):  # nor was it made while this process waited
                    self._make(folder, kind, determines, make)
        table_path = folder / "table.csv"
        return Artifact(
            tensors=load_file(folder / "tensors.safetensors"),
            table=pd.read_csv(table_path) if table_path.is_file() else None,
            about=json.loads((folder / "about.json").read_text()),
        )

    def _make(
        self, folder: Path, kind: str, determines: Mapping[str, object], make: Callable, together: bool = False
    ) -> None:
        started = time.monotonic()
        tensors, table = make((SharedCheckpoint if together else Checkpoint)(folder / "checkpoint.pt"))
        if together and ranks.number() != 0:
            return
        with atomic_path(folder / "tensors.safetensors") as temporary:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        if table is not None:
            with atomic_path(folder / "table.csv") as temporary:
                table.to_csv(temporary, index=False)
        about = {"kind": kind, **determines, **circumstances(time.monotonic() - started)}
        with atomic_path(folder / "about.json") as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n")
        (folder / "checkpoint.pt").unlink(missing_ok=True)


def circumstances(seconds: float) -> dict[str, object]:
    """What to note beside a result: versions, machine, seconds, peak resident memory of this process in MiB."""
    together = {"processes": ranks.count()} if ranks.count() > 1 else {}
    return together | {
        "seconds": round(seconds, 2),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }

"""Tables of the sets that the study knows: data/registry/*.toml, checked as a whole when they are read."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lib.runtime.disk import ROOT

Known = TypeVar("Known")
TABLES = ROOT / "data" / "registry"


def read_registry(path: Path, kind: type[Known]) -> dict[str, Known]:
    """Read a TOML file with one table per set.

    Args:
        path: the file.
        kind: the dataclass of one set. Its field `name` is the table's name, its other fields are the table's entries.

    Returns:
        Name -> set, in the order of the file.

    Raises:
        ValueError: for an entry that is unknown, missing or of another type; names the file, the set and the entry.
    """
    tables = {name: {"name": name} | table for name, table in tomllib.loads(path.read_text("utf-8")).items()}
    declared = TypeAdapter(dict[str, kind], config=ConfigDict(extra="forbid", strict=True))
    try:
        return declared.validate_json(json.dumps(tables))  # as JSON, where a list may stand for a tuple
    except ValidationError as error:
        found = error.errors()[0]
        entry = ".".join(map(str, found["loc"]))
        given = "" if found["type"] == "missing" else f", not {found['input']!r}"
        raise ValueError(f"{path}: entry {entry}: {found['msg']}{given}; correct it there") from None

"""The card of a merged model: what it was made of, how, and what it scores; one page, README.md beside its weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from scipy import stats

from lib.files.weights import INDEX, find_file
from lib.runtime.store import circumstances

CARD = "README.md"
LEVEL = 0.95  # of intervals


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears whole: what is written into the one given is there only when everything is.

    Raises:
        ValueError: if there is one already, with something in it.
    """
    refuse_full(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        inside = Path(temporary) / folder.name
        inside.mkdir()
        yield inside
        if folder.is_dir():
            folder.rmdir()  # empty, as was checked
        inside.rename(folder)


def refuse_full(folder: Path) -> None:
    """A merged model goes into a folder of its own, which can be made.

    Raises:
        ValueError: if something is there, or nothing can be written there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty: name another folder, or move it away")
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be made, since nothing can be written to {nearest}: name another folder")


def hash_of(place: Path) -> str:
    """SHA-256 of the file with weights that a path stands for; of an adapter's folder, of its factors.

    Of shards with an index it is that of all, one behind the other by name: `cat model-*.safetensors | sha256sum`.
    """
    adapter, total = place / "adapter_model.safetensors", hashlib.sha256()
    found = adapter if adapter.is_file() else find_file(place)
    names = [found.name]
    if found.name.endswith(INDEX):
        names = sorted(set(json.loads(found.read_text("utf-8"))["weight_map"].values()))
    for name in names:
        with (found.parent / name).open("rb") as file:
            hashlib.file_digest(file, lambda: total)
    return total.hexdigest()


def with_intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """Held-out accuracies in percent with the 95 % interval of the examples' sampling: Wilson's; of rho, Fisher's z.

    Args:
        scores: rows (method, task, split, accuracy, n); where there is a column `metric`, rho is told by it.

    Returns:
        The rows of "test": method, task, accuracy, low, high, n.
    """
    held_out = scores[scores["split"] == "test"]
    metrics = held_out["metric"] if "metric" in held_out else ["accuracy"] * len(held_out)
    ends = [_interval(*row) for row in zip(held_out["accuracy"], held_out["n"], metrics, strict=True)]
    low, high = zip(*ends, strict=True) if ends else ((), ())
    table = held_out[["method", "task"]].assign(accuracy=100 * held_out["accuracy"], low=low, high=high)
    return table.assign(low=100 * table["low"], high=100 * table["high"], n=held_out["n"]).round(1)


def _interval(score: float, count: int, metric: str) -> tuple[float, float]:
    if metric == "accuracy":
        return tuple(stats.binomtest(round(score * count), int(count)).proportion_ci(LEVEL, "wilson"))
    # Spearman's rho: Fieller, Hartley and Pearson (1957), https://doi.org/10.2307/2332878
    reach = stats.norm.isf((1 - LEVEL) / 2) * (1.06 / max(1, count - 3)) ** 0.5
    middle = np.arctanh(np.clip(score, -0.999999, 0.999999))
    return float(np.tanh(middle - reach)), float(np.tanh(middle + reach))


def losers(scores: pd.DataFrame, method: str, against: str) -> list[str]:
    """The tasks in which a method is surely below another: their intervals do not even touch."""
    wide = with_intervals(scores).set_index(["method", "task"])
    return [
        task for task in wide.loc[method].index if wide.loc[(method, task), "high"] < wide.loc[(against, task), "low"]
    ]


def model_card(about: Mapping[str, object], scores: pd.DataFrame | None = None, notes: Sequence[str] = ()) -> str:
    """The card in Markdown, with the front matter of the Hugging Face hub.

    Args:
        about: name of a fact -> fact; "library" and "base" also go into the front matter.
        scores: rows (method, task, split, accuracy, n), or None.
        notes: warnings and remarks, a sentence each.
    """
    front = {"library_name": about.get("library"), "base_model": about.get("base"), "tags": ["merge", "model-merging"]}
    made = circumstances(0)
    facts = dict(about) | {"made with": ", ".join(f"{name} {made[name]}" for name in ("torch", "python", "machine"))}
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in front.items() if value), "---", ""]
    lines += ["# Merged model", "", *_table([["", ""], *([name, _cell(value)] for name, value in facts.items())])]
    if scores is not None:
        counts = scores[scores["split"] == "test"].groupby("task", sort=False)["n"].first()
        held_out = f"Of examples that merging has not seen ({', '.join(f'{task}: {n}' for task, n in counts.items())})."
        held_out += " In brackets: 95 % intervals (Wilson; rho: Fisher's z)."
        lines += ["", "## Held-out accuracy (%)", "", held_out, "", *_table(_score_rows(scores))]
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def _score_rows(scores: pd.DataFrame) -> list[list[str]]:
    """Tasks by methods, and their means, as text."""
    table = with_intervals(scores)
    numbers = table[["accuracy", "low", "high"]].to_numpy()
    table["shown"] = [f"{accuracy:.1f} ({low:.1f} to {high:.1f})" for accuracy, low, high in numbers]
    wide = table.pivot_table(index="task", columns="method", values="shown", sort=False, aggfunc="first")
    means = table.groupby("method", sort=False)["accuracy"].mean()
    rows = [[str(task), *row] for task, row in zip(wide.index, wide.to_numpy(), strict=True)]
    return [["task", *wide.columns], *rows, ["**mean**", *(f"{means[method]:.1f}" for method in wide.columns)]]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def _cell(value: object) -> str:
    parts = [f"{name}: {own}" for name, own in value.items()] if isinstance(value, Mapping) else [str(value)]
    return "<br>".join(part.replace("|", "\\|").replace("\n", " ") for part in parts)

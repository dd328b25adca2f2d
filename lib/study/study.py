"""Opening a study from a notebook: strict parameters, folders, device, and what all notebooks share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import pandas as pd
from PIL import Image

from lib.files.lineages import one_lineage, tagged
from lib.runtime import ranks
from lib.runtime.device import Runtime, choose_runtime
from lib.runtime.disk import ROOT, atomic_path, exclusive
from lib.runtime.parameters import closest, has_type
from lib.runtime.processes import side_by_side
from lib.runtime.store import NotMade, Store, circumstances, made_by, only_looking
from lib.study.profiles import PROFILES, SETTINGS, Profile, VisionProfile, field_names, get_profile
from lib.study.tables import load_table, save_table

Arguments, Result, Item = ParamSpec("Arguments"), TypeVar("Result"), TypeVar("Item")
_OPENED = "_study_opened"  # left in the notebook's namespace by the first call: later variables are no parameters


@dataclass(frozen=True)
class Study:
    """A profile, a seed and where things lie.

    Attributes:
        profile: model, tasks and budgets.
        seed: names every random choice of fine-tuning and adaptation.
        data_root: folder of a local mirror of data sets, or "" for the hub.
        runtime: device and precision.
        root: the repository (another folder in tests).
    """

    profile: Profile
    seed: int = 0
    data_root: str = ""
    runtime: Runtime = field(default_factory=Runtime)
    root: Path = ROOT
    opened: float = field(default_factory=time.monotonic, compare=False, repr=False)

    def claim(self, holds: bool, statement: str) -> None:
        """State an empirical claim of a notebook: it must hold at the default profile, elsewhere the truth is printed.

        Raises:
            AssertionError: if it does not hold although nothing about the default profile was changed.
        """
        if holds:
            print("holds:", statement)
        elif self.profile == PROFILES[self.profile.default]:
            raise AssertionError(f"this no longer holds at the default profile: {statement}")
        else:
            print("does NOT hold with these parameters:", statement)

    @property
    def cache(self) -> Path:
        """Git-ignored folder of what can be made again: drawn or decoded inputs, and the store."""
        return self.root / "data" / "cache"

    @property
    def store(self) -> Store:
        """Results that took long: experts, masks, coefficients."""
        return Store(self.cache / "results", self.runtime.device)

    def remember(self, routine: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The routine, whose results are kept: `study.remember(adapt)(objective, theta0, ...)`.

        The first call with some arguments makes the result, a later one reads it, also in another notebook. A killed
        call continues. What was changed, in an argument or in the routine's code, makes a new result: see
        `lib.runtime.store`.
        """
        return self.store.remember(routine)

    def prepare(self, call: Callable[[Item], object], items: Sequence[Item], *, label: str, steps: int = 0) -> None:
        """Make what `call(item)` remembers, for all items for which it is missing.

        On a CPU that is done side by side, in a process and thread for each; on accelerators one after the other, or
        as many at once as processes run the notebook together.

        Args:
            call: a function of an item that calls remembered routines.
            items: its arguments.
            label: shown with the progress.
            steps: how many steps a call takes, for the total that is shown.
        """
        on_cpu = self.runtime.device == "cpu"
        missing = [number for number, item in enumerate(items) if not _made(call, item)]
        if missing and on_cpu and ranks.number() == 0:
            side_by_side(call, [items[number] for number in missing], f"{label}, {len(missing)} side by side", steps)
        processes = 1 if on_cpu else ranks.count()
        # Each process makes its own share first, and then waits for what the others make.
        for number in sorted(missing, key=lambda number: number % processes != ranks.number()):
            with made_by(number % processes):
                call(items[number])

    @property
    def results(self) -> Path:
        """Folder of this profile's and seed's tables; changed parameters get a folder of their own."""
        return self.root / "data" / "results" / self.profile.label / f"seed{self.seed}"

    def save(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Save a table as CSV under the study's results and give it back as it was read again.

        A table made with published experts gets the column `lineage`; without the column, the experts are own ones.
        `about.json` beside the tables notes parameters, seed, versions, machine, and for each table the seconds from
        the opening of its notebook to its saving (results that the store already had cost none of them).
        Of several processes the first saves, and all give back what it saved.
        """
        if ranks.number() == 0:
            self._save(table, name)
        ranks.everyone(None)
        return self.load(name)

    def _save(self, table: pd.DataFrame, name: str) -> None:
        save_table(tagged(table, self.profile.lineage), self.results / f"{name}.csv")
        about, noted = self.results / "about.json", circumstances(time.monotonic() - self.opened)
        with exclusive(self.results):  # another notebook may be saving at the same time
            seconds = json.loads(about.read_text())["seconds"] if about.is_file() else {}
            seconds |= {name: noted.pop("seconds")}
            noted = {
                "parameters": asdict(self.profile),
                "lineage": self.profile.lineage,
                "seed": self.seed,
                **noted,
                "seconds": dict(sorted(seconds.items())),
            }
            with atomic_path(about) as temporary:
                temporary.write_text(json.dumps(noted, indent=1) + "\n")

    def save_image(self, image: Image.Image, name: str) -> Path:
        """Save a picture as PNG beside the tables, from which figures are drawn."""
        path = self.results / f"{name}.png"
        if ranks.number() == 0:
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG", optimize=True)
        ranks.everyone(None)
        return path

    def load(self, name: str) -> pd.DataFrame:
        """A table saved by this or another notebook."""
        return load_table(self.results / f"{name}.csv")

    def full(self, name: str) -> pd.DataFrame:
        """The same table from the full run, the tables of all its seeds under each other; says in one line what it is.

        Where no full run is saved (or the profile is itself the full one), these are this profile's own tables.

        Raises:
            FileNotFoundError: if there is none; names the command that makes it.
        """
        results = self.root / "data" / "results"
        for folder in (results / (self.profile.full or self.profile.label), self.results.parent):
            if paths := seed_folders(folder, name):
                seeds = ", ".join(str(seed) for seed in paths)
                print(f"shown: profile {folder.name}, seed{'s' if len(paths) > 1 else ''} {seeds}")
                return all_seeds(folder, name)
        return self.load(name)

    def load_seeds(self, *names: str) -> dict[int, dict[str, pd.DataFrame]]:
        """The named tables of every seed that has all of them: seed -> name -> table."""
        return load_seeds(self.results.parent, *names)


def _made(call: Callable[[Item], object], item: Item) -> bool:
    """Whether all that `call(item)` remembers is in the store."""
    try:
        with only_looking():
            call(item)
    except NotMade:
        return False
    return True


def seed_folders(results: Path, *names: str) -> dict[int, Path]:
    """The folders `seed0`, `seed1`, ... of a profile that hold all the named tables, by seed."""
    folders = {int(folder.name[4:]): folder for folder in results.glob("seed*")}
    whole = (seed for seed in sorted(folders) if all((folders[seed] / f"{name}.csv").is_file() for name in names))
    return {seed: folders[seed] for seed in whole}


def load_seeds(results: Path, *names: str) -> dict[int, dict[str, pd.DataFrame]]:
    """The named tables of every seed of a profile that has all of them: seed -> name -> table."""
    return {
        seed: {name: load_table(folder / f"{name}.csv") for name in names}
        for seed, folder in seed_folders(results, *names).items()
    }


def all_seeds(results: Path, name: str) -> pd.DataFrame:
    """One table of all seeds of a profile, with the column `seed`.

    Raises:
        FileNotFoundError: if no seed has it.
        ValueError: if the seeds were run on experts of different lineages.
    """
    tables = [by_name[name].assign(seed=seed) for seed, by_name in load_seeds(results, name).items()]
    if not tables:
        raise FileNotFoundError(f"no saved table {name}.csv below {results}: run `make study` or `make reproduce`")
    one_lineage(*tables)
    return pd.concat(tables, ignore_index=True)


def open_study(namespace: MutableMapping[str, object], family: type[Profile] = VisionProfile) -> Study:
    """Check a notebook's parameters and open the study they describe.

    Call it right after the parameters cell, as `study = open_study(globals())`. Everything the notebook has defined by
    then is a parameter (given by its own cell, or by papermill's `-p`), so a misspelt one is caught here instead of
    being ignored. Processes that torchrun started for the same notebook join each other here (see `lib.runtime.ranks`).

    Args:
        namespace: the notebook's `globals()`.
        family: what kind of model the notebook is about, by the class of its profiles.

    Returns:
        The study.

    Raises:
        ValueError: for an unknown name, a wrong type, an unknown profile, device or precision, or a profile of another
            family; the message names the known ones.
    """
    known = (*SETTINGS, *field_names(family))
    simple = (str, int, float, bool, list, tuple, dict, type(None))
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in ("In", "Out") and isinstance(value, simple)
    }
    if _OPENED in namespace:  # the cell is run again: the notebook's own variables are there by now
        given = {name: value for name, value in given.items() if name in known}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"unknown parameter '{name}'{closest(name, known)}; known: {', '.join(known)}")
        if name in SETTINGS and not has_type(value, SETTINGS[name]):
            expected = SETTINGS[name].__name__
            raise ValueError(f"parameter '{name}' is {value!r} ({type(value).__name__}), expected {expected}")
    overrides = {name: value for name, value in given.items() if name not in SETTINGS}
    if overrides.get("tasks") == "":  # an empty list of tasks means the profile's own
        del overrides["tasks"]
    settings = {"profile": family.default, "seed": 0, "data_root": "", "device": "auto", "precision": "auto"}
    settings |= {name: value for name, value in given.items() if name in SETTINGS}
    if settings["seed"] < 0:
        raise ValueError(f"parameter 'seed' is {settings['seed']}, expected 0, 1, 2, ...")
    chosen = PROFILES.get(settings["profile"])
    if chosen and not isinstance(chosen, family):
        fitting = ", ".join(name for name, profile in PROFILES.items() if isinstance(profile, family))
        raise ValueError(
            f"profile '{chosen.name}' is one of {chosen.family}, this notebook needs one of {family.family}: {fitting}"
        )
    study = Study(
        profile=get_profile(settings["profile"], **overrides),
        seed=settings["seed"],
        data_root=settings["data_root"],
        runtime=choose_runtime(settings["device"], settings["precision"]),
    )
    ranks.join(study.runtime)
    namespace[_OPENED] = True
    return study

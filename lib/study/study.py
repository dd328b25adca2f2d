"""Opening a study from a notebook: strict parameters, folders, device, and what all notebooks share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ParamSpec, TypeVar

import pandas as pd
from PIL import Image

from lib.files.lineages import tagged
from lib.runtime import ranks
from lib.runtime.device import Runtime, choose_runtime
from lib.runtime.disk import ROOT, atomic_path, exclusive, written_below
from lib.runtime.parameters import checked, names_in_its_cell, refuse_unknown
from lib.runtime.processes import side_by_side
from lib.runtime.store import NotMade, Store, circumstances, made_by, only_looking
from lib.study.inputs import difference, inputs_of, label_of
from lib.study.profiles import PROFILES, SETTINGS, Profile, Settings, VisionProfile, field_names, get_profile
from lib.study.tables import all_seeds, load_seeds, load_table, save_table, seed_folders

Arguments, Result, Item = ParamSpec("Arguments"), TypeVar("Result"), TypeVar("Item")
_OPENED = "_study_opened"  # left in the notebook's namespace by the first call: the names of its parameters


@dataclass(frozen=True)
class Study:
    """A profile, a seed and where things lie.

    Attributes:
        profile: model, tasks and budgets.
        seed: names every random choice of fine-tuning and adaptation.
        data_root: folder of a local mirror of data sets, or "" for the hub.
        runtime: device and precision.
        root: the repository (another folder in tests).
        device: as it was asked for, which is part of the label.
        precision: likewise.
    """

    profile: Profile
    seed: int = 0
    data_root: str = ""
    runtime: Runtime = field(default_factory=Runtime)
    root: Path = ROOT
    device: str = "auto"
    precision: str = "auto"
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
        return written_below(self.root) / "data" / "cache"

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

    @cached_property
    def label(self) -> str:
        """Under which name results are filed: changed parameters, other data and other experts each have their own."""
        return label_of(self.profile, self.data_root, precision=self.precision, device=self.device)

    @property
    def results(self) -> Path:
        """Folder of the live tables of this label and seed; the committed ones are below data/results."""
        return written_below(self.root) / "runs" / self.label / f"seed{self.seed}"

    def save(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Save a table as CSV under the study's results and give it back as it was read again.

        A table made with published experts gets the column `lineage`; without the column, the experts are own ones.
        `about.json` beside the tables notes parameters, inputs, seed, versions, machine, and for each table the seconds
        from the opening of its notebook to its saving (results that the store already had cost none of them).
        Of several processes the first saves, and all give back what it saved.

        Raises:
            ValueError: if the folder holds tables that were made from other inputs.
        """
        if ranks.number() == 0:
            self._save(table, name)
        ranks.everyone(None)
        return self.load(name)

    def _save(self, table: pd.DataFrame, name: str) -> None:
        about, noted = self.results / "about.json", circumstances(time.monotonic() - self.opened, self.runtime.device)
        with exclusive(self.results):  # another notebook may be saving at the same time
            inputs = self.refuse_other_inputs()
            save_table(tagged(table, self.profile.lineage), self.results / f"{name}.csv")
            old = self._about()
            noted = {
                "parameters": asdict(self.profile),
                "precision": self.runtime.precision,
                "inputs": old.get("inputs", {}) | inputs,
                "lineage": self.profile.lineage,
                "seed": self.seed,
                **noted,
                "seconds": dict(sorted((old.get("seconds", {}) | {name: noted["seconds"]}).items())),
            }
            with atomic_path(about) as temporary:
                temporary.write_text(json.dumps(noted, indent=1) + "\n")

    def _about(self) -> dict[str, dict[str, object]]:
        path = self.results / "about.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def refuse_other_inputs(self) -> dict[str, object]:
        """The study's inputs; no table of other data or experts may stand beside those that are there.

        Raises:
            ValueError: naming the first input that differs.
        """
        inputs = inputs_of(self.profile, self.data_root)
        if other := difference(self._about().get("inputs", {}), inputs):
            raise ValueError(
                f"the tables in {self.results} were made from other inputs ({other}): move that folder away to make "
                "new ones, or bring the old inputs back"
            )
        return inputs

    def save_image(self, image: Image.Image, name: str) -> Path:
        """Save a picture as PNG beside the tables, from which figures are drawn."""
        path = self.results / f"{name}.png"
        if ranks.number() == 0:
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG", optimize=True)
        ranks.everyone(None)
        return path

    def folders(self, *names: str) -> dict[int, Path]:
        """Where the named tables of each seed lie: live ones, and for seeds that have none the committed ones.

        So a notebook can be opened by itself in a fresh clone. Committed tables stand in only for the same profile,
        with nothing changed and no other data.
        """
        committed = self.root / "data" / "results" / self.profile.label
        ours = seed_folders(committed, *names) if self.label == self.profile.label else {}
        return dict(sorted((ours | seed_folders(self.results.parent, *names)).items()))

    def load(self, name: str) -> pd.DataFrame:
        """A table saved by this or another notebook; if none has saved it yet, the committed one, and a line says so.

        Raises:
            FileNotFoundError: if there is neither; names the command that makes it.
        """
        folder = self.folders(name).get(self.seed, self.results)
        if folder != self.results:
            print(f"{name}: no run of this seed has saved it yet, so this is the committed table")
        return load_table(folder / f"{name}.csv")

    def load_seeds(self, *names: str) -> dict[int, dict[str, pd.DataFrame]]:
        """The named tables of every seed that has all of them, see `folders`: seed -> name -> table."""
        return load_seeds(self.folders(*names), *names)

    def full(self, name: str) -> pd.DataFrame:
        """The same table from the full run, the tables of all its seeds under each other; says in one line what it is.

        That are the committed tables of the profile's `full`. A profile that names none is itself the full one: then
        they are its own, see `folders`, or else the committed ones of the same name on other data.

        Raises:
            FileNotFoundError: if there is none; names the command that makes it.
        """
        committed = self.root / "data" / "results"
        found = seed_folders(committed / self.profile.full, name) if self.profile.full else {}
        found = found or self.folders(name) or seed_folders(committed / self.profile.label, name)
        if not found:
            return self.load(name)
        seeds = f"seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
        mine = [str(seed) for seed, folder in found.items() if folder.parent == self.results.parent]
        if 0 < len(mine) < len(found):
            seeds += f" ({', '.join(mine)} of this run, the others as committed)"
        print(f"shown: profile {next(iter(found.values())).parent.name}, {seeds}")
        return all_seeds(found, name)


def _made(call: Callable[[Item], object], item: Item) -> bool:
    """Whether all that `call(item)` remembers is in the store."""
    try:
        with only_looking():
            call(item)
    except NotMade:
        return False
    return True


def open_study(namespace: MutableMapping[str, object], family: type[Profile] = VisionProfile) -> Study:
    """Check a notebook's parameters and open the study they describe.

    Call it right after the parameters cell, as `study = open_study(globals())`. Everything the notebook has defined by
    then is a parameter (given by its own cell, or by papermill's `-p`), so a misspelt one is caught here instead of
    being ignored. When it is called again ("Run All" twice in one kernel), the notebook's own variables are there, too:
    then the parameters are what the parameters cell says by now, and no variable that is called like one.
    Processes that torchrun started for the same notebook join each other here (see `lib.runtime.ranks`).

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
    if _OPENED in namespace:
        names = names_in_its_cell(namespace.get("In", ())) or namespace[_OPENED]
        given = {name: value for name, value in given.items() if name in names}
    refuse_unknown(given, known)
    settings = checked(Settings, {"profile": family.default} | {n: v for n, v in given.items() if n in SETTINGS})
    chosen = PROFILES.get(settings.profile)
    if chosen and not isinstance(chosen, family):
        fitting = ", ".join(name for name, profile in PROFILES.items() if isinstance(profile, family))
        raise ValueError(
            f"profile '{chosen.name}' is one of {chosen.family}, this notebook needs one of {family.family}: {fitting}"
        )
    # An empty list of tasks means the profile's own.
    overrides = {n: v for n, v in given.items() if n not in SETTINGS and (n, v) != ("tasks", "")}
    profile = get_profile(settings.profile, **overrides)
    runtime = choose_runtime(settings.device, settings.precision)
    asked = {"device": settings.device, "precision": settings.precision}
    study = Study(profile, settings.seed, settings.data_root, runtime, **asked)
    study.refuse_other_inputs()
    ranks.join(runtime)
    namespace[_OPENED] = tuple(given)
    return study

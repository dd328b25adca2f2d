"""What the pages' sentences rest on: the committed tables, and comparisons of methods in them.

Verdicts are those of the notebooks' takeaways, so that a comparison has the same one wherever it is quoted: Holm's
correction depends on what is compared together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, wraps
from pathlib import Path

import pandas as pd

from lib.runtime.disk import ROOT
from lib.study.evaluation import mean_by_seed
from lib.study.findings import Findings, mean_std
from lib.study.needs import needed
from lib.study.profiles import get_profile
from lib.study.study import Study
from scripts.prose.words import WORDS
from scripts.tables import scores_of
from scripts.takeaways import committed_only, takeaways_of

PLAIN, AVERAGING, TSV = "Task Arithmetic", "Weight averaging", "TSV-M"
TASK_WISE, LAYER_WISE = "AdaMerging (task-wise)", "AdaMerging (layer-wise)"
MASK, MASK_TASK, MASK_LAYER = f"Concrete {PLAIN}", f"Concrete {TASK_WISE}", f"Concrete {LAYER_WISE}"
IM, TAUGHT, CONTROL = ", IM", ", experts", "Concrete AdaMerging, shuffled mask (control)"
SHUFFLED_IM, LONGER_IM = CONTROL.replace(" (", ", IM ("), f"{LAYER_WISE}{IM}, equal gradients (control)"
ON_TSV, ON_TSV_PLAIN = f"{MASK_LAYER} on {TSV}{TAUGHT}", f"{LAYER_WISE} on {TSV}{TAUGHT}"
LONG, MASKED = "coefficients, as many gradients", "mask and coefficients"  # arms of notebook 09
ENDS = ("Zero-shot", "Experts")
HEADS, WEIGHTS, RANDOM = "Heads only", "Pre-trained weights (control)", "Random directions (control)"
TEACH, TEACH_LONG = f"expert-kl on {PLAIN}: coefficients", f"expert-kl on {PLAIN}: {LONG}"
FEW = ("one, fixed", "one per task", "one per layer and task")
NOTEBOOK_90 = [
    (PLAIN, AVERAGING), (MASK, PLAIN), (LAYER_WISE, TASK_WISE), (MASK_LAYER, MASK), (MASK_LAYER, LAYER_WISE),
    ("RegMean++", MASK_LAYER),
]  # fmt: skip
NOTEBOOK_07 = [
    (MASK_LAYER, LAYER_WISE), (MASK_LAYER, CONTROL), (CONTROL, LAYER_WISE), (MASK_TASK, TASK_WISE),
    (MASK_LAYER + IM, LAYER_WISE + IM), (MASK_LAYER + IM, SHUFFLED_IM), (MASK_LAYER + IM, LONGER_IM),
    (LAYER_WISE + IM, LAYER_WISE),
]  # fmt: skip
NOTEBOOK_22 = [
    (LAYER_WISE, PLAIN), (MASK, PLAIN), (MASK, "Shuffled mask (control)"), (MASK_TASK, TASK_WISE),
    (MASK_LAYER, LAYER_WISE), (MASK_LAYER, CONTROL), (LAYER_WISE + IM, LAYER_WISE),
    (MASK_LAYER + IM, LAYER_WISE + IM), (LAYER_WISE + TAUGHT, LAYER_WISE),
    (MASK_LAYER + TAUGHT, LAYER_WISE + TAUGHT),
    (ON_TSV, ON_TSV_PLAIN),
]  # fmt: skip
_COLUMNS = ["method", "task", "split", "seed", "accuracy"]


class Evidence:
    """The committed tables of a checkout, as sentences about them ask for them: held-out scores and comparisons.

    Attributes:
        folder: it, or one with its data alone.
        found: its findings on the drawn tasks.
        on_text: on text.
        on_real: on real images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._notebooks = folder, {}
        self.found, self.on_text, self.on_real = (
            Findings(Study(get_profile(name), root=folder)) for name in ("tiny", "tiny-t5", "deit-tiny")
        )

    @cached_property
    def methods(self) -> list[str]:
        """The methods of the main table."""
        return [name for name in self._main["method"].unique() if name not in ENDS]

    @cached_property
    def _main(self) -> pd.DataFrame:
        return scores_of(self.folder, "tiny-full")

    @cached_property
    def drawn(self) -> pd.DataFrame:
        """Of the drawn tasks, with the controls and runs of notebooks 07 and 09."""
        adapted, bases = self.found.table("concrete_adamerging"), self.found.table("any_base")
        bases = bases.assign(method=arm(bases["objective"], bases["base"], bases["arm"]))
        controls = self.found.table("controls").rename(columns={"control": "method"})
        controls = controls[controls["method"] != "Zero-shot"]
        return _together(self._main, adapted, bases, controls)

    @cached_property
    def all_text(self) -> pd.DataFrame:
        """The text tasks' main table, both splits."""
        return scores_of(self.folder, "tiny-t5-full")

    @cached_property
    def text_methods(self) -> list[str]:
        """Its methods."""
        return [name for name in self.all_text["method"].unique() if name not in ENDS]

    @cached_property
    def text(self) -> pd.DataFrame:
        """Of the text tasks, with their controls."""
        tables = (self.on_text.table(name) for name in ("concrete_task_arithmetic", "concrete_adamerging"))
        return _together(self.all_text, *tables)

    @cached_property
    def real(self) -> pd.DataFrame:
        """Of the real images."""
        return self.on_real.table("real_images")

    @cached_property
    def few(self) -> pd.DataFrame:
        """Notebook 09's scores with few coefficients, named "one, fixed, mask" and so on."""
        table = self.found.table("few_coefficients")
        return table.assign(method=table["coefficients"] + ", " + table["mask"], split="test")

    def compared(self, scores: pd.DataFrame, pairs: Sequence[tuple[str, str]], notebook: str) -> pd.DataFrame:
        """Comparisons, a row per pair, as a notebook's takeaways have them; those that it does not make are made here.

        A verdict is corrected for all comparisons that are made together, so it is quoted and not made again.
        """
        table = Findings(self.found.study).compare(scores, pairs)
        told = self._told(notebook)
        known = [pair for pair in table.index if pair in told.index]
        table.loc[known, ["p", "verdict"]] = told.loc[known, ["p", "verdict"]]
        return table

    def _told(self, notebook: str) -> pd.DataFrame:
        """All comparisons of a notebook's takeaways on these tables."""
        if notebook not in self._notebooks:
            self._notebooks[notebook] = self._read(notebook)
        return self._notebooks[notebook]

    def _read(self, notebook: str) -> pd.DataFrame:
        told = takeaways_of(next((ROOT / "notebooks").glob(f"{notebook}_*.ipynb")), self.folder)
        tables = [table.reset_index() for table in told.findings.comparisons] if told else []
        if not tables:
            return pd.DataFrame(
                columns=["p", "verdict"], index=pd.MultiIndex.from_tuples([], names=["method", "against"])
            )
        return pd.concat(tables).drop_duplicates(["method", "against"]).set_index(["method", "against"])

    @cached_property
    def steps(self) -> pd.DataFrame:
        """Comparisons of the methods that are in print."""
        return self.compared(self.drawn, NOTEBOOK_90, "90")

    @cached_property
    def masks(self) -> pd.DataFrame:
        """Comparisons of the mask with AdaMerging."""
        return self.compared(self.drawn, NOTEBOOK_07, "07")

    @cached_property
    def masks_on_bases(self) -> dict[str, pd.DataFrame]:
        """What the mask adds at equal gradients: objective -> a row per base."""
        table = self.found.table("any_base")
        runs = table[["objective", "base"]].drop_duplicates()
        pairs = [(arm(*run, MASKED), arm(*run, LONG)) for run in runs.itertuples(index=False)]
        rows = self.compared(self.drawn, pairs, "09").reset_index(drop=True).assign(**runs.reset_index(drop=True))
        return {str(name): own.set_index("base") for name, own in rows.groupby("objective")}

    @cached_property
    def masks_on_few(self) -> pd.DataFrame:
        """What the mask adds where coefficients are few: a row for each of `FEW`."""
        return self.compared(self.few, [(f"{kind}, mask", f"{kind}, no mask") for kind in FEW], "09").set_axis(FEW)

    @cached_property
    def taught(self) -> pd.Series:
        """Layer-wise coefficients by the experts' predictions against the same by entropy, at the paper's rate."""
        return self.compared(self.drawn, [(TEACH, LAYER_WISE)], "09").iloc[0]

    @cached_property
    def heads_alone(self) -> pd.Series:
        """Heads alone against the best merged model."""
        return self.compared(self.drawn, [(HEADS, self.best)], "09").iloc[0]

    @cached_property
    def texts(self) -> pd.DataFrame:
        """Comparisons on text."""
        return self.compared(self.text, NOTEBOOK_22, "22")

    @cached_property
    def best(self) -> str:
        """The run of notebook 09 with the highest mean: one model for all tasks."""
        runs = self.found.table("any_base")
        runs = runs[runs["arm"] != "shuffled mask"]
        return best(self.drawn, list(arm(runs["objective"], runs["base"], runs["arm"]).unique()))

    def seeds(self) -> str:
        """How many the drawn tasks' tables have: "three seeds", or "five seeds (three in notebook 09)"."""
        main, bases = seeds(self._main), seeds(self.found.table("any_base"))
        return main if main == bases else f"{main} ({bases.partition(' ')[0]} in notebook 09)"

    def gains_of_the_mask(self) -> tuple[pd.Series, pd.Series]:
        """The two tasks that gain most by the mask with information maximisation, and the others, in points."""
        wide = 100 * self.drawn.pivot_table(index="task", columns="method", values="accuracy")
        gain = (wide[MASK_LAYER + IM] - wide[LAYER_WISE + IM]).sort_values(ascending=False)
        return gain.head(2), gain.iloc[2:]

    def final_loss(self) -> pd.Series:
        """Mean loss over the last twenty steps of adaptation (notebook 07), by method."""
        curves = self.found.table("phases").sort_values("step")
        runs = curves[curves["phase"] == "adaptation"].groupby(["method", "seed"])["loss"]
        return runs.apply(lambda values: values.tail(20).mean()).groupby("method").mean()


def _together(first: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """Held-out scores of several tables; of a method in two of them the first one's."""
    for other in others:
        new = other[~other["method"].isin(first["method"])]
        first = pd.concat([first, new.assign(split=new.get("split", "test"))], ignore_index=True)
    return first.loc[first["split"] == "test", _COLUMNS]


def arm(objective: str | pd.Series, base: str | pd.Series, name: str | pd.Series) -> str | pd.Series:
    """What a run of notebook 09 is called among the scores."""
    return objective + " on " + base + ": " + name


def by_seed(scores: pd.DataFrame, method: str) -> pd.Series:
    """Mean over tasks in percent, for each seed, as `lib.study.evaluation` takes it."""
    return mean_by_seed(scores[scores["method"] == method]).loc[method]


def mean(scores: pd.DataFrame, method: str) -> float:
    """Mean over tasks and seeds in percent."""
    return float(by_seed(scores, method).mean())


def reached(scores: pd.DataFrame, method: str) -> str:
    """The same as text, with the standard deviation over seeds: "85.3 ± 0.3"."""
    return mean_std(by_seed(scores, method))


def best(scores: pd.DataFrame, names: Iterable[str] = ()) -> str:
    """The method with the highest mean, of some or of all but the experts and controls."""
    known = list(names) or [name for name in scores["method"].unique() if name not in ENDS and "(control" not in name]
    return max(known, key=lambda name: mean(scores, name))


def using(methods: Iterable[str], *needs: str) -> list[str]:
    """The methods that may use just that, see `lib.study.needs`."""
    return [name for name in methods if needed(name) in needs]


def gap_closed(scores: pd.DataFrame, method: str) -> str:
    """The share of the way from zero-shot to the experts, in percent: "83 %"."""
    zero, own, experts = (mean(scores, name) for name in ("Zero-shot", method, "Experts"))
    return f"{100 * (own - zero) / (experts - zero):.0f} %"


def seeds(scores: pd.DataFrame) -> str:
    """How many seeds a table has: "one seed", "three seeds"."""
    count = scores["seed"].nunique()
    return "one seed" if count == 1 else f"{WORDS[count]} seeds"


def on_evidence(write: Callable[[Evidence], str]) -> Callable[[Path], str]:
    """A block's function of a checkout, from one of its evidence."""

    @wraps(write)
    def block(root: Path) -> str:
        with committed_only(root) as folder:
            return write(Evidence(folder))

    return block

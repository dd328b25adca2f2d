"""docs/which-method.md: what to use when, with what it reaches here."""

from __future__ import annotations

import pandas as pd

from lib.study.findings import Findings, interval, judged, listed, mean_std
from lib.study.needs import ALONE, GRADIENTS, INPUTS, LABELS, NOTHING, TEACHERS
from lib.study.statistics import HIGHER, LOWER
from scripts.prose.evidence import (
    ENDS,
    FEW,
    HEADS,
    IM,
    LAYER_WISE,
    MASK_LAYER,
    ON_TSV,
    ON_TSV_PLAIN,
    PLAIN,
    TAUGHT,
    TEACH,
    TSV,
    WEIGHTS,
    Evidence,
    arm,
    best,
    gap_closed,
    mean,
    reached,
    seeds,
    using,
)
from scripts.prose.words import WORDS, brief, on_each, one, paragraph, parts, tasks_up

ROWS = {  # what one has -> what to use
    NOTHING: ("nothing but the experts", TSV),
    LABELS: ("... and a few labelled validation images", f"{TSV} (tuned)"),
    INPUTS: ("unlabelled training images, no gradients", "FeatCal"),
    GRADIENTS: ("unlabelled images, gradients, no experts' predictions", f"{MASK_LAYER}{IM}"),
    TEACHERS: ("unlabelled images, gradients and the experts", f"{MASK_LAYER} on FeatCal{TAUGHT}"),
}
SAID = {  # a method -> as advice, and what it costs where that is not gradients
    TSV: ("TSV-M, factor 1", "one decomposition per matrix"),
    f"{TSV} (tuned)": ("TSV-M, factor chosen on them", "a sweep over {} factors"),
    "FeatCal": ("FeatCal from Task Arithmetic", "two forward passes per task and block"),
    "RegMean++": ("RegMean++", "a forward pass per task and block"),
    f"{MASK_LAYER}{IM}": ("Concrete AdaMerging, information maximisation", ""),
    f"{MASK_LAYER} on FeatCal{TAUGHT}": ('Concrete AdaMerging on FeatCal\'s parts, `objective="expert-kl"`', ""),
}
SHOWN = {"03": "03_fusion_baselines", "07": "07_concrete_adamerging", "09": "09_concrete_on_any_base"}


def table(on: Evidence) -> str:
    """The table of advice: what one has, what to use, what it reaches here."""
    when = on.found.table("which_method")
    when, factors = (
        when[when["keeps"] == ALONE],
        on.found.table("scaling").groupby("method")["scaling_factor"].nunique(),
    )
    lines = [
        "| you have | use | here | highest mean with that | what it costs | shown in |",
        "|---|---|---|---|---|---|",
    ]
    for uses, (have, advised) in ROWS.items():
        group = when[when["uses"] == uses]
        top = group.groupby("method")["accuracy"].mean().idxmax()
        name = advised if advised in set(group["method"]) else top
        own = group[group["method"] == name]
        said, cost = SAID.get(name, (name, ""))
        gradients = own["gradients"].max()
        number = "09" if uses == TEACHERS else "07" if uses == GRADIENTS else "03"
        cells = [
            have,
            said,
            f"{_percent(own)} ({100 * own['share'].mean():.0f} %)",
            "the same" if top == name else f"{top}, {_percent(group[group['method'] == top])}",
            f"{gradients:,} gradients" if gradients else cost.format(WORDS[factors[TSV]]),
            f"[{number}](../notebooks/{SHOWN[number]}.ipynb)",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(rows: pd.DataFrame) -> str:
    return mean_std(100 * rows.set_index("seed")["accuracy"])


def scale(on: Evidence) -> str:
    """What the numbers of the page are."""
    zero, experts = (one(mean(on.drawn, name)) for name in ENDS)
    return paragraph(
        f"""What a method may use matters more than anything else. The numbers are held-out accuracy in percent on the
        eight drawn tasks (tiny CLIP, {on.seeds()}, mean ± standard deviation over seeds), and in brackets the
        **share of the gap** between the pre-trained model ({zero}) and the experts ({experts}) that is closed. Your
        models will differ: rely on the order, not on the numbers."""
    )


def without_data(on: Evidence) -> str:
    """Whether the method that is advised without data is the best one on images, text and real images."""
    real = [name for name in on.real["method"].unique() if name not in ENDS]
    places = {
        "on the drawn tasks": (on.drawn, on.methods),
        "on text": (on.text, on.text_methods),
        "on real images": (on.real, real),
    }
    ahead, behind = [], []
    for place, (scores, methods) in places.items():
        top = best(scores, using(methods, NOTHING))
        if top == TSV:
            ahead.append(place)
        else:
            row = Findings(on.found.study).compare(scores, [(top, TSV)]).iloc[0]
            behind.append(f"{place} {top} has it, by {interval(row)}")
    others = f"; {listed(behind)}" if behind else ""
    return paragraph(
        (
            f"""**Without any data** TSV-M has the highest mean {listed(ahead)}{others}.""",
            len(ahead) > len(behind),
        )
    )


def experts_teach(on: Evidence) -> str:
    """The experts' predictions as teachers."""
    rows = on.found.table("any_base")
    steps = rows.loc[rows["arm"] == "coefficients", "gradients"].max()
    return paragraph(
        (
            f"""**With the experts at hand, let them teach.** With `expert-kl` layer-wise coefficients on the task
            vectors reach {reached(on.drawn, TEACH)} in {steps} steps, with entropy {reached(on.drawn, LAYER_WISE)}.""",
            on.taught["difference"] > 0,
        ),
        (
            f"""The mask adds {interval(on.masks_on_bases["expert-kl"].loc[PLAIN])} at equal gradients.""",
            on.masks_on_bases["expert-kl"].loc[PLAIN, "difference"] > 0,
        ),
        (
            f"""The same teachers reach {reached(on.drawn, WEIGHTS)} with as many free parameters but without task
            vectors.""",
            mean(on.drawn, WEIGHTS) < mean(on.drawn, TEACH),
        ),
    )


def heads(on: Evidence) -> str:
    """Heads that may change."""
    gained = mean(on.real, best(on.real)) - mean(on.real, "Zero-shot")
    return paragraph(
        (
            f"""**Are heads allowed to change?** Then try that first. On the drawn tasks a head per task on the
            *pre-trained* encoder, trained on the experts' predictions, reaches {reached(on.drawn, HEADS)}: the features
            are good, only the prompts do not fit.""",
            on.heads_alone["verdict"] != LOWER,
        ),
        (
            f"""On real images the heads are probes of the features already, and merging still adds {one(gained)} points
            (notebook 15).""",
            gained > 0,
        ),
    )


def text(on: Evidence) -> str:
    """The same on text."""
    zero, experts = (one(mean(on.text, name)) for name in ENDS)
    plain, blind, calibrated, entropy, taught, masked = names = (
        PLAIN,
        TSV,
        "FeatCal",
        LAYER_WISE,
        LAYER_WISE + TAUGHT,
        ON_TSV,
    )
    told = {name: reached(on.text, name) for name in names}
    return paragraph(
        (
            f"""**The same holds on text**, on {seeds(on.text)} (LoRA experts of the tiny T5, experts {experts},
            zero-shot {zero}; notebook [22](../notebooks/22_language_concrete.ipynb)): Task Arithmetic {told[plain]},
            TSV-M {told[blind]}, FeatCal {told[calibrated]}, layer-wise AdaMerging by entropy {told[entropy]}, by
            `expert-kl` over whole answers {told[taught]}, and Concrete AdaMerging by `expert-kl` on TSV-M's parts
            **{told[masked]}** ({gap_closed(on.text, masked)} of the gap).""",
            all(_rises(on.text, plain, name, taught, masked) for name in (blind, calibrated))
            and best(on.text) == masked,
        )
    )


def real(on: Evidence) -> str:
    """And on real images."""
    zero, experts = (one(mean(on.real, name)) for name in ENDS)
    plain, blind, calibrated, entropy, taught, masked, highest = names = (
        PLAIN,
        TSV,
        "FeatCal",
        LAYER_WISE,
        LAYER_WISE + TAUGHT,
        MASK_LAYER + TAUGHT,
        f"{MASK_LAYER} on FeatCal{TAUGHT}",
    )
    told = {name: reached(on.real, name) for name in names}
    return paragraph(
        (
            f"""**And on real images** (DeiT-Tiny, {seeds(on.real)}, experts {experts}, zero-shot {zero}; notebook
            [15](../notebooks/15_real_images.ipynb)): Task Arithmetic {told[plain]}, TSV-M {told[blind]}, FeatCal
            {told[calibrated]}, layer-wise AdaMerging by entropy {told[entropy]}, by `expert-kl` {told[taught]};
            Concrete AdaMerging by `expert-kl` {told[masked]} from the task vectors and **{told[highest]}** on FeatCal's
            parts ({gap_closed(on.real, highest)} of the gap).""",
            _rises(on.real, plain, entropy, taught, masked, highest) and best(on.real) == highest,
        )
    )


def _rises(scores: pd.DataFrame, *names: str) -> bool:
    """Whether each of some methods has a higher mean than the one before it."""
    return pd.Series([mean(scores, name) for name in names]).is_monotonic_increasing


def base(on: Evidence) -> str:
    """Which base coefficients and mask should act on."""
    names = list(on.masks_on_bases["expert-kl"].index)
    start, end = (
        {name: mean(on.drawn, arm("expert-kl", name, stage)) for name in names}
        for stage in ("start", "mask and coefficients")
    )
    top = max(start, key=start.get)
    return paragraph(
        (
            f"""**Which base?** (What coefficients and mask act on: task vectors, or another method's parts, notebook
            09.) Take the one that starts highest of those you can afford, here {parts(top)} ({one(start[top])}). With
            the experts as teachers it matters little: with a mask the {WORDS[len(names)]} end between
            {one(min(end.values()))} and {one(max(end.values()))}.""",
            max(end.values()) - min(end.values()) < (max(start.values()) - min(start.values())) / 2,
        )
    )


def mask(on: Evidence) -> str:
    """With a mask?"""
    rows, tests, few = on.masks_on_bases["expert-kl"], on.texts, on.masks_on_few
    plain, on_tsv = tests.loc[MASK_LAYER + TAUGHT, LAYER_WISE + TAUGHT], tests.loc[ON_TSV, ON_TSV_PLAIN]
    entropy, spread = on.masks.loc[MASK_LAYER, LAYER_WISE], on.masks.loc[MASK_LAYER + IM, LAYER_WISE + IM]
    gain, (top, others) = rows["difference"], on.gains_of_the_mask()
    return paragraph(
        (
            f"""**With a mask?** Yes, with the experts as teachers, most where coefficients are few: with one fixed
            coefficient it lifts the task vectors from {reached(on.few, f"{FEW[0]}, no mask")} to
            {reached(on.few, f"{FEW[0]}, mask")} % ({tasks_up(few.loc[FEW[0]])}).""",
            few.loc[FEW[0], "verdict"] == HIGHER and few["difference"].idxmax() != FEW[-1],
        ),
        (
            f"""To layer-wise coefficients it adds {one(gain.min())} to {one(gain.max())} points at equal gradients on
            {WORDS[len(rows)]} bases ({on_each(rows)}; notebook 09), and on text {judged(plain)} on the task vectors and
            {brief(on_tsv)} on TSV-M's parts (notebook 22).""",
            gain.min() > 0 and min(plain["difference"], on_tsv["difference"]) > 0,
        ),
        (
            f"""Without the experts' predictions no gain is shown: on layer-wise AdaMerging the mask changes accuracy by
            {brief(entropy)} with entropy and by {brief(spread)} with information maximisation, there mostly on
            {listed(top.index)} (notebook 07).""",
            HIGHER not in (entropy["verdict"], spread["verdict"]) and top.sum() > others.sum(),
        ),
    )


def images(on: Evidence) -> str:
    """How many unlabelled images?"""
    rows = on.found.table("unlabelled_data")
    rows = rows[(rows["experiment"] == "amount") & (rows["objective"] == "expert-kl")]
    gain = (100 * (rows["accuracy"] - rows["start_accuracy"])).groupby([rows["source"], rows["images"]]).mean()
    own, other = gain["adaptation split"], gain["another task's"].iloc[-1]
    few, most = own.index.min(), own.index.max()
    return paragraph(
        (
            f"""**How many unlabelled images?** With the experts as teachers {few} per task give {one(own[few])} of the
            {one(own[most])} points that {most} give, {own.index[1]} give {one(own.iloc[1])}.""",
            0 < own[few] < own.iloc[1] < own[most],
        ),
        (
            f"""Images of another task do not help ({one(other)}): notebook
            [17](../notebooks/17_unlabelled_data.ipynb) ({seeds(rows)}).""",
            other < 0,
        ),
    )

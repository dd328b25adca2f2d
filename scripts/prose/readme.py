"""README: what we found."""

from __future__ import annotations

from lib.study.findings import Bullet, interval, listed
from lib.study.statistics import HIGHER, LOWER
from scripts.prose.evidence import (
    FEW,
    HEADS,
    IM,
    LAYER_WISE,
    LONGER_IM,
    MASK,
    MASK_LAYER,
    MASK_TASK,
    PLAIN,
    TASK_WISE,
    TAUGHT,
    TEACH,
    Evidence,
    best,
    mean,
    reached,
    seeds,
)
from scripts.prose.words import WORDS, brackets, on_each, one, paragraph, points, tasks_up, verdicts


def findings(on: Evidence) -> str:
    """What the findings are of, and their numbered list."""
    items = (_entropy, _maximisation, _mask_with_maximisation, _teachers, _mask_with_teachers, _heads)
    setting = paragraph(f"A CLIP with 1.2 million image-encoder parameters, eight drawn tasks, {on.seeds()}:")
    return f"{setting}\n{points(*(item(on) for item in items), numbered=True)}"


def _entropy(on: Evidence) -> list[Bullet]:
    simple, layered, task_wise = (
        on.steps.loc[MASK, PLAIN],
        on.masks.loc[MASK_LAYER, LAYER_WISE],
        on.masks.loc[MASK_TASK, TASK_WISE],
    )
    return [
        (
            "**With the paper's objective, entropy, no gain from the mask is shown.**",
            HIGHER not in verdicts([simple, layered, task_wise]),
        ),
        f"""It changes Task Arithmetic by {one(simple["difference"])} points (95 % interval over tasks and seeds
        {brackets(simple)}) and layer-wise AdaMerging by {one(layered["difference"])} ({brackets(layered)}). The tasks
        do not agree with each other: {WORDS[simple["up"]]} of {WORDS[simple["tasks"]]} gain in the first case and
        {WORDS[layered["up"]]} in the second ([Statistics](docs/statistics.md)).""",
    ]


def _maximisation(on: Evidence) -> list[Bullet]:
    row = on.masks.loc[LAYER_WISE + IM, LAYER_WISE]
    return [
        (
            "**Entropy is the weak part: other objectives have higher means.**",
            min(row["difference"], on.taught["difference"]) > 0,
        ),
        f"""Information maximisation, which also rewards the use of all classes, takes layer-wise AdaMerging from
        {reached(on.drawn, LAYER_WISE)} to {reached(on.drawn, LAYER_WISE + IM)} % ({tasks_up(row)}). It assumes evenly
        mixed classes, and the drawn tasks have them.""",
    ]


def _mask_with_maximisation(on: Evidence) -> list[Bullet]:
    row, fair = on.masks.loc[MASK_LAYER + IM, LAYER_WISE + IM], on.masks.loc[MASK_LAYER + IM, LONGER_IM]
    top, others = on.gains_of_the_mask()
    return [
        (
            f"**With that objective the mask's mean is higher, {reached(on.drawn, MASK_LAYER + IM)} %,**",
            row["difference"] > 0,
        ),
        (
            f"""but most of the gain comes from two tasks of {WORDS[row["tasks"]]}, {listed(top.index)}. From AdaMerging
            with equally many gradients it differs by {interval(fair)}.""",
            top.sum() > others.sum() and HIGHER not in verdicts([row, fair]),
        ),
    ]


def _teachers(on: Evidence) -> list[Bullet]:
    drawn, text, real = on.drawn, on.text, on.real
    return [
        (
            "**The best teachers are the experts themselves.**",
            mean(drawn, TEACH) > mean(drawn, LAYER_WISE + IM)
            and all(mean(table, LAYER_WISE + TAUGHT) > mean(table, LAYER_WISE + IM) for table in (text, real)),
        ),
        f"""Their predictions on unlabelled images, in place of entropy, take layer-wise AdaMerging from
        {reached(drawn, LAYER_WISE)} to {reached(drawn, TEACH)} %, by
        {interval(on.taught).removesuffix(")")}; notebook 09, experts {mean(drawn, "Experts"):.1f}). With more
        gradients, too, it goes from {reached(text, LAYER_WISE)} to {reached(text, LAYER_WISE + TAUGHT)} on text
        (notebook 22, experts {mean(text, "Experts"):.1f}) and from {reached(real, LAYER_WISE)} to
        {reached(real, LAYER_WISE + TAUGHT)} on real images (DeiT-Tiny, {seeds(real)},
        notebook 15, experts {mean(real, "Experts"):.1f}).""",
    ]


def _mask_with_teachers(on: Evidence) -> list[Bullet]:
    rows, few = on.masks_on_bases["expert-kl"], on.masks_on_few.loc[FEW[0]]
    gain, fewest, tasks = rows["difference"], rows["up"].min(), rows["tasks"].max()
    each = f"{'all' if fewest == tasks else 'at least'} {WORDS[fewest]} tasks up on each"
    return [
        (
            "**With these teachers the mask pays, most where coefficients are few.**",
            few["verdict"] == HIGHER and gain.min() > 0 and gain.max() < few["difference"],
        ),
        f"""One fixed coefficient goes from {reached(on.few, f"{FEW[0]}, no mask")} to
        {reached(on.few, f"{FEW[0]}, mask")} % ({tasks_up(few)}). To layer-wise coefficients the mask adds, at equal
        gradients, {interval(rows.loc[PLAIN])} on the task vectors, and {one(gain.min())} to {one(gain.max())} on
        {WORDS[len(rows)]} bases ({each}: {on_each(rows)}). The best single models have {reached(on.drawn, on.best)} %
        here, {reached(on.text, best(on.text))} on text and {reached(on.real, best(on.real))} on real images.""",
    ]


def _heads(on: Evidence) -> list[Bullet]:
    return [
        ("**Merging is not always what is missing.**", on.heads_alone["verdict"] != LOWER),
        f"""On the drawn tasks heads alone, trained on the same predictions, reach {reached(on.drawn, HEADS)} % without
        merging anything. [Which method when](docs/which-method.md) says what to use.""",
    ]

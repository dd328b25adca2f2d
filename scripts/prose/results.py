"""docs/results.md: what stands below its tables."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd

from lib.study.findings import Bullet, interval, judged, listed
from lib.study.needs import GRADIENTS, INPUTS, LABELS, NOTHING
from lib.study.profiles import get_profile
from lib.study.reference import beside_published, published
from lib.study.statistics import HIGHER, LOWER, NOT_SHOWN
from scripts.prose.evidence import (
    AVERAGING,
    FEW,
    HEADS,
    IM,
    LAYER_WISE,
    LONG,
    LONGER_IM,
    MASK,
    MASK_LAYER,
    MASK_TASK,
    ON_TSV,
    ON_TSV_PLAIN,
    PLAIN,
    RANDOM,
    SHUFFLED_IM,
    TASK_WISE,
    TAUGHT,
    TEACH_LONG,
    WEIGHTS,
    Evidence,
    best,
    mean,
    reached,
    seeds,
    using,
)
from scripts.prose.words import brief, one, paragraph, parts, points, verdicts

CHAIN = {AVERAGING: "averaging", PLAIN: PLAIN, MASK: MASK, LAYER_WISE: "layer-wise AdaMerging"}  # as in the paper


def drawn_tasks(on: Evidence) -> str:
    """How the main table was made."""
    budget = get_profile("tiny-full")
    return paragraph(
        f"""A CLIP with 1.2 million image-encoder parameters, trained here; eight drawn tasks; {budget.mask_steps} steps
        of mask learning, {budget.adaptation_steps} of adaptation; {on.seeds()} of the experts and of everything after
        them. Made by `make reproduce`."""
    )


def bases_setting(on: Evidence) -> str:
    """How the table of bases was made."""
    rows = on.found.table("any_base")
    steps, more = (rows.loc[rows["arm"] == name, "gradients"].max() for name in ("coefficients", LONG))
    return paragraph(
        f"""Notebook [09](../notebooks/09_concrete_on_any_base.ipynb) replaces the objective and the base:
        {seeds(rows)}, {steps} steps of coefficients, {(more - steps) // 2} of the mask ({more} steps for "as many
        gradients"), learning rates chosen without labels."""
    )


def text_tasks(on: Evidence) -> str:
    """How the table of text was made."""
    return paragraph(
        f"""A T5 of one million parameters with LoRA experts, eight drawn tasks, {seeds(on.text)}. Made by
        `make reproduce PROFILE=tiny-t5`; all methods are in notebooks [21](../notebooks/21_language_fusion.ipynb),
        [22](../notebooks/22_language_concrete.ipynb) and 90."""
    )


def agreement(on: Evidence) -> str:
    """What agrees with the paper, and what does not."""
    table = published(lineage="task-vectors", model="ViT-B/32", experiment="eight tasks")
    paper = table[table["task"] == "mean"].set_index("method")["score"]
    return points(_order(on, paper), _layer_wise(on, paper), _maximisation(on), _without_adaptation(on))


def _order(on: Evidence, paper: pd.Series) -> list[Bullet]:
    here, top = {name: mean(on.drawn, method) for method, name in CHAIN.items()}, best(on.drawn, on.methods)
    flips = [f"{first} and {second}" for first, second in pairwise(here) if here[first] >= here[second]]
    return [
        (
            f"""In the paper the means have the order {" < ".join(here)}; here
            {"they have it but for " + listed(flips) if flips else "they have it, too"}
            ({", ".join(map(one, here.values()))}).""",
            paper[list(CHAIN)].is_monotonic_increasing,
        ),
        f"""The first step is {judged(on.steps.loc[PLAIN, AVERAGING])}; the mask's is
        {brief(on.steps.loc[MASK, PLAIN])}, and on task-wise AdaMerging {brief(on.masks.loc[MASK_TASK, TASK_WISE])}
        ([Statistics](statistics.md)). The best method of this table, {top}, stays
        {one(mean(on.drawn, "Experts") - mean(on.drawn, top))} points below the experts.""",
    ]


def _layer_wise(on: Evidence, paper: pd.Series) -> list[Bullet]:
    row, entropy = on.masks.loc[MASK_LAYER, LAYER_WISE], on.final_loss()
    return [
        f"""**Layer-wise Concrete AdaMerging differs from layer-wise AdaMerging by {one(row["difference"])} points**
        ({brief(row, bare=True)}), in the paper by {one(paper[MASK_LAYER] - paper[LAYER_WISE])}.""",
        (
            f"""Its entropy ends lower, at {one(entropy[MASK_LAYER])} nats against {one(entropy[LAYER_WISE])}: a low
            entropy does not mean a high accuracy (notebooks [07](../notebooks/07_concrete_adamerging.ipynb) and
            [08](../notebooks/08_when_adaptation_fails.ipynb)).""",
            entropy[MASK_LAYER] < entropy[LAYER_WISE] and row["verdict"] != HIGHER,
        ),
    ]


def _maximisation(on: Evidence) -> list[Bullet]:
    same, shuffled, longer = (on.masks.loc[MASK_LAYER + IM, name] for name in (LAYER_WISE + IM, SHUFFLED_IM, LONGER_IM))
    most, rest = on.gains_of_the_mask()
    return [
        (
            f"""With information maximisation no general gain of the mask is shown either: {brief(same)} against
            layer-wise AdaMerging with the same objective, {brief(shuffled)} against a shuffled mask, and
            {brief(longer)} against AdaMerging given as many gradients.""",
            HIGHER not in verdicts([same, shuffled, longer]),
        ),
        f"""{listed(most.index).capitalize()} change by {one(most.iloc[0])} and {one(most.iloc[1])} points, the others
        by {one(rest.mean())} on average.""",
    ]


def _without_adaptation(on: Evidence) -> list[Bullet]:
    adapted = [name for name in using(on.methods, GRADIENTS) if not name.endswith(IM)]
    highest = mean(on.drawn, best(on.drawn, adapted))
    above = [name for name in using(on.methods, NOTHING, LABELS, INPUTS) if mean(on.drawn, name) > highest]
    return [
        (
            f"""Without any adaptation {listed(above)} {"are" if len(above) > 1 else "is"} above every model that
            minimises entropy (at most {one(highest)} %).""",
            len(above) > 0,
        )
    ]


def bases(on: Evidence) -> str:
    """What the mask adds with the experts as teachers, and with entropy."""
    taught, entropy = on.masks_on_bases["expert-kl"], on.masks_on_bases["entropy"]
    gain = taught["difference"]
    first, *others = (f"on {parts(base)} {brief(row)}" for base, row in taught.iterrows())
    listing = "; ".join([first.replace(" (", " points (95 % interval ", 1), *others])
    return points(
        [
            (
                f"""**With the experts' predictions the mask adds {one(gain.min())} to {one(gain.max())} points at equal
                gradients**: {listing}.""",
                gain.min() > 0,
            )
        ],
        [
            (
                f"""With entropy no gain of the mask is shown:
                {"; ".join(f"on {parts(base)} {brief(row)}" for base, row in entropy.iterrows())}.""",
                HIGHER not in list(entropy["verdict"]),
            )
        ],
    )


def few(on: Evidence) -> str:
    """What the mask adds where coefficients are few."""
    rows = on.masks_on_few
    return paragraph(
        (
            f"""The mask adds most where coefficients are few. One fixed coefficient: {judged(rows.loc[FEW[0]])}. One
            per task, at equal gradients: {brief(rows.loc[FEW[1]])}. One per layer and task: {brief(rows.loc[FEW[2]])}.
            """,
            rows["difference"].idxmax() != FEW[-1],
        )
    )


def heads(on: Evidence) -> str:
    """What is reached without merging anything, and without task vectors."""
    row, probe = on.heads_alone, on.found.table("probe")
    probed = 100 * probe.loc[probe["head"] == "linear probe", "accuracy"].mean()
    return paragraph(
        (
            f"""**The control that counts:** heads alone, on the pre-trained encoder, reach
            {reached(on.drawn, HEADS)} %, and no merged model is shown to be better (against the best one,
            {judged(row).replace(" (", ", ")}.""",
            row["verdict"] != LOWER,
        ),
        (
            f"""The pre-trained features of the drawn world separate the classes (a linear probe reaches {probed:.0f} %,
            notebook 00), and only the prompts do not fit.""",
            probed > mean(on.drawn, on.best) - 5,
        ),
        (
            f"""With frozen heads and as many free numbers, but without task vectors, the same teachers reach
            {reached(on.drawn, RANDOM)} % (random directions) and {reached(on.drawn, WEIGHTS)} % (pre-trained weights);
            with task vectors it is {reached(on.drawn, TEACH_LONG)} %.""",
            mean(on.drawn, TEACH_LONG) > max(mean(on.drawn, RANDOM), mean(on.drawn, WEIGHTS)),
        ),
    )


def real(on: Evidence) -> str:
    """What each objective gains on real images, and with weak experts."""
    budget, weak = get_profile("deit-tiny"), on.on_real.table("weak_experts")
    gain = {name: mean(on.real, LAYER_WISE + name) - mean(on.real, PLAIN) for name in ("", IM, TAUGHT)}
    early = weak[(weak["after"] == weak["after"].min()) & (weak["objective"] == "entropy")].mean(numeric_only=True)
    early_gain = 100 * (early["accuracy"] - early["start_accuracy"])
    return paragraph(
        (
            f"""With these experts minimising entropy gains {one(gain[""])} points over Task Arithmetic and information
            maximisation {one(gain[IM])} ({budget.adaptation_steps} gradients each), the experts as teachers
            {one(gain[TAUGHT])} ({2 * budget.mask_steps + budget.adaptation_steps} gradients).""",
            gain[TAUGHT] > gain[IM] > gain[""] > 0,
        ),
        (
            f"""From the same experts after {early["after"]:.0f} steps ({100 * early["expert_accuracy"]:.0f} %) entropy
            gains {one(early_gain)} (the figure `weak_experts` of [notebook 15](../notebooks/15_real_images.ipynb)).""",
            early_gain < gain[""],
        ),
    )


def language(on: Evidence) -> str:
    """What adapting and masks add on text."""
    tests, blind, seeing = on.texts, *(best(on.text, using(on.text_methods, need)) for need in (NOTHING, INPUTS))
    adapted, spread = tests.loc[LAYER_WISE, PLAIN], tests.loc[LAYER_WISE + IM, LAYER_WISE]
    masks = [tests.loc[pair] for pair in ((MASK, PLAIN), (MASK_LAYER, LAYER_WISE), (MASK_TASK, TASK_WISE))]
    taught, masked = tests.loc[LAYER_WISE + TAUGHT, LAYER_WISE], tests.loc[MASK_LAYER + TAUGHT, LAYER_WISE + TAUGHT]
    on_tsv = tests.loc[ON_TSV, ON_TSV_PLAIN]
    kept = beside_published(on.all_text, lineage="lora-16", model="Flan-T5-base")
    here, there = kept.groupby("method")["here"].mean(), kept["published"]
    return paragraph(
        (
            f"""On this T5 no difference is shown for adapting by the entropy of the first token (layer-wise
            {interval(adapted).replace(" (", ", ")}, for the mask with it ({one(masks[0]["difference"])} on Task
            Arithmetic, {one(masks[1]["difference"])} and {one(masks[2]["difference"])} on AdaMerging, layer-wise and
            task-wise) or for information maximisation in place of entropy ({one(spread["difference"])}).""",
            set(verdicts([adapted, *masks, spread])) == {NOT_SHOWN},
        ),
        (
            f"""With the experts as teachers the means are higher: layer-wise AdaMerging by {judged(taught)}, and at
            equal gradients the mask adds {brief(masked)} to that and {brief(on_tsv)} on TSV-M's parts.""",
            min(taught["difference"], masked["difference"], on_tsv["difference"]) > 0,
        ),
        f"""Without any data {blind} has the highest mean ({one(mean(on.text, blind))}), with unlabelled texts and no
        gradients {seeing} ({one(mean(on.text, seeing))}).""",
        """The seeds share one pre-trained model, and that matters: with an earlier T5 of the same recipe, trained on
        drawn text of which a few labels were wrong, adapting by entropy lost accuracy (those tables are not kept).""",
        (
            f"""Published Flan-T5-base keeps {one(there.min())} to {one(there.max())} % of its experts whatever the
            method, the tiny T5 {one(here.min())} to {one(here.max())} % with the same methods: it is the harder merge.
            """,
            here.max() < there.min(),
        ),
    )

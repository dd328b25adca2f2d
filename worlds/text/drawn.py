"""The eight drawn text tasks, one in the spirit of each of GLUE's, with GLUE's columns and label numbers.

    acceptability  CoLA   sentence                 0 unacceptable, 1 acceptable
    inference      MNLI   premise, hypothesis      0 entailment, 1 neutral, 2 contradiction
    paraphrases    MRPC   sentence1, sentence2     0 no, 1 yes
    answering      QNLI   question, sentence       0 yes (the sentence answers the question), 1 no
    duplicates     QQP    question1, question2     0 no, 1 yes
    entailment     RTE    sentence1, sentence2     0 yes (the second follows), 1 no
    sentiment      SST-2  sentence                 0 negative, 1 positive
    similarity     STS-B  sentence1, sentence2     0.0 to 5.0 in steps of 0.2

A row belongs to one split by a hash of its text, so two splits share no row, whatever their seeds and sizes.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from random import Random

from lib.runtime.rng import seed_of
from worlds.text.changes import contradict, differ, entails, follow, other_verb, reword, stray, violated
from worlds.text.world import (
    ACTORS,
    ADVERBS,
    ASPECTS,
    BAD,
    DEGREES,
    FRAMES,
    GOOD,
    KIND_OF,
    NEGATIONS,
    PLACES,
    THINGS,
    TIMES,
    TRANSITIVE,
    WORKS,
    Clause,
    Phrase,
    active,
    draw_clause,
    draw_phrase,
    passive,
    questions,
    say,
    siblings,
)

Row = dict[str, "str | int | float"]
SPLIT_PARTS = {"train": range(0, 55), "validation": range(55, 70), "adaptation": range(70, 85), "test": range(85, 100)}
MISSES = 2000  # rows in a row that may fall into other splits, or be there already, before drawing gives up

# What two sentences share, and how much of the 5 points it is worth. Half of the first three for a word of the same
# kind (a dog for a cat). Every multiple of 0.2 is the sum of some of these.
POINTS = {"subject": (0, 1, 2), "object": (0, 0.8, 1.6), "verb": (0, 0.8), "place": (0, 0.4), "time": (0, 0.2)}
SHARES: dict[int, list[dict[str, float]]] = {}  # points in fifths -> which parts can make them up
for chosen in product(*POINTS.values()):
    SHARES.setdefault(round(5 * sum(chosen)), []).append(dict(zip(POINTS, chosen, strict=True)))

# Questions of the same intent, in other words.
INTENTS: dict[str, tuple[str, ...]] = {
    "way": ("how can i {} ?", "what is the best way to {} ?", "how do i {} ?", "what should i do to {} ?"),
    "reason": ("why do people {} ?", "what is the reason to {} ?", "what makes people {} ?", "why should i {} ?"),
    "place": ("where can i {} ?", "what is a good place to {} ?", "which is the best place to {} ?"),
    "moment": ("when should i {} ?", "what is the best time to {} ?", "at what time can i {} ?"),
    "price": ("how much does it cost to {} ?", "what is the price to {} ?", "how much money do i need to {} ?"),
    "effort": ("is it hard to {} ?", "how difficult is it to {} ?", "how hard is it to {} ?"),
    "danger": ("is it safe to {} ?", "how dangerous is it to {} ?", "what are the risks if i {} ?"),
    "duration": ("how long does it take to {} ?", "how much time do i need to {} ?", "how many days to {} ?"),
    "help": ("who can help me to {} ?", "who helps people to {} ?", "which people can i ask to {} ?"),
}


def acceptability(rng: Random, label: int) -> Row:
    """A sentence, or one with a single violation."""
    clause = draw_clause(rng, negated=0.3, named=0.15)
    sentence = say(rng, clause)
    return {"sentence": sentence if label else violated(rng, clause, sentence)}


def inference(rng: Random, label: int) -> Row:
    """A premise and what follows, may be, or cannot be."""
    premise = draw_clause(rng, negated=0.2, named=0.25)
    if rng.random() < 0.3 and not premise.negated:
        premise = follow(rng, premise, kinds=True)  # an animal rather than the dog
    change = (follow, stray, contradict)[label]
    hypothesis = change(rng, premise)
    if rng.random() < 0.4:
        hypothesis = reword(rng, hypothesis)
    return {"premise": say(rng, premise), "hypothesis": say(rng, hypothesis)}


def paraphrases(rng: Random, label: int) -> Row:
    """The same said in another way, or something else said with nearly the same words."""
    clause = draw_clause(rng, negated=0.15, transitive=1.0)
    other = reword(rng, clause)
    if not label:
        other = differ(rng, other)
    one, two = rng.sample(FRAMES, 2)
    return {"sentence1": one(clause), "sentence2": two(other)}


def answering(rng: Random, label: int) -> Row:
    """A question and a sentence of one or two clauses that answers it, or only seems to."""
    clause = draw_clause(rng, place=0.5, time=0.4, adjective=0.2)
    asked = questions(clause)
    word = rng.choice(list(asked))
    question = asked[word]
    if label and word in ("where", "when") and rng.random() < 0.6:  # what is asked is not said
        clause = replace(clause, **{"place" if word == "where" else "time": ""})
    elif label:
        question = questions(_mistaken(rng, clause, word))[word]
    sentences = [rng.choice((active, passive, fronted_or_active))(clause)]
    if rng.random() < 0.4:
        sentences.append(active(draw_clause(rng, adjective=0.1)))
        rng.shuffle(sentences)
    return {"question": question, "sentence": " and ".join(sentences)}


def fronted_or_active(clause: Clause) -> str:
    """In the park the dog sleeps."""
    return FRAMES[2](clause)


def _mistaken(rng: Random, clause: Clause, word: str) -> Clause:
    """The clause as a question would have it that the sentence does not answer."""
    if word == "who":
        if clause.object and rng.random() < 0.5:
            return replace(clause, object=replace(clause.object, noun=rng.choice(siblings(clause.object.noun))))
    elif rng.random() < 0.5:
        return replace(clause, subject=replace(clause.subject, noun=rng.choice(siblings(clause.subject.noun))))
    return replace(clause, verb=other_verb(rng, clause.verb))


def duplicates(rng: Random, label: int) -> Row:
    """Two questions of one intent, or of two."""
    intent, verb, thing = rng.choice(list(INTENTS)), rng.choice(list(TRANSITIVE)), draw_phrase(rng, THINGS)
    tail = f" {rng.choice(ADVERBS + PLACES)}" if rng.random() < 0.3 else ""
    first, second = rng.sample(INTENTS[intent], 2)
    same = Clause(Phrase("ben"), verb, thing)
    other = reword(rng, same)
    if not label:
        change = rng.random()
        if change < 0.5:
            second = rng.choice(INTENTS[rng.choice([name for name in INTENTS if name != intent])])
        elif change < 0.75:
            other = replace(other, object=replace(thing, noun=rng.choice(siblings(thing.noun))))
        else:
            other = replace(other, verb=other_verb(rng, verb))
    acts = [f"{clause.verb} {clause.object.words()}{tail}" for clause in (same, other)]
    return {"question1": first.format(acts[0]), "question2": second.format(acts[1])}


def entailment(rng: Random, label: int) -> Row:
    """A text of two clauses, and a sentence that follows from it or does not."""
    parts = [draw_clause(rng, named=0.4, place=0.25, transitive=0.7, negated=0.2) for _ in "12"]
    text = rng.choice(("{} and {}", "{} , while {}", "{} , but {}")).format(*map(active, parts))
    chosen = rng.randrange(2)
    claim = follow(rng, parts[chosen])
    if label:
        change = rng.random()
        mixed = replace(claim, subject=follow(rng, parts[1 - chosen]).subject)  # who does what is mixed up
        if change < 0.4 and not any(entails(part, mixed) for part in parts):
            claim = mixed
        elif change < 0.65:
            claim = contradict(rng, claim)
        else:
            claim = stray(rng, claim, parts)
    return {"sentence1": text, "sentence2": say(rng, claim)}


def sentiment(rng: Random, label: int) -> Row:
    """An opinion: a plain one, one with a negation, or two of which the stressed one counts."""
    shape = rng.random()
    if shape < 0.4:
        return {"sentence": opinion(rng, label, negated=0.65)}
    main, aside = opinion(rng, label), opinion(rng, 1 - label)
    forms = ("{aside} but {main}", "although {aside} , {main}", "{main} although {aside}", "{main} , even if {aside}")
    return {"sentence": rng.choice(forms).format(main=main, aside=aside)}


def opinion(rng: Random, label: int, negated: float = 0.3) -> str:
    """The film is quite good; the plot is never dull."""
    turned = rng.random() < negated
    word = rng.choice(GOOD if bool(label) != turned else BAD)
    degree = f"{rng.choice(DEGREES)} " if rng.random() < 0.3 else ""
    negation = f"{rng.choice(NEGATIONS)} " if turned else ""
    return f"the {rng.choice(WORKS + ASPECTS)} is {negation}{degree}{word}"


def similarity(rng: Random, label: int) -> Row:
    """Two sentences whose shared parts are worth `label` * 0.2 points."""
    one = draw_clause(rng, transitive=1.0, place=1.0, time=1.0, named=0.0, adjective=0.0)
    shares = rng.choice(SHARES[label])
    two = Clause(
        _shared(rng, one.subject, shares["subject"] / 2, ACTORS),
        one.verb if shares["verb"] else other_verb(rng, one.verb),
        _shared(rng, one.object, shares["object"] / 1.6, THINGS),
        one.place if shares["place"] else rng.choice([place for place in PLACES if place != one.place]),
        one.time if shares["time"] else rng.choice([time for time in TIMES if time != one.time]),
    )
    return {"sentence1": active(one), "sentence2": active(two), "label": label / 5}


def _shared(rng: Random, phrase: Phrase, share: float, pool: tuple[str, ...]) -> Phrase:
    """The same phrase (1), one with a noun of the same kind (0.5) or one of another kind (0)."""
    if share == 1:
        return phrase
    if share:
        return replace(phrase, noun=rng.choice(siblings(phrase.noun)))
    return replace(phrase, noun=rng.choice([noun for noun in pool if KIND_OF[noun] != KIND_OF[phrase.noun]]))


TASKS: dict[str, tuple[Callable[[Random, int], Row], int]] = {  # how a row of a label is drawn, and how many labels
    "acceptability": (acceptability, 2),
    "inference": (inference, 3),
    "paraphrases": (paraphrases, 2),
    "answering": (answering, 2),
    "duplicates": (duplicates, 2),
    "entailment": (entailment, 2),
    "sentiment": (sentiment, 2),
    "similarity": (similarity, len(SHARES)),
}


def draw(task: str, split: str, count: int, seed: int = 0) -> list[Row]:
    """Draw rows of a task.

    Args:
        task: one of `TASKS`.
        split: one of `SPLIT_PARTS`.
        count: number of rows.
        seed: another seed, other rows.

    Returns:
        Rows with the task's columns and "label", shuffled; no label has over one row more than another, and no row
        comes twice.

    Raises:
        ValueError: for an unknown task or split, and when the world holds too few rows.
    """
    for value, known, what in ((task, TASKS, "drawn task"), (split, SPLIT_PARTS, "split")):
        if value not in known:
            close = difflib.get_close_matches(value, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"unknown {what} '{value}'; {hint}")
    make, classes = TASKS[task]
    rng = Random(seed_of("drawn text", task, split, seed))
    labels = [number % classes for number in range(count)]
    rng.shuffle(labels)
    seen: set[str] = set()
    return [_new_row(rng, make, label, SPLIT_PARTS[split], seen, f"{task}, {split}") for label in labels]


def _new_row(
    rng: Random, make: Callable[[Random, int], Row], label: int, part: range, seen: set[str], where: str
) -> Row:
    """A row of the split that was not there before."""
    for _ in range(MISSES):
        row = {"label": label} | make(rng, label)
        text = "\n".join(value for value in row.values() if isinstance(value, str))
        if zlib.crc32(text.encode()) % 100 in part and text not in seen:
            seen.add(text)
            return row
    raise ValueError(f"{where}: after {len(seen)} rows no new one was found; draw fewer")

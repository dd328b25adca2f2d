"""The broad mixture of templated text that the tiny T5 is pre-trained on: many small instructions about one world.

None of the eight drawn tasks' prompts is here. There are cousins of them: easier, asked in other ways and mostly
answered in other words, so that the model knows what the tasks are about but not how they are put.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from worlds.text.changes import contradict, differ, follow, general, reword, stray, violated
from worlds.text.drawn import INTENTS, opinion
from worlds.text.world import (
    ADJECTIVES,
    ANTONYMS,
    BAD,
    GOOD,
    KIND_OF,
    KINDS,
    NOUNS,
    PLACES,
    SYNONYM,
    THINGS,
    TIMES,
    TRANSITIVE,
    VERBS,
    active,
    draw_clause,
    draw_phrase,
    fronted,
    passive,
    plural_of,
    questions,
    relative,
    say,
    siblings,
    with_article,
)

Example = tuple[str, str]
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(4))


def sentence(rng: Random) -> str:
    """A sentence of one clause in any frame."""
    return say(rng, draw_clause(rng, negated=0.15))


def pair(rng: Random, one: str, two: str) -> str:
    """Two texts side by side."""
    return f"{one} {rng.choice(('|', '/', ';'))} {two}"


def fill(rng: Random) -> Example:
    """Span corruption (https://arxiv.org/abs/1910.10683): some words are blanked and asked for.

    Half of the time the text goes on with the same clause in another frame, so that the words can be found.
    """
    clause = draw_clause(rng, negated=0.15)
    source, target, words = [], [], say(rng, clause).split()
    i = 0
    while i < len(words):
        if len(target) < 2 * len(SENTINELS) and rng.random() < 0.2:
            length = rng.choice((1, 1, 2))
            sentinel = SENTINELS[len(target) // 2]
            source.append(sentinel)
            target += [sentinel, " ".join(words[i : i + length])]
            i += length
        else:
            source.append(words[i])
            i += 1
    text = " ".join(source)
    return pair(rng, text, say(rng, clause)) if rng.random() < 0.5 else text, " ".join(target) or words[-1]


def correct(rng: Random) -> Example:
    """Mend a sentence with one violation, or none."""
    clause = draw_clause(rng, negated=0.3, named=0.15)
    right = say(rng, clause)
    return f"correct this: {right if rng.random() < 0.2 else violated(rng, clause, right)}", right


def reframe(rng: Random) -> Example:
    """Say it in the passive, in the active, with the time in front, or in other words."""
    clause = draw_clause(rng, negated=0.15, transitive=1.0)
    name, frame = rng.choice(
        (("passive", passive), ("active", active), ("time first", fronted), ("relative", relative))
    )
    if rng.random() < 0.3:
        return f"in other words: {active(clause)}", passive(reword(rng, clause))
    return f"{name}: {say(rng, clause)}", frame(clause)


def extract(rng: Random) -> Example:
    """Answer a question from a text of one or two clauses, or say that it is unknown."""
    clause = draw_clause(rng, place=0.6, time=0.5, adjective=0.2)
    asked = questions(clause)
    word = rng.choice(list(asked))
    who, target = clause.subject.words(), clause.object.words() if clause.object else ""
    answer = {"who": who, "what": target, "where": clause.place, "when": clause.time}[word]
    question = asked[word]
    if rng.random() < 0.25 and word in ("where", "when"):
        clause, answer = replace(clause, **{"place" if word == "where" else "time": ""}), "unknown"
    elif rng.random() < 0.2:
        other = draw_clause(rng, place=1, time=1, adjective=0.1)
        question, answer = questions(other).get(word, question), "unknown" if word in questions(other) else answer
    texts = [rng.choice((active, active, passive, fronted))(clause)]
    if rng.random() < 0.4:
        texts.append(active(draw_clause(rng, adjective=0.1)))
        rng.shuffle(texts)
    text = " and ".join(texts)
    return rng.choice((f"read: {text} . {question}", f"{question} look here: {text}")), answer


def answerable(rng: Random) -> Example:
    """Is there an answer? A cousin of "answering"."""
    source, answer = extract(rng)
    known = answer != "unknown"
    return rng.choice((f"can you tell ? {source}", f"is the question answered ? {source}")), "yes" if known else "no"


def differences(rng: Random) -> Example:
    """Which words of one sentence are not in the other?"""
    clause = draw_clause(rng, negated=0.1)
    other = clause
    for _ in range(rng.choice((0, 1, 1, 2))):
        other = differ(rng, other)
    one, two = (active(clause), active(other)) if rng.random() < 0.5 else (say(rng, clause), say(rng, other))
    rest = [word for word in two.split() if word not in one.split() and word not in ("it", "that", "is", "are", "by")]
    return f"what is new ? {pair(rng, one, two)}", " ".join(rest) or "nothing"


def meaning(rng: Random) -> Example:
    """The same or not? A cousin of "paraphrases"."""
    clause = draw_clause(rng, negated=0.15)
    same = rng.random() < 0.5
    other = clause if rng.random() < 0.75 else reword(rng, clause)
    if not same:
        other = differ(rng, other)
    texts = pair(rng, say(rng, clause), say(rng, other))
    asked = rng.choice(
        (f"{texts} . is the meaning the same ?", f"do they say one thing ? {texts}", f"no difference: {texts}")
    )
    return asked, "yes" if same else "no"


def logic(rng: Random) -> Example:
    """Does one follow from the other? A cousin of "inference" and "entailment"."""
    clause = draw_clause(rng, negated=0.15)
    if rng.random() < 0.3 and not clause.negated:
        clause = follow(rng, clause, kinds=True)
    label = rng.randrange(3)
    claim = (follow, stray, contradict)[label](rng, clause)
    given = active(clause)
    if rng.random() < 0.3:
        texts = [given, active(draw_clause(rng, adjective=0.1, place=0.2))]
        rng.shuffle(texts)
        given = " and ".join(texts)
    shape = rng.random()
    if shape < 0.4:
        return f"if {given} then {say(rng, claim)} ?", ("true", "maybe", "false")[label]
    if shape < 0.6:
        return f"{given} . can it be that {active(claim)} ?", ("yes", "yes", "no")[label]
    if shape < 0.8:
        return f"{given} . so it follows that {active(claim)} ?", ("yes", "no", "no")[label]
    easy = (clause, draw_clause(rng), replace(clause, negated=not clause.negated))[label]
    relation = ("entailment", "neutral", "contradiction")[label]
    return f"what relation ? {pair(rng, active(clause), active(easy))}", relation


def word_pair(rng: Random) -> Example:
    """The tasks' questions about as little as two words: relation, similarity, meaning, form, what answers what."""
    noun, turned, alike = rng.choice(NOUNS), rng.choice(list(ANTONYMS)), rng.choice(list(SYNONYM))
    kin, kind = rng.choice(siblings(noun)), KIND_OF[noun]
    other, grade = rng.choice(((noun, "5.0"), (kin, "2.5"), (rng.choice(NOUNS), "")))
    opposite, phrase = rng.choice(ANTONYMS[turned]), draw_phrase(rng, NOUNS, adjective=0.0)
    grade = grade or ("0.0" if KIND_OF[other] != kind else "5.0" if other == noun else "2.5")
    right, label = rng.random() < 0.5, rng.randrange(2)
    tail = rng.choice(PLACES if label else TIMES)
    form = phrase if right or phrase.determiner == "the" else replace(phrase, plural=not phrase.plural)
    return rng.choice(
        (
            (f"relation of {noun} and {kind}", "entailment"),
            (f"relation of {noun} and {kin}", "neutral"),
            (f"relation of {turned} and {opposite}", "contradiction"),
            (f"similarity of {noun} and {other}", grade),
            (f"meaning of {alike} and {SYNONYM[alike]} the same ?", "yes"),
            (f"meaning of {turned} and {opposite} the same ?", "no"),
            (f"does {kind} follow from {noun} ?", "yes"),
            (f"does {kin} follow from {noun} ?", "no"),
            (f"is {('when', 'where')[label]} answered by {tail} ?", "yes"),
            (f"is {('where', 'when')[label]} answered by {tail} ?", "no"),
            (f"sentiment of {opinion(rng, label, negated=0.0)}", ("negative", "positive")[label]),
            (f"acceptable or not: {form.words()}", "acceptable" if form == phrase else "unacceptable"),
        )
    )


def grammar(rng: Random) -> Example:
    """Is it good English? A cousin of "acceptability"."""
    clause = draw_clause(rng, negated=0.2, named=0.15)
    text, right = say(rng, clause), rng.random() < 0.5
    text = text if right else violated(rng, clause, text)
    if rng.random() < 0.5:
        return f"is this good english ? {text}", "yes" if right else "no"
    return f"acceptable english ? {text}", "acceptable" if right else "unacceptable"


def feeling(rng: Random) -> Example:
    """Did they like it? A cousin of "sentiment"."""
    label, shape = rng.randrange(2), rng.random()
    liked = ("no", "yes")[label]
    if shape < 0.25:
        return f"the word {rng.choice((BAD, GOOD)[label])}", ("negative", "positive")[label]
    if shape < 0.5:
        return f"{opinion(rng, label, negated=0.5)} . did they like it ?", liked
    if shape < 0.7:
        return f"{opinion(rng, label, negated=0.5)} . positive or negative ?", ("negative", "positive")[label]
    main, aside = opinion(rng, label), opinion(rng, 1 - label)
    if shape < 0.85:
        return f"{aside} but {main} . did they like it after all ?", liked
    one, two = rng.sample((main, aside), 2)
    return f"{one} and {two} . what was {('bad', 'good')[label]} ?", main.split(" is ")[0]


def act(rng: Random) -> str:
    """Something to do: buy a red car."""
    return f"{rng.choice(list(TRANSITIVE))} {draw_phrase(rng, THINGS).words()}"


def intent(rng: Random) -> Example:
    """What a question wants to know, and what about. A cousin of "duplicates"."""
    name, doing = rng.choice(list(INTENTS)), act(rng)
    question = rng.choice(INTENTS[name]).format(doing)
    shape = rng.random()
    if shape < 0.3:
        return f"which intent ? {question}", name
    if shape < 0.5:
        return f"about what ? {question}", doing
    same = rng.random() < 0.5
    wording = rng.choice(INTENTS[name])
    again = wording.format(doing if same else act(rng))
    return f"{wording.format(doing)} and {again} one question ?", "yes" if same else "no"


def shared(rng: Random) -> Example:
    """How much two sentences share, in parts or in points. A cousin of "similarity"."""
    one = draw_clause(rng, transitive=1.0, place=1.0, time=1.0, named=0.0, adjective=0.0)
    other = draw_clause(rng, transitive=1.0, place=1.0, time=1.0, named=0.0, adjective=0.0)
    parts = ("subject", "verb", "object", "place", "time")
    kept = rng.sample(parts, rng.randrange(6))
    two = replace(other, **{part: getattr(one, part) for part in kept})
    if rng.random() < 0.5:
        return f"count what is the same: {pair(rng, active(one), active(two))}", f"{len(kept)}"
    return f"points of 5: {pair(rng, active(one), active(two))}", f"{len(kept):.1f}"


def word(rng: Random) -> Example:
    """Small questions about a word."""
    noun, verb, kind = rng.choice(NOUNS), rng.choice(list(VERBS)), rng.choice(list(KINDS))
    other = rng.choice(siblings(noun) if rng.random() < 0.5 else NOUNS)
    turned, alike = rng.choice(list(ANTONYMS)), rng.choice(list(SYNONYM))
    return rng.choice(
        (
            (f"plural of {noun}", plural_of(noun)),
            (f"singular of {plural_of(noun)}", noun),
            (f"opposite of {turned}", rng.choice(ANTONYMS[turned])),
            (f"another word for {alike}", SYNONYM[alike]),
            (f"what is {with_article(noun)} ?", with_article(KIND_OF[noun])),
            (f"is {with_article(noun)} {with_article(kind)} ?", "yes" if KIND_OF[noun] == kind else "no"),
            (f"is {with_article(noun)} {with_article(KIND_OF[noun])} ?", "yes"),
            (f"{noun} and {other} one kind ?", "yes" if KIND_OF[noun] == KIND_OF[other] else "no"),
            (f"one of {plural_of(kind)}", rng.choice(KINDS[kind])),
            (f"she: {verb}", VERBS[verb][0]),
            (f"it was: {verb}", VERBS[verb][1]),
        )
    )


def part(rng: Random) -> Example:
    """Small questions about a sentence."""
    clause = draw_clause(rng, negated=0.2, place=0.8)
    text = say(rng, clause)
    words = text.split()
    probe = rng.choice(words) if rng.random() < 0.5 else rng.choice((*NOUNS, *ADJECTIVES, *VERBS))
    return rng.choice(
        (
            (f"find the subject: {text}", clause.subject.words()),
            (f"find the verb: {text}", clause.verb),
            (f"find the object: {text}", clause.object.words() if clause.object else "none"),
            (f"find the place: {text}", clause.place or "none"),
            (f"count the words: {text}", str(len(words))),
            (f"last word: {text}", words[-1]),
            (f"copy: {text}", text),
            (f"negate: {active(clause)}", active(replace(clause, negated=not clause.negated))),
            (f"is {probe} in it ? {text}", "yes" if probe in words else "no"),
            (f"general: {clause.subject.words()}", general(clause.subject).words()),
            (f"one or many ? {clause.subject.words()}", "many" if clause.subject.plural else "one"),
        )
    )


def number(rng: Random) -> Example:
    """Compare and copy numbers."""
    a, b = (rng.randrange(51) / 10 for _ in range(2))
    return rng.choice(
        (
            (f"larger: {a:.1f} , {b:.1f}", f"{max(a, b):.1f}"),
            (f"smaller: {a:.1f} , {b:.1f}", f"{min(a, b):.1f}"),
            (f"copy: {a:.1f}", f"{a:.1f}"),
            (f"is {a:.1f} over {b:.1f} ?", "yes" if a > b else "no"),
        )
    )


MIXTURE: dict[Callable[[Random], Example], float] = {  # template -> how often, relative to the others
    fill: 1.0, correct: 0.7, reframe: 0.5, extract: 1.0, answerable: 1.5, differences: 1.5, meaning: 2.5, logic: 3.0,
    word_pair: 1.5, grammar: 2.5, feeling: 1.5, intent: 1.5, shared: 1.5, word: 2.0, part: 0.8, number: 0.3,
}  # fmt: skip


def draw_examples(rng: Random, count: int) -> list[Example]:
    """Examples of the mixture."""
    makes: Sequence[Callable[[Random], Example]] = rng.choices(list(MIXTURE), list(MIXTURE.values()), k=count)
    return [make(rng) for make in makes]

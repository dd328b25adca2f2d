"""Changes to what a clause says, sorted by what they do to its truth: kept, implied, left open, or turned around.

And changes to how a sentence says it: one violation of grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from worlds.text.world import (
    ADJECTIVES,
    ANTONYMS,
    KIND_OF,
    KINDS,
    NAMES,
    PLACES,
    SYNONYM,
    TIMES,
    TRANSITIVE,
    VERBS,
    Clause,
    Phrase,
    finite,
    siblings,
)

Change = Callable[[Random, Clause], "Clause | None"]
TRIES = 100


def reword(rng: Random, clause: Clause) -> Clause:
    """The same in other words: each word that has a synonym changes half of the time."""

    def other(word: str) -> str:
        return SYNONYM[word] if word in SYNONYM and rng.random() < 0.5 else word

    phrases = [
        phrase and replace(phrase, adjective=other(phrase.adjective)) for phrase in (clause.subject, clause.object)
    ]
    return replace(clause, subject=phrases[0], object=phrases[1], verb=other(clause.verb))


def weaker(phrase: Phrase) -> Phrase:
    """The phrase with a determiner that says less: the dog, a dog; two dogs, some dogs."""
    return replace(phrase, determiner="some" if phrase.plural else "a") if phrase.determiner else phrase


def general(phrase: Phrase) -> Phrase:
    """The phrase with its kind in the noun's place: the dog, an animal; anna, a person."""
    kind = "person" if phrase.noun in NAMES else KIND_OF.get(phrase.noun, phrase.noun)
    return weaker(replace(phrase, noun=kind, determiner=phrase.determiner or "a"))


def same_word(one: str, other: str) -> bool:
    """Whether two words mean the same."""
    return one == other or SYNONYM.get(one) == other


def covers(given: Phrase, said: Phrase) -> bool:
    """Whether what holds for `given` holds for `said`: the big dog, a dog, an animal; all dogs, all big dogs."""
    if given.determiner == said.determiner == "all":  # the only phrase of which more words say less
        given, said = said, given
    wider = general(given)
    return (
        said.noun in (given.noun, wider.noun)
        and said.determiner in (given.determiner, wider.determiner)
        and (not said.adjective or same_word(given.adjective, said.adjective))
        and given.plural == said.plural
    )


def entails(given: Clause, claim: Clause) -> bool:
    """Whether the claim follows from what is given, as far as this module's changes go.

    A negated clause is taken word by word, except that it holds at every place and time if it names none.
    """
    if (
        given.negated != claim.negated
        or not same_word(given.verb, claim.verb)
        or bool(given.object) != bool(claim.object)
    ):
        return False
    pairs = [(given.subject, claim.subject)] + ([(given.object, claim.object)] if given.object else [])
    if given.negated:
        same = all(covers(*pair) and covers(*pair[::-1]) for pair in pairs)
        return same and given.place in ("", claim.place) and given.time in ("", claim.time)
    return all(covers(*pair) for pair in pairs) and claim.place in ("", given.place) and claim.time in ("", given.time)


def on_phrase(change: Callable[[Random, Phrase], Phrase | None]) -> Change:
    """A change of a phrase as a change of the clause's subject or object."""

    def changed(rng: Random, clause: Clause) -> Clause | None:
        parts = [part for part in ("subject", "object") if getattr(clause, part)]
        for part in rng.sample(parts, len(parts)):
            if phrase := change(rng, getattr(clause, part)):
                return replace(clause, **{part: phrase})
        return None

    return changed


def drop_adjective(rng: Random, phrase: Phrase) -> Phrase | None:
    """All big dogs, some dogs."""
    if not phrase.adjective:
        return None
    bare = replace(phrase, adjective="")
    return weaker(bare) if phrase.determiner == "all" else bare


def drop_tail(rng: Random, clause: Clause) -> Clause | None:
    """Leave out the place or the time."""
    parts = [part for part in ("place", "time") if getattr(clause, part)]
    return replace(clause, **{rng.choice(parts): ""}) if parts else None


def add_tail(rng: Random, clause: Clause) -> Clause | None:
    """Say where or when."""
    pools = {"place": PLACES, "time": TIMES}
    free = [part for part in pools if not getattr(clause, part)]
    part = rng.choice(free) if free else ""
    return replace(clause, **{part: rng.choice(pools[part])}) if part else None


def add_adjective(rng: Random, phrase: Phrase) -> Phrase | None:
    """The dog, the big dog."""
    return None if phrase.adjective or phrase.noun in NAMES else replace(phrase, adjective=rng.choice(ADJECTIVES))


def specific(rng: Random, phrase: Phrase) -> Phrase | None:
    """An animal, a dog."""
    return replace(phrase, noun=rng.choice(KINDS[phrase.noun])) if phrase.noun in KINDS else None


def sibling(rng: Random, phrase: Phrase) -> Phrase | None:
    """The dog, the cat."""
    return None if phrase.noun in KINDS else replace(phrase, noun=rng.choice(siblings(phrase.noun)))


def opposite_adjective(rng: Random, phrase: Phrase) -> Phrase | None:
    """The big dog, the small dog."""
    opposites = ANTONYMS.get(phrase.adjective)
    return replace(phrase, adjective=rng.choice(opposites)) if opposites else None


def opposite_verb(rng: Random, clause: Clause) -> Clause | None:
    """Buys the car, sells the car."""
    return replace(clause, verb=rng.choice(ANTONYMS[clause.verb])) if clause.verb in ANTONYMS else None


def negate(rng: Random, clause: Clause) -> Clause:
    """Sleeps, does not sleep."""
    return replace(clause, negated=not clause.negated)


FOLLOWS: tuple[Change, ...] = (
    on_phrase(lambda rng, phrase: None if phrase.noun in KINDS else general(phrase)),
    on_phrase(lambda rng, phrase: None if weaker(phrase) == phrase else weaker(phrase)),
    on_phrase(drop_adjective),
    drop_tail,
)
STRAYS: tuple[Change, ...] = (on_phrase(specific), on_phrase(sibling), on_phrase(add_adjective), add_tail)
STRAYS_NEGATED: tuple[Change, ...] = (on_phrase(sibling),)  # who does not sleep does not sleep in the park either
CONTRADICTS: tuple[Change, ...] = (negate, opposite_verb, on_phrase(opposite_adjective))


def follow(rng: Random, clause: Clause, *, kinds: bool = False) -> Clause:
    """A clause that follows from this one: it says less, or the same.

    A negated clause is only reworded, since less said of who did not would be more.

    Args:
        rng: source of randomness.
        clause: what is given.
        kinds: change only nouns to their kinds.
    """
    if clause.negated:
        return reword(rng, clause)
    changes = FOLLOWS[:1] if kinds else rng.sample(FOLLOWS, 2)
    for change in changes:
        clause = change(rng, clause) or clause
    return clause


def stray(rng: Random, clause: Clause, given: Sequence[Clause] = ()) -> Clause:
    """A clause that may or may not hold when this one does.

    Args:
        rng: source of randomness.
        clause: what is changed.
        given: all that is known, where that is not `clause` alone; the result follows from none of it.
    """
    for _ in range(TRIES):
        if clause.negated:
            claim = _first(rng, STRAYS_NEGATED, clause)
        else:
            claim = _less(rng, clause, _first(rng, STRAYS, clause))
        if not any(entails(fact, claim) for fact in (clause, *given)):
            return claim
    raise AssertionError(f"every change tried of {clause} follows from what is given")


def contradict(rng: Random, clause: Clause) -> Clause:
    """A clause that cannot hold when this one does."""
    if clause.negated:
        return negate(rng, clause)
    return _less(rng, clause, _first(rng, CONTRADICTS, clause))


def _less(rng: Random, clause: Clause, changed: Clause) -> Clause:
    """Half of the time leave out the place or the time, so that a short claim is no sign that it follows.

    What was changed stays.
    """
    parts = [part for part in ("place", "time") if getattr(changed, part) == getattr(clause, part) != ""]
    return replace(changed, **{rng.choice(parts): ""}) if parts and rng.random() < 0.5 else changed


def _first(rng: Random, changes: tuple[Change, ...], clause: Clause) -> Clause:
    """The clause after the first of the changes, in random order, that can be made."""
    for change in rng.sample(changes, len(changes)):
        if changed := change(rng, clause):
            return changed
    raise AssertionError(f"no change applies to {clause}")


def differ(rng: Random, clause: Clause) -> Clause:
    """The clause with one thing changed, in nearly the same words: roles, negation, a noun, verb or place."""
    change = rng.randrange(5)
    if change == 0 and clause.object:
        return replace(clause, subject=clause.object, object=clause.subject)
    if change == 1:
        return replace(clause, negated=not clause.negated)
    if change == 2 and clause.object:
        return replace(clause, object=replace(clause.object, noun=rng.choice(siblings(clause.object.noun))))
    if change == 3 and clause.place:
        return replace(clause, place=rng.choice([place for place in PLACES if place != clause.place]))
    return replace(clause, verb=other_verb(rng, clause.verb))


def other_verb(rng: Random, verb: str) -> str:
    """A verb that can stand in the same place and means something else."""
    pool = [other for other in VERBS if (other in TRANSITIVE) == (verb in TRANSITIVE)]
    return rng.choice([other for other in pool if other not in (verb, SYNONYM.get(verb))])


def violated(rng: Random, clause: Clause, sentence: str) -> str:
    """The clause's sentence with one violation: agreement, word order, determiner or verb form."""
    for attempt in rng.sample((break_agreement, break_order, break_determiner, break_verb_form), 4):
        broken = attempt(rng, clause, sentence)
        if broken != sentence:
            return broken
    raise AssertionError(f"no violation found for '{sentence}'")


def break_agreement(rng: Random, clause: Clause, sentence: str) -> str:
    """The dog chase the cat; the cats is chased."""
    if finite(clause) in sentence:
        other = replace(clause, subject=replace(clause.subject, plural=not clause.subject.plural))
        return sentence.replace(finite(clause), finite(other), 1)
    be = {" is ": " are ", " are ": " is "}
    found = next((word for word in be if word in sentence), "")
    return sentence.replace(found, be.get(found, ""), 1) if found else sentence


def break_order(rng: Random, clause: Clause, sentence: str) -> str:
    """Dog the chases the cat; the dog chases cat the; the dog does chase not."""
    words = sentence.split()
    heads = {"the", "a", "an", "two", "three", "these", "in", "at", "on", "near", "by", "does", "do", "that"}
    places = [i for i in range(len(words) - 1) if words[i] in heads]
    if not places:
        return sentence
    i = rng.choice(places)
    words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def break_determiner(rng: Random, clause: Clause, sentence: str) -> str:
    """A dogs, two dog, this dogs, or a singular without any."""
    phrases = [phrase for phrase in (clause.subject, clause.object) if phrase and phrase.determiner]
    if not phrases:
        return sentence
    phrase = rng.choice(phrases)
    if phrase.determiner == "the":
        wrong = replace(phrase, determiner="a" if phrase.plural else rng.choice(("two", "these", "many"))).words()
    elif rng.random() < 0.5 and not phrase.plural:
        wrong = phrase.words().split(" ", 1)[1]
    else:
        wrong = replace(phrase, plural=not phrase.plural).words()
    return sentence.replace(phrase.words(), wrong, 1)


def break_verb_form(rng: Random, clause: Clause, sentence: str) -> str:
    """The cat is chase by the dog; the dog does not chases; the dog is chase the cat."""
    third, participle = VERBS[clause.verb]
    if f" {participle} by " in sentence:
        return sentence.replace(f" {participle} by ", f" {rng.choice((clause.verb, third))} by ", 1)
    if clause.negated:
        return sentence.replace(f" not {clause.verb}", f" not {third}", 1)
    be = "are" if clause.subject.plural else "is"
    return sentence.replace(f" {finite(clause)}", f" {be} {clause.verb}", 1)

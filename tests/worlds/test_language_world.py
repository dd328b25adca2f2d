"""The text world and the eight drawn text tasks: grammar, labels that mean what they say, splits, no cheap guesses."""

import math
import zlib
from collections import Counter
from functools import lru_cache
from random import Random

import pytest

from lib.language.registry import DRAWN
from worlds.text import drawn
from worlds.text.changes import contradict, entails, follow, reword, stray
from worlds.text.drawn import SPLIT_PARTS, TASKS, draw
from worlds.text.world import (
    FRAMES,
    KIND_OF,
    KINDS,
    NAMES,
    PLURAL_DETERMINERS,
    SYNONYM,
    TRANSITIVE,
    VERBS,
    Clause,
    Phrase,
    active,
    draw_clause,
    fronted,
    passive,
    plural_of,
    questions,
    relative,
)

DOG, CATS = Phrase("dog", "the", "old"), Phrase("cat", "two", plural=True)
CHASE = Clause(DOG, "chase", CATS, "in the park", "at night")
COLUMNS = {name: task.columns for name, task in DRAWN.items()}


def clauses(count=300, **options):
    rng = Random(0)
    return [draw_clause(rng, negated=0.3, **options) for _ in range(count)]


# --- the world


def test_a_clause_is_said_in_four_frames():
    assert active(CHASE) == "the old dog chases two cats in the park at night"
    assert passive(CHASE) == "two cats are chased by the old dog in the park at night"
    assert fronted(CHASE) == "at night the old dog chases two cats in the park"
    assert relative(CHASE) == "it is the old dog that chases two cats in the park at night"
    turned = Clause(CATS, "chase", Phrase("apple", "a"), negated=True)
    assert active(turned) == "two cats do not chase an apple"
    assert passive(turned) == "an apple is not chased by two cats"


def test_questions_ask_only_what_is_said():
    assert questions(CHASE) == {
        "who": "who chases two cats ?",
        "what": "what does the old dog chase ?",
        "where": "where does the old dog chase two cats ?",
        "when": "when does the old dog chase two cats ?",
    }
    assert set(questions(Clause(DOG, "sleep"))) == {"who"}


def test_verbs_and_determiners_agree_in_every_sentence():
    thirds, plurals = {forms[0] for forms in VERBS.values()}, {plural_of(noun) for noun in KIND_OF}
    for clause in clauses():
        words = active(clause).split()
        verb = next(word for word in words if word in thirds | set(VERBS) | {"do", "does"})
        assert (verb in thirds | {"does"}) != clause.subject.plural, words
        for one, two, three in zip(words, [*words[1:], ""], [*words[2:], "", ""], strict=True):
            noun = two if two in plurals | set(KIND_OF) else three
            assert (one not in PLURAL_DETERMINERS) or noun in plurals, words
            assert (one not in ("a", "an")) or noun in KIND_OF, words


def test_every_frame_says_the_same_words_about_who_and_what():
    for clause in clauses(100, transitive=1.0):
        for frame in FRAMES:
            assert clause.subject.words() in frame(clause) and clause.object.words() in frame(clause)
            assert ("not" in frame(clause).split()) == clause.negated


def test_no_word_is_two_things():
    nouns = [*KIND_OF, *KINDS, *NAMES]
    assert len(set(nouns)) == len(nouns)
    assert not set(nouns) & set(VERBS)
    assert set(SYNONYM) == set(SYNONYM.values())


# --- what follows


def test_what_follows_says_nothing_new():
    rng = Random(1)
    for clause in clauses(transitive=1.0):
        claim = follow(rng, clause)
        if clause.negated:
            assert claim.negated
            continue
        assert claim.place in ("", clause.place) and claim.time in ("", clause.time) and not claim.negated
        for given, said in ((clause.subject, claim.subject), (clause.object, claim.object)):
            assert said.adjective in ("", given.adjective)
            kind = "person" if given.noun in NAMES else KIND_OF[given.noun]
            assert said.noun in (given.noun, kind)
            assert (said.determiner == "all") <= (given.determiner == "all")


def test_what_strays_says_something_that_was_not_said():
    rng = Random(2)
    for clause in clauses():
        claim = stray(rng, clause)
        assert claim.negated == clause.negated
        new = (claim.place and claim.place != clause.place) or (claim.time and claim.time != clause.time)
        for given, said in ((clause.subject, claim.subject), (clause.object, claim.object)):
            new = new or (said and (said.noun != given.noun or said.adjective != given.adjective))
        assert new, (clause, claim)


ALL_DOGS = Phrase("dog", "all", plural=True)


@pytest.mark.parametrize(
    ("given", "claim", "follows"),
    [
        (Clause(ALL_DOGS, "sleep"), Clause(Phrase("dog", "all", "calm", plural=True), "sleep"), True),
        (Clause(Phrase("dog", "all", "calm", plural=True), "sleep"), Clause(ALL_DOGS, "sleep"), False),
        (Clause(ALL_DOGS, "sleep"), Clause(Phrase("dog", "some", plural=True), "rest"), True),
        (Clause(DOG, "sleep"), Clause(Phrase("dog", "the"), "sleep"), True),
        (Clause(Phrase("dog", "the"), "sleep"), Clause(DOG, "sleep"), False),
        (Clause(DOG, "sleep"), Clause(Phrase("animal", "a", "old"), "sleep"), True),
        (Clause(Phrase("animal", "a"), "sleep"), Clause(Phrase("dog", "a"), "sleep"), False),
        (Clause(Phrase("anna"), "sing"), Clause(Phrase("person", "a"), "sing"), True),
        (Clause(Phrase("anna"), "sing"), Clause(Phrase("ben"), "sing"), False),
        (CHASE, Clause(DOG, "pursue", CATS), True),
        (Clause(DOG, "chase", CATS), CHASE, False),
        (CHASE, Clause(CATS, "chase", DOG), False),
        (CHASE, Clause(DOG, "see", CATS), False),
        (CHASE, Clause(DOG, "sleep"), False),
        (CHASE, Clause(DOG, "chase", CATS, negated=True), False),
        (Clause(DOG, "chase", CATS, negated=True), Clause(DOG, "chase", CATS, "in the park", negated=True), True),
        (Clause(DOG, "sleep", place="in the park", negated=True), Clause(DOG, "sleep", negated=True), False),
    ],
)
def test_one_clause_follows_from_another(given, claim, follows):
    assert entails(given, claim) == follows


@pytest.mark.parametrize("task", ["inference", "entailment"])
def test_a_label_says_whether_the_claim_follows(task, monkeypatch):
    """All dogs carry a kite, so all calm dogs do; and an animal sleeps if the dog does, whoever else is mentioned."""
    said = []
    for name in ("active", "say"):
        write = getattr(drawn, name)
        monkeypatch.setattr(drawn, name, lambda *args, write=write: said.append(args[-1]) or write(*args))
    make, labels = TASKS[task]
    rng = Random(6)
    for label in range(labels):
        for _ in range(1500):
            said.clear()
            row = make(rng, label)
            *given, claim = said
            assert any(entails(clause, claim) for clause in given) == (label == 0), row


def test_what_contradicts_turns_one_thing_around():
    rng = Random(3)
    for clause in clauses():
        claim = contradict(rng, clause)
        turned = [
            claim.negated != clause.negated,
            claim.verb != clause.verb,
            claim.subject.adjective != clause.subject.adjective,
            bool(clause.object) and claim.object.adjective != clause.object.adjective,
        ]
        assert sum(turned) == 1


def test_rewording_only_uses_synonyms():
    rng = Random(4)
    for clause in clauses(transitive=1.0):
        other = reword(rng, clause)
        assert other.verb in (clause.verb, SYNONYM.get(clause.verb))
        assert other.verb in TRANSITIVE
        assert other.subject.noun == clause.subject.noun and other.place == clause.place


# --- the tasks


@pytest.mark.parametrize("task", TASKS)
def test_rows_have_the_columns_and_balanced_labels(task):
    rows = draw(task, "train", 520)
    assert all(set(row) == {"label", *COLUMNS[task]} for row in rows)
    counts = Counter(row["label"] for row in rows)
    assert max(counts.values()) - min(counts.values()) <= 1
    if task == "similarity":
        assert sorted(counts) == [step / 5 for step in range(26)]
    else:
        assert sorted(counts) == list(range(len(DRAWN[task].words)))
    assert [row["label"] for row in rows] != sorted(row["label"] for row in rows)


@pytest.mark.parametrize("task", TASKS)
def test_splits_and_seeds_share_no_row_and_repeat(task):
    def texts(split, seed=0):
        return [tuple(row[column] for column in COLUMNS[task]) for row in draw(task, split, 300, seed)]

    seen = {split: texts(split) for split in SPLIT_PARTS}
    assert len(set().union(*map(set, seen.values()))) == 4 * 300
    assert texts("train") == seen["train"]
    assert texts("train", 1) != seen["train"]
    assert not set(texts("train", 1)) & set(seen["test"])


def test_unknown_names_are_named_with_the_closest():
    with pytest.raises(ValueError, match="unknown drawn task 'sentimant'; did you mean 'sentiment'"):
        draw("sentimant", "train", 2)
    with pytest.raises(ValueError, match=r"unknown split 'dev'; known are train"):
        draw("sentiment", "dev", 2)


def test_a_small_world_ends_with_an_error(monkeypatch):
    word = next(word for word in map(str, range(100)) if zlib.crc32(word.encode()) % 100 in SPLIT_PARTS["test"])
    monkeypatch.setitem(TASKS, "tiny", (lambda rng, label: {"sentence": word}, 1))
    with pytest.raises(ValueError, match=r"tiny, test: after 1 rows no new one was found; draw fewer"):
        draw("tiny", "test", 2)


def test_grades_are_the_points_of_what_is_shared():
    for row in draw("similarity", "validation", 200):
        one, two = row["sentence1"].split(), row["sentence2"].split()
        if row["label"] == 5:
            assert one == two
        if row["label"] == 0:
            assert not (set(one) & set(two)) - {"the", "a", "an", "two", "three", "some", "all", "these", "many",
                                                "in", "at", "near", "on"}  # fmt: skip


def features(row, columns, pair):
    """Words, marked with their column; with `pair` also how many words two columns share."""
    words = {f"{column} {word}" for column in columns for word in row[column].split()}
    if pair:
        sets = [set(row[column].split()) for column in columns]
        words.add(f"shared {len(sets[0] & sets[-1])}")
    return words


@lru_cache
def drawn_rows(task, split, count):
    return draw(task, split, count)


def naive_bayes(task, pair=False):
    """Accuracy of a bag of words on rows that it has not seen."""
    columns, train, test = COLUMNS[task], drawn_rows(task, "train", 1200), drawn_rows(task, "test", 300)
    classes = sorted({row["label"] for row in train})
    counts = {label: Counter() for label in classes}
    for row in train:
        counts[row["label"]].update(features(row, columns, pair))
    each = len(train) / len(classes)

    def guess(row):
        found = features(row, columns, pair)
        return max(classes, key=lambda c: sum(math.log((counts[c][word] + 1) / (each + 2)) for word in found))

    return sum(guess(row) == row["label"] for row in test) / len(test)


def by_length(task):
    """Accuracy of the best threshold on the number of words in one column, one label against the others, balanced."""
    best, rows = 0.0, drawn_rows(task, "train", 1200)
    for column in COLUMNS[task]:
        for label in {row["label"] for row in rows}:
            mine = Counter(len(row[column].split()) for row in rows if row["label"] == label)
            rest = Counter(len(row[column].split()) for row in rows if row["label"] != label)
            for cut in range(40):
                above = [sum(n for length, n in c.items() if length > cut) / c.total() for c in (mine, rest)]
                best = max(best, (1 + abs(above[0] - above[1])) / 2)
    return best


@pytest.mark.parametrize("task", [name for name in TASKS if name != "similarity"])
def test_neither_words_nor_length_give_the_label_away(task):
    chance = 1 / len(DRAWN[task].words)
    assert naive_bayes(task) < chance + 0.2
    assert naive_bayes(task, pair=True) < chance + 0.2
    assert by_length(task) < 0.7

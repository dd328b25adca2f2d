"""A small English: words by kind, and clauses that agree, in several syntactic frames.

Sentences are lower case and carry no full stop: every token costs time. A clause is data (who does what, where and
when), so two sentences can be compared by what they say and not by how they say it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

# kind -> nouns; a plural that is not noun + "s" stands after a slash. Kinds are nouns too: a dog is an animal.
KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "cow", "pig", "duck", "lion", "tiger", "rabbit", "goat", "mouse", "fox", "bear"),
    "person": (
        "man",
        "woman",
        "boy",
        "girl",
        "doctor",
        "teacher",
        "farmer",
        "nurse",
        "baker",
        "king",
        "singer",
        "cook",
    ),
    "fruit": ("apple", "pear", "lemon", "orange", "banana", "melon", "plum", "peach", "cherry", "grape"),
    "vehicle": ("car", "bus", "truck", "train", "bike", "boat", "van", "tractor", "taxi", "plane"),
    "toy": ("ball", "doll", "kite", "puzzle", "robot", "balloon", "drone", "yoyo"),
    "instrument": ("guitar", "drum", "violin", "piano", "flute", "trumpet", "harp", "cello"),
    "plant": ("tree", "rose", "bush", "tulip", "oak", "fern", "cactus", "lily"),
    "garment": ("hat", "coat", "shirt", "scarf", "glove", "sock", "skirt", "jacket"),
}
IRREGULAR = {
    "mouse": "mice", "fox": "foxes", "man": "men", "woman": "women", "person": "people", "peach": "peaches",
    "cherry": "cherries", "bus": "buses", "bush": "bushes", "cactus": "cacti", "lily": "lilies", "scarf": "scarves",
}  # fmt: skip
KIND_OF = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
ACTORS = (*KINDS["animal"], *KINDS["person"])
THINGS = tuple(noun for kind, nouns in KINDS.items() if kind not in ("animal", "person") for noun in nouns)
NOUNS = (*ACTORS, *THINGS)
NAMES = (
    "anna", "ben", "carl", "dora", "emma", "fred", "gina", "hugo", "iris", "jack", "kate", "leo", "mary", "nina",
    "oscar", "paul", "rosa", "sam", "tom", "vera",
)  # fmt: skip

# base -> (third person singular, participle); verbs with an object
TRANSITIVE: dict[str, tuple[str, str]] = {
    "chase": ("chases", "chased"), "pursue": ("pursues", "pursued"), "see": ("sees", "seen"),
    "spot": ("spots", "spotted"), "buy": ("buys", "bought"), "purchase": ("purchases", "purchased"),
    "sell": ("sells", "sold"), "like": ("likes", "liked"), "enjoy": ("enjoys", "enjoyed"), "hate": ("hates", "hated"),
    "push": ("pushes", "pushed"), "shove": ("shoves", "shoved"), "pull": ("pulls", "pulled"),
    "find": ("finds", "found"), "discover": ("discovers", "discovered"), "lose": ("loses", "lost"),
    "hide": ("hides", "hidden"), "show": ("shows", "shown"), "carry": ("carries", "carried"),
    "paint": ("paints", "painted"), "draw": ("draws", "drawn"), "mend": ("mends", "mended"),
    "wash": ("washes", "washed"), "build": ("builds", "built"), "break": ("breaks", "broken"),
    "steal": ("steals", "stolen"), "help": ("helps", "helped"), "bring": ("brings", "brought"),
}  # fmt: skip
INTRANSITIVE: dict[str, tuple[str, str]] = {
    "sleep": ("sleeps", "slept"), "run": ("runs", "run"), "sing": ("sings", "sung"), "dance": ("dances", "danced"),
    "swim": ("swims", "swum"), "wait": ("waits", "waited"), "laugh": ("laughs", "laughed"), "cry": ("cries", "cried"),
    "jump": ("jumps", "jumped"), "work": ("works", "worked"), "play": ("plays", "played"), "rest": ("rests", "rested"),
}  # fmt: skip
VERBS = {**TRANSITIVE, **INTRANSITIVE}
ADJECTIVES = (
    "big", "large", "small", "little", "fast", "quick", "slow", "happy", "glad", "sad", "old", "young", "clean",
    "dirty", "filthy", "rich", "wealthy", "poor", "strong", "weak", "calm", "angry", "mad", "red", "green", "blue",
)  # fmt: skip
COLOURS = ("red", "green", "blue")
PLACES = (
    "in the park", "in the garden", "in the kitchen", "in the forest", "in the city", "at the river", "at the beach",
    "at the market", "near the bridge", "near the church", "near the lake", "on the farm", "on the hill", "on the road",
)  # fmt: skip
TIMES = (
    "in the morning", "in the evening", "at night", "at noon", "on monday", "on friday", "on sunday", "in winter",
    "in summer", "in spring",
)  # fmt: skip
ADVERBS = ("again", "today", "now", "there", "often")

SYNONYM_PAIRS = (
    ("big", "large"), ("small", "little"), ("fast", "quick"), ("happy", "glad"), ("dirty", "filthy"), ("angry", "mad"),
    ("rich", "wealthy"), ("chase", "pursue"), ("see", "spot"), ("buy", "purchase"), ("like", "enjoy"),
    ("push", "shove"), ("find", "discover"), ("sleep", "rest"),
)  # fmt: skip
SYNONYM = {a: b for pair in SYNONYM_PAIRS for a, b in (pair, pair[::-1])}
ANTONYMS: dict[str, tuple[str, ...]] = {
    "big": ("small", "little"), "large": ("small", "little"), "small": ("big", "large"), "little": ("big", "large"),
    "fast": ("slow",), "quick": ("slow",), "slow": ("fast", "quick"), "happy": ("sad",), "glad": ("sad",),
    "sad": ("happy", "glad"), "old": ("young",), "young": ("old",), "clean": ("dirty", "filthy"), "dirty": ("clean",),
    "filthy": ("clean",), "rich": ("poor",), "wealthy": ("poor",), "poor": ("rich", "wealthy"), "strong": ("weak",),
    "weak": ("strong",), "calm": ("angry", "mad"), "angry": ("calm",), "mad": ("calm",), "buy": ("sell",),
    "purchase": ("sell",), "sell": ("buy", "purchase"), "like": ("hate",), "enjoy": ("hate",),
    "hate": ("like", "enjoy"), "push": ("pull",), "shove": ("pull",), "pull": ("push", "shove"), "find": ("lose",),
    "discover": ("lose",), "lose": ("find", "discover"), "hide": ("show",), "show": ("hide",), "build": ("break",),
    "break": ("build",), "laugh": ("cry",), "cry": ("laugh",),
}  # fmt: skip

GOOD = (
    "good", "great", "lovely", "brilliant", "charming", "funny", "wonderful", "clever", "moving", "fresh", "superb",
    "delightful", "thrilling", "touching", "witty", "gorgeous",
)  # fmt: skip
BAD = (
    "bad", "awful", "terrible", "boring", "dull", "horrible", "silly", "lame", "tedious", "stale", "dreadful",
    "annoying", "clumsy", "empty", "messy", "ugly",
)  # fmt: skip
WORKS = ("film", "movie", "book", "story", "song", "opera", "novel", "album")
ASPECTS = ("plot", "cast", "ending", "music", "style", "acting", "humor", "dialogue", "pace", "script")
NEGATIONS = ("not", "never", "hardly")
DEGREES = ("very", "really", "quite", "so", "truly")

PLURAL_DETERMINERS = ("two", "three", "some", "all", "these", "many")


@dataclass(frozen=True)
class Phrase:
    """Who or what: a noun with its determiner, or a name.

    Attributes:
        noun: in the singular, or a name.
        determiner: "a" (written "an" where it sounds so), "the", "every", "no", "two", ...; "" for a name.
        adjective: one, or "".
        plural: whether the noun is written in the plural.
    """

    noun: str
    determiner: str = ""
    adjective: str = ""
    plural: bool = False

    def words(self) -> str:
        """The phrase as text."""
        if self.noun in NAMES:
            return self.noun
        rest = f"{self.adjective} " if self.adjective else ""
        rest += plural_of(self.noun) if self.plural else self.noun
        determiner = "an" if self.determiner == "a" and rest[0] in "aeiou" else self.determiner
        return f"{determiner} {rest}"


@dataclass(frozen=True)
class Clause:
    """What a sentence says: who does what to whom, where and when, or that it is not so."""

    subject: Phrase
    verb: str
    object: Phrase | None = None
    place: str = ""
    time: str = ""
    negated: bool = False

    @property
    def tail(self) -> str:
        """Place and time with a leading space each."""
        return "".join(f" {part}" for part in (self.place, self.time) if part)


def plural_of(noun: str) -> str:
    """The plural of a noun of the world."""
    return IRREGULAR.get(noun, f"{noun}s")


def with_article(noun: str) -> str:
    """The noun after "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def siblings(noun: str) -> tuple[str, ...]:
    """Other nouns of the same kind (other names for a name)."""
    pool = NAMES if noun in NAMES else KINDS[KIND_OF[noun]]
    return tuple(other for other in pool if other != noun)


def finite(clause: Clause) -> str:
    """The verb as it agrees with the subject, negated if the clause is."""
    if clause.negated:
        return f"{'do' if clause.subject.plural else 'does'} not {clause.verb}"
    return clause.verb if clause.subject.plural else VERBS[clause.verb][0]


def active(clause: Clause) -> str:
    """The dog chases the cat in the park."""
    target = f" {clause.object.words()}" if clause.object else ""
    return f"{clause.subject.words()} {finite(clause)}{target}{clause.tail}"


def passive(clause: Clause) -> str:
    """The cat is chased by the dog in the park; active where there is no object."""
    if clause.object is None:
        return active(clause)
    be = ("are" if clause.object.plural else "is") + (" not" if clause.negated else "")
    return f"{clause.object.words()} {be} {VERBS[clause.verb][1]} by {clause.subject.words()}{clause.tail}"


def fronted(clause: Clause) -> str:
    """In the park the dog chases the cat: the time goes first, or the place where there is no time."""
    if clause.time:
        return f"{clause.time} {active(replace(clause, time=''))}"
    return f"{clause.place} {active(replace(clause, place=''))}".strip()


def relative(clause: Clause) -> str:
    """It is the dog that chases the cat in the park."""
    target = f" {clause.object.words()}" if clause.object else ""
    return f"it is {clause.subject.words()} that {finite(clause)}{target}{clause.tail}"


FRAMES = (active, passive, fronted, relative)


def questions(clause: Clause) -> dict[str, str]:
    """What can be asked about a clause, by question word; only what it answers.

    Keys are "who", "what", "where", "when".
    """
    do = "do" if clause.subject.plural else "does"
    target = f" {clause.object.words()}" if clause.object else ""
    core = f"{do} {clause.subject.words()} {clause.verb}{target}"
    asked = {"who": f"who {VERBS[clause.verb][0]}{target} ?"}
    if clause.object:
        asked["what"] = f"what {do} {clause.subject.words()} {clause.verb} ?"
    if clause.place:
        asked["where"] = f"where {core} ?"
    if clause.time:
        asked["when"] = f"when {core} ?"
    return asked


def draw_phrase(rng: Random, nouns: tuple[str, ...], *, adjective: float = 0.5, named: float = 0.0) -> Phrase:
    """A phrase whose noun is one of `nouns`; `adjective` and `named` are probabilities."""
    if rng.random() < named:
        return Phrase(rng.choice(NAMES))
    noun = rng.choice(nouns)
    plural = rng.random() < 0.4
    determiner = rng.choice(("the", "the", *PLURAL_DETERMINERS)) if plural else rng.choice(("the", "the", "a"))
    return Phrase(noun, determiner, rng.choice(ADJECTIVES) if rng.random() < adjective else "", plural)


def draw_clause(
    rng: Random,
    *,
    adjective: float = 0.3,
    place: float = 0.35,
    time: float = 0.2,
    negated: float = 0.0,
    named: float = 0.2,
    transitive: float = 0.8,
) -> Clause:
    """A random clause; the arguments are probabilities of its parts."""
    subject = draw_phrase(rng, ACTORS, adjective=adjective, named=named)
    target = None
    if rng.random() < transitive:
        others = tuple(noun for noun in (ACTORS if rng.random() < 0.4 else THINGS) if noun != subject.noun)
        target = draw_phrase(rng, others, adjective=adjective)
    return Clause(
        subject,
        rng.choice(tuple(TRANSITIVE if target else INTRANSITIVE)),
        target,
        rng.choice(PLACES) if rng.random() < place else "",
        rng.choice(TIMES) if rng.random() < time else "",
        rng.random() < negated,
    )


def say(rng: Random, clause: Clause) -> str:
    """The clause in a random frame."""
    return rng.choice(FRAMES)(clause)


WORDS = (  # every word of the world in every form
    *NOUNS, *map(plural_of, NOUNS), *KINDS, *map(plural_of, KINDS), *NAMES,
    *VERBS, *(form for forms in VERBS.values() for form in forms),
    *ADJECTIVES, *GOOD, *BAD, *WORKS, *ASPECTS, *NEGATIONS, *DEGREES, *ADVERBS, *PLURAL_DETERMINERS,
)  # fmt: skip

"""Prompts and answers for instruction tuning, drawn without end from the corpus by a seed.

Every answer is one token. The reference task's own wording is among the prompts; its data is not.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pretraining.corpus import Passage, sentiment_of

REFERENCE = "Classify the sentiment of this review as positive, neutral, or negative:"
THREE_WAY = (
    REFERENCE,
    "Is this review positive, neutral, or negative?",
    "Decide whether the writer's view is negative, neutral or positive:",
    "What is the sentiment of the following text: positive, neutral or negative?",
    "Label the review as negative, neutral, or positive.",
    "Read what the patient wrote and classify the overall opinion as positive, neutral, or negative:",
)
MIXED = (
    "Is this review positive, mixed, or negative?",
    "Say if the opinion is positive, negative, or mixed:",
)
TWO_WAY = (
    "Is this text positive or negative?",
    "Classify the sentiment as positive or negative:",
    "Positive or negative?",
)
YES_NO = (
    "Would the writer recommend it? yes or no:",
    "Is the writer satisfied? Answer yes or no:",
    "Does the writer like it? yes or no:",
)
STARS = (
    "Rate this review from 1 to 10:",
    "How many stars out of 10 does the writer give?",
    "Predict the rating, 1 to 10:",
)
WORDS = (
    "Is it terrible, bad, okay, good or great?",
    "Choose the best word for the opinion, terrible, bad, okay, good or great:",
)
SUBJECTIVE = ("Is this an opinion or a fact?",)
TOPIC = (
    "What is this review about: film, book, electronics, kitchen or medicine?",
    "Name the topic: film, book, electronics, kitchen or medicine:",
)
QUESTION = (
    "Which kind of health question is this: information, symptoms, treatment, inheritance, frequency, causes, tests, "
    "research, outlook, risk or prevention?",
)
FIELD_NAMES = (
    ("Benefits", "Side Effects", "Comments"),
    ("Pros", "Cons", "Summary"),
    ("What was good", "What was bad", "Anything else"),
)
NOTHING = ("None", "none", "No side effects", "n/a", "Nothing", "none noticed")
_SENTENCE = re.compile(r"(?<=[.!?]) +")
_DOMAINS = {"books": "book", "dvd": "film", "electronics": "electronics", "kitchen_&_housewares": "kitchen"}
_QUESTIONS = {
    "information": "information", "symptoms": "symptoms", "treatment": "treatment", "inheritance": "inheritance",
    "frequency": "frequency", "causes": "causes", "exams and tests": "tests", "research": "research",
    "outlook": "outlook", "susceptibility": "risk", "prevention": "prevention",
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A prompt and its one-token answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class _Pools:
    """Training passages, ready to draw from."""

    drugs: Mapping[str, Sequence[Passage]]
    imdb: Mapping[str, Sequence[Passage]]
    amazon: Mapping[str, Sequence[Passage]]
    polar: Mapping[str, Sequence[Passage]]
    phrases: Sequence[Passage]
    subjectivity: Sequence[Passage]
    questions: Sequence[Passage]


def _by_label(passages: Sequence[Passage]) -> dict[str, list[Passage]]:
    groups: dict[str, list[Passage]] = {"positive": [], "neutral": [], "negative": []}
    for passage in passages:
        groups[passage.tag if passage.rating is None else sentiment_of(passage.rating)].append(passage)
    return groups


def _pools(passages: Sequence[Passage]) -> _Pools:
    own: dict[str, list[Passage]] = {}
    for passage in passages:
        if not passage.held_out:
            own.setdefault(passage.source, []).append(passage)
    return _Pools(
        drugs=_by_label(own["drugscom"]),
        imdb=_by_label(own["imdb"]),
        amazon=_by_label(own["amazon"]),
        polar=_by_label(own["pros_cons"] + own["product"]),
        phrases=own["sst2"]
        + own["sentence"]
        + own["sentence"]
        + own["product"]
        + own["product"]
        + own["pros_cons"][::3],
        subjectivity=own["subjectivity"],
        questions=[p for p in own["medquad_question"] if p.tag in _QUESTIONS],
    )


class ExampleStream:
    """Draws examples; the same seed gives the same stream."""

    def __init__(self, passages: Sequence[Passage], seed: int) -> None:
        self._pools = _pools(passages)
        self._rng = np.random.default_rng(seed)
        self._tasks: tuple[tuple[float, Callable[[], Example]], ...] = (
            (0.30, self._drug), (0.20, self._film), (0.14, self._product), (0.25, self._phrase),
            (0.04, self._patchwork), (0.03, self._topic), (0.02, self._subjectivity), (0.02, self._question),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Example]:
        """Examples without end."""
        chances = np.cumsum([chance for chance, _ in self._tasks])
        while True:
            yield self._tasks[int(np.searchsorted(chances, self._rng.random() * chances[-1], side="right"))][1]()

    def _pick(self, items: Sequence[str]) -> str:
        return items[int(self._rng.integers(len(items)))]

    def _passage(self, items: Sequence[Passage]) -> Passage:
        return items[int(self._rng.integers(len(items)))]

    def _crop(self, text: str, words: int) -> str:
        """Up to `words` words from the start, the end or the middle; the end of a review tells most."""
        parts = text.split(" ")
        if len(parts) <= words:
            return text
        place = self._rng.random()
        start = (
            0 if place < 0.25 else len(parts) - words if place < 0.7 else int(self._rng.integers(len(parts) - words))
        )
        return " ".join(parts[start : start + words])

    def _fields(self, text: str) -> str:
        """A review as three fields: its sentences dealt out in order, now and then one field empty or "None"."""
        names = FIELD_NAMES[0] if self._rng.random() < 0.7 else FIELD_NAMES[int(self._rng.integers(len(FIELD_NAMES)))]
        sentences = _SENTENCE.split(text)
        cuts = np.sort(self._rng.integers(0, len(sentences) + 1, size=2))
        parts = [" ".join(piece) for piece in np.split(np.array(sentences, dtype=object), cuts)]
        parts = [part or (self._pick(NOTHING) if self._rng.random() < 0.5 else "") for part in parts]
        return " ".join(f"{name}: {part}" for name, part in zip(names, parts, strict=True))

    def _rated(self, text: str, rating: int, fields: float) -> Example:
        """One rated review in one of the wordings; `fields` is the chance that it comes as fields."""
        label = sentiment_of(rating)
        body = self._fields(text) if self._rng.random() < fields else text
        chance = self._rng.random()
        if chance < 0.40:
            return Example(f"{REFERENCE}\n{body}", label)
        if chance < 0.58 or (label == "neutral" and chance < 0.75):
            return Example(f"{self._pick(THREE_WAY)}\n{body}", label)
        if chance < 0.80:
            return Example(f"{self._pick(STARS)}\n{body}", str(rating))
        if chance < 0.86:
            return Example(f"{self._pick(MIXED)}\n{body}", "mixed" if 4 <= rating <= 7 else label)
        if chance < 0.92:
            word = ("terrible", "terrible", "bad", "bad", "okay", "okay", "good", "good", "great", "great")[rating - 1]
            return Example(f"{self._pick(WORDS)}\n{body}", word)
        if label == "neutral":
            return Example(f"{self._pick(THREE_WAY)}\n{body}", label)
        if chance < 0.96:
            return Example(f"{self._pick(TWO_WAY)}\n{body}", label)
        return Example(f"{self._pick(YES_NO)}\n{body}", "yes" if label == "positive" else "no")

    def _drug(self) -> Example:
        label = ("positive", "neutral", "negative")[int(np.searchsorted((0.52, 0.66), self._rng.random()))]
        passage = self._passage(self._pools.drugs[label])
        return self._rated(self._crop(passage.text, 150), passage.rating or 0, fields=0.6)

    def _film(self) -> Example:
        passage = self._passage(self._pools.imdb["positive" if self._rng.random() < 0.5 else "negative"])
        text = self._crop(passage.text, int(self._rng.choice([40, 80, 130])))
        return self._rated(text, passage.rating or 0, fields=0.3)

    def _product(self) -> Example:
        passage = self._passage(self._pools.amazon["positive" if self._rng.random() < 0.5 else "negative"])
        text = self._crop(passage.text, int(self._rng.choice([50, 90, 130])))
        return self._rated(text, passage.rating or 0, fields=0.4)

    def _phrase(self) -> Example:
        passage = self._passage(self._pools.phrases)
        chance = self._rng.random()
        if chance < 0.5:
            return Example(f"{self._pick(THREE_WAY)}\n{passage.text}", passage.tag)
        if chance < 0.85:
            return Example(f"{self._pick(TWO_WAY)}\n{passage.text}", passage.tag)
        return Example(f"{self._pick(YES_NO)}\n{passage.text}", "yes" if passage.tag == "positive" else "no")

    def _patchwork(self) -> Example:
        """Praise and complaints of several people under Benefits and Side Effects; the answer names the balance."""
        good, bad = (int(n) for n in self._rng.integers(0, 4, size=2))
        praise = ". ".join(self._passage(self._pools.polar["positive"]).text for _ in range(good))
        blame = ". ".join(self._passage(self._pools.polar["negative"]).text for _ in range(bad))
        body = f"Benefits: {praise or self._pick(NOTHING)} Side Effects: {blame or self._pick(NOTHING)} Comments: "
        label = (
            "positive"
            if good > bad + 1 or (good and not bad)
            else "negative"
            if bad > good + 1 or (bad and not good)
            else "neutral"
        )
        return Example(f"{self._pick(THREE_WAY)}\n{body}", label)

    def _topic(self) -> Example:
        kind = self._rng.random()
        if kind < 0.3:
            return Example(
                f"{self._pick(TOPIC)}\n{self._crop(self._passage(self._pools.drugs['positive']).text, 40)}",
                "medicine",
            )
        if kind < 0.5:
            return Example(
                f"{self._pick(TOPIC)}\n{self._crop(self._passage(self._pools.imdb['positive']).text, 40)}",
                "film",
            )
        passage = self._passage(self._pools.amazon["positive"])
        return Example(f"{self._pick(TOPIC)}\n{self._crop(passage.text, 40)}", _DOMAINS[passage.tag])

    def _subjectivity(self) -> Example:
        passage = self._passage(self._pools.subjectivity)
        return Example(
            f"{self._pick(SUBJECTIVE)}\n{passage.text}", "opinion" if passage.tag == "subjective" else "fact"
        )

    def _question(self) -> Example:
        passage = self._passage(self._pools.questions)
        return Example(f"{self._pick(QUESTION)}\n{passage.text}", _QUESTIONS[passage.tag])

from rxtone.data.near_duplicates import Pair, conflicting_texts, exact_repeats, near_duplicates, shingles
from rxtone.data.reviews import Review

LONG = "this drug worked very well for my back pain and i will take it again next year"


def reviews_of(*texts: str, labels: str | None = None, first_row: int = 1) -> list[Review]:
    return [Review(text=text, label=labels[i] if labels else "a", row=first_row + i) for i, text in enumerate(texts)]


def test_shingles_are_word_triples() -> None:
    assert shingles("a b c d") == {"a b c", "b c d"}
    assert shingles("a b") == {"a b"}
    assert shingles("a a a a") == {"a a a"}


def test_exact_repeats_name_the_first_of_the_text() -> None:
    parts = {
        "train": reviews_of("Good!", "bad", "good", labels="aba"),
        "test": reviews_of("GOOD", "new", labels="bb"),
    }
    assert exact_repeats(parts) == [
        Pair("train", 1, "train", 3, 1.0, True),
        Pair("train", 1, "test", 1, 1.0, False),
    ]


def test_near_duplicates_are_found_with_their_exact_similarity() -> None:
    # 17 words make 15 triples. Another last word changes one: 14 shared of 16. Another word in the middle
    # changes three: 12 shared of 18, below the threshold.
    parts = {
        "train": reviews_of(LONG, LONG.replace("pain", "ache"), "something else entirely about another drug"),
        "test": reviews_of(LONG.replace("year", "month"), LONG.upper(), labels="ba"),
    }
    assert near_duplicates(parts, 0.8) == [Pair("train", 1, "test", 1, 0.875, False)]
    assert [pair.similarity for pair in near_duplicates(parts, 0.6)] == [0.875, 0.6667]


def test_short_texts_are_near_only_when_equal() -> None:
    assert near_duplicates({"train": reviews_of("no", "none", "no side", "side no")}, 0.8) == []


def test_texts_with_different_labels_are_conflicts() -> None:
    assert conflicting_texts(reviews_of("x", "y", "X.", "y", labels="abba")) == [(1, 3), (2, 4)]
    assert conflicting_texts(reviews_of("x", "x", "y", labels="aab")) == []


def test_all_pairs_of_a_cluster_are_found() -> None:
    # 18 words, the last of which differs: 15 shared triples of 17.
    pairs = near_duplicates({"train": reviews_of(*(f"{LONG} number{i}" for i in range(40)))}, 0.8)
    assert len(pairs) == 40 * 39 // 2
    assert {pair.similarity for pair in pairs} == {round(15 / 17, 4)}


def test_druglib_repeats_and_near_duplicates(druglib_reviews: list[Review]) -> None:
    parts = {"train": druglib_reviews}
    repeats = exact_repeats(parts)
    assert len(repeats) == 31
    assert all(pair.same_label for pair in repeats)
    assert [(p.first_row, p.second_row) for p in near_duplicates(parts, 0.8)] == [
        (463, 2506),
        (229, 2183),
        (971, 1617),
    ]

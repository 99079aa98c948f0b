from rxtone.data.leaks import ColumnLeak, column_leak, label_mentions, rating_mentions
from rxtone.data.reviews import Review


def labelled(labels: str) -> list[Review]:
    return [Review(text=f"text {i}", label=label, row=i + 1) for i, label in enumerate(labels)]


def test_a_column_that_tells_the_label_is_found() -> None:
    assert column_leak(list("xxxyyy"), labelled("aaabbb"), "hint") == ColumnLeak("hint", 2, 1.0, 0.5)


def test_a_row_does_not_tell_its_own_label() -> None:
    # Every value is unique: the majority is said, and it is right in 2 of 3 rows.
    assert column_leak(list("xyz"), labelled("aab"), "id") == ColumnLeak("id", 3, 0.666667, 0.666667)
    # In each pair the other row has the other label.
    assert column_leak(list("xxyy"), labelled("abab"), "pair").accuracy == 0


def test_ratings_in_the_text_are_found() -> None:
    texts = [
        "I give it 8/10.",
        "9 out of 10",
        "5 stars",
        "took 2 of 3 pills",
        "on 8/10/2007 it began",
        "10 mg",
    ]
    # The date is counted too: this is a count to look into, not a filter.
    assert [rating_mentions([Review(text=text)]) for text in texts] == [1, 1, 1, 0, 1, 0]
    assert rating_mentions([Review(fields=(("A", "x"), ("B", "7/10")))]) == 1


def test_label_words_in_the_text_are_counted_by_label() -> None:
    reviews = [
        Review(text="Very positive!", label="positive"),
        Review(text="no positives", label="negative"),
        Review(fields=(("A", "positive and negative"),), label="negative"),
    ]
    assert label_mentions(reviews, ("positive", "negative")) == {
        "positive": {"positive": 1, "negative": 1},
        "negative": {"negative": 1},
    }

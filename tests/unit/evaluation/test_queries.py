"""Queries whose answers are known: how they are made, and how copies of a text do not make figures lie."""

from __future__ import annotations

import numpy as np
import pytest

from embedctl.errors import InputInvalid
from embedctl.evaluation import retrieval
from embedctl.evaluation.duplicates import NEARLY, first_alike, nearly_alike
from embedctl.evaluation.queries import Item, known_items, questions
from embedctl.evaluation.words import words

BODY = "the harbour office keeps a list of every ship that came in that day, with its cargo and its captain"


def item(number: int, text: str | None = None, title: str | None = None) -> Item:
    return Item(f"row-{number}", text or f"Ship number {number} came in. It carried {number} sacks. {BODY}", title)


def many(count: int, first: int = 0) -> list[Item]:
    """Items that are no near-duplicates of each other."""
    return [
        item(
            n,
            f"Ship number {n} came in today. " + " ".join(f"cargo{n * 31 + at} deck{n * 17 + at}" for at in range(12)),
        )
        for n in range(first, first + count)
    ]


def test_a_title_asks_for_its_body() -> None:
    """A row with a title is asked for by it; the text that is searched does not begin with it."""
    titled = [Item(one.id, f"Ships of day {n}\n{one.text}", f"Ships of day {n}") for n, one in enumerate(many(25))]
    made = known_items(titled)

    assert [query.text for query in made.queries][:2] == ["Ships of day 0", "Ships of day 1"]
    assert not any("Ships of day" in one.text for one in made.items)
    assert [query.targets for query in made.queries] == [(place,) for place in range(25)]
    assert "25 titles → bodies" in made.notes[0]


def test_headings_and_first_sentences_ask_for_the_rest() -> None:
    """Without a title a heading (Markdown, reStructuredText) asks, else the first sentence; what asks is left out."""
    texts = [
        Item("a", f"# Ships at night\n\n{BODY} a"),
        Item("b", f".. _ships:\n\n==============\nShips by day\n==============\n\n{BODY} bb"),
        Item("c", f"Short. This sentence is long enough. {BODY} ccc"),
        Item("d", f"船は今日の朝早くに港に入りました。荷物を運んでいます。{'積荷の一覧は港の事務所にあります。' * 4}"),
        Item("e", "No sentence ends here and nothing is left"),
    ]
    made = known_items([*texts, *many(25)])
    asked = {query.text: made.items[query.targets[0]] for query in made.queries}

    assert asked["Ships at night"].text == f"{BODY} a"
    assert asked["Ships by day"].text == f"{BODY} bb"
    assert asked["Short. This sentence is long enough."].text == f"{BODY} ccc"
    assert asked["船は今日の朝早くに港に入りました。荷物を運んでいます。"].id == "d"
    assert next(one.text for one in made.items if one.id == "e") == texts[4].text
    assert "2 headings → what follows, 27 first sentences → the rest" in made.notes[0]


def test_rows_of_the_same_text_are_one_item() -> None:
    """Copies, but for case, width and spaces, take one place, and whoever asks for one of them asks for all."""
    copies = [Item(f"copy-{n}", text) for n, text in enumerate(("ONE  text of\nmany words", "one text of many words"))]
    made = questions([*many(25), *copies], [(f"q {n}", f"row-{n}") for n in range(10)] + [("q", "copy-1")], "q.csv")

    assert (len(made.items), made.duplicates) == (26, 1)
    assert made.items[made.queries[-1].targets[0]].id == "copy-0"
    assert any("1 row has the text of another" in note for note in made.notes)


def test_near_duplicates_of_the_target_are_not_ranked() -> None:
    """What is nearly the target is left out of its queries' rankings, and of no other's; it is said how often."""
    near = [Item("near-1", f"{BODY} at noon"), Item("near-2", f"{BODY} at night"), Item("near-3", BODY)]
    made = questions([*many(25), *near], [(f"q {n}", f"row-{n}") for n in range(10)] + [("q", "near-1")], "q.csv")
    place = {one.id: at for at, one in enumerate(made.items)}

    assert made.queries[-1].left_out == {place["near-2"], place["near-3"]}
    assert made.near_duplicates == sum(bool(query.left_out) for query in made.queries) == 1
    assert any("80 % of three-word sequences" in note for note in made.notes)


def test_copies_change_no_figure() -> None:
    """A corpus in which every text stands three times is ranked as one in which it stands once."""
    once = many(30)
    thrice = [
        Item(f"{one.id}-{copy}", one.text.upper() if copy == 2 else one.text) for one in once for copy in range(3)
    ]
    figures = []
    for items in (once, thrice):
        made = known_items(items)
        wanted = [set(words(one.text)) for one in made.items]

        def scores(first: int, last: int, made=made, wanted=wanted):  # type: ignore[no-untyped-def]

            asked = [set(words(query.text)) for query in made.queries[first:last]]
            return np.array([[len(a & w) / (1 + at) for at, w in enumerate(wanted)] for a in asked], np.float32)

        figures.append(retrieval.quality(scores, made.queries).each["mrr"].tolist())

    assert figures[0] == figures[1]


def test_a_question_with_several_answers_is_left_out_or_asks_for_all() -> None:
    """A heading of several texts asks for none of them; a user's question with several ids asks for each."""
    same = [Item(f"same-{n}", f"# Introduction\n\n{BODY} {'x' * n} {n}{n} and {n} more of {n}") for n in range(3)]
    made = known_items([*same, *many(25)])
    asked = questions(many(25), [("ships", "row-3"), ("Ships", "row-1"), *((f"q{n}", "row-0") for n in range(9))], "q")

    assert "Introduction" not in [query.text for query in made.queries]
    assert any("1 query was left out" in note for note in made.notes)
    assert asked.queries[0].targets == (3, 1)


def test_near_is_a_share_of_three_word_sequences() -> None:
    """Jaccard of three-word sequences, exactly: found from NEARLY on, by brute force and by index alike."""
    texts = [f"{BODY} {' '.join('abcdefg'[:n])}" for n in range(7)] + ["", "a b", "a  B", BODY.upper()]

    def sequences(text: str) -> set[tuple[str, ...]]:
        said = words(text)
        return {tuple(said[at : at + 3]) for at in range(max(1, len(said) - 2))} if said else set()

    sets = [sequences(text) for text in texts]
    expected = [
        {j for j, b in enumerate(sets) if i != j and a | b and len(a & b) / len(a | b) >= NEARLY}
        for i, a in enumerate(sets)
    ]
    assert [set(one) for one in nearly_alike(texts)] == expected
    assert any(expected)
    assert first_alike(texts)[-2:] == [8, 0]


def test_too_few_are_refused() -> None:
    """Fewer than 20 different texts, or 10 queries, are refused; ids that no row has are named."""
    with pytest.raises(InputInvalid, match="19 different texts are too few"):
        known_items(many(19) + many(19))
    with pytest.raises(InputInvalid, match=r"0 different queries can be made of the texts: too few"):
        known_items([Item(str(n), f"no{n}") for n in range(30)])
    with pytest.raises(InputInvalid, match="3 different queries are too few"):
        questions(many(30), [("a", "row-1"), ("b", "row-1"), ("c", "row-2")], "q.csv")
    with pytest.raises(InputInvalid, match=r"q\.csv: no row with text has the id 'x', 'y', 'z' … \(4 such ids\)"):
        questions(many(30), [("a", "row-1"), *((f"b{n}", n) for n in "xyzw")], "q.csv")

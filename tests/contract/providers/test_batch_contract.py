"""Every promise of `_batch.py` over every protocol that has a Batch API, against the wire server."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from http.client import RemoteDisconnected
from typing import Any

import numpy as np
import pytest

from embedctl import providers
from embedctl.errors import ProviderError, ServerFailed, TextRefused
from embedctl.providers import _batch_entry
from embedctl.providers._batch import BatchPage, BatchState, LineResult, walked_back
from embedctl.providers._contract import RequestOptions
from tests.contract.providers.batching import CASES, TEXTS, Batches
from tests.contract.providers.test_contract import INPUT_TYPES, KEY, answered
from tests.support.wire.client import Wire, expected, hash_of, started

LOST = (ConnectionError, RemoteDisconnected, urllib.error.URLError)


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as running:
        yield running


@pytest.fixture(params=CASES)
def batches(server: Wire, request: pytest.FixtureRequest) -> Batches:
    server.reset()
    return Batches(server, request.param)


def in_order(results: list[LineResult], case_size: int) -> np.ndarray:
    """Vectors of all lines in the order of the texts: joined by line id, then by index."""
    rows = {}
    for one in results:
        assert one.kind == "answered", one
        assert one.answer is not None
        number = int(str(one.line_id).removeprefix("line-"))
        index = one.answer.index or range(len(one.answer.vectors))
        for place, row in zip(index, one.answer.vectors, strict=True):
            rows[number * case_size + place] = row
    return np.stack([rows[number] for number in sorted(rows)])


def test_every_batch_protocol_is_asked() -> None:
    """No protocol with a Batch API stays outside of this suite, and one that is refused says why."""
    having = {name for name in providers.PROTOCOLS if hasattr(providers.protocol(name), "BATCH")}

    assert having == set(CASES)
    for name in providers.PROTOCOLS:
        assert not (name in having and hasattr(providers.protocol(name), "BATCH_REFUSED"))


@pytest.mark.parametrize("base64", [False, True], ids=["float", "base64"])
def test_a_batch_from_upload_to_delete(batches: Batches, base64: bool) -> None:
    """Upload, create, status, results: each text has its vector, bit for bit, and each line the tokens of its bill."""
    file = batches.upload("ec-77", batches.lines(base64=base64))
    assert (file.mark, file.ready) == ("ec-77", True)

    outcome = batches.create("ec-77", file.id, base64=base64)
    assert outcome.batch is not None
    ended = batches.state(outcome.batch.id)
    results = batches.results(ended)

    assert (outcome.kind, outcome.batch.mark, outcome.batch.state) == ("accepted", "ec-77", "waiting")
    assert (ended.id, ended.mark, ended.state, ended.error_id) == (outcome.batch.id, "ec-77", "ended_done", None)
    np.testing.assert_array_equal(in_order(results, batches.case.per_line), expected(TEXTS, batches.case.model))
    assert sum(one.tokens or 0 for one in results) == batches.wire.billed()
    assert ended.lines_done == ended.lines_total == len(results)
    batches.delete(file.id)
    batches.delete(str(ended.output_id))
    batches.delete(file.id)  # what is gone is gone
    assert all(one["deleted"] for one in batches.wire.batches()["uploads"])


def test_deepinfra_goes_through_openais(server: Wire) -> None:
    """A place whose base URL has another tail is asked below it; the endpoint inside of the file stays the same."""
    server.reset()
    batches = Batches(server, "openai", at="deepinfra")

    results = batches.results(batches.ended())

    np.testing.assert_array_equal(in_order(results, 3), expected(TEXTS, batches.case.model))
    assert "/v1/openai/batches" in batches.request().url


def test_every_text_is_billed_once_at_the_batch_tier(batches: Batches) -> None:
    """What a batch did is on the invoice as batch, and nothing is online."""
    batches.ended()

    assert [batches.wire.bought(text) for text in TEXTS] == [{"standard": 0, "batch": 1}] * len(TEXTS)


def test_dimensions(batches: Batches) -> None:
    """A width that was asked for is sent, and comes back with length 1."""
    wide = batches.case.dimensions

    results = batches.results(batches.ended(dimensions=wide))

    found = in_order(results, batches.case.per_line)
    np.testing.assert_allclose(found, expected(TEXTS, batches.case.model, wide), rtol=0, atol=1e-6)


WIRE_TYPES = {
    "voyage": ["document", "query", None, None],
    "google": ["RETRIEVAL_DOCUMENT", "RETRIEVAL_QUERY", "CLASSIFICATION", "CLUSTERING"],
}


def test_input_types(batches: Batches) -> None:
    """Each input type is said in the provider's own words, or not at all; a strict server agrees with every option."""
    for number, input_type in enumerate(INPUT_TYPES):
        options: Any = {"input_type": input_type, "base64": True, "dimensions": batches.case.dimensions}
        batches.ended(f"ec-{number}", ["a"], **options)

    assert [one["input_type"] for one in batches.wire.truth()] == WIRE_TYPES.get(batches.name, [None] * 4)


def test_nothing_is_cut(server: Wire) -> None:
    """Voyage, which truncates unless told not to, is told not to in a batch, too."""
    server.reset()
    Batches(server, "voyage").made()

    assert server.batches()["batches"][0]["settings"]["truncation"] is False


def test_narrow_vectors_of_gemini_get_length_1(server: Wire) -> None:
    """What the API leaves to the client online it leaves to the client in a batch."""
    batches = Batches(server, "google")
    state = BatchState(id="b", output_id="f")
    (file,) = batches.module.batch_results(batches.place, "models/gemini-embedding-001", state)

    found = _batch_entry.line("google", b'{"key":"a","response":{"embedding":{"values":[3.0,4.0]}}}', file.request)

    assert found.answer is not None
    np.testing.assert_allclose(found.answer.vectors, [[0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("step", ["lost", "odd", {"status": 503, "made": True}, {"fault": "late", "seconds": 0}])
def test_a_create_whose_answer_is_lost_is_found_by_its_mark(batches: Batches, step: Any) -> None:
    """Whatever became of the answer: the list has exactly one batch with the mark, of the file it was made of."""
    batches.wire.plan(batch={"create": [step]})
    file = batches.upload("ec-1", batches.lines())

    try:
        outcome = batches.create("ec-1", file.id)
    except LOST:
        outcome = None

    assert outcome is None or outcome.kind == ("accepted" if isinstance(step, dict) and "fault" in step else "unknown")
    page = batches.page("ec-1")
    (found,) = [one for one in page.batches if one.mark == "ec-1"]
    assert (page.complete, found.input_id or file.id) == (True, file.id)
    assert batches.page("ec-2").complete


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 302])
def test_creates_of_unknown_outcome(batches: Batches, status: int) -> None:
    """An answer that says nothing of what was done is unknown, never rejected: the batch may be there."""
    batches.wire.plan(batch={"create": [{"status": status}]})

    outcome = batches.create("ec-1", batches.upload("ec-1", batches.lines()).id)

    assert (outcome.kind, outcome.batch) == ("unknown", None)
    assert outcome.error is not None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429])
def test_creates_that_are_rejected(batches: Batches, status: int) -> None:
    """A definite refusal is rejected: nothing is at risk."""
    batches.wire.plan(batch={"create": [{"status": status}]})

    outcome = batches.create("ec-1", batches.upload("ec-1", batches.lines()).id)

    assert outcome.kind == "rejected"
    assert batches.wire.batches()["batches"] == []


@pytest.mark.parametrize("how", [400, 429])
def test_too_much_in_flight_at_create(batches: Batches, how: int) -> None:
    """A create that is refused because too much is in flight says so, in each provider's words."""
    batches.wire.plan(batch={"enqueued_limit": 1, "enqueued_how": how})

    outcome = batches.create("ec-1", batches.upload("ec-1", batches.lines()).id)

    assert (outcome.kind, outcome.enqueued_refused, outcome.file_unseen) == ("rejected", True, False)


def test_too_much_in_flight_afterwards(batches: Batches) -> None:
    """A batch that fails because too much is in flight says so, and has bought nothing."""
    batches.wire.plan(batch={"enqueued_limit": 1})

    ended = batches.ended()

    assert (ended.state, ended.enqueued_refused, ended.file_unseen) == ("ended_failed", True, False)
    assert batches.results(ended) == []
    assert batches.wire.billed() == 0


def test_a_file_that_is_not_seen_yet(batches: Batches) -> None:
    """A create before its file is seen is rejected as that; so is the batch that fails for it later."""
    batches.wire.plan(batch={"create": ["unseen"], "each": {"ends": "failed", "code": "input_no_permissions"}})
    file = batches.upload("ec-1", batches.lines())

    outcome = batches.create("ec-1", file.id)
    ended = batches.state(batches.made("ec-2").id)

    assert (outcome.kind, outcome.file_unseen, outcome.enqueued_refused) == ("rejected", True, False)
    assert (ended.state, ended.file_unseen, ended.enqueued_refused) == ("ended_failed", True, False)


def test_lost_uploads_are_found_by_their_mark(batches: Batches) -> None:
    """An upload whose answer is lost stands in the list of files, with its size; one that was cut has another."""
    batches.wire.plan(batch={"upload": ["lost", "cut"]})
    content = batches.lines()
    for mark in ("ec-1", "ec-2"):
        with pytest.raises(LOST):
            batches.upload(mark, content)

    found = {one.mark: one.bytes for mark in ("ec-1", "ec-2") for one in batches.files(mark).files}

    assert found == {"ec-1": len(content), "ec-2": len(content) // 2}


def test_lists_are_walked(batches: Batches) -> None:
    """All pages of a list are walked by its cursor, each batch and each file stands there once."""
    batches.wire.plan(batch={"page": 2})
    for number in range(5):
        batches.made(f"ec-{number}")

    for read, named in ((batches.page, "batches"), (batches.files, "files")):
        marks, cursor, pages = [], None, 0
        while True:
            page = read("ec-2" if batches.module.BATCH.finds == "walk" else "", cursor)
            marks += [one.mark for one in getattr(page, named)]
            cursor, pages = page.cursor, pages + 1
            assert page.complete
            if cursor is None:
                break

        assert sorted(marks) == [f"ec-{number}" for number in range(5)]
        assert pages == 3


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_how_far_a_list_was_walked(batches: Batches, order: str) -> None:
    """A walk may end where whole pages lie before a moment only if the list is newest first; else at its end."""
    batches.wire.plan(batch={"page": 2, "order": order})
    for number in range(4):
        batches.made(f"ec-{number}")
    first = batches.page("ec-9")
    second = batches.page("ec-9", first.cursor)
    times = (400.0, 300.0, 200.0, 100.0) if order == "newest" else (100.0, 200.0, 300.0, 400.0)
    pages, at = [], iter(times)
    for page in (first, second):
        pages.append(replace(page, batches=tuple(replace(one, created_at=next(at)) for one in page.batches)))

    assert [one.mark for page in pages for one in page.batches] == [
        f"ec-{number}" for number in (range(3, -1, -1) if order == "newest" else range(4))
    ]
    assert walked_back(pages, 250.0) == (order == "newest")
    assert not walked_back(pages[:1], 250.0)
    assert not walked_back(pages, 150.0)


def test_a_walk_that_says_nothing_of_its_order() -> None:
    """Batches of one moment, of none, or a single one say nothing of the order: the walk goes on."""
    old, older, timeless = (BatchState(id=f"b-{number}", created_at=number or None) for number in (20.0, 10.0, 0.0))

    for entries in ((), (old,), (old, old), (old, timeless), (timeless, timeless), (older, old), (old, older, old)):
        assert not walked_back([BatchPage(batches=entries)], 100.0)
    assert not walked_back([], 100.0)
    assert not walked_back([BatchPage(batches=(old, older)), BatchPage()], 100.0)
    assert walked_back([BatchPage(batches=(old, older))], 100.0)


def test_lists_that_lag(batches: Batches) -> None:
    """A batch may be missing from the list at first: that list is complete, and proves nothing yet."""
    batches.wire.plan(batch={"each": {"lag_lists": 1}})
    batches.made("ec-1")

    assert [one.mark for one in batches.page("ec-1").batches] == []
    assert [one.mark for one in batches.page("ec-1").batches] == ["ec-1"]


@pytest.mark.parametrize("step", [{"status": 500}, "cut", {"status": 404}])
def test_lists_that_fail(batches: Batches, step: Any) -> None:
    """A list that cannot be had, or is cut, is an error: it is no proof of absence."""
    batches.wire.plan(batch={"list": [step]})

    with pytest.raises(ProviderError):
        batches.page("ec-1")


def test_two_batches_with_one_mark(batches: Batches) -> None:
    """Two batches of one mark are both in the list."""
    batches.wire.plan(batch={"create": ["twice"]})
    with pytest.raises(LOST):
        batches.made("ec-1")

    first, second = batches.page("ec-1").batches

    assert first.mark == second.mark == "ec-1"
    assert first.id != second.id


def test_waiting(batches: Batches) -> None:
    """Until it is over a batch is waiting, whatever word the provider has for it."""
    batches.wire.plan(batch={"each": {"polls": 3, "words": ["queued_for_review", "validating", "?"]}})
    made = batches.made()

    found = [batches.state(made.id) for _ in range(4)]

    assert [one.state for one in found] == ["waiting"] * 3 + ["ended_done"]
    assert [one.ended for one in found] == [False] * 3 + [True]


def test_cancel(batches: Batches) -> None:
    """A cancelled batch is asked until it is over; what was done is read and billed, the rest was cut off."""
    batches.wire.plan(batch={"each": {"polls": 9, "cancel_polls": 1}})
    made = batches.made()

    batches.cancel(made.id)
    states = [batches.state(made.id) for _ in range(2)]

    assert [one.state for one in states] == ["waiting", "ended_cancelled"]
    kinds = [one.kind for one in batches.results(states[1])]
    assert kinds.count("answered") == sum(
        line["outcome"] == "done" for line in batches.wire.batches()["batches"][0]["lines"]
    )
    assert set(kinds) == {"answered", "cut_off"}


def test_a_cancel_that_comes_too_late(batches: Batches) -> None:
    """A batch that is done all the same is done; one that refuses the cancel raises."""
    batches.wire.plan(batch={"batches": [{"polls": 9, "cancel": "completed"}, {"polls": 9, "cancel": "refused"}]})
    done, refused = batches.made("ec-1"), batches.made("ec-2")

    batches.cancel(done.id)

    assert batches.state(done.id).state == "ended_done"
    with pytest.raises(ProviderError):
        batches.cancel(refused.id)


def test_half_of_an_expired_batch(batches: Batches) -> None:
    """An expired batch says so; its done lines are answered, the others cut off for a passing reason."""
    batches.wire.plan(batch={"each": {"ends": "expired"}})

    ended = batches.ended()
    results = batches.results(ended)

    if batches.name == "google":
        assert (ended.state, results) == ("ended_expired", [])
        return
    assert ended.state == ("ended_done" if batches.name == "voyage" else "ended_expired")
    assert {one.kind for one in results} == {"answered", "cut_off"}
    assert all(isinstance(one.error, ServerFailed) for one in results if one.kind == "cut_off")
    assert sum(one.tokens or 0 for one in results) == batches.wire.billed()


def test_one_bad_text_refuses_its_line(batches: Batches) -> None:
    """A bad text refuses the line that it stands in, which is told from a line that failed; the others are answered."""
    batches.wire.plan(poison=["zeta"])

    results = {one.line_id: one for one in batches.results(batches.ended())}

    bad = f"line-{TEXTS.index('zeta') // batches.case.per_line}"
    assert results[bad].kind == "refused"
    assert isinstance(results[bad].error, TextRefused)
    assert {one.kind for name, one in results.items() if name != bad} == {"answered"}


def test_a_batch_of_errors_alone(batches: Batches) -> None:
    """A completed batch may have no answer at all: every line failed for a passing reason."""
    batches.wire.plan(batch={"each": {"fails": 1.0, "empty_ids": True}})

    ended = batches.ended()

    assert ended.state == "ended_done"
    assert {one.kind for one in batches.results(ended)} == {"cut_off"}
    assert batches.wire.billed() == 0


def test_order_is_nobodys(batches: Batches) -> None:
    """Shuffled results are joined by their line ids; a line that stands there twice is there twice."""
    batches.wire.plan(batch={"each": {"output": ["shuffled"]}})
    size = batches.case.per_line

    found = in_order(batches.results(batches.ended()), size)
    batches.wire.plan(batch={"each": {"output": ["duplicated"]}})
    twice = [one.line_id for one in batches.results(batches.ended("ec-2"))]

    np.testing.assert_array_equal(found, expected(TEXTS, batches.case.model))
    assert twice.count(twice[0]) == 2


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("truncated", {"answered", "unreadable"}),
        ("unparsable", {"answered", "unreadable"}),
        ("empty_ids", {"answered", "unreadable"}),
        ("usage_missing", {"answered"}),
        ("bare", {"answered"}),
        ("nan", {"answered", "unreadable"}),
        ("null", {"answered", "unusable"}),
        ("unknown_id", {"answered"}),
    ],
)
def test_lines_that_are_not_as_they_should_be(batches: Batches, fault: str, kinds: set[str]) -> None:
    """A bad line is a bad line: no exception, and nothing of the others is lost."""
    batches.wire.plan(batch={"each": {"output": [fault]}})

    results = batches.results(batches.ended())

    assert {one.kind for one in results} == kinds
    if fault == "usage_missing":
        assert {one.tokens for one in results} == {None}
    if fault == "unknown_id":
        assert "nobody-asked-this" in {one.line_id for one in results}


def test_an_unusable_line_says_its_tokens(batches: Batches) -> None:
    """A line that cannot be used was bought: its tokens are known."""
    batches.wire.plan(batch={"each": {"output": ["null"]}})

    (bad,) = [one for one in batches.results(batches.ended()) if one.kind == "unusable"]

    assert bad.tokens
    assert bad.line_id


def test_content_that_is_late(batches: Batches) -> None:
    """A file that is named may be a 404 at first: that is an error of its request, and the next one has it."""
    batches.wire.plan(batch={"each": {"missing": 1}})
    ended = batches.ended()
    (file,) = batches.module.batch_results(batches.place, batches.case.model, ended)

    status, headers, body = answered(file.request)
    error = _batch_entry.refused(batches.name, status, headers, body, file.request)

    assert error.status == status
    assert _batch_entry.not_there(batches.name, status)
    assert {one.kind for one in batches.results(ended)} == {"answered"}


def test_content_that_is_elsewhere(batches: Batches) -> None:
    """Content behind a link is fetched from there, once, and without the key; a link to nowhere is none."""
    batches.wire.plan(batch={"batches": [{"redirect": True}, {"redirect": "http://127.0.0.1:9/x"}]})
    ended = batches.ended("ec-1")
    nowhere = batches.ended("ec-2")

    assert {one.kind for one in batches.results(ended)} == {"answered"}
    (file,) = batches.module.batch_results(batches.place, batches.case.model, nowhere)
    status, headers, _ = answered(file.request)
    assert (status, _batch_entry.moved(status, headers, file.request)) == (302, None)


def test_results_have_an_end(batches: Batches) -> None:
    """A batch that is over says until when its results are kept."""
    made = batches.made()
    ended = batches.state(made.id)

    assert (made.results_until, made.ended_at) == (None, None)
    assert ended.ended_at is not None
    assert ended.results_until == ended.ended_at + batches.module.BATCH.results_kept_s


def test_counts_that_lie(batches: Batches) -> None:
    """Counts are handed on as they are said: whoever books compares them."""
    batches.wire.plan(batch={"each": {"counts": 7}})

    ended = batches.ended()

    assert ended.lines_done == len(batches.results(ended)) + 7


def test_the_key_stands_in_headers_alone(batches: Batches) -> None:
    """Every request of a batch carries the key in a header, and nowhere else."""
    module, place, state = batches.module, batches.place, batches.ended()
    asked = [
        module.batch_upload(place, "ec-1", batches.lines()),
        module.batch_files(place, "ec-1", None),
        module.batch_create(place, batches.case.model, "file-1", "ec-1", RequestOptions()),
        module.batch_status(place, "batch-1"),
        module.batch_list(place, "ec-1", None),
        module.batch_cancel(place, "batch-1"),
        module.batch_delete(place, "file-1"),
        *(one.request for one in module.batch_results(place, batches.case.model, state)),
    ]

    for one in asked:
        assert KEY not in one.url
        assert KEY.encode() not in one.body
        assert any(KEY in value for value in one.headers.values())


def test_refused_keys(batches: Batches) -> None:
    """A key that is refused is rejected at create, and raised everywhere else."""
    file = batches.upload("ec-1", batches.lines())
    batches.wire.plan(keys=["another"])

    assert batches.create("ec-1", file.id).kind == "rejected"
    for call in (batches.page, batches.files, batches.state):
        with pytest.raises(ProviderError):
            call("ec-1")


def test_surrogates(batches: Batches) -> None:
    """A text that is no Unicode is refused before anything is sent."""
    with pytest.raises(TextRefused):
        batches.lines(["\ud800"])


def test_line_ids_come_back(batches: Batches) -> None:
    """Line ids of 64 characters of every allowed kind come back as they were sent."""
    name = "Aa0_-" * 12 + "zZ9_"
    line = batches.module.batch_line(batches.place, batches.case.model, name, ["a"], RequestOptions())
    outcome = batches.create("ec-1", batches.upload("ec-1", line).id)
    assert outcome.batch is not None

    (result,) = batches.results(batches.state(outcome.batch.id))

    assert result.line_id == name


def test_the_truth_of_a_batch(batches: Batches) -> None:
    """The server knows each line by its texts."""
    batches.ended()

    hashes = [one for line in batches.wire.truth() for one in line["text_hashes"]]
    assert hashes == [hash_of(text) for text in TEXTS]

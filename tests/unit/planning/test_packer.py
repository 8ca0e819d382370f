"""Packing texts into requests: within the limits, in order, one workspace each."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from embedctl.planning.packer import (
    ANSWER_BYTES_IN_FLIGHT,
    PackedRequest,
    Packer,
    estimated_tokens,
    packed_limits,
    part_of,
)
from embedctl.records import Limits, text_hash

TEXTS = st.lists(st.tuples(st.text(min_size=1, max_size=40), st.sampled_from(["a", "b", "c"])), max_size=60)
LIMITS = st.builds(
    Limits,
    items=st.none() | st.integers(1, 9),
    tokens=st.none() | st.integers(1, 60),
    bytes=st.none() | st.integers(1, 200),
)


def packed(texts: list[tuple[str, str]], limits: Limits, *, counted: bool = False) -> list[PackedRequest]:
    """All requests for (text, workspace) pairs; ordinal = place in the list."""
    packer = Packer(limits)
    found: list[PackedRequest] = []
    for ordinal, (text, workspace) in enumerate(texts):
        size = len(text.encode())
        full = packer.add(
            text,
            text_hash(text),
            ordinal,
            content_bytes=size,
            tokens=len(text) if counted else None,
            workspace=workspace,
        )
        found += [full] if full else []
    return [*found, *packer.rest()]


@given(TEXTS, LIMITS, st.booleans())
def test_no_request_is_over_a_limit_unless_it_is_a_single_text(
    texts: list[tuple[str, str]], limits: Limits, counted: bool
) -> None:
    """A request keeps the limits of items, tokens and bytes; only a text that is over them alone stands alone."""
    for one in packed(texts, limits, counted=counted):
        request = one.request
        sizes = [len(str(text)) if counted else estimated_tokens(len(str(text).encode())) for text in request.texts]

        assert limits.items is None or len(request) <= limits.items
        assert len(request) == 1 or limits.tokens is None or sum(sizes) <= limits.tokens
        assert len(request) == 1 or limits.bytes is None or request.content_bytes <= limits.bytes


@given(TEXTS, LIMITS)
def test_every_text_goes_out_once_in_order_with_its_hash(texts: list[tuple[str, str]], limits: Limits) -> None:
    """Each text is in exactly one request, with its own ordinal and hash; within a workspace the order is kept."""
    requests = packed(texts, limits)
    ordinals = [ordinal for one in requests for ordinal in one.ordinals]

    assert sorted(ordinals) == list(range(len(texts)))
    for name in "abc":
        own = [o for one in requests if one.request.workspace_id == name for o in one.ordinals]
        assert own == sorted(own)
    for one in requests:
        assert [texts[o][0] for o in one.ordinals] == list(one.request.texts)
        assert one.request.hashes == b"".join(text_hash(texts[o][0]) for o in one.ordinals)


@given(TEXTS, LIMITS)
def test_a_request_never_mixes_workspaces(texts: list[tuple[str, str]], limits: Limits) -> None:
    """All texts of a request are paid by the request's workspace."""
    for one in packed(texts, limits):
        assert {texts[ordinal][1] for ordinal in one.ordinals} == {one.request.workspace_id}


@given(TEXTS, LIMITS)
def test_requests_are_numbered_from_zero_and_each_is_an_operation(texts: list[tuple[str, str]], limits: Limits) -> None:
    """Numbers are dense in the order of packing, and no two requests share an operation id."""
    requests = packed(texts, limits)

    assert [one.number for one in requests] == list(range(len(requests)))
    assert len({one.request.operation_id for one in requests}) == len(requests)


blocks = st.lists(
    st.tuples(
        st.sampled_from(["default", "acme"]),
        st.lists(st.tuples(st.text(max_size=8), st.none() | st.integers(0, 12)), max_size=8),
        LIMITS,
    ),
    max_size=6,
)


@given(blocks)
def test_texts_taken_together_make_the_requests_of_texts_taken_one_by_one(
    blocks: list[tuple[str, list[tuple[str, int | None]], Limits]],
) -> None:
    """`add_all` gives the requests that `add` gives: also where limits change and workspaces take turns."""
    together, one_by_one = Packer(Limits()), Packer(Limits())
    requests: tuple[list[PackedRequest], list[PackedRequest]] = ([], [])
    ordinal = 0
    for workspace, texts, limits in blocks:
        together.limits = one_by_one.limits = limits
        sizes = [len(text.encode()) for text, _ in texts]
        hashes = [text_hash(text) for text, _ in texts]
        requests[0].extend(
            together.add_all(
                [text for text, _ in texts],
                hashes,
                ordinal,
                content_bytes=sizes,
                tokens=[tokens for _, tokens in texts],
                workspace=workspace,
            )
        )
        for (text, tokens), digest, size in zip(texts, hashes, sizes, strict=True):
            full = one_by_one.add(text, digest, ordinal, content_bytes=size, tokens=tokens, workspace=workspace)
            requests[1].extend([] if full is None else [full])
            ordinal += 1
    requests[0].extend(together.rest())
    requests[1].extend(one_by_one.rest())

    shown = [[replace(one, request=replace(one.request, operation_id="")) for one in found] for found in requests]
    assert shown[0] == shown[1]


def test_requests_are_filled_to_the_limit() -> None:
    """Ten texts with at most four a request make three requests of 4, 4 and 2."""
    requests = packed([(f"text {i}", "a") for i in range(10)], Limits(items=4))

    assert [len(one.request) for one in requests] == [4, 4, 2]


def test_what_is_left_is_given_back_in_the_order_of_the_workspaces() -> None:
    """The last requests come in the order in which their workspaces came first."""
    requests = packed([("x", "b"), ("y", "a"), ("z", "b")], Limits())

    assert [one.request.workspace_id for one in requests] == ["b", "a"]


def test_tokens_are_only_told_when_all_are_known() -> None:
    """A request knows its tokens only when those of every text were counted; an estimate for packing never counts."""
    packer = Packer(Limits())
    packer.add("one", text_hash("one"), 0, content_bytes=3, tokens=1)
    packer.add("two three", text_hash("two three"), 1, content_bytes=9)
    (mixed,) = packer.rest()
    (counted,) = packed([("one", "a"), ("two", "a")], Limits(), counted=True)

    assert (mixed.request.tokens, mixed.request.tokens_each) == (None, None)
    assert (counted.request.tokens, counted.request.tokens_each) == (6, (3, 3))


def test_a_run_packs_to_the_smallest_of_model_user_and_memory() -> None:
    """Items: the least of the model's limit, --batch-size and what memory holds; tokens are kept to 80 %."""
    model = Limits(items=2048, tokens=300_000, bytes=5_000_000)

    assert packed_limits(model, batch_size=None, dimensions=1536, concurrency=1) == Limits(
        items=2048, tokens=240_000, bytes=5_000_000
    )
    assert packed_limits(model, batch_size=96, dimensions=1536, concurrency=1).items == 96
    assert packed_limits(Limits(), batch_size=None, dimensions=10**9, concurrency=10**6).items == 1


@given(st.integers(1, 8192), st.integers(1, 256))
def test_answers_in_flight_fit_into_memory(dimensions: int, concurrency: int) -> None:
    """All answers in flight together, vectors and base64 of them, stay below their share of memory."""
    items = packed_limits(Limits(), batch_size=None, dimensions=dimensions, concurrency=concurrency).items or 0
    bytes_in_flight = concurrency * items * (dimensions * 4 + dimensions * 4 * 4 // 3)

    assert items == 1 or bytes_in_flight <= ANSWER_BYTES_IN_FLIGHT


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=20), st.data(), st.booleans())
def test_halves_of_a_request_are_the_request(texts: list[str], data: st.DataObject, counted: bool) -> None:
    """Cut anywhere, both parts together hold the same texts, hashes, bytes and tokens, as the same operation."""
    (whole,) = packed([(text, "a") for text in texts], Limits(), counted=counted)
    request = whole.request
    cut = data.draw(st.integers(0, len(request)))
    first, second = part_of(request, 0, cut), part_of(request, cut, len(request))

    assert [*first.texts, *second.texts] == list(request.texts)
    assert first.hashes + second.hashes == request.hashes
    assert first.content_bytes + second.content_bytes == request.content_bytes
    assert {first.operation_id, second.operation_id} == {request.operation_id}
    assert {first.workspace_id, second.workspace_id} == {request.workspace_id}
    if counted and 0 < cut < len(request):
        assert (first.tokens or 0) + (second.tokens or 0) == request.tokens
        assert (first.tokens_each or ()) + (second.tokens_each or ()) == request.tokens_each


def test_halves_of_token_arrays_share_the_bytes() -> None:
    """Parts of a request of token arrays stay one, and take their share of its bytes."""
    packer = Packer(Limits(), token_arrays=True)
    for ordinal in range(4):
        packer.add([1, 2, 3], text_hash(str(ordinal)), ordinal, content_bytes=12, tokens=3)
    (whole,) = packer.rest()
    half = part_of(whole.request, 1, 3)

    assert half.token_arrays
    assert (half.content_bytes, half.tokens, list(half.texts)) == (24, 6, [[1, 2, 3], [1, 2, 3]])

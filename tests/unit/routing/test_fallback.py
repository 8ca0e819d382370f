"""Who is asked next, and what is said when nobody is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.errors import (
    KeyRejected,
    ModelNotFound,
    NoProviderNow,
    NotAllowed,
    ProviderError,
    QuotaExhausted,
    RedirectRefused,
)
from embedctl.routing.fallback import (
    AllowList,
    Availability,
    ChainEntry,
    Excluded,
    Nobody,
    allowed,
    choose,
    fitting,
    require,
)

OPENAI = ChainEntry(provider="openai", model="small", canonical="openai/small", space_id="s1")
AZURE = ChainEntry(provider="eu", model="my-deployment", canonical="openai/small", space_id="s1")
REDUCED = ChainEntry(provider="us", model="small", canonical="openai/small", space_id="s2")
LOCAL = ChainEntry(provider="onnx", model="minilm", canonical="sentence-transformers/minilm", space_id="s3")
STRANGER = ChainEntry(provider="local_api", model="something")
CHAIN = [OPENAI, AZURE, REDUCED, LOCAL, STRANGER]


# ── spaces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_same_space_keeps_hosts_of_the_same_weights_and_space() -> None:
    """`same-space` keeps other hosts of the same model in the same space, and says why the others are left out."""
    kept, left_out = fitting(CHAIN, "same-space")

    assert kept == [OPENAI, AZURE]
    assert [str(each) for each in left_out] == [
        "us:small: the same model, but its vectors are of another space",
        "onnx:minilm: another model (sentence-transformers/minilm, not openai/small)",
        "local_api:something: nobody knows which weights local_api:something serves, so its vectors cannot be compared",
    ]


def test_a_model_that_nobody_knows_has_no_fallback_in_its_space() -> None:
    """A model that the catalog does not know can be compared with nothing."""
    kept, left_out = fitting([STRANGER, OPENAI], "same-space")

    assert (kept, [each.entry for each in left_out]) == ([STRANGER], [OPENAI])


def test_any_keeps_all_until_the_output_has_a_space() -> None:
    """`any` lets another model take over before the first vector is written, and never after it."""
    assert fitting(CHAIN, "any") == (CHAIN, [])

    kept, left_out = fitting(CHAIN, "any", output_space_id="s3")

    assert kept == [LOCAL]
    assert all(each.reason == "its vectors are of another space than the output's" for each in left_out)


def test_an_output_of_another_space_leaves_out_even_the_first() -> None:
    """A host asked for first is left out too when the output holds vectors of another space."""
    assert fitting([OPENAI], "same-space", output_space_id="s9")[0] == []


def test_off_asks_one_provider() -> None:
    """`off` keeps the entry asked for alone."""
    kept, left_out = fitting(CHAIN, "off")

    assert kept == [OPENAI]
    assert {each.reason for each in left_out} == {"--fallback off"}


@given(st.lists(st.sampled_from(CHAIN), max_size=8), st.sampled_from(["same-space", "any", "off"]))
def test_no_mode_ever_mixes_spaces(chain: list[ChainEntry], mode: str) -> None:
    """Whatever the chain, an output of a known space is offered only entries that are known to be of it."""
    kept, left_out = fitting(chain, mode, output_space_id="s1")  # type: ignore[arg-type]

    assert {entry for entry in kept if entry.space_id not in ("s1", None)} == set()
    assert {entry for entry in kept if entry.space_id is None} <= set(chain[:1])
    assert {*kept, *(each.entry for each in left_out)} == set(chain)


# ── allow-lists ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["small", "openai/small", "openai:small", "openai:openai/small"])
def test_a_model_is_allowed_by_any_of_its_names(name: str) -> None:
    """An allow-list names a model as asked for, on the wire or canonically, with or without its provider."""
    assert allowed([OPENAI], [AllowList(rule="[allow]", models=frozenset({name}))])[0] == [OPENAI]


def test_every_list_must_allow() -> None:
    """An entry takes part when every list allows it; the first that does not is named."""
    lists = [
        AllowList(rule="[allow]", providers=frozenset({"openai", "eu"})),
        AllowList(rule="[workspaces.acme]", providers=frozenset({"eu"})),
        AllowList(rule="everything"),
    ]
    kept, left_out = allowed([OPENAI, AZURE, LOCAL], lists)

    assert kept == [AZURE]
    assert [each.reason for each in left_out] == [
        "provider 'openai' is not in providers of [workspaces.acme]",
        "provider 'onnx' is not in providers of [allow]",
    ]


def test_an_empty_list_allows_nothing() -> None:
    """An empty list is a list: it allows nothing, unlike an absent one."""
    assert allowed(CHAIN, [AllowList(rule="x", models=frozenset())])[0] == []
    assert allowed(CHAIN, [AllowList(rule="x")])[0] == CHAIN


def test_asking_for_what_is_forbidden_ends_with_77_and_the_rule() -> None:
    """The entry asked for by name is not skipped silently: exit 77, and which rule."""
    with pytest.raises(NotAllowed, match=r"openai:small is not allowed: model 'small' is not in models of \[allow\]"):
        require(OPENAI, [AllowList(rule="[allow]", models=frozenset({"minilm"}))])

    require(LOCAL, [AllowList(rule="[allow]", models=frozenset({"minilm"}))])


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_that_is_ready_is_asked() -> None:
    """The chain's order decides among those that are ready: back to the first as soon as it is."""
    assert choose([OPENAI, AZURE], {}) == OPENAI
    assert choose([OPENAI, AZURE], {OPENAI: Availability(ready_in_s=3)}) == AZURE
    assert choose([OPENAI, AZURE], {OPENAI: Availability(dead=KeyRejected("no"))}) == AZURE
    assert choose([OPENAI, AZURE], {OPENAI: Availability(), AZURE: Availability()}) == OPENAI


def test_a_probe_goes_where_only_a_hint_says_to_wait() -> None:
    """Nobody ready: one whose remembered hint still allows a probe is tried; a ready one comes before it."""
    held = Availability(ready_in_s=900, probe=True)

    assert choose([OPENAI, AZURE], {OPENAI: Availability(ready_in_s=5), AZURE: held}) == AZURE
    assert choose([OPENAI, AZURE], {OPENAI: held}) == AZURE


def test_nobody_now_says_when_somebody_is_back() -> None:
    """With all waiting the error is temporary, exit 75, and names the earliest return; the dead do not count."""
    nobody = choose(
        [OPENAI, AZURE, LOCAL],
        {
            OPENAI: Availability(ready_in_s=40, reason="circuit open"),
            AZURE: Availability(ready_in_s=7, reason="throttled"),
            LOCAL: Availability(dead=ModelNotFound("no")),
        },
        left_out=[Excluded(STRANGER, "another model")],
    )

    assert isinstance(nobody, Nobody)
    assert isinstance(nobody.error, NoProviderNow)
    assert (nobody.ready_in_s, nobody.error.exit_code, nobody.error.retryable) == (7, 75, True)
    assert nobody.error.message == (
        "no provider is available; next retry: openai:small in 40 s (circuit open); "
        "eu:my-deployment in 7 s (throttled); not asked: local_api:something: another model"
    )
    assert nobody.error.details[1] == {"provider": "eu", "model": "my-deployment", "ready_in_s": 7}


@pytest.mark.parametrize(
    ("causes", "code"),
    [
        ([QuotaExhausted("q")], 69),
        ([QuotaExhausted("q"), KeyRejected("k")], 77),
        ([KeyRejected("k"), ModelNotFound("m"), QuotaExhausted("q")], 78),
        ([QuotaExhausted("q"), RedirectRefused("r")], 76),
    ],
)
def test_all_dead_ends_with_the_gravest_cause(causes: list[ProviderError], code: int) -> None:
    """With all dead the gravest cause is the error; the others are named behind it."""
    chain = CHAIN[: len(causes)]
    nobody = choose(chain, {entry: Availability(dead=cause) for entry, cause in zip(chain, causes, strict=True)})

    assert isinstance(nobody, Nobody)
    assert nobody.ready_in_s is None
    assert nobody.error.exit_code == code
    assert all(cause.message in nobody.error.message for cause in causes)


def test_an_empty_chain_says_what_was_left_out() -> None:
    """A chain that space and lists leave empty says so and why."""
    nobody = choose([], {}, left_out=[Excluded(LOCAL, "another model")])

    assert isinstance(nobody, Nobody)
    assert nobody.error.message == "no provider is left to ask; not asked: onnx:minilm: another model"


standings = st.builds(
    Availability,
    dead=st.sampled_from([None, None, KeyRejected("k"), QuotaExhausted("q")]),
    ready_in_s=st.sampled_from([0.0, 0.0, 5.0, 60.0]),
    probe=st.booleans(),
)


@given(st.lists(st.sampled_from(CHAIN), unique=True), st.dictionaries(st.sampled_from(CHAIN), standings))
def test_the_dead_are_never_asked(chain: list[ChainEntry], states: dict[ChainEntry, Availability]) -> None:
    """Whatever the standings: never a dead entry, never one that must wait without a probe, and none only when so."""
    choice = choose(chain, states)
    usable = [entry for entry in chain if states.get(entry, Availability()).dead is None]
    ready = [entry for entry in usable if (now := states.get(entry, Availability())).ready_in_s == 0 or now.probe]

    assert isinstance(choice, Nobody) == (not ready)
    assert isinstance(choice, Nobody) or choice in ready

"""Operators at work through the service: what they see, what they may, and what the log has of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from embedctl.tokens import ASSETS
from tests.support.hub import hub
from tests.support.serving import MODEL, Reply, Serving, serving, until
from tests.support.wire.client import Wire

GUIDE = "/api/v1/embeddings"
KEY_OF_A_PLACE = "sk-a-place-0123456789abcdef"
PATHS = [
    ("GET", "/providers-config"),
    ("GET", "/circuit-breakers"),
    ("POST", "/circuit-breakers/openai/reset"),
    ("GET", "/metrics"),
    ("GET", "/cache"),
    ("DELETE", "/cache"),
    ("POST", "/models/warmup"),
    ("POST", "/models/download"),
    ("POST", "/providers/openai/test"),
]


class Operated(Serving):
    """A server, and an admin's key.

    Attributes:
        key_of: Role → a key.
    """

    key_of: dict[str, str]

    def act(self, method: str, path: str, body: Any = None, role: str = "admin", **headers: str) -> Reply:
        return self.ask(method, GUIDE + path, body, Authorization=f"Bearer {self.key_of[role]}", **headers)

    def acts(self) -> list[dict[str, Any]]:
        """Lines of the log about what admins did."""
        return [one for one in self.log() if one["event"] == "admin"]


@pytest.fixture(scope="module")
def server(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """A server with a place of its own, keys of all roles, and a hub from which `me/*` may be fetched."""
    files = {
        "onnx/model.onnx": (ASSETS / "minilm" / "model.onnx").read_bytes(),
        "tokenizer.json": (ASSETS / "minilm" / "tokenizer.json").read_bytes(),
        "config.json": json.dumps({"hidden_size": 384}).encode(),
    }
    settings = (
        '[serve]\ndownloads = ["me/*"]\n'
        f'[providers.place]\nprotocol = "openai"\nbase_url = "{wire.base_url()}/secret-path"\n'
        'api_key_env = "PLACE_KEY"\nmodel = "own"\n'
    )
    with hub(files) as endpoint:
        folder = tmp_path_factory.mktemp("admin")
        with serving(folder, wire, settings=settings, HF_ENDPOINT=endpoint, PLACE_KEY=KEY_OF_A_PLACE) as found:
            found.__class__ = Operated
            found.key_of = {role: found.key("--role", role) for role in ("admin", "tenant", "metrics")}
            yield found


@pytest.fixture(autouse=True)
def fresh(wire: Wire) -> None:
    wire.reset()


# ── who may ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_admin_is_a_role_of_its_own(server: Operated, wire: Wire, method: str, path: str) -> None:
    """What operators do is 401 for strangers and 403 `admin_required` for every other role; nothing happens."""
    body = {"model": MODEL, "paid": True} if path == "/models/warmup" else {} if method == "POST" else None
    acts = len(server.acts())
    found = [server.ask(method, GUIDE + path, body)]
    found += [server.act(method, path, body, role) for role in ("tenant", "metrics")]

    assert [(one.status, one.code) for one in found] == [
        (401, "missing_key"), (403, "admin_required"), (403, "admin_required")
    ]  # fmt: skip
    assert wire.truth() == []
    assert len(server.acts()) == acts


def test_every_act_is_in_the_log(server: Operated) -> None:
    """Who did what, when and with what outcome: also what was refused."""
    key_id = server.key_of["admin"].split("_")[1]
    before = len(server.acts())
    server.embed("asked once", key=server.key_of["tenant"])
    server.act("POST", "/circuit-breakers/openai/reset")
    server.act("POST", "/circuit-breakers/nobody%0aforged/reset")
    server.act("DELETE", "/cache?model=no-such-model")
    server.act("POST", "/models/download", {"model": "../../etc/passwd"})
    until(lambda: len(server.acts()) >= before + 4)
    acts = server.acts()[before:]

    assert [(one["act"], one["outcome"]) for one in acts] == [
        ("reset", "done"), ("reset", "breaker_not_found"), ("clear_cache", "done"), ("download", "invalid_model")
    ]  # fmt: skip
    assert {one["key"] for one in acts} == {key_id}
    assert all(one["id"] and one["time"] and one["workspace"] == "acme" for one in acts)
    assert acts[1]["provider"] == "nobody?forged"
    assert server.key_of["admin"] not in (server.folder / "log").read_text()


def test_acts_are_rate_limited(wire: Wire, tmp_path: Path) -> None:
    """Who acts faster than thirty times a minute is 429 with when to come again; looking is not limited so."""
    with serving(tmp_path / "g", wire) as found:
        began = time.monotonic()
        replies = [found.ask("DELETE", f"{GUIDE}/cache")]
        while replies[-1].status == 200:
            replies.append(found.ask("DELETE", f"{GUIDE}/cache"))
        seconds = time.monotonic() - began

        assert 30 <= len(replies) - 1 <= 30 + seconds / 2
        assert replies[-1].status == 429
        assert int(replies[-1].headers["retry-after"]) >= 1
        assert found.ask("GET", f"{GUIDE}/circuit-breakers").status == 200


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_providers_have_no_keys_and_no_addresses(server: Operated) -> None:
    """Who is configured and what they serve; of a URL the host alone, of a key whether there is one."""
    reply = server.act("GET", "/providers-config")
    found = {one["name"]: one for one in reply.json["providers"]}

    assert (reply.json["default_provider"], reply.json["default_model"]) == ("onnx", "all-MiniLM-L6-v2")
    assert {name: found["place"][name] for name in ("models", "host", "key", "configured", "allowed")} == {
        "models": ["own"], "host": "127.0.0.1", "key": "set", "configured": True, "allowed": True,
    }  # fmt: skip
    assert MODEL in found["openai"]["models"]
    assert found["cohere"]["key"] == "missing"
    for secret in (KEY_OF_A_PLACE, "sk-provider", "secret-path", str(wire_port(server))):
        assert secret not in reply.body.decode()


def wire_port(server: Serving) -> str:
    return server.environment["OPENAI_BASE_URL"].split(":")[2].split("/")[0]


def test_circuits_are_shown_and_closed(wire: Wire, tmp_path: Path) -> None:
    """An open circuit has its failures, times, cause and settings; a reset closes it, and it is asked again."""
    with serving(tmp_path / "g", wire) as found:
        wire.plan(faults={"status": {"p": 1, "status": 503}})
        until(lambda: found.embed("ill").code == "circuit_open")
        ill = found.ask("GET", f"{GUIDE}/circuit-breakers").json["openai"]
        wire.plan()
        reset = found.ask("POST", f"{GUIDE}/circuit-breakers/openai/reset")
        well = found.ask("GET", f"{GUIDE}/circuit-breakers").json["openai"]
        served = found.embed("well again")

        assert ill.keys() >= {
            "name", "state", "failure_count", "success_count", "last_failure_time", "last_state_change_time",
            "half_open_calls", "current_recovery_timeout", "settings", "models",
        }  # fmt: skip
        assert (ill["name"], ill["state"], ill["success_count"], ill["half_open_calls"]) == ("openai", "open", 0, 0)
        assert ill["failure_count"] >= 3
        assert ill["last_failure_time"] <= ill["last_state_change_time"]
        assert ill["models"][0]["model"] == MODEL
        assert ill["cause"]
        assert (reset.status, "openai" in reset.json["message"]) == (200, True)
        assert (well["state"], well["failure_count"], well["cause"]) == ("closed", 0, None)
        assert served.status == 200
        assert found.ask("POST", f"{GUIDE}/circuit-breakers/voyage/reset").code == "breaker_not_found"


def test_a_reset_revives_what_was_given_up(wire: Wire, tmp_path: Path) -> None:
    """A provider that rejected the server's key is `dead` with its cause, and asked again at once after a reset."""
    with serving(tmp_path / "g", wire) as found:
        wire.plan(script=[{"fault": "status", "status": 401}])
        rejected = found.embed("rejected").code
        dead = found.ask("GET", f"{GUIDE}/circuit-breakers").json["openai"]
        still = found.embed("still").code
        found.ask("POST", f"{GUIDE}/circuit-breakers/openai/reset")

        assert rejected == still == "provider_credentials_rejected"
        assert dead["state"] == "dead"
        assert dead["cause"]
        assert found.embed("again").status == 200


def test_the_summary_agrees_with_what_was_asked(wire: Wire, tmp_path: Path) -> None:
    """Counters, money and tokens since the start, exactly; as `/metrics` and the answers' headers have them."""
    with serving(tmp_path / "g", wire) as found:
        replies = [found.embed(text, dimensions=256) for text in ("one", "two", "one")]
        found.embed("")
        found.embed([1, 2, 3], model="text-embedding-3-large")
        summary = found.ask("GET", f"{GUIDE}/metrics").json
        text = found.ask("GET", "/metrics").body.decode()
        cost = sum(Decimal(one.headers["x-embedctl-cost-usd"]) for one in replies)

        assert summary.keys() == {"cache", "active_requests", "circuit_breakers", "counters", "config", "ledger"}
        assert {name: summary["counters"][name] for name in ("token_inputs_total", "cache_hits_total")} == {
            "token_inputs_total": 4, "cache_hits_total": 1,
        }  # fmt: skip
        assert summary["counters"]["requests_total"] >= 5
        assert summary["counters"].keys() >= {
            "requests_total", "provider_failures_total", "fallbacks_total", "policy_denied_total",
            "dimension_adjustments_total", "token_inputs_total",
        }  # fmt: skip
        assert summary["circuit_breakers"]["openai"]["state"] == "closed"
        assert summary["ledger"]["tokens"] == wire.billed()
        assert Decimal(summary["ledger"]["cost_usd"]) > cost > 0
        assert (summary["ledger"]["cost_is_lower_bound"], summary["ledger"]["at_risk_usd"]) == (False, "0.00")
        assert "embedding_cache_hits_total 1.0" in text


# ── the cache ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cache_is_emptied_by_maker(wire: Wire, tmp_path: Path) -> None:
    """Entries of a provider or model go, or all; what is gone is bought again."""
    with serving(tmp_path / "g", wire) as found:
        for model in (MODEL, "text-embedding-3-large"):
            found.embed(["a", "b"], model=model)
        until(lambda: found.ask("GET", f"{GUIDE}/cache").json["size"] == 4)
        none = found.ask("DELETE", f"{GUIDE}/cache?provider=voyage")
        some = found.ask("DELETE", f"{GUIDE}/cache?provider=openai&model={MODEL}")
        again = found.embed(["a", "b"]).headers["x-embedctl-cache"]
        kept = found.embed(["a", "b"], model="text-embedding-3-large").headers["x-embedctl-cache"]
        until(lambda: found.ask("GET", f"{GUIDE}/cache").json["size"] == 4)
        rest = found.ask("DELETE", f"{GUIDE}/cache")

        assert [one.json["entries_removed"] for one in (none, some, rest)] == [0, 2, 4]
        assert (again, kept) == ("miss", "hit")
        assert found.ask("GET", f"{GUIDE}/cache").json["size"] == 0
        assert found.ask("DELETE", f"{GUIDE}/cache?provider=opnai").code == "unknown_provider"
        assert found.ask("DELETE", f"{GUIDE}/cache?spaces=all").code == "unknown_parameter"
        assert found.ask("DELETE", f"{GUIDE}/cache?model=a&model=b").code == "invalid_parameter"


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_warming_up_costs_nothing_unless_it_is_said(server: Operated, wire: Wire) -> None:
    """A model that runs here is loaded; another one is 409 `would_cost`, and with `paid` one request, as a test."""
    here = server.act("POST", "/models/warmup", {"model": "all-MiniLM-L6-v2", "provider": "onnx"})
    unasked = server.act("POST", "/models/warmup", {"model": MODEL})
    before = len(wire.truth())
    asked = server.act("POST", "/models/warmup", {"model": MODEL, "paid": True})

    assert here.json == {"status": "ok", "provider": "onnx", "model": "all-MiniLM-L6-v2", "warmed": True}
    assert (unasked.status, unasked.code, unasked.headers["x-should-retry"]) == (409, "would_cost", "false")
    assert before == 0
    assert asked.json == {"status": "ok", "provider": "openai", "model": MODEL, "warmed": True}
    assert len(wire.truth()) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "no-such-model"}, 404, "model_not_found"),
        ({"model": "onnx:/etc"}, 404, "model_not_found"),
        ({"model": "onnx:../../../etc"}, 404, "model_not_found"),
        ({"model": "onnx:me/not-fetched"}, 503, "missing_provider_credentials"),
        ({"model": MODEL, "paid": "yes"}, 400, "invalid_parameter"),
        ({"model": MODEL, "base_url": "http://127.0.0.1:1"}, 400, "unknown_parameter"),
        ({"model": 5}, 400, "invalid_model"),
    ],
)
def test_what_cannot_be_warmed_up(server: Operated, wire: Wire, body: Any, status: int, code: str) -> None:
    """Unknown models, paths, and fields that are none: refused by name, and nobody is asked."""
    found = server.act("POST", "/models/warmup", body)

    assert (found.status, found.code) == (status, code)
    assert wire.truth() == []


def test_a_provider_is_tried_out(server: Operated, wire: Wire) -> None:
    """One tiny text, each time anew, with what it cost; nobody takes over for the provider."""
    first, second = (server.act("POST", "/providers/openai/test", {"model": MODEL}) for _ in range(2))
    wire.plan(script=[{"fault": "status", "status": 401}])
    bad = server.act("POST", "/providers/openai/test", {"model": MODEL})
    server.act("POST", "/circuit-breakers/openai/reset")
    local = server.act("POST", "/providers/onnx/test")

    assert first.json["answered"] is second.json["answered"] is True
    assert (first.json["provider"], first.json["model"], first.json["dimensions"]) == ("openai", MODEL, 1536)
    assert first.json["workspace"] == "acme"
    assert Decimal(first.json["cost"]) > 0
    assert second.json["tokens"] > 0
    assert bad.code == "provider_credentials_rejected"
    assert (local.json["provider"], local.json["dimensions"], local.json["cost"]) == ("onnx", 384, "0.00")
    assert server.act("POST", "/providers/nobody/test").code == "unknown_provider"


def test_a_listed_model_is_fetched_and_serves(server: Operated) -> None:
    """A model of the list comes onto this machine, whole, below the folder of models, and answers from then on."""
    missing = server.embed("a", key=server.key_of["tenant"], model="onnx:me/model")
    fetched = server.act("POST", "/models/download", {"model": "me/model"})
    served = server.embed("a", key=server.key_of["tenant"], model="onnx:me/model")
    bundled = server.act(
        "POST", "/models/download", {"model": "sentence-transformers/all-MiniLM-L6-v2", "provider": "huggingface"}
    )

    assert missing.status == 503
    assert fetched.json == {"status": "ok", "provider": "onnx", "model": "me/model", "downloaded": True}
    assert [path.name for path in (server.home / "models").iterdir()] == ["me--model"]
    assert served.status == 200
    assert bundled.json["downloaded"] is True


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "other/model"}, 403, "model_denied"),
        ({"model": "me/absent"}, 404, "model_not_found"),
        ({"model": "../../etc/passwd"}, 400, "invalid_model"),
        ({"model": "/etc/passwd"}, 400, "invalid_model"),
        ({"model": "me/.."}, 400, "invalid_model"),
        ({"model": "me/../x"}, 400, "invalid_model"),
        ({"model": "me/a--b"}, 400, "invalid_model"),
        ({"model": "me\\model"}, 400, "invalid_model"),
        ({"model": "me/mo\u0000del"}, 400, "invalid_model"),
        ({"model": "https://example.org/me/model"}, 400, "invalid_provider"),
        ({"model": "me/model", "provider": "openai"}, 400, "invalid_provider"),
        ({"model": "static:me/model", "provider": "onnx"}, 400, "provider_model_mismatch"),
        ({"model": "me/model", "endpoint": "http://127.0.0.1:1"}, 400, "unknown_parameter"),
        ({}, 400, "invalid_model"),
    ],
)
def test_what_cannot_be_fetched(server: Operated, body: Any, status: int, code: str) -> None:
    """Names that are not listed, paths, URLs, other hubs: refused, and no file appears anywhere."""
    before = sorted(server.folder.rglob("*"))
    found = server.act("POST", "/models/download", body)
    places = {*before, server.folder / "state" / "models"}  # a folder that the first question of all makes
    new = [one for one in sorted(server.folder.rglob("*")) if one not in places and "journal" not in one.parts]

    assert (found.status, found.code) == (status, code)
    assert new == []


def test_lists_hold_for_fetching_too(wire: Wire, tmp_path: Path) -> None:
    """What `[allow]` or the admin's own key forbids is not fetched, though `downloads` names it."""
    config = '[allow]\nmodels = ["all-MiniLM-L6-v2", "text-embedding-3-small"]\n[serve]\ndownloads = ["me/*"]\n'
    with serving(tmp_path / "g", wire, settings=config) as found:
        found.key_of = {"admin": found.key("--role", "admin")}  # type: ignore[attr-defined]
        said = {"Authorization": f"Bearer {found.key_of['admin']}"}  # type: ignore[attr-defined]
        denied = found.ask("POST", f"{GUIDE}/models/download", {"model": "me/model"}, **said)

        assert (denied.status, denied.code) == (403, "model_denied")

"""Who may ask, and how much: keys, tokens, allow-lists, rates, budgets. The security checklist, item by item."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import jwt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.serving import (
    MODEL,
    Reply,
    Serving,
    bill,
    embedctl,
    environment,
    make_key,
    serving,
    started,
    until,
    write_settings,
)
from tests.support.wire.client import Wire

SECRET = "a secret of thirty-two bytes or more, as it should be"
JWT = '[serve.jwt]\nsecret_env = "GATEWAY_SECRET"\nissuer = "us"\naudience = "embeddings"\nrole_claim = "role"\n'


@pytest.fixture(scope="module")
def server(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with keys and tokens."""
    with serving(tmp_path_factory.mktemp("gateway"), wire, settings=JWT, GATEWAY_SECRET=SECRET) as found:
        yield found


@pytest.fixture(autouse=True)
def fresh(wire: Wire) -> None:
    wire.reset()


def token(secret: str = SECRET, algorithm: str = "HS256", headers: Any = None, **claims: Any) -> str:
    now = int(time.time())
    said = {"sub": "acme", "iat": now, "exp": now + 600, "iss": "us", "aud": "embeddings", **claims}
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, secret, algorithm=algorithm, headers=headers)


# ── start ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_it_listens_to_others_only_with_keys(tmp_path: Path, host: str) -> None:
    """Another address than loopback, without keys or a token's secret, is refused at the start with 78."""
    done = embedctl(tmp_path, environment(tmp_path, None), "serve", "--host", host, "--port", "0")

    assert done.returncode == 78
    assert "there is no key" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_listens_to_others_with_a_key(tmp_path: Path, wire: Wire) -> None:
    """With a key it listens on every address, warns that nothing encrypts, and takes nobody without one."""
    env = environment(tmp_path, wire)
    make_key(tmp_path, env)
    with started(tmp_path, env, "--host", "0.0.0.0") as found:
        assert found.embed("a").code == "missing_key"
        assert next(one["event"] for one in found.log()) == "no_tls"


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """The key file must be its owner's alone: 78, by name."""
    env = environment(tmp_path, None)
    make_key(tmp_path, env)
    path = tmp_path / "state" / "keys.toml"

    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    path.chmod(0o640)
    done = embedctl(tmp_path, env, "serve", "--port", "0")

    assert (done.returncode, "chmod 600" in done.stderr) == (78, True)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    """A token's secret of less than 32 bytes is refused at the start, by the name of its variable alone."""
    write_settings(tmp_path, JWT)
    done = embedctl(tmp_path, environment(tmp_path, None, GATEWAY_SECRET="secret"), "serve", "--port", "0")

    assert done.returncode == 78
    assert "GATEWAY_SECRET has 6 bytes" in done.stderr


def test_it_leaves_no_core(server: Serving) -> None:
    """Keys are in its memory: it never leaves a core dump."""
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()

    assert re.search(r"Max core file size\s+0 ", limits)


def test_metrics_are_for_their_role(server: Serving) -> None:
    """`/metrics` is Prometheus text for keys with the role metrics or admin, with labels that no client chose."""
    plain, metrics = server.key(), server.key("--role", "metrics")
    server.embed("counted", key=plain, user="CANARY-USER")
    server.embed("a", key=plain, model="CANARY-MODEL")
    found = server.ask("GET", "/metrics", Authorization=f"Bearer {metrics}")
    families = {one.name: one for one in text_string_to_metric_families(found.body.decode())}
    requests = {one.labels["status"] for one in families["embedding_requests"].samples}

    assert server.ask("GET", "/metrics", Authorization=f"Bearer {plain}").code == "admin_required"
    assert {"200", "404"} <= requests
    assert sum(one.value for one in families["embedctl_serve_tokens"].samples) > 0
    assert sum(one.value for one in families["embedctl_serve_cost_usd"].samples) > 0
    assert b"CANARY" not in found.body
    assert plain.encode() not in found.body


def test_one_server_a_port_and_state(server: Serving) -> None:
    """A second server on the same port says so, without a traceback."""
    done = server.run("serve", "--port", server.port)

    assert done.returncode == 78
    assert "cannot listen" in done.stderr


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_shown_once_and_kept_as_a_hash(server: Serving) -> None:
    """`keys create` prints the key; the file holds its hash; `list` shows neither."""
    key = server.key("--name", "first")
    kept = (server.home / "keys.toml").read_text()
    listed = server.run("keys", "list", "--json")

    assert re.fullmatch(r"emb_[a-z2-7]{8}_[A-Za-z0-9_-]{43}", key)
    assert key not in kept
    assert key.split("_", 2)[2] not in kept + listed.stdout + str(server.log())
    assert "first" in listed.stdout
    assert "sha256" not in listed.stdout


def test_both_headers_count_and_must_agree(server: Serving) -> None:
    """A key counts as bearer and as X-API-KEY; an empty one is none; two must name one workspace."""
    mine, other = server.key(), server.key(workspace="other")

    assert server.embed("a", key=mine).status == 200
    assert server.embed("a", headers={"X_API_KEY": mine}).status == 200
    assert server.embed("a", headers={"X_API_KEY": "", "Authorization": f"Bearer {mine}"}).status == 200
    assert server.embed("a", headers={"X_API_KEY": mine, "Authorization": "Bearer "}).status == 200
    assert server.embed("a", headers={"X_API_KEY": other}, key=mine).code == "invalid_key"
    assert server.embed("a", headers={"X_API_KEY": "", "Authorization": "Bearer "}).code == "missing_key"


def test_unknown_revoked_and_malformed_are_told_alike(server: Serving) -> None:
    """Whoever is not let in learns nothing of why; 401 says how to ask."""
    revoked = server.key()
    server.run("keys", "revoke", revoked.split("_")[1])
    until(lambda: server.embed("a", key=revoked).status == 401)
    unknown = "emb_aaaaaaaa_" + "A" * 43
    wrong = revoked[:-1] + ("A" if revoked[-1] != "A" else "B")
    replies = [server.embed("a", key=one) for one in (revoked, unknown, wrong, "sk-something", "emb_x_y")]

    assert {one.body for one in replies} == {replies[0].body}
    assert {one.headers["www-authenticate"] for one in replies} == {'Bearer realm="embedctl", error="invalid_token"'}
    assert server.embed("a").headers["www-authenticate"] == 'Bearer realm="embedctl"'
    assert server.embed("a").code == "missing_key"


def test_rotation_overlaps(server: Serving) -> None:
    """A rotated key has a new secret with the same limits; the old one counts for the overlap and no longer."""
    old = server.key("--models", MODEL)
    key_id = old.split("_")[1]
    made = json.loads(server.run("keys", "rotate", key_id, "--json").stdout)

    until(lambda: server.embed("a", key=made["key"]).status == 200)

    assert made["id"] == key_id
    assert made["models"] == [MODEL]
    assert server.embed("a", key=old).status == 200

    newest = json.loads(server.run("keys", "rotate", key_id, "--overlap", "0", "--json").stdout)
    until(lambda: server.embed("a", key=newest["key"]).status == 200)

    assert server.embed("a", key=made["key"]).code == "invalid_key"
    assert server.embed("a", key=old).code == "invalid_key"


def test_an_expired_key_says_so(server: Serving) -> None:
    """A key past its time is 401 `expired_key`."""
    key = server.key("--expires", "1d")
    path = server.home / "keys.toml"
    text = path.read_text()
    path.write_text(re.sub(r"expires = \S+", "expires = 2020-01-01T00:00:00Z", text))

    until(lambda: server.embed("a", key=key).status == 401)

    assert server.embed("a", key=key).code == "expired_key"
    path.write_text(text)


def test_everything_but_health_wants_a_key(server: Serving) -> None:
    """Without a key every path is 401, one that does not exist too; health says only that it lives."""
    server.key()
    paths = ["/v1/models", f"/v1/models/{MODEL}", "/api/v1/models", "/api/v1/embeddings/models", "/nothing", "/metrics"]
    paths += [f"/api/v1/embeddings/models/{MODEL}"]

    assert {server.ask("GET", path).status for path in paths} == {401}
    assert {server.ask("POST", path, {}).status for path in ("/v1/embeddings", "/api/v1/embeddings/batch")} == {401}
    assert server.ask("GET", "/api/v1/embeddings/health").json.keys() == {"status", "service", "timestamp"}
    assert server.ask("GET", "/livez").status == server.ask("GET", "/readyz").status == 200


def test_failures_are_bounded_and_not_logged(tmp_path: Path, wire: Wire) -> None:
    """Twenty wrong credentials a minute from one address, then 429; a right key passes all the same."""
    with serving(tmp_path / "g", wire) as found:
        key = found.key()
        found.address = "127.0.9.9"
        codes = [found.embed("a", key=f"emb_wrong-{n}-canary").code for n in range(25)]

        assert codes[:15] == ["invalid_key"] * 15
        assert codes[-1] == "too_many_failures"
        assert found.embed("a", key="x").headers["retry-after"]
        assert found.embed("a", key=key).status == 200
        assert "canary" not in (tmp_path / "g" / "log").read_text()


def test_the_strict_rule_of_the_guide(tmp_path: Path, wire: Wire) -> None:
    """With `require_x_api_key` a bearer key alone does not do; SINGLE_USER_API_KEY is an admin without a file."""
    config = "[serve]\nrequire_x_api_key = true\n"
    with serving(tmp_path / "g", wire, settings=config, SINGLE_USER_API_KEY="one-user") as found:
        assert found.embed("a", key="one-user").code == "missing_key"
        assert found.embed("a", headers={"X_API_KEY": "one-user"}).status == 200
        assert found.embed("a", headers={"X_API_KEY": "another"}).code == "invalid_key"


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_as_good_as_a_key(server: Serving) -> None:
    """A signed token pays as its workspace claim says."""
    server.key()

    assert server.embed("a", key=token()).status == 200


BAD_TOKENS = {
    "expired": ({"exp": 1_000_000}, "expired_key"),
    "not yet": ({"nbf": 4_000_000_000}, "invalid_token"),
    "made later": ({"iat": 4_000_000_000, "exp": 4_000_000_600}, "invalid_token"),
    "no exp": ({"exp": None}, "invalid_token"),
    "no sub": ({"sub": None}, "invalid_token"),
    "a number": ({"sub": 7}, "invalid_token"),
    "no workspace": ({"sub": "Not A Name"}, "invalid_token"),
    "other issuer": ({"iss": "them"}, "invalid_token"),
    "no issuer": ({"iss": None}, "invalid_token"),
    "other audience": ({"aud": "else"}, "invalid_token"),
    "no audience": ({"aud": None}, "invalid_token"),
    "too long a life": ({"exp": int(time.time()) + 90 * 86_400}, "invalid_token"),
    "no role": ({"role": "king"}, "invalid_token"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_token_that_is_not_right_is_401(server: Serving, name: str) -> None:
    """Each wrong claim is refused."""
    claims, code = BAD_TOKENS[name]
    server.key()
    reply = server.embed("a", headers={"Authorization": f"Bearer {token(**claims)}", "X_API_KEY": ""})

    assert (reply.status, reply.code) == (401, code)


def test_algorithms_come_from_the_settings(tmp_path: Path, wire: Wire) -> None:
    """`none`, another algorithm or secret, a critical header and a huge token are refused; kid and jku are ignored."""
    with serving(tmp_path / "g", wire, settings=JWT, GATEWAY_SECRET=SECRET) as found:
        unsigned = token(secret="", algorithm="none")
        others = [
            unsigned,
            token(secret=SECRET * 2, algorithm="HS512"),
            token(secret="another secret of at least thirty-two bytes, well"),
            token(headers={"crit": ["b64"]}),
            token(more="x" * 9000),
        ]
        ignored = token(headers={"kid": "../../etc/passwd", "jku": "http://127.0.0.1:1/keys"})

        assert [found.embed("a", key=one).code for one in others] == ["invalid_token"] * len(others)
        assert found.embed("a", key=ignored).status == 200


# ── allow-lists ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lists_of_a_key_hold_for_admins_too(server: Serving) -> None:
    """A key's models and providers bound what it may ask for and sees; a name may end in `*`."""
    large = server.key("--models", "text-embedding-3-l*")
    local = server.key("--providers", "onnx", "--role", "admin")
    as_large = {"Authorization": f"Bearer {large}"}

    assert server.embed("a", key=large).code == "model_denied"
    assert server.embed("a", key=large, model="text-embedding-3-large").status == 200
    assert server.embed("a", key=local).code in ("provider_denied", "model_not_found")
    assert server.embed("a", key=local, model=f"openai:{MODEL}").code == "provider_denied"
    assert server.embed("a", key=local, model="all-MiniLM-L6-v2").status == 200
    assert {one["id"] for one in server.ask("GET", "/v1/models", **as_large).json["data"]} >= {"text-embedding-3-large"}
    assert MODEL not in [one["id"] for one in server.ask("GET", "/v1/models", **as_large).json["data"]]
    assert server.ask("GET", f"/api/v1/embeddings/models/{MODEL}", **as_large).json["allowed"] is False


def test_lists_of_the_settings_hold(tmp_path: Path, wire: Wire) -> None:
    """`[allow]` and a workspace's own list bound every key of it."""
    config = '[allow]\nproviders = ["openai", "onnx"]\n[workspaces.small]\nmodels = ["all-MiniLM-L6-v2"]\n'
    with serving(tmp_path / "g", wire, settings=config) as found:
        small = found.key(workspace="small")

        assert found.embed("a", key=small).code == "model_denied"
        assert found.embed("a", key=small, model="all-MiniLM-L6-v2").status == 200
        assert found.embed("a", key=found.key(), model="cohere:embed-v4.0").code == "provider_denied"


# ── rates, places, budgets ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_s_rate_is_held(server: Serving) -> None:
    """`--rpm --burst` let a burst through, then 429 with when to come again, before a body is looked at."""
    key = server.key("--rpm", 1, "--burst", 3)
    replies = [server.embed("rates", key=key) for _ in range(6)]
    last = replies[-1]

    assert [one.status for one in replies][:3] == [200] * 3
    assert (last.status, last.code) == (429, "rate_limited")
    assert 1 <= int(last.headers["retry-after"]) <= 60
    assert last.json["error"]["retry_after_ms"] >= 1
    assert replies[0].headers["x-ratelimit-limit"] == "1"
    assert replies[0].headers["x-ratelimit-remaining"] == "2"
    assert server.ask("POST", "/v1/embeddings", raw=b"no json", Authorization=f"Bearer {key}").status == 429


def test_bought_tokens_count_and_hits_do_not(server: Serving) -> None:
    """`--tpm` counts what is bought: a hit passes when nothing is left, another text does not."""
    key = server.key("--tpm", 60)
    text = "word " * 50

    assert server.embed(text, key=key).status == 200
    assert server.embed(text, key=key).headers["x-embedctl-cache"] == "hit"
    assert server.embed("other " * 50, key=key).code == "token_rate_limited"


def test_the_guide_s_rate_holds_for_all_keys(tmp_path: Path, wire: Wire) -> None:
    """RATE_LIMIT_ENABLED with its numbers bounds every key that says nothing of its own."""
    rates = {"RATE_LIMIT_ENABLED": "true", "RATE_LIMIT_PER_MINUTE": "1", "RATE_LIMIT_BURST": "2"}
    with serving(tmp_path / "g", wire, **rates) as found:
        key, own = found.key(), found.key("--rpm", 6000, "--burst", 50)

        assert [found.embed("a", key=key).status for _ in range(3)] == [200, 200, 429]
        assert {found.embed("a", key=own).status for _ in range(10)} == {200}


def ask_at_once(server: Serving, texts: list[str], key: str = "") -> list[Reply]:
    with concurrent.futures.ThreadPoolExecutor(len(texts)) as threads:
        return list(threads.map(lambda text: server.embed(text, key=key), texts))


def test_a_key_has_so_many_places(server: Serving, wire: Wire) -> None:
    """More requests at once than a key may have are 429 `concurrency_limited`; another key is served meanwhile."""
    wire.plan(hold_after=0)
    key, other = server.key("--in-flight", 2), server.key(workspace="other")
    with concurrent.futures.ThreadPoolExecutor(9) as threads:
        mine = [threads.submit(server.embed, f"places {n}", key=key) for n in range(8)]
        until(lambda: sum(one.done() for one in mine) == 6)
        theirs = threads.submit(server.embed, "a place of its own", key=other)
        until(lambda: wire.held() == 3)
        wire.plan()
        codes = sorted(one.result().status for one in mine)

    assert codes == [200, 200] + [429] * 6
    assert theirs.result().status == 200


def test_parallel_calls_stay_within_a_key_s_budget(tmp_path: Path, wire: Wire) -> None:
    """200 calls at once against a budget for about 50: never more is spent, the rest is 402 and is not repeated."""
    texts = [f"budget text number {n:04d}" for n in range(200)]
    with serving(tmp_path / "g", wire) as found:
        each = Decimal(found.embed(texts[0]).headers["x-embedctl-cost-usd"])
        limit = each * 50
        key = found.key("--budget", f"{limit:f}/day", "--in-flight", 300)
        until(lambda: ask_at_once(found, ["budget probe"], key)[0].status == 200)
        replies = ask_at_once(found, [f"{text}!" for text in texts], key)
        refused = [one for one in replies if one.status == 402]
        spent = sum(Decimal(one.headers["x-embedctl-cost-usd"]) for one in replies if one.status == 200)

        assert {one.status for one in replies} == {200, 402}
        assert spent <= limit
        assert len(refused) > 100
        assert refused[0].code == "budget_exceeded"
        assert refused[0].headers["x-should-retry"] == "false"
        assert "retry-after" not in refused[0].headers
        assert refused[0].json["error"]["budget"].keys() == {"limit_usd", "spent_usd", "reserved_usd", "resets_at"}
        found.stop()
        assert sum(row[0] for row in found.ledger("SELECT sum(cost) FROM usage_event WHERE tags LIKE '%key%'")) <= limit
        environment_again = found.environment
    with started(tmp_path / "g", environment_again) as again:
        assert (
            again.embed("once more, after a restart, more than is left by far " * 40, key=key).code == "budget_exceeded"
        )


def test_a_workspace_s_budget_holds_and_a_model_without_a_price_is_refused(tmp_path: Path, wire: Wire) -> None:
    """A budget of the settings bounds all keys of its workspace; what has no price is 402 under it."""
    config = (
        '[workspaces.poor]\nbudget = { period = "month", amount = "0.0000001", action = "block" }\n'
        f'[providers.mine]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\nmodel = "own-model"\n'
    )
    with serving(tmp_path / "g", wire, settings=config) as found:
        poor, rich = found.key(workspace="poor"), found.key(workspace="rich")

        assert found.embed("much more than a few cents can buy", key=poor).code == "budget_exceeded"
        assert found.embed("a", key=poor, model="mine:own-model").code == "price_unknown"
        assert found.embed("much more than a few cents can buy", key=rich).status == 200
        assert found.embed("b", key=rich, model="mine:own-model").headers["x-embedctl-cost-usd"] == "unknown"


def test_budgets_set_while_it_runs_count(tmp_path: Path, wire: Wire) -> None:
    """`usage budget set` counts for a running server without a restart."""
    with serving(tmp_path / "g", wire) as found:
        key = found.key()
        assert found.embed("before", key=key).status == 200
        done = found.run("usage", "budget", "set", "-w", "acme", "--amount", "0.00000001")
        assert done.returncode == 0, done.stderr

        until(lambda: found.embed(f"after {os.urandom(4).hex()} " * 30, key=key).status == 402)


def test_hangup_reloads_settings_and_keeps_them_when_they_are_wrong(tmp_path: Path, wire: Wire) -> None:
    """SIGHUP takes new lists and limits; a broken file changes nothing and is told in the log."""
    with serving(tmp_path / "g", wire) as found:
        key = found.key()
        assert found.embed("a", key=key).status == 200
        write_settings(found.folder, '[allow]\nproviders = ["onnx"]\n')
        found.process.send_signal(signal.SIGHUP)
        until(lambda: found.embed("a", key=key).status == 403)
        write_settings(found.folder, "[allow\n")
        found.process.send_signal(signal.SIGHUP)
        until(lambda: any(one["event"] == "not_reloaded" for one in found.log()))

        assert found.embed("a", key=key).status == 403


def test_hangup_changes_a_provider_s_pace(tmp_path: Path, wire: Wire) -> None:
    """A provider's own pace is another after SIGHUP, also where it was asked before."""
    slow = "[providers.openai]\nrequests_per_minute = {}\nburst = 1\n"
    with serving(tmp_path / "g", wire, settings=slow.format(1)) as found:
        assert found.embed("the one of this minute").status == 200
        early = found.embed("comes too early", headers={"x-embedctl-timeout": "0.2"})
        assert early.status in (429, 503, 504), early
        write_settings(found.folder, slow.format(60_000))
        found.process.send_signal(signal.SIGHUP)
        until(lambda: any(line["event"] == "reloaded" for line in found.log()))

        assert [found.embed(f"after the change {n}").status for n in range(6)] == [200] * 6


# ── what must not get out ────────────────────────────────────────────────────────────────────────────────────────────


def test_metrics_have_an_address_of_their_own(tmp_path: Path, wire: Wire) -> None:
    """`--metrics-listen` tells the metrics alone, without a key; what waits for another's purchase is counted."""
    with serving(tmp_path / "g", wire, "--metrics-listen", "127.0.0.1:0", SINGLE_USER_API_KEY="k" * 40) as found:
        until(lambda: any(line["event"] == "metrics" for line in found.log()))
        (base,) = [line["address"] for line in found.log() if line["event"] == "metrics"]
        own = replace(found, base=base)
        wire.plan(hold_after=0)
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            first = threads.submit(found.embed, "asked for twice", key="k" * 40)
            until(lambda: samples(own)["embedctl_serve_intents_open"] == 1)
            second = threads.submit(found.embed, "asked for twice", key="k" * 40)
            until(lambda: samples(own)["embedctl_serve_coalesced_requests_total"] == 1)
            wire.plan()
            assert [one.result().status for one in (first, second)] == [200, 200]
        until(lambda: samples(own)["embedding_cache_size"] == 1)

        told = samples(own)
        assert told["embedctl_serve_intents_open"] == 0
        assert told["embedctl_serve_journal_fsync_seconds_count"] >= 1
        assert len(wire.truth()) == 1
        assert found.ask("GET", "/metrics").status == 401
        assert own.ask("GET", "/v1/models").status == 404
        assert own.ask("POST", "/metrics", {}).status == 405
        assert own.ask("GET", "/metrics", Host="evil.example").status == 403


def samples(server: Serving) -> dict[str, float]:
    """What /metrics says, without labels."""
    families = text_string_to_metric_families(server.ask("GET", "/metrics").body.decode())
    return {one.name: one.value for family in families for one in family.samples}


def test_rebinding_and_web_pages_are_refused(server: Serving) -> None:
    """On loopback another Host is refused, and so is a page from elsewhere: a browser must not reach it for others."""
    key = {"Authorization": f"Bearer {server.key()}"}

    assert server.ask("GET", "/v1/models", Host="evil.example", **key).code == "host_denied"
    assert server.ask("GET", "/v1/models", Host=f"localhost:{server.port}", **key).status == 200
    assert server.ask("GET", "/v1/models", Origin="https://evil.example", **key).code == "origin_denied"
    assert server.ask("GET", "/v1/models", Origin=f"http://127.0.0.1:{server.port}", **key).status == 200


@pytest.mark.parametrize("address", ["[", "[::1", "[x]", "http://[", "://", "\xff"])
def test_what_is_no_address_is_no_host_of_ours(server: Serving, address: str) -> None:
    """A Host or Origin that is no address is refused like a stranger's."""
    assert server.ask("GET", "/livez", Host=address).code == "host_denied"
    assert server.ask("GET", "/livez", Origin=address).code == "origin_denied"


def test_no_value_of_a_header_hides_behind_another(server: Serving) -> None:
    """Two keys, origins or encodings in one request are one wrong value: nobody can be meant by either of them."""
    keys = [server.key(), server.key(workspace="umbrella")]
    body = b'{"model": "text-embedding-3-small", "input": "who pays"}'
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    mine = f"Authorization: Bearer {keys[0]}\r\n"
    repeated = {
        mine + f"Authorization: Bearer {keys[1]}\r\n": b"401",
        f"X-API-KEY: {keys[0]}\r\nX-API-KEY: {keys[1]}\r\n": b"401",
        mine + "Origin: http://127.0.0.1\r\nOrigin: http://evil.example\r\n": b"403",
        mine + "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n": b"415",
        mine: b"200",
    }
    statuses = []
    for more in repeated:
        with socket.create_connection(("127.0.0.1", server.port), 30) as client:
            client.sendall(head + f"{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            statuses.append(client.makefile("rb").read().split()[1])

    assert statuses == [*repeated.values()]


def test_listed_origins_may_ask(tmp_path: Path, wire: Wire) -> None:
    """CORS is off but for listed pages, which get their preflight and their header."""
    with serving(tmp_path / "g", wire, settings='[serve]\norigins = ["https://app.example"]\n') as found:
        page = {"Origin": "https://app.example"}
        preflight = found.ask("OPTIONS", "/v1/embeddings", Access_Control_Request_Method="POST", **page)

        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert preflight.headers["access-control-allow-methods"] == "DELETE, GET, POST"
        assert found.embed("a", headers=page).headers["access-control-allow-origin"] == "https://app.example"
        assert found.ask("GET", "/v1/models", Origin="https://evil.example").code == "origin_denied"


def test_texts_and_keys_are_in_no_log_and_no_error(tmp_path: Path, wire: Wire) -> None:
    """A text and keys, ours and the provider's, stand in no log, also when the provider quotes them in its errors."""
    text = "CANARY-TEXT-7f3a"
    with serving(tmp_path / "g", wire) as found:
        key = found.key()
        said = json.dumps({"error": {"message": f"bad: {text} with key sk-provider-0123456789abcdef", "code": "x"}})
        replies = [found.embed(text, key=key)]
        for status in (400, 401, 500):
            wire.plan(faults={"says": {"p": 1, "status": status, "body": said}})
            replies.append(found.embed(f"{text} {status}", key=key))
        found.ask("GET", f"/v1/{text}?key={key}", Authorization=f"Bearer {key}")
        found.stop()
        log = (tmp_path / "g" / "log").read_text()

    assert text not in log.replace(f"/v1/{text}", "")
    assert key not in log
    for reply in replies:
        assert b"sk-provider-0123456789abcdef" not in reply.body
        assert b"Traceback" not in reply.body
    assert "sk-provider" not in log


def test_log_lines_cannot_be_forged(server: Serving) -> None:
    """Every line of the log is one JSON object, whatever a client sends as path, model or id."""
    key = server.key()
    server.embed("a", key=key, model='x"}\n{"event":"forged"}\x1b[31m')
    server.ask("GET", "/v1/%0a%7b%22event%22:%22forged%22%7d%1b[2J", Authorization=f"Bearer {key}")
    text = (server.folder / "log").read_text()

    for line in text.splitlines():
        assert json.loads(line)["event"] != "forged"
    assert "\x1b" not in text


def test_a_hit_tells_nothing_of_others(server: Serving, wire: Wire) -> None:
    """Vectors are shared within a workspace: another one buys the same text for itself."""
    first, second, other = server.key(), server.key(), server.key(workspace="other")
    text = "who has embedded this before"

    assert server.embed(text, key=first).headers["x-embedctl-cache"] == "miss"
    assert server.embed(text, key=second).headers["x-embedctl-cache"] == "hit"
    assert server.embed(text, key=other).headers["x-embedctl-cache"] == "miss"
    assert len(wire.truth()) == 2


def test_calls_are_accounted_to_the_key_s_workspace(tmp_path: Path, wire: Wire) -> None:
    """Workspace, key, user and purpose stand in the ledger; a provider's requests are its rows."""
    wire.reset()
    with serving(tmp_path / "g", wire) as found:
        key = found.key(workspace="payer")
        found.embed("accounted", key=key, user="somebody")
        found.embed("accounted", key=key, headers={"X_Workspace": "other", "X_Input_Type": "query"})
        found.embed("a question", key=key, input_type="query")
        found.stop()
        rows = found.ledger("SELECT workspace_id, purpose, entry_kind, tags FROM usage_event ORDER BY occurred_at")

        assert [row[:3] for row in rows] == [
            ("payer", "ingest", "usage"),
            ("payer", "query", "cache_hit"),
            ("payer", "query", "usage"),
        ]
        assert json.loads(rows[0][3]) == {"key": key.split("_")[1], "user": "somebody"}
        assert bill(found).attempts == len(wire.truth()) == 2

"""The security checklist of the service: each item, and the tests that hold it; the small ones stand here."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest

from embedctl.server.admission import KeyRates
from embedctl.server.app import Door
from embedctl.server.authentication import Client, Keyring
from embedctl.server.log import AccessLog
from embedctl.server.metrics import Metrics
from embedctl.server.state import ServerState
from embedctl.settings import ServeSettings
from tests.support import places
from tests.support.serving import JSON, MODEL, bill, embedctl, environment, make_key, serving, started
from tests.support.wire.client import Wire

CHECKLIST = {
    "start: it listens on 127.0.0.1": ["test_it_listens_on_loopback_and_no_flag_lifts_its_keys"],
    "start: another address without keys is refused": ["test_it_listens_to_others_only_with_keys"],
    "start: nothing lifts that": ["test_it_listens_on_loopback_and_no_flag_lifts_its_keys"],
    "start: it warns where nothing encrypts": [
        "test_it_listens_to_others_with_a_key",
        "test_tls_in_front_warns_of_nothing",
        "test_https",
    ],
    "start: the key file is its owner's alone": [
        "test_a_key_file_that_others_may_read_is_refused",
        "test_a_key_file_of_somebody_else_is_refused",
    ],
    "start: one server a port": ["test_one_server_a_port_and_state"],
    "start: no core dumps": ["test_it_leaves_no_core"],
    "keys: 256 bits, shown once, kept as a hash": ["test_a_key_is_shown_once_and_kept_as_a_hash"],
    "keys: in either header": ["test_both_headers_count_and_must_agree"],
    "keys: the guide's strict rule is a setting": ["test_the_strict_rule_of_the_guide"],
    "keys: unknown, revoked and malformed are told alike": ["test_unknown_revoked_and_malformed_are_told_alike"],
    "keys: revoked within a second, rotated with overlap": [
        "test_unknown_revoked_and_malformed_are_told_alike",
        "test_rotation_overlaps",
    ],
    "keys: 20 failures a minute": ["test_failures_are_bounded_and_not_logged", "test_a_proxy_in_front_says_who_asks"],
    "keys: the workspace comes from the key alone": ["test_nobody_names_its_own_workspace"],
    "tokens: algorithms from settings, none refused, crit refused, kid and jku ignored": [
        "test_algorithms_come_from_the_settings"
    ],
    "tokens: HS and RS never in one list": ["test_tokens_have_algorithms_of_one_kind"],
    "tokens: secrets of 32 bytes": ["test_a_short_secret_is_refused"],
    "tokens: claims": ["test_a_token_that_is_not_right_is_401"],
    "requests: body, headers, address, depth, counts": [
        "test_a_body_is_bounded_before_it_is_read",
        "test_a_body_may_be_as_large_as_the_bound",
        "test_headers_are_bounded",
        "test_what_is_no_json_object_is_refused",
        "test_a_wrong_field_is_named",
    ],
    "requests: nothing compressed": ["test_other_media_and_compression_are_415"],
    "requests: two lengths": ["test_two_lengths_are_no_request"],
    "requests: deadlines for headers, bodies and readers": [
        "test_half_requests_keep_no_place",
        "test_a_late_body_is_told_so",
        "test_a_trickle_is_late_too",
        "test_a_client_that_stops_reading_is_left",
    ],
    "requests: a deadline for all of it": ["test_a_call_that_was_given_up_is_kept"],
    "requests: places of a key, of all, and a queue": [
        "test_a_key_has_so_many_places",
        "test_too_many_at_once_are_told_to_come_again",
    ],
    "requests: bytes in flight": ["test_places_are_bounded_and_come_back"],
    "requests: rates and tokens a minute, before a body is looked at": [
        "test_a_key_s_rate_is_held",
        "test_bought_tokens_count_and_hits_do_not",
    ],
    "requests: keys take turns": ["test_keys_take_turns"],
    "outward: no URL, key or header of a client's": ["test_a_wrong_field_is_named"],
    "outward: no redirects": ["test_a_provider_s_failure_has_its_code"],
    "outward: a provider's words are cut and hold no key": ["test_texts_and_keys_are_in_no_log_and_no_error"],
    "logs: JSON lines without texts, vectors, keys, queries": ["test_texts_and_keys_are_in_no_log_and_no_error"],
    "logs: no forged lines": ["test_log_lines_cannot_be_forged"],
    "logs: places of a bug, no values": ["test_a_bug_is_told_without_values"],
    "answers: CORS off but for a list": ["test_listed_origins_may_ask"],
    "answers: headers, no Server": ["test_every_answer_has_its_headers"],
    "answers: a hit tells nothing of other workspaces": ["test_a_hit_tells_nothing_of_others"],
    "answers: Host and Origin": ["test_rebinding_and_web_pages_are_refused"],
    "answers: nothing to strangers": ["test_everything_but_health_wants_a_key"],
    "admin: metrics have their role": ["test_metrics_are_for_their_role"],
    "admin: a role of its own": ["test_admin_is_a_role_of_its_own"],
    "admin: every act is an event": ["test_every_act_is_in_the_log"],
    "admin: only listed names are fetched, into the configured root": [
        "test_what_cannot_be_fetched",
        "test_a_listed_model_is_fetched_and_serves",
        "test_lists_hold_for_fetching_too",
        "test_what_cannot_be_warmed_up",
    ],
    "admin: usage of others": ["test_everybody_sees_its_own_and_admins_all"],
    "pages: nothing runs that is not theirs, nothing is asked elsewhere, no key in an address": [
        "test_a_page_holds_nothing_and_reaches_for_nothing",
        "test_the_dashboard_shows_what_the_api_says",
        "test_the_description_is_shown_and_tried_out",
    ],
    "pages: a key is kept by its tab alone": [
        "test_the_dashboard_lives",
        "test_a_wrong_key_is_told_and_forgotten",
    ],
    "admin: acts are rate-limited": ["test_acts_are_rate_limited"],
    "budgets: reserved before, settled after, key, workspace and server": [
        "test_parallel_calls_stay_within_a_key_s_budget",
        "test_a_workspace_s_budget_holds_and_a_model_without_a_price_is_refused",
    ],
    "budgets: a limit and no price": ["test_a_workspace_s_budget_holds_and_a_model_without_a_price_is_refused"],
    "budgets: a warning at four fifths": ["test_a_budget_warns_at_four_fifths"],
    "disk: nothing is sent that cannot be written down": ["test_nothing_is_sent_that_cannot_be_written_down"],
}


@pytest.fixture(autouse=True)
def fresh(wire: Wire) -> None:
    wire.reset()


def test_each_item_has_its_tests() -> None:
    """Every test that the list names is there."""
    folders = [places.ROOT / "tests" / one for one in ("server", "unit/server")]
    there = {
        node.name
        for folder in folders
        for path in folder.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }

    assert {name for names in CHECKLIST.values() for name in names} - there == set()


def test_it_listens_on_loopback_and_no_flag_lifts_its_keys(wire: Wire, tmp_path: Path) -> None:
    """Without a flag it listens on 127.0.0.1, and there is none that serves strangers."""
    with serving(tmp_path / "g", wire) as server:
        assert server.base == f"http://127.0.0.1:{server.port}"
        assert server.run("serve", "--insecure-no-auth").returncode == 2


def test_tls_in_front_warns_of_nothing(wire: Wire, tmp_path: Path) -> None:
    """With --behind-tls somebody else encrypts."""
    env = environment(tmp_path, wire)
    make_key(tmp_path, env)
    with started(tmp_path, env, "--host", "0.0.0.0", "--behind-tls") as server:
        assert server.ask("GET", "/livez").status == 200
        assert "no_tls" not in {one["event"] for one in server.log()}


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_key_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A key file that another user owns lets nobody in: the server does not start."""
    env = environment(tmp_path, None)
    make_key(tmp_path, env)
    os.chown(tmp_path / "state" / "keys.toml", 1, 1)
    done = embedctl(tmp_path, env, "serve", "--port", "0")

    assert done.returncode in (73, 78)
    assert "keys.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_names_its_own_workspace(wire: Wire, tmp_path: Path) -> None:
    """A workspace in a body is an unknown field, one in a header is nothing: the key's own pays."""
    with serving(tmp_path / "g", wire) as server:
        key = server.key(workspace="payer")
        asked = server.embed("a", key=key, workspace="other")
        paid = server.embed("b", key=key, headers={"X_Workspace": "other"})
        server.stop()

        assert (asked.status, asked.code) == (400, "unknown_parameter")
        assert paid.status == 200
        assert server.ledger("SELECT DISTINCT workspace_id FROM usage_event") == [("payer",)]


def test_tokens_have_algorithms_of_one_kind(tmp_path: Path, wire: Wire) -> None:
    """A list with shared secrets and public keys is refused at the start: one could pass for the other."""
    settings = '[serve.jwt]\nsecret_env = "S"\nalgorithms = ["HS256", "RS256"]\n'
    (tmp_path / "config" / "embedctl").mkdir(parents=True)
    (tmp_path / "config" / "embedctl" / "config.toml").write_text(settings)
    done = embedctl(tmp_path, environment(tmp_path, wire, S="s" * 40), "serve", "--port", "0")

    assert done.returncode == 78
    assert "algorithms" in done.stderr


def test_every_answer_has_its_headers(wire: Wire, tmp_path: Path) -> None:
    """Answers and refusals alike say that they are not to be kept or sniffed at, have an id, and name no server."""
    with serving(tmp_path / "g", wire) as server:
        key = server.key()
        said = {"Authorization": f"Bearer {key}"}
        replies = [server.embed("a", key=key), server.embed("", key=key), server.embed("a")]
        replies += [server.ask("GET", path, **said) for path in ("/v1/no", "/v1/embeddings", "/livez", "/v1/models")]
        replies.append(server.ask("POST", "/v1/embeddings", raw=b"{}", Content_Type="text/plain", **said))

    assert [one.status for one in replies] == [200, 400, 401, 404, 405, 200, 200, 415]
    for one in replies:
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["cache-control"] == "no-store"
        assert "Authorization" in one.headers["vary"]
        assert one.headers["x-request-id"]
        assert "server" not in one.headers
        assert int(one.headers["content-length"]) == len(one.body)


def test_a_budget_warns_at_four_fifths(wire: Wire, tmp_path: Path) -> None:
    """From four fifths of a budget on every answer says so; at its end it is 402, with what was spent."""
    with serving(tmp_path / "g", wire) as server:
        key = server.key("--budget", "0.0001/day")
        warned: list[bool] = []
        for n in range(40):
            reply = server.embed(f"{n} " + "word " * 200, key=key)
            if reply.status != 200:
                break
            warned.append("x-embedctl-budget-warning" in reply.headers)
        server.stop()
        found = bill(server)

        assert (reply.status, reply.code, reply.headers["x-should-retry"]) == (402, "budget_exceeded", "false")
        assert reply.json["error"]["budget"].keys() == {"limit_usd", "spent_usd", "reserved_usd", "resets_at"}
        assert warned == sorted(warned)
        assert (warned[0], warned[-1]) == (False, True)
        assert found.confirmed * Decimal("0.02") / 1_000_000 <= Decimal("0.0001")


def test_a_bug_is_told_without_values() -> None:
    """What none of us has thought of is 500 with the request's id; the log has the places, and no value of them."""
    secret = "CANARY-VALUE-1b7"
    sent, lines = broken_by(RuntimeError(f"about {secret}"))

    assert sent[0]["status"] == 500
    assert (b"x-request-id", b"the-id") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == "internal_error"
    assert '"kind":"RuntimeError"' in lines
    assert "broken" in lines
    assert secret not in lines + sent[1]["body"].decode()
    assert MODEL not in lines


def test_files_that_cannot_be_read_are_no_bug() -> None:
    """A state folder that becomes unreadable is 503, whoever comes upon it; the log says which file, the answer not."""
    sent, lines = broken_by(PermissionError(13, "Permission denied", "/srv/state/spool"))
    gone, _ = broken_by(ConnectionResetError(104, "Connection reset by peer"))

    assert (sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]) == (503, "storage_failed")
    assert "/srv/state/spool: Permission denied" in lines
    assert b"/srv" not in sent[1]["body"]
    assert gone[0]["status"] == 500


def broken_by(bug: Exception) -> tuple[list[dict[str, Any]], str]:
    """What is sent when this is raised behind the door, and what is logged."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise bug

    file = io.TextIOWrapper(io.BytesIO())
    log = AccessLog(file)
    state = ServerState(
        gateway=cast("Any", type("G", (), {"serve": ServeSettings()})()), router=cast("Any", None),
        admission=cast("Any", None), rates=KeyRates(), failures=cast("Any", None),
        keyring=Keyring().with_local(Client(id="", workspace="default", role="admin")), log=log, metrics=Metrics(),
        cache=None, prices=cast("Any", None), journals=cast("Any", None), loopback=True, behind_tls=False,
        disk_trouble=lambda: None,
    )  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/embeddings", "raw_path": b"/v1/embeddings", "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", JSON.encode()), (b"x-request-id", b"the-id")],
    }  # fmt: skip
    asyncio.run(Door(broken, state)(scope, cast("Any", None), send))
    log.close()
    return sent, cast("io.BytesIO", file.buffer).getvalue().decode()

"""Which vectors that were made before may stand beside those of now, when somebody has seen a model change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedctl.embedding.canary import CanaryWatch
from embedctl.records import UNOBSERVED
from embedctl.routing import canaries, chain
from embedctl.routing.canaries import host_of
from embedctl.routing.endpoint import Endpoint
from embedctl.settings import load
from embedctl.storage.vector_cache import CachedVector

MODEL = "text-embedding-3-small"
BEGUN, MADE = 1000.0, 500.0
"""When the output was begun, and when a vector of the cache had been made."""

OLD, BETWEEN, LATER, NEVER = 100.0, 700.0, 2000.0, None
"""When a change was seen: before either of them, between them, after both."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Endpoint, Endpoint]:
    """The host that is asked, and one that may take over for it."""
    file = tmp_path_factory.mktemp("settings") / "config.toml"
    places = "".join(
        f'[providers.{name}]\nprotocol = "openai"\nbase_url = "http://127.0.0.1:{port}/v1"\nprice_as = "openai"\n'
        for name, port in (("home", 9), ("spare", 10))
    )
    file.write_text(places)
    file.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDCTL_CONFIG", str(file))
        settings = load()
    return chain.endpoint(settings, "home", MODEL), chain.endpoint(settings, "spare", MODEL)


def stands(
    folder: Path, hosts: tuple[Endpoint, Endpoint], maker: str, changed: dict[str, float | None], begun: float = BEGUN
) -> bool:
    """Whether a vector that a provider has made may stand in the output of the first host."""
    for provider, at in changed.items():
        if at is not None:
            known = next((host_of(one) for one in hosts if one.provider == provider), f"{provider}@elsewhere#{MODEL}")
            canaries.note_change(folder, known, at)
    watch = CanaryWatch(folder, UNOBSERVED, hosts, when="off", begun_at=begun)
    return watch.stands(CachedVector(maker, MODEL, 3, np.ones(4, np.float32), MADE))


@pytest.mark.parametrize(("changed", "may"), [(NEVER, True), (OLD, True), (BETWEEN, False), (LATER, False)])
def test_a_host_s_own_vectors_stand_from_its_last_change_on(
    tmp_path: Path, hosts: tuple[Endpoint, Endpoint], changed: float | None, may: bool
) -> None:
    """What the asked host made may stand when it has not changed since, nor since the output was begun."""
    assert stands(tmp_path, hosts, "home", {"home": changed}) is may


@pytest.mark.parametrize("when", [OLD, BETWEEN, LATER])
@pytest.mark.parametrize("changed", ["home", "spare"])
def test_another_host_s_vectors_stand_only_where_neither_ever_changed(
    tmp_path: Path, hosts: tuple[Endpoint, Endpoint], changed: str, when: float
) -> None:
    """Whichever of the two was seen to change, and however long ago: nobody has compared them since."""
    assert stands(tmp_path, hosts, "spare", {})
    assert not stands(tmp_path, hosts, "spare", {changed: when})


def test_a_change_elsewhere_is_nobody_s(tmp_path: Path, hosts: tuple[Endpoint, Endpoint]) -> None:
    """What a third host changed concerns neither the asked one's vectors nor those of the one beside it."""
    for maker in ("home", "spare"):
        assert stands(tmp_path, hosts, maker, {"third": LATER})


@pytest.mark.parametrize("changed", [OLD, BETWEEN, LATER])
def test_a_host_that_is_gone_from_the_chain_is_known_by_its_provider(
    tmp_path: Path, hosts: tuple[Endpoint, Endpoint], changed: float
) -> None:
    """Vectors of a provider that is asked no more fall with any change of any of its hosts."""
    assert stands(tmp_path, hosts, "third", {})
    assert not stands(tmp_path, hosts, "third", {"third": changed})

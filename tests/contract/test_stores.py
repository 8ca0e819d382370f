"""Every promise of a store, for every store there is: a folder, S3, Google Cloud Storage, Azure."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from embedctl.errors import (
    EmbedctlError,
    InputChanged,
    InputMissing,
    OutputRefused,
    StorageFailed,
    StoreUnreachable,
)
from embedctl.journal.shard_log import Patience
from embedctl.storage.object_store import ObjectStore
from embedctl.storage.store import PROBES, LocalStore, Store, check_refuses
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.stores import StoreServer

STORES = ("a folder", "s3", "gcs", "azure")
ON_SERVERS = STORES[1:]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "a folder":
        return LocalStore(tmp_path / "store")
    server: StoreServer = request.getfixturevalue(request.param)
    return server.open()


@pytest.fixture(params=ON_SERVERS)
def on_server(request: pytest.FixtureRequest) -> StoreServer:
    server: StoreServer = request.getfixturevalue(request.param)
    return server


def test_an_object_is_put_once(store: Store) -> None:
    """The first one who puts a name has it; the second one is told so, and changes nothing."""
    assert store.put_if_absent("part-000000.parquet", b"first")
    assert not store.put_if_absent("part-000000.parquet", b"second")
    assert store.read("part-000000.parquet") == b"first"


def test_of_many_at_once_one_wins(store: Store) -> None:
    """However many put a name at the same moment, one of them has put it, and it is whole."""
    racers = 32 if isinstance(store, ObjectStore) else 8
    for number in range(8):
        name, start = f"claim-{number}", threading.Barrier(racers)

        def put(racer: int, name: str = name, start: threading.Barrier = start) -> int | None:
            start.wait()
            return racer if store.put_if_absent(name, bytes([racer]) * 10_000) else None

        with ThreadPoolExecutor(racers) as threads:
            won = [racer for racer in threads.map(put, range(racers)) if racer is not None]

        assert len(won) == 1
        assert store.read(name) == bytes(won) * 10_000


def test_an_object_that_fails_on_its_way_is_not_there(store: Store) -> None:
    """Content that breaks off leaves no name and no half."""

    def content(file: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.put_if_absent("half", content)

    assert list(store.list()) == []
    with pytest.raises(FileNotFoundError):
        store.read("half")


def test_content_may_be_bytes_a_file_or_what_writes_it(store: Store, tmp_path: Path) -> None:
    """However content is given, and however large it is, it arrives as it is."""
    large = bytes(range(256)) * 66_000  # more than is read at once
    file = tmp_path / "content"
    file.write_bytes(large)

    def write(sink: BinaryIO) -> None:
        sink.write(large[:100])
        sink.write(large[100:])

    assert store.put_if_absent("from-file", file)
    assert store.put_if_absent("written", write)
    assert store.put_if_absent("empty", b"")
    assert not store.put_if_absent("from-file", file)

    assert store.read("from-file") == store.read("written") == large
    assert store.read("empty") == b""


def test_names_are_listed_in_order(store: Store) -> None:
    """A prefix chooses, also in the middle of a name and through folders; the order is that of the names."""
    assert list(store.list()) == []
    for name in ("part-2", "part-1", "manifest", "part-x/deep/er", "_embedctl/shards/00042/log/0000000001"):
        store.put_if_absent(name, b"x")

    assert list(store.list("part-")) == ["part-1", "part-2", "part-x/deep/er"]
    assert list(store.list("_embedctl/shards/")) == ["_embedctl/shards/00042/log/0000000001"]
    assert list(store.list("_embedctl/shards/00042/lo")) == ["_embedctl/shards/00042/log/0000000001"]
    assert list(store.list("nothing/")) == list(store.list("nothing")) == []
    assert list(store.list()) == [
        "_embedctl/shards/00042/log/0000000001", "manifest", "part-1", "part-2", "part-x/deep/er"
    ]  # fmt: skip


def test_a_listing_has_all_pages(store: Store) -> None:
    """More names than a store lists at once are all listed, once, in order."""
    names = [f"log/{number:010}" for number in range(1_003)]
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda name: store.put_if_absent(name, b""), names))

    assert list(store.list("log/")) == names
    assert list(store.list("log/0000000")) == names[:1_000]


@pytest.mark.parametrize("name", ["a b", "ü/ß", "a%20b", "a#b", "a+b&c=d", "k=1/part-0.parquet", "a[1]"])
def test_a_name_comes_back_as_it_was_given(store: Store, name: str) -> None:
    """What an address would have to escape is a name like any other."""
    assert store.put_if_absent(name, b"x")

    assert list(store.list()) == [name]
    assert store.read(name) == b"x"
    assert store.stat(name) is not None
    store.remove(name)
    assert list(store.list()) == []


def test_a_part_of_an_object_is_read(store: Store) -> None:
    """A range has its bytes, fewer where the object ends, none behind it."""
    store.put_if_absent("digits", b"0123456789")

    assert store.read_range("digits", 2, 5) == b"234"
    assert store.read_range("digits", 8, 100) == b"89"
    assert store.read_range("digits", 10, 12) == b""
    assert store.read_range("digits", 3, 3) == b""
    with pytest.raises(FileNotFoundError):
        store.read_range("none", 0, 5)


def test_an_object_that_changed_is_noticed(store: Store) -> None:
    """A range of what was listed is not read from what took its place."""
    store.put_if_absent("x", b"before")
    found = store.stat("x")
    assert found is not None
    assert (found.name, found.size) == ("x", 6)
    assert [found] == list(store.objects())
    assert store.read_range("x", 0, 3, etag=found.etag) == b"bef"

    store.remove("x")
    assert store.stat("x") is None
    store.put_if_absent("x", b"after!")

    with pytest.raises(InputChanged, match="changed while it was read"):
        store.read_range("x", 0, 3, etag=found.etag)


def test_removal_may_be_repeated(store: Store) -> None:
    """A removed object is gone, and removing it again is no error."""
    store.put_if_absent("part-1", b"x")
    store.remove("part-1")
    store.remove("part-1")

    assert list(store.list()) == []
    assert store.put_if_absent("part-1", b"y")


def test_many_are_removed_whether_they_are_there_or_not(store: Store) -> None:
    """Of many names all are gone afterwards, also where some were gone before; what was not named stays."""
    names = [f"log/{number:04d}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put_if_absent(name, b"x"), ["other", *names[::2]]))
    store.remove_all(names)
    store.remove_all(iter(()))

    assert list(store.list()) == ["other"]


def test_a_store_that_refuses_to_overwrite_passes_the_trial(store: Store) -> None:
    """The trial says nothing, and leaves nothing."""
    check_refuses(store)

    assert list(store.list()) == []


def test_a_store_that_overwrites_is_refused(overwriting: StoreServer) -> None:
    """Where a name can be created twice, nothing may be built on it; the trial says so and leaves nothing."""
    store = overwriting.open()

    with pytest.raises(OutputRefused, match="does not refuse to overwrite") as refused:
        check_refuses(store)

    assert refused.value.exit_code == 73
    assert list(store.list(PROBES)) == []


def test_who_puts_again_with_the_same_id_has_put_it(on_server: StoreServer) -> None:
    """A put that is repeated under its id is mine, whoever asks again; under another it is somebody else's."""
    store = on_server.open()

    assert store.put_if_absent("entry", b"mine", write_id="a1")
    assert store.put_if_absent("entry", b"mine", write_id="a1")
    assert not store.put_if_absent("entry", b"yours", write_id="b2")
    assert not store.put_if_absent("entry", b"yours")
    assert store.read("entry") == b"mine"


def test_an_answer_that_was_lost_is_found_out(faulty_s3: tuple[StoreServer, FaultProxy]) -> None:
    """The object arrived and its answer did not: it is mine, as the store says."""
    server, proxy = faulty_s3
    store = server.open()
    proxy.faults[:] = ["drop answer"]

    assert store.put_if_absent("entry", b"mine")
    assert store.read("entry") == b"mine"
    assert not store.put_if_absent("entry", b"another's")


def test_a_conflict_with_nothing_is_put_again(faulty_s3: tuple[StoreServer, FaultProxy]) -> None:
    """S3's "conflict, try again" is nobody's object: it is put again, and then it is mine."""
    server, proxy = faulty_s3
    store = server.open()
    proxy.faults[:] = ["conflict", "conflict"]

    assert store.put_if_absent("entry", b"mine")
    assert store.read("entry") == b"mine"


def test_an_overloaded_store_is_asked_again(faulty_s3: tuple[StoreServer, FaultProxy]) -> None:
    """One 503 and one lost request cost a moment."""
    server, proxy = faulty_s3
    store = server.open()
    proxy.faults[:] = ["unavailable", "drop request", "slow"]

    assert store.put_if_absent("entry", b"mine")
    assert store.read("entry") == b"mine"


def test_a_store_that_cannot_create_alone_is_refused(faulty_s3: tuple[StoreServer, FaultProxy]) -> None:
    """A store that says 501 to the condition of a put cannot be an output: 73."""
    server, proxy = faulty_s3
    proxy.always = "not implemented"

    with pytest.raises(OutputRefused, match="cannot create without overwriting") as refused:
        server.open(retries=0).put_if_absent("entry", b"mine")
    assert refused.value.exit_code == 73


@pytest.mark.parametrize(
    ("fault", "code", "hint"),
    [
        ("denied", 77, "credentials come from"),
        ("expired", 77, "have expired"),
        ("other token", 77, "AWS_SESSION_TOKEN"),
        ("wrong clock", 77, "clock is wrong"),
        ("other region", 78, "region"),
        ("malformed", 78, "region"),
    ],
)
def test_what_a_store_says_of_credentials_and_region_is_understood(
    faulty_s3: tuple[StoreServer, FaultProxy], fault: Fault, code: int, hint: str
) -> None:
    """Whatever status S3 has for it: who is denied gets 77 and what helps, who asks the wrong region 78."""
    server, proxy = faulty_s3
    proxy.always = fault
    store = server.open(retries=0)

    for call in (lambda: store.put_if_absent("x", b"x"), store.list):
        with pytest.raises(EmbedctlError) as said:
            call()
        assert (said.value.exit_code, hint in (said.value.hint or "")) == (code, True), said.value


@pytest.mark.parametrize("fault", ["full", "quota"])
def test_a_full_store_is_a_full_disk(faulty_s3: tuple[StoreServer, FaultProxy], fault: Fault) -> None:
    """A store that takes no more does not heal while it is waited for: 74 after a few tries, and what helps."""
    server, proxy = faulty_s3
    proxy.always = fault

    def wait(seconds: float) -> None:
        raise AssertionError("a full store is waited for")

    patience = Patience(3600, sleep=wait)
    patience.with_(lambda: None)  # it has answered before: else nothing would be repeated

    with pytest.raises(StorageFailed, match="is full, or its quota") as said:
        patience.with_(lambda: server.open().put_if_absent("x", b"x"))
    assert (said.value.exit_code, "make room" in (said.value.hint or "")) == (74, True)
    assert len([one for one in proxy.puts if one[1] == fault]) <= 3


def test_an_output_without_its_bucket_cannot_be_created(on_server: StoreServer) -> None:
    """Nothing can be put where no bucket is, and nothing is there."""
    store = on_server.open(on_server.root.replace("bucket", "no-such-bucket").replace("container", "no-such-one"))

    with pytest.raises(OutputRefused, match="there is no such bucket"):
        store.put_if_absent("entry", b"mine")
    with pytest.raises(InputMissing, match="there is no such bucket"):
        store.list()


def test_a_store_that_stays_away_is_given_up(faulty_s3: tuple[StoreServer, FaultProxy]) -> None:
    """A store that only answers 503 ends in 75, with a word that says so; the same call later succeeds, with its id."""
    server, proxy = faulty_s3
    store = server.open(retries=0)
    proxy.always = "unavailable"

    for call in (
        lambda: store.put_if_absent("entry", b"mine", write_id="a1"), lambda: store.read("entry"), store.list,
        lambda: store.remove("entry"), lambda: store.stat("entry"),
    ):  # fmt: skip
        with pytest.raises(StoreUnreachable, match="503") as given_up:
            call()
        assert given_up.value.exit_code == 75

    proxy.always = None
    assert store.put_if_absent("entry", b"mine", write_id="a1")

"""Where a run reads and writes: what is named by mistake costs nothing and destroys nothing. Real processes."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(6)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--no-cache")


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.table(TEXTS)
    return found


def as_a_link(world: World) -> str:
    (world.folder / "link.parquet").symlink_to("in.parquet")
    return "link.parquet"


def as_a_second_name(world: World) -> str:
    os.link(world.folder / "in.parquet", world.folder / "twin.parquet")
    return "twin.parquet"


@pytest.mark.parametrize("name", [lambda world: "in.parquet", as_a_link, as_a_second_name])
def test_an_output_that_is_an_input(world: World, name: object) -> None:
    """An output that would replace an input is refused, --overwrite or not, by whatever name; the input stays."""
    before = (world.folder / "in.parquet").read_bytes()
    output = name(world)  # type: ignore[operator]
    refused = [world.run("embed", "in.parquet", "-o", output, *OPENAI, *more) for more in ((), ("--overwrite",))]

    assert [one.code for one in refused] == [73, 73]
    assert "in.parquet is an input: the output would replace it" in refused[1].err
    assert (world.folder / "in.parquet").read_bytes() == before
    assert world.wire.truth() == []


INPUTS_WITH_OUTPUT = {
    "a folder": ("data",),
    "a glob": ("data/*.parquet",),
    "deep": ("data/**/*.parquet",),
    "named by the shell": ("data/in.parquet", "data/all.parquet"),
}


@pytest.mark.parametrize("inputs", INPUTS_WITH_OUTPUT)
@pytest.mark.parametrize("kind", ["embed", "batch"])
def test_the_output_of_an_earlier_run_is_no_input(world: World, inputs: str, kind: str) -> None:
    """The same command again embeds the same inputs, though its output lies among them: that is none."""
    (world.folder / "data").mkdir()
    (world.folder / "in.parquet").rename(world.folder / "data" / "in.parquet")
    words = ("embed", "-o", "data/all.parquet") if kind == "embed" else ("batch", "run", "-o", "data/out")
    first = world.run(*words, "data/in.parquet", *OPENAI)
    named = INPUTS_WITH_OUTPUT[inputs][: 1 if kind == "batch" else 2]
    again = world.run(*words, *named, *OPENAI, "--json")

    assert (first.code, again.code) == (0, 0), again.out
    assert (again.receipt["rows"], again.receipt["requests"]) == (len(TEXTS), 0)


@pytest.mark.parametrize("inputs", ["data", "data/**/*.parquet"])
def test_outputs_of_other_runs_are_no_input(world: World, inputs: str) -> None:
    """A folder of parts among the inputs is left out: it is some run's output; named outright it is not."""
    (world.folder / "data").mkdir()
    (world.folder / "in.parquet").rename(world.folder / "data" / "in.parquet")
    assert world.run("batch", "run", "data/in.parquet", "-o", "data/parts", *OPENAI).code == 0
    ended = world.run("batch", "run", inputs, "-o", "other", *OPENAI, "--json")
    named = world.run("batch", "run", "data/parts", "-o", "third", *OPENAI)

    assert (ended.code, ended.receipt["rows"]) == (0, len(TEXTS)), ended.out
    assert (named.code, "'chunk_index'" in named.err) == (2, True)


def test_only_the_output(world: World) -> None:
    """An output alone is no input of the run that writes it: exit 66."""
    assert world.run("embed", "in.parquet", "-o", "all.parquet", *OPENAI).code == 0
    ended = world.run("embed", "all.parquet", "-o", "all.parquet", *OPENAI)

    assert (ended.code, "the output of an earlier run" in ended.err) == (66, True)


NOT_FILES = {
    "/dev/null": "is a device or pipe",
    "fifo": "is a device or pipe",
    "dangling.parquet": "is a symbolic link to nowhere",
    "dangling": "is a symbolic link to nowhere",
    "x" * 300: "cannot create",
}


@pytest.mark.parametrize("output", NOT_FILES)
@pytest.mark.parametrize("kind", [("embed",), ("batch", "run")])
def test_outputs_that_cannot_be(world: World, output: str, kind: tuple[str, ...]) -> None:
    """What cannot become the output is refused with 73 before anything is sent, and is what it was."""
    os.mkfifo(world.folder / "fifo")
    for name in ("dangling", "dangling.parquet"):
        (world.folder / name).symlink_to("nowhere/at/all")
    ended = world.run(*kind, "in.parquet", "-o", output, "--overwrite", *OPENAI)

    assert ended.code == 73, ended.err
    assert NOT_FILES[output] in ended.err or (kind != ("embed",) and "is a file" in ended.err)
    assert world.wire.truth() == []
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_batch_does_not_print(world: World) -> None:
    """`batch run -o -` is a mistake, not a folder called -."""
    ended = world.run("batch", "run", "in.parquet", "-o", "-", *OPENAI)

    assert ended.code == 2
    assert "embedctl embed INPUT... -o -" in ended.err
    assert not (world.folder / "-").exists()


def test_folders_of_an_output_are_the_users(world: World) -> None:
    """Folders made for an output are as open as umask says; what is ours in it is for the owner alone."""
    command = shlex.join([sys.executable, "-m", "embedctl", "batch", "run", "in.parquet", "-o", "new/out", *OPENAI])
    subprocess.run(["sh", "-c", f"umask 027; {command}"], cwd=world.folder, env=world.environment, check=True)
    modes = {name: stat.S_IMODE((world.folder / name).stat().st_mode) for name in ("new", "new/out")}

    assert modes == {"new": 0o750, "new/out": 0o750}
    assert stat.S_IMODE((world.folder / "new" / "out" / "part-000000.parquet").stat().st_mode) == 0o640
    assert stat.S_IMODE((world.folder / "new" / "out" / "_embedctl").stat().st_mode) == 0o700


@pytest.mark.parametrize("trouble", ["a file where the spool should be", "a ledger below a file"])
def test_no_place_for_what_is_spent(world: World, trouble: str) -> None:
    """Where nobody could write down what is spent nothing is sent, and nothing is left."""
    more: tuple[str, ...] = ()
    if trouble == "a ledger below a file":
        more = ("--ledger", "in.parquet/usage.duckdb")
    else:
        world.home.mkdir()
        (world.home / "spool").write_text("")
    ended = world.run("embed", "in.parquet", "-o", "out.parquet", *OPENAI, *more)

    assert ended.code in (73, 74), ended.err
    assert world.wire.truth() == []
    assert sorted(path.name for path in world.folder.glob("*out.parquet*")) == []


STREAMS = {
    "no stdin": ("<&-", 0),
    "no stdout": (">&-", 0),
    "no stderr": ("2>&-", 0),
    "none at all": ("<&- >&- 2>&-", 0),
    "a log on a full disk": ("2>/dev/full", 0),
    "a receipt on a full disk": ("--json >/dev/full", 74),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("case", STREAMS)
def test_standard_streams(world: World, case: str) -> None:
    """A closed stream, or a log that takes no more, stops no run; a result that cannot be written is exit 74."""
    redirected, code = STREAMS[case]
    command = shlex.join([sys.executable, "-m", "embedctl", "embed", "in.parquet", "-o", "out.parquet", *OPENAI])
    ended = subprocess.run(
        ["sh", "-c", f"{command} {redirected}"],
        cwd=world.folder,
        env=world.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "File" not in ended.stderr
    world.check_rows("out.parquet", TEXTS, dimensions=8)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_vectors_on_a_full_disk(world: World) -> None:
    """`-o - > FILE` on a full disk ends with 74 and one line, and what was spent is in the ledger."""
    command = shlex.join([sys.executable, "-m", "embedctl", "embed", "in.parquet", "-o", "-", *OPENAI])
    ended = subprocess.run(
        ["sh", "-c", f"{command} >/dev/full"],
        cwd=world.folder,
        env=world.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 74, ended.stderr
    assert "error: cannot write to stdout: No space left on device" in ended.stderr
    assert "File" not in ended.stderr
    world.check_bill()


def test_no_core_dumps(world: World) -> None:
    """A process that dies writes no core: keys are in its memory."""
    world.wire.plan(latency_s=2)
    command = [sys.executable, "-m", "embedctl", "embed", "in.parquet", "-o", "out.parquet", *OPENAI]
    with subprocess.Popen(command, cwd=world.folder, env=world.environment, stderr=subprocess.DEVNULL) as process:
        while not world.wire.truth() and process.poll() is None:
            time.sleep(0.02)
        limits = Path(f"/proc/{process.pid}/limits")
        said = limits.read_text() if limits.exists() else "Max core file size 0"
        process.kill()

    assert next(line for line in said.splitlines() if line.startswith("Max core file size")).split()[4] == "0"


def test_a_job_file_knows_the_home_folder(world: World) -> None:
    """~ in a job file is the home folder, as it is in a shell."""
    (world.folder / "home").mkdir()
    world.table(TEXTS, "home/texts.parquet")
    job = f'input = "~/texts.parquet"\noutput = "~/vectors"\nmodel = "openai:{MODEL}"\ndimensions = 8\n'
    (world.folder / "job.toml").write_text(job)
    ended = world.run("batch", "run", "job.toml")

    assert ended.code == 0, ended.err
    assert pq.read_table(world.folder / "home" / "vectors").num_rows == len(TEXTS)

"""Everything that can be wrong with an output, looked at in one pass over it and, when asked, one over its input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedctl import inputs, tokens
from embedctl.dataclass import dataclass
from embedctl.records import Observer
from embedctl.routing.endpoint import Endpoint
from embedctl.runs import adhoc
from embedctl.runs.receipt import Spending
from embedctl.settings.options import Options
from embedctl.vectors import agreement
from embedctl.vectors.against import Against
from embedctl.vectors.asking import Asking
from embedctl.vectors.checks import Alike, RowWalk
from embedctl.vectors.files import Stored
from embedctl.vectors.findings import Findings
from embedctl.vectors.sample import ALIKE_HERE, SAME_COSINE, Sample, cosine


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What an output should hold.

    Attributes:
        endpoint: Whose wording the texts were sent in; None when it cannot be known.
    """

    source: inputs.Source
    options: Options
    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class Walked:
    """How much was looked at.

    Attributes:
        rows: Of the output.
        rows_read: Of the input; None without one.
    """

    rows: int
    rows_read: int | None


def verify(
    stored: Stored,
    findings: Findings,
    *,
    folder: Path,
    endpoint: Endpoint | None = None,
    asked: Input | None = None,
    sample: Sample | None = None,
) -> Walked:
    """Look at parts, record, failures file and every row; in bounded memory.

    Args:
        folder: For indexes on the disk.
        endpoint: Who made it, so that texts can be compared as its model sees them; None when nobody knows.
        asked: An input to compare with.
        sample: Takes rows aside for `embedded_again`.

    Raises:
        InputInvalid: The input cannot be read; what is wrong with the output is in `findings`.
    """
    agreement.check(stored, findings)
    with RowWalk(stored, findings, folder, alike(endpoint), sample) as rows:
        rows.check()
        if asked is None:
            return Walked(rows.count, None)
        against = Against(
            stored,
            rows,
            findings,
            source=asked.source,
            options=asked.options,
            endpoint=asked.endpoint,
            folder=folder,
        )
        against.check()
        return Walked(rows.count, against.rows_read)


def alike(endpoint: Endpoint | None) -> Alike:
    """Whether two texts are the same tokens to a model; never, where its tokenizer is not here."""
    measure: Any = None

    def same(one: str, other: str) -> bool:
        nonlocal measure
        if endpoint is None or endpoint.tokenizer is None:
            return False
        measure = measure or tokens.splitter_source(endpoint.tokenizer, tokens.BYTES)
        encode = getattr(measure, "encode", None)
        return encode is not None and encode(endpoint.prefix + one).ids == encode(endpoint.prefix + other).ids

    return same


async def embedded_again(
    stored: Stored,
    sample: Sample,
    asking: Asking,
    findings: Findings,
    *,
    command: str,
    observer: Observer,
) -> tuple[int, Spending | None]:
    """Embed the texts of a sample once more and compare: how many were compared, and what that cost.

    Raises:
        EmbedctlError: They cannot be embedded now.
    """
    rows = sample.rows()
    if not rows:
        why = "it holds no texts" if not stored.has_text else "it has no rows"
        findings.add("not_checked", str(stored.path), f"no sample was taken: {why}", wrong=False)
        return 0, None
    made = await adhoc.embed(
        asking.settings,
        asking.chain,
        [asking.endpoint.prefix + text for _, text, _ in rows],
        purpose="test",
        command=command,
        space=stored.space,
        observer=observer,
    )
    compared = 0
    for place, (row, _, vector) in enumerate(rows):
        again = made.vector(place)
        if again is None:
            message = f"could not be embedded again: {made.refusals[place].message}"
            findings.add("not_checked", stored.place(row), message, wrong=False)
            continue
        compared += 1
        found = cosine(vector, again)
        if found < SAME_COSINE:
            alike = found >= ALIKE_HERE and asking.endpoint.local
            which = "a slightly other" if alike else "another"
            message = f"its text has {which} vector when it is embedded again (cosine {found:.4f})"
            message += ", as another version's arithmetic makes: `--no-reuse` makes all anew" if alike else ""
            findings.add("other_vector", stored.place(row), message, wrong=not alike)
    return compared, made.spending

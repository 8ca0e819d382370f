"""A Batch API as the tests use it: every call over a socket, every answer through the way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedctl import providers
from embedctl.providers import _batch_entry
from embedctl.providers._batch import BatchFile, BatchPage, BatchState, CreateOutcome, FilePage, LineResult
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, Secret
from tests.contract.providers.test_contract import KEY, answered
from tests.support.wire.client import Wire


@dataclass(frozen=True)
class Case:
    """One protocol as the tests ask it.

    Attributes:
        per_line: Texts of a line.
    """

    model: str
    per_line: int = 3
    dimensions: int = 256
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "openai": Case("text-embedding-3-small"),
    "mistral": Case("codestral-embed"),
    "voyage": Case("voyage-4"),
    "google": Case("gemini-embedding-001", per_line=1),
}
TEXTS = ["alpha", "beta gamma", 'délta\n"ε" 中文 🙂', "zeta", "eta theta", "iota", "kappa lambda", "mu"]


@dataclass(frozen=True)
class Batches:
    """One protocol's Batch API at the wire server.

    Attributes:
        at: Another place that speaks the protocol ("deepinfra").
    """

    wire: Wire
    name: str
    key: str = KEY
    at: str = ""

    @property
    def case(self) -> Case:
        return CASES[self.name]

    @property
    def module(self) -> Any:
        return providers.protocol(self.name)

    @property
    def place(self) -> Provider:
        return Provider(
            name=self.at or self.name,
            protocol=self.name,
            base_url=self.wire.base_url(self.at or self.name),
            api_key=Secret(self.key),
            options=self.case.options,
        )

    def lines(self, texts: Sequence[str] = TEXTS, **options: Any) -> bytes:
        """The file of a batch; line ids are line-0, line-1, …"""
        size, made = self.case.per_line, []
        for start in range(0, len(texts), size):
            some, line_id = texts[start : start + size], f"line-{start // size}"
            made.append(self.module.batch_line(self.place, self.case.model, line_id, some, RequestOptions(**options)))
        return b"".join(made)

    def upload(self, mark: str, content: bytes) -> BatchFile:
        asked = self.module.batch_upload(self.place, mark, content)
        return _batch_entry.uploaded(self.name, *answered(asked), asked)

    def files(self, mark: str, cursor: str | None = None) -> FilePage:
        asked = self.module.batch_files(self.place, mark, cursor)
        return _batch_entry.files(self.name, *answered(asked), asked)

    def create(self, mark: str, file_id: str, **options: Any) -> CreateOutcome:
        asked = self.module.batch_create(self.place, self.case.model, file_id, mark, RequestOptions(**options))
        return _batch_entry.created(self.name, *answered(asked), asked)

    def state(self, batch_id: str) -> BatchState:
        asked = self.module.batch_status(self.place, batch_id)
        return _batch_entry.state(self.name, *answered(asked), asked)

    def page(self, mark: str, cursor: str | None = None) -> BatchPage:
        asked = self.module.batch_list(self.place, mark, cursor)
        return _batch_entry.page(self.name, *answered(asked), asked)

    def cancel(self, batch_id: str) -> BatchState | None:
        asked = self.module.batch_cancel(self.place, batch_id)
        return _batch_entry.cancelled(self.name, *answered(asked), asked)

    def delete(self, file_id: str) -> None:
        asked = self.module.batch_delete(self.place, file_id)
        _batch_entry.deleted(self.name, *answered(asked), asked)

    def results(self, state: BatchState) -> list[LineResult]:
        """Every line of both files."""
        found = []
        for one in self.module.batch_results(self.place, self.case.model, state):
            status, headers, body = answered(one.request)
            if (there := _batch_entry.moved(status, headers, one.request)) is not None:
                status, _, body = answered(there)
            assert status == 200, body
            lines = [line for line in body.splitlines(keepends=True) if line.strip()]
            found += [_batch_entry.line(self.name, line, one.request) for line in lines]
        return found

    def made(self, mark: str = "ec-0123", texts: Sequence[str] = TEXTS, **options: Any) -> BatchState:
        """A batch, accepted."""
        file = self.upload(mark, self.lines(texts, **options))
        outcome = self.create(mark, file.id, **options)
        assert outcome.kind == "accepted", outcome
        assert outcome.batch is not None
        return outcome.batch

    def ended(self, mark: str = "ec-0123", texts: Sequence[str] = TEXTS, **options: Any) -> BatchState:
        """A batch, and over."""
        found = self.state(self.made(mark, texts, **options).id)
        assert found.ended, found
        return found

    def request(self) -> HttpRequest:
        """A request that was sent, for answers that no server made."""
        asked: HttpRequest = self.module.batch_status(self.place, "batch-1")
        return asked

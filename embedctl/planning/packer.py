"""Step 3. Chunks → requests within limits; blank, over-long, duplicate and known texts taken out. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import field
from itertools import accumulate

from embedctl.dataclass import dataclass
from embedctl.records import TEXT_HASH_BYTES, Limits, Purpose, Request, new_operation_id

ANSWER_BYTES_IN_FLIGHT = 64 * 1024 * 1024
"""All answers in flight together; request sizes are chosen so. An answer is its vectors and, as base64, 4/3 of them."""

BYTES_PER_TOKEN = 3
"""For packing only: English has 4 to 5, CJK 2.4 to 3 (facts/accounting.md 2.4); a refusal for size halves."""


def estimated_tokens(content_bytes: int) -> int:
    """A packing estimate, never a bill: bytes / 3, at least 1."""
    return max(1, content_bytes // BYTES_PER_TOKEN)


def packed_limits(limits: Limits, *, batch_size: int | None, dimensions: int | None, concurrency: int) -> Limits:
    """What one request of this run may hold: the model's limits, the user's, and memory's.

    Token limits are kept to 80 %, because packing estimates.
    """
    width = (dimensions or 1536) * 4 * 7 // 3
    memory = max(1, ANSWER_BYTES_IN_FLIGHT // max(1, concurrency) // width)
    items = min(filter(None, (limits.items, batch_size, memory)))
    return Limits(items=items, tokens=limits.tokens * 8 // 10 if limits.tokens else None, bytes=limits.bytes)


@dataclass(frozen=True, slots=True)
class PackedRequest:
    """A request, and which target each of its texts is for.

    Attributes:
        number: Requests of a run are numbered from 0 in the order they are packed.
        ordinals: Of each text: the ordinal of the target in the run.
    """

    number: int
    request: Request
    ordinals: tuple[int, ...]


@dataclass(slots=True)
class _Bundle:
    """Texts of one workspace that will go out together."""

    texts: list[str] | list[Sequence[int]] = field(default_factory=list)
    ordinals: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    tokens_each: list[int] = field(default_factory=list)
    counted: bool = True
    content_bytes: int = 0
    tokens: int = 0


class Packer:
    """Collects texts and gives them back as requests, close to the limits, in order, never mixing workspaces.

    Args:
        operation_id: Of all requests; None: each is an operation of its own.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        purpose: Purpose = "ingest",
        token_arrays: bool = False,
        operation_id: str | None = None,
    ) -> None:
        self.limits = limits
        self._purpose = purpose
        self._token_arrays = token_arrays
        self._operation_id = operation_id
        self._bundles: dict[str, _Bundle] = {}
        self.packed = 0

    def add(
        self,
        text: str | Sequence[int],
        digest: bytes,
        ordinal: int,
        *,
        content_bytes: int,
        tokens: int | None = None,
        workspace: str = "default",
    ) -> PackedRequest | None:
        """Take one text; the request that it did not fit into, when there is one.

        Args:
            content_bytes: UTF-8 bytes of the text as sent.
            tokens: Where they are known exactly.
        """
        size = tokens if tokens is not None else estimated_tokens(content_bytes)
        bundle = self._bundles.get(workspace)
        full = None
        if bundle is not None and not self._fits(bundle, size, content_bytes):
            full, bundle = self._pack(workspace, self._bundles.pop(workspace)), None
        if bundle is None:
            bundle = self._bundles[workspace] = _Bundle()
        bundle.texts.append(text)  # type: ignore[arg-type]
        bundle.ordinals.append(ordinal)
        bundle.hashes.append(digest)
        bundle.tokens_each.append(size)
        bundle.counted &= tokens is not None
        bundle.content_bytes += content_bytes
        bundle.tokens += size
        return full

    def add_all(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]],
        digests: Sequence[bytes],
        first_ordinal: int,
        *,
        content_bytes: Sequence[int],
        tokens: Sequence[int | None],
        workspace: str = "default",
    ) -> Iterator[PackedRequest]:
        """Take texts whose targets follow each other: the requests that `add` would give, at a fifth of its CPU."""
        sizes = [
            estimated_tokens(one) if exact is None else exact for one, exact in zip(content_bytes, tokens, strict=True)
        ]
        all_tokens, all_bytes = [0, *accumulate(sizes)], [0, *accumulate(content_bytes)]
        at = 0
        while at < len(texts):
            bundle = self._bundles.setdefault(workspace, _Bundle())
            stop = self._fit(bundle, all_tokens, all_bytes, at)
            if stop == at and bundle.texts:
                yield self._pack(workspace, self._bundles.pop(workspace))
                continue
            stop = max(stop, at + 1)
            bundle.texts += texts[at:stop]  # type: ignore[operator]
            bundle.ordinals += range(first_ordinal + at, first_ordinal + stop)
            bundle.hashes += digests[at:stop]
            bundle.tokens_each += sizes[at:stop]
            bundle.counted &= None not in tokens[at:stop]
            bundle.content_bytes += all_bytes[stop] - all_bytes[at]
            bundle.tokens += all_tokens[stop] - all_tokens[at]
            at = stop

    def _fit(self, bundle: _Bundle, tokens: list[int], content_bytes: list[int], at: int) -> int:
        """How far into texts, of which these are the sums, a bundle has room, from `at` on."""
        limits, stop = self.limits, len(tokens) - 1
        if limits.items is not None:
            stop = min(stop, at + limits.items - len(bundle.texts))
        for limit, sums, used in (
            (limits.tokens, tokens, bundle.tokens),
            (limits.bytes, content_bytes, bundle.content_bytes),
        ):
            if limit is not None:
                stop = min(stop, bisect_right(sums, limit - used + sums[at]) - 1)
        return max(stop, at)

    def rest(self) -> Iterator[PackedRequest]:
        """What has been collected and not given back yet; whose first text came first comes first."""
        for workspace in list(self._bundles):
            yield self._pack(workspace, self._bundles.pop(workspace))

    def _fits(self, bundle: _Bundle, tokens: int, content_bytes: int) -> bool:
        limits = self.limits
        return (
            (limits.items is None or len(bundle.texts) < limits.items)
            and (limits.tokens is None or bundle.tokens + tokens <= limits.tokens)
            and (limits.bytes is None or bundle.content_bytes + content_bytes <= limits.bytes)
        )

    def _pack(self, workspace: str, bundle: _Bundle) -> PackedRequest:
        request = Request(
            operation_id=self._operation_id or new_operation_id(),
            texts=bundle.texts,
            hashes=b"".join(bundle.hashes),
            workspace_id=workspace,
            purpose=self._purpose,
            token_arrays=self._token_arrays,
            content_bytes=bundle.content_bytes,
            tokens=bundle.tokens if bundle.counted else None,
            tokens_each=tuple(bundle.tokens_each) if bundle.counted else None,
        )
        self.packed += 1
        return PackedRequest(self.packed - 1, request, tuple(bundle.ordinals))


def part_of(request: Request, start: int, stop: int) -> Request:
    """texts[start:stop] of a request, as the same operation: what halving sends."""
    texts = request.texts[start:stop]
    each = request.tokens_each[start:stop] if request.tokens_each else None
    if request.token_arrays:
        content_bytes = request.content_bytes * len(texts) // len(request)
    else:
        content_bytes = sum(len(str(text).encode("utf-8", "surrogatepass")) for text in texts)
    return Request(
        operation_id=request.operation_id,
        texts=texts,
        hashes=request.hashes[start * TEXT_HASH_BYTES : stop * TEXT_HASH_BYTES],
        workspace_id=request.workspace_id,
        purpose=request.purpose,
        token_arrays=request.token_arrays,
        content_bytes=content_bytes,
        tokens=sum(each) if each else None,
        tokens_each=each,
    )

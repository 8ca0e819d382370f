"""What the wire server does with files and batches: takes, runs, bills, answers, and goes wrong as planned."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson

from tests.support.wire import vectors
from tests.support.wire.batch_dialects import BATCH_DIALECTS, BatchDialect, Draft, line_of, query
from tests.support.wire.batches import Batch, Invalid, Line, Register, Upload, cut, spoilt
from tests.support.wire.dialects import Asked, Bad, Reply, Work
from tests.support.wire.plan import Plan

Bill = Callable[[Batch, Line], None]
NAN = "@@NaN@@"


class Lost(Exception):
    """Close the connection without an answer."""


class BatchService:
    """Batch APIs over a register.

    Args:
        bill: Puts a line that was done on the invoice.
    """

    def __init__(self, bill: Bill) -> None:
        self.register = Register()
        self._bill = bill
        self.plan = Plan()

    def set_plan(self, plan: Plan) -> None:
        """The running plan: keys and bad texts of `plan` itself, the rest of its `batch`."""
        self.plan = plan
        self.register.set_plan(plan.batch)

    def route(self, method: str, path: str) -> tuple[BatchDialect, re.Match[str], str] | None:
        """Whose call it is, and which."""
        for one in BATCH_DIALECTS:
            for wanted, pattern, what in one.routes:
                if wanted == method and (match := pattern.fullmatch(path.partition("?")[0])):
                    return one, match, what
        return None

    async def answer(
        self, one: BatchDialect, match: re.Match[str], what: str, headers: dict[str, str], path: str, body: bytes
    ) -> Reply:
        """Status, headers and body (a file's path to be sent as it is).

        Raises:
            Lost: No answer.
        """
        key = headers.get(one.key_header, headers.get("authorization", "")).removeprefix("Bearer ")
        if self.plan.keys is not None and key not in self.plan.keys:
            return one.refuse("unauthorized", {"key": key})
        try:
            match what:
                case "upload":
                    return self._upload(one, headers, body)
                case "create":
                    return await self._create(one, match, orjson.loads(body), key)
                case "list":
                    return self._list(one, path)
                case "files":
                    return self._files(one, path)
                case "status" | "cancel":
                    return self._one(one, what, self.register.batches.get(match["id"]))
                case _:
                    return self._file(one, what, self.register.uploads.get(match["id"]), match)
        except (Bad, KeyError, TypeError, ValueError, AttributeError) as error:
            return one.refuse("bad", {"why": f"{error}"})

    # files

    def _upload(self, one: BatchDialect, headers: dict[str, str], body: bytes) -> Reply:
        step = self.register.step("upload")
        name, content = one.upload(headers, body)
        if step["fault"] == "lost_before":
            raise Lost
        if step["fault"] == "status":
            return one.refuse("server", {})
        upload_id = self.register.new_id(one.file_id)
        if one.own_file_names:
            upload_id = name
            if (there := self.register.uploads.get(name)) and not there.deleted:
                return one.refuse("file_exists", {})
        if step["fault"] == "cut":
            content = content[: len(content) // 2]
        upload = self.register.store(upload_id, name, [content])
        upload.dialect = one.name
        if step["fault"] in ("lost", "cut"):
            raise Lost
        return 200, {}, one.uploaded(one.file(upload))

    def _files(self, one: BatchDialect, path: str) -> Reply:
        asked = query(path)
        there = [
            upload
            for upload in reversed(self.register.uploads.values())
            if not upload.deleted and upload.dialect == one.name and (asked.get("search") or "") in upload.name
        ]
        return 200, {}, one.page("files", [one.file(upload) for upload in there], asked, self.register.plan.get("page"))

    def _file(self, one: BatchDialect, what: str, upload: Upload | None, match: re.Match[str]) -> Reply:
        if upload is None or upload.deleted:
            return one.refuse("no_file", {})
        if what == "delete":
            self.register.delete(upload)
            return 200, {}, one.deleted(upload)
        if what == "file":
            return 200, {}, one.file(upload)
        if upload.behaviour.get("redirect"):
            target = upload.behaviour["redirect"]
            return 302, {"location": target if isinstance(target, str) else f"/_signed/{upload.id}"}, b""
        return self._content(one, upload)

    def signed(self, upload_id: str, headers: dict[str, str]) -> Reply:
        """A file by a link that needs no key, and refuses one: it is not its server's."""
        upload = self.register.uploads.get(upload_id)
        if upload is None or upload.deleted or {"authorization", "x-goog-api-key"} & set(headers):
            return 400, {}, {"error": {"message": "Only one auth mechanism allowed."}}
        return self._content(next(one for one in BATCH_DIALECTS if one.name == upload.dialect), upload)

    def _content(self, one: BatchDialect, upload: Upload) -> Reply:
        upload.reads += 1
        missing, late = upload.behaviour.get("missing", 0), upload.behaviour.get("late", 0)
        if upload.behaviour.get("gone") or upload.reads <= missing:
            return one.refuse("no_file", {})
        if upload.reads <= missing + late:
            lines = upload.path.read_bytes().splitlines(keepends=True)
            return 200, {"content-type": "application/octet-stream"}, b"".join(lines[: len(lines) // 2])
        return 200, {"content-type": "application/octet-stream"}, upload.path

    # batches

    async def _create(self, one: BatchDialect, match: re.Match[str], body: dict[str, Any], key: str) -> Reply:
        step = self.register.step("create")
        fault, made = step["fault"], step.get("made", False)
        if fault == "lost_before":
            raise Lost
        if fault == "rate":
            return one.refuse("rate", step)
        if fault in ("enqueued", "unseen"):
            return one.refuse(fault, step)
        if fault == "status" and not made:
            _, headers, said = one.refuse("server", {})
            return step["status"], headers, said
        draft = one.draft(body, match)
        upload = self.register.uploads.get(draft.file_id)
        if upload is None or upload.deleted:
            return one.refuse("unseen", {})
        try:
            lines = self._lines(one, upload, draft)
            problem = None
        except Invalid as invalid:
            lines, problem = [], invalid
        tokens = sum(line.tokens for line in lines)
        limit, how = self.register.plan.get("enqueued_limit"), self.register.plan.get("enqueued_how", "failed")
        over = limit is not None and self.register.in_flight(one.name, draft.model) + tokens > limit
        if over and how != "failed":
            return one.refuse("enqueued", {"status": how})
        batches = [self._make(one, draft, key, lines) for _ in range(2 if fault == "twice" else 1)]
        batch = batches[0]
        if problem is not None or over:
            code = "token_limit_exceeded" if over else str(problem.args[0])
            self._fail(one, batch, code, problem.args[1] if problem is not None and len(problem.args) > 1 else None)
        if fault in ("lost", "twice"):
            raise Lost
        if fault == "late":
            await asyncio.sleep(step.get("seconds", 1))
        if fault == "odd":
            return 200, {}, b'{"id": "batch_'
        if fault == "status":
            _, headers, said = one.refuse("server", {})
            return step["status"], headers, said
        return 200, {}, one.state(batch)

    def _lines(self, one: BatchDialect, upload: Upload, draft: Draft) -> list[Line]:
        """What the file asks for.

        Raises:
            Invalid: The batch will fail.
        """
        lines: list[Line] = []
        seen: set[str] = set()
        with upload.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line_id, asked = one.read(line_of(raw, number), draft)
                except (Bad, KeyError, TypeError) as error:
                    raise Invalid(f"invalid_request: {error}", number) from None
                if line_id in seen:
                    raise Invalid("duplicate_custom_id", number)
                seen.add(line_id)
                if one.one_model_in_lines and draft.model not in ("", asked.model):
                    raise Invalid("model_mismatch", number)
                draft.model = draft.model or asked.model
                lines.append(Line(line_id, asked, sum(vectors.billed(text) for text in asked.texts)))
        if not lines:
            raise Invalid("empty_file")
        return lines

    def _make(self, one: BatchDialect, draft: Draft, key: str, lines: list[Line]) -> Batch:
        batch = Batch(
            id=self.register.new_id(one.batch_id),
            dialect=one.name,
            file_id=draft.file_id,
            model=draft.model,
            mark=draft.mark,
            metadata=draft.metadata,
            settings=draft.settings,
            key=key[-4:],
            created_at=time.time(),
            behaviour=self.register.next_behaviour(),
            tokens=sum(line.tokens for line in lines),
            lines=[Line(line.id, line.asked, line.tokens) for line in lines],
        )
        self.register.batches[batch.id] = batch
        return batch

    def _list(self, one: BatchDialect, path: str) -> Reply:
        step = self.register.step("list")
        if step["fault"] == "lost":
            raise Lost
        if step["fault"] == "status":
            _, headers, said = one.refuse("server", {})
            return step["status"], headers, said
        asked = query(path)
        shown = self.register.listed(one.name)
        if one.filters:
            shown = [batch for batch in shown if one.filters(batch, asked)]
        entries = [self._state(one, batch) for batch in shown]
        body = one.page("batches", entries, asked, self.register.plan.get("page"))
        if step["fault"] == "cut":
            packed = orjson.dumps(body)
            return 200, {}, packed[: len(packed) // 2]
        return 200, {}, body

    def _one(self, one: BatchDialect, what: str, batch: Batch | None) -> Reply:
        if batch is None or batch.dialect != one.name:
            return one.refuse("no_batch", {})
        if what == "status":
            self._poll(one, batch)
            return 200, {}, self._state(one, batch)
        how = batch.behaviour.get("cancel", "cancelled")
        if batch.ended or how == "refused":
            return one.refuse("ended", {})
        batch.status = "cancelling"
        if not batch.behaviour.get("cancel_polls", 0):
            self._end(one, batch, how)
        return 200, {}, one.cancelled(batch) if one.cancelled else self._state(one, batch)

    def _state(self, one: BatchDialect, batch: Batch) -> Any:
        return {**one.state(batch), **batch.behaviour.get("state", {})}

    def _poll(self, one: BatchDialect, batch: Batch) -> None:
        """One look at a batch: it may be over now."""
        if batch.ended:
            return
        if batch.status == "cancelling":
            batch.cancel_polls += 1
            if batch.cancel_polls > batch.behaviour.get("cancel_polls", 0):
                self._end(one, batch, batch.behaviour.get("cancel", "cancelled"))
            return
        batch.polls += 1
        how = batch.behaviour
        if batch.polls > how.get("polls", 0) and time.time() >= batch.created_at + how.get("seconds", 0):
            ends = how.get("ends", "completed")
            if ends == "failed":
                self._fail(one, batch, how.get("code", "token_limit_exceeded"), None)
            else:
                self._end(one, batch, ends)

    def _fail(self, one: BatchDialect, batch: Batch, code: str, line: int | None) -> None:
        """Nothing was run."""
        words = {
            "token_limit_exceeded": one.refuse("enqueued", {})[2]["error"]["message"]
            if one.name == "openai"
            else "Enqueued token limit reached.",
            "input_no_permissions": "The input file does not exist or your project has no access to it.",
        }
        batch.status, batch.ended_at = "failed", time.time()
        batch.errors = [{"code": code, "message": words.get(code, code), "line": line, "param": None}]

    def _end(self, one: BatchDialect, batch: Batch, ends: str) -> None:
        """Run what is run, bill it, and write the files."""
        how = batch.behaviour
        share = how.get("share", 0.5) if ends in ("expired", "cancelled") else 1.0
        runs = round(len(batch.lines) * share)
        broken = round(len(batch.lines) * how.get("fails", 0.0))
        batch.status, batch.ended_at = ends, time.time()
        delivers = ends != "expired" or one.keeps_output
        for number, line in enumerate(batch.lines):
            if any(isinstance(text, str) and text in self.plan.poison for text in line.asked.texts):
                line.outcome = "refused"
            elif number < broken:
                line.outcome = "broken"
            elif number < runs:
                line.outcome = "done"
                if delivers or how.get("bill_lost"):
                    self._bill(batch, line)
        if not delivers:
            return
        output = spoilt(self._output(one, batch), how.get("output", []), batch.id)
        if "truncated" in how.get("output", ()):
            output = cut(output)
        batch.output = self._store(one, batch, output)
        batch.error = self._store(one, batch, self._errors(one, batch, ends))

    def _store(self, one: BatchDialect, batch: Batch, lines: Iterator[bytes]) -> Upload | None:
        """A result's file; None where it would hold nothing."""
        upload_id = self.register.new_id(one.output_id or one.file_id)
        upload = self.register.store(upload_id, f"{batch.id}_output.jsonl", lines, "batch_output")
        upload.dialect, upload.behaviour = one.name, batch.behaviour
        if not upload.bytes:
            self.register.delete(upload)
            del self.register.uploads[upload_id]
            return None
        return upload

    def _output(self, one: BatchDialect, batch: Batch) -> Iterator[bytes]:
        faults = batch.behaviour.get("output", ())
        for number, line in enumerate(batch.lines):
            if line.outcome != "done":
                if one.errors_in_output:
                    yield from self._error_line(one, line, batch.status)
                continue
            work = self._work(line.asked, f"{batch.id}-{number}", line.tokens)
            if "usage_missing" in faults:
                work.usage = None
            if number == 0 and {"nan", "null"} & set(faults):
                bad = NAN if "nan" in faults else None
                work.rows[0] = bad if work.asked.base64 else [bad, *work.rows[0].tolist()[1:]]
            if "other_width" in faults:
                work.rows = [row[:-1] for row in work.rows]
            said = one.done(line.id, work, batch.behaviour)
            packed = orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)
            yield packed.replace(f'"{NAN}"'.encode(), b"NaN") + b"\n"

    def _errors(self, one: BatchDialect, batch: Batch, ends: str) -> Iterator[bytes]:
        if one.errors_in_output:
            return
        for line in batch.lines:
            if line.outcome != "done" and (line.outcome != "left" or batch.behaviour.get("left") != "absent"):
                yield from self._error_line(one, line, ends)

    def _error_line(self, one: BatchDialect, line: Line, ends: str) -> Iterator[bytes]:
        if line.outcome == "left":
            said = one.left(line.id, ends)
        else:
            status, _, body = one.refuse(self.plan.poison_kind if line.outcome == "refused" else "server", {})
            said = one.refused(line.id, status, body)
        yield orjson.dumps(said) + b"\n"

    def _work(self, asked: Asked, name: str, tokens: int) -> Work:
        native = self.plan.dimensions or vectors.width(asked.model)
        texts = [text if isinstance(text, str) else vectors.tokens_text(text) for text in asked.texts]
        rows: list[Any] = list(vectors.matrix(texts, native, asked.dimensions, self.plan.spaces.get(asked.model, "")))
        return Work(asked, [np.asarray(row) for row in rows], list(range(len(rows))), tokens, name)

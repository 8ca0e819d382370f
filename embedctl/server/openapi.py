"""The API's description (OpenAPI 3.1), by hand: the routes of the service, what they take, and what they answer.

Tests hold it to the routes, in both directions, and its examples to what a running server says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from embedctl import __version__
from embedctl.dataclass import dataclass
from embedctl.server.fields import MOST_INPUTS
from embedctl.server.jobs.paths import STATUSES
from embedctl.server.refusals import CODES

Who = Literal["anybody", "key", "metrics", "admin"]

_GUIDE = "/api/v1/embeddings"
_MODEL = "text-embedding-3-small"
_WHO: Mapping[Who, str] = {
    "anybody": "Needs no key.",
    "key": "For every key.",
    "metrics": "For keys with the role metrics or admin.",
    "admin": "For keys with the role admin.",
}
_OF_ALL = ("missing_key", "invalid_key", "expired_key", "invalid_token", "too_many_failures", "host_denied",
           "origin_denied", "headers_too_large", "internal_error")  # fmt: skip
_OF_STRANGERS = ("host_denied", "headers_too_large", "internal_error")
_OF_BODIES = ("invalid_json", "unknown_parameter", "body_too_large", "unsupported_media_type", "request_timeout",
              "rate_limited", "concurrency_limited", "overloaded", "draining")  # fmt: skip
_OF_NAMES = ("invalid_model", "invalid_provider", "unknown_provider", "provider_model_mismatch", "model_not_found",
             "provider_denied", "model_denied", "provider_unsupported")  # fmt: skip
_OF_CALLS = ("budget_exceeded", "price_unknown", "token_rate_limited", "provider_rate_limited",
             "provider_malformed_response", "space_mismatch", "provider_refused", "provider_unavailable",
             "circuit_open", "fallback_exhausted", "missing_provider_credentials", "provider_credentials_rejected",
             "provider_quota_exhausted", "storage_failed", "deadline_exceeded")  # fmt: skip
_OF_TEXTS = ("invalid_input_type", "empty_input", "too_many_inputs", "input_too_long", "invalid_dimensions",
             "text_refused")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedPath:
    """What one method of one path does.

    Attributes:
        group: Under which the page shows it.
        path: As a route has it, without converters.
        parameters: Of the query: name → sentence.
        headers: That it heeds: name → sentence.
        takes: Schema of its body, and an example; None: it has none.
        answers: Schema of what it answers, and an example; a media type's name where that is no JSON.
        refuses: Codes beside those that every operation with a key, or with a body, has.
        status: Of what it answers.
        takes_media: What its body may be.
    """

    group: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    who: Who = "key"
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    takes: tuple[Any, Any] | None = None
    answers: tuple[Any, Any] | str
    refuses: Sequence[str] = ()
    status: int = 200
    takes_media: Sequence[str] = ("application/json",)


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None, *, open_: bool = False) -> Any:
    found = {"type": "object", "properties": {**required, **(optional or {})}, "additionalProperties": open_}
    return found | ({"required": [*required]} if required else {})


def _list(of: Any) -> Any:
    return {"type": "array", "items": of}


def _ref(name: str) -> Any:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: Any = {"type": "string"}
_MAYBE_TEXT: Any = {"type": ["string", "null"]}
_NUMBER: Any = {"type": "integer"}
_REAL: Any = {"type": "number"}
_YES: Any = {"type": "boolean"}
_MONEY: Any = {"type": ["string", "null"], "pattern": r"^-?\d+(\.\d+)?$", "description": "USD, exact; null: unknown"}
_TIME: Any = {"type": ["string", "null"], "format": "date-time"}
_ANY: Any = {"type": "object", "additionalProperties": True}

_TEXTS: Any = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MOST_INPUTS}

SCHEMAS: Mapping[str, Any] = {
    "EmbeddingsRequest": _object(
        {
            "input": {
                "description": f"A text, up to {MOST_INPUTS} texts, or token arrays; not mixed",
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {
                        "type": "array",
                        "items": {"type": "string", "minLength": 1},
                        "minItems": 1,
                        "maxItems": MOST_INPUTS,
                    },
                    {"type": "array", "items": _NUMBER, "minItems": 1},
                    {"type": "array", "items": _list(_NUMBER), "minItems": 1, "maxItems": MOST_INPUTS},
                ],
            }
        },
        {
            "model": {"type": "string", "description": "NAME, or PROVIDER:NAME; without it the key's or server's own"},
            "encoding_format": {"enum": ["float", "base64", None], "description": "the same float32 bits either way"},
            "dimensions": {"type": ["integer", "null"], "minimum": 1},
            "user": {"type": ["string", "null"], "maxLength": 256, "description": "kept as a tag of the usage"},
            "provider": _MAYBE_TEXT,
            "input_type": {"enum": ["document", "query", "classification", "clustering", None]},
            "purpose": {"enum": ["ingest", "query", None]},
        },
    ),
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "data": _list(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _NUMBER,
                        "embedding": {"anyOf": [_list(_REAL), {"type": "string", "description": "base64, float32 LE"}]},
                    }
                )
            ),
            "model": {"type": "string", "description": "of who served; with its provider unless that is openai"},
            "usage": _object({"prompt_tokens": _NUMBER, "total_tokens": _NUMBER}),
        }
    ),
    "BatchRequest": _object(
        {
            "texts": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "minItems": 1,
                "maxItems": MOST_INPUTS,
            }
        },
        {"model": _MAYBE_TEXT, "provider": _MAYBE_TEXT, "dimensions": {"type": ["integer", "null"], "minimum": 1}},
    ),
    "Batch": _object({"embeddings": _list(_list(_REAL)), "model": _TEXT, "provider": _TEXT, "count": _NUMBER}),
    "ModelRequest": _object({}, {"model": _MAYBE_TEXT, "provider": _MAYBE_TEXT}),
    "WarmupRequest": _object(
        {},
        {
            "model": _MAYBE_TEXT,
            "provider": _MAYBE_TEXT,
            "paid": {"type": "boolean", "description": "a model that runs elsewhere is asked, which may cost"},
        },
    ),
    "Models": _object(
        {
            "data": _list(_object({"provider": _TEXT, "model": _TEXT, "allowed": _YES, "default": _YES})),
            "allowed_providers": {"anyOf": [_list(_TEXT), {"type": "null"}]},
            "allowed_models": {"anyOf": [_list(_TEXT), {"type": "null"}]},
        }
    ),
    "Model": _object(
        {
            "model": _TEXT,
            "provider": _TEXT,
            "dimension": {"type": ["integer", "null"]},
            "max_tokens": {"type": ["integer", "null"]},
            "allowed": _YES,
            "price_usd_per_mtok": _MONEY,
            "dimensions_supported": _list(_NUMBER),
            "tokenizer": _MAYBE_TEXT,
            "takes_tokens": _YES,
            "local": _YES,
        }
    ),
    "OpenAIModel": _object({"id": _TEXT, "object": {"const": "model"}, "created": _NUMBER, "owned_by": _TEXT}),
    "OpenAIModels": _object({"object": {"const": "list"}, "data": _list(_ref("OpenAIModel"))}),
    "CacheStats": _object({"size": _NUMBER, "max_size": _NUMBER, "ttl_seconds": _NUMBER}),
    "Circuits": {
        "type": "object",
        "additionalProperties": _object({"state": _ref("CircuitState"), "failure_count": _NUMBER}),
    },
    "CircuitState": {"enum": ["closed", "half_open", "open", "dead"]},
    "Health": _object(
        {"status": {"enum": ["healthy", "degraded"]}, "service": {"const": "embedctl"}, "timestamp": _TIME},
        {
            "cache_stats": _ref("CacheStats"),
            "active_requests": _NUMBER,
            "circuit_breakers": _ref("Circuits"),
        },
    ),
    "ProvidersConfig": _object(
        {
            "default_provider": _MAYBE_TEXT,
            "default_model": _MAYBE_TEXT,
            "providers": _list(
                _object(
                    {
                        "name": _TEXT,
                        "models": _list(_TEXT),
                        "protocol": _MAYBE_TEXT,
                        "host": _MAYBE_TEXT,
                        "key": {"enum": ["set", "missing", "optional", "none"]},
                        "configured": _YES,
                        "allowed": _YES,
                    }
                )
            ),
        }
    ),
    "CircuitBreakers": {
        "type": "object",
        "additionalProperties": _object(
            {
                "name": _TEXT,
                "state": _ref("CircuitState"),
                "failure_count": _NUMBER,
                "success_count": _NUMBER,
                "last_failure_time": _TIME,
                "last_state_change_time": _TIME,
                "half_open_calls": _NUMBER,
                "current_recovery_timeout": _REAL,
                "ready_in_s": {"type": ["number", "null"]},
                "inputs_put_off": _NUMBER,
                "cause": _MAYBE_TEXT,
                "settings": _ANY,
                "models": _list(_ANY),
            }
        ),
    },
    "Message": _object({"message": _TEXT}),
    "Removed": _object({"message": _TEXT, "entries_removed": _NUMBER}),
    "Metrics": _object(
        {
            "cache": _ref("CacheStats"),
            "active_requests": _NUMBER,
            "circuit_breakers": _ref("Circuits"),
            "counters": {"type": "object", "additionalProperties": _NUMBER},
            "config": _ANY,
            "ledger": _object(
                {"cost_usd": _MONEY, "cost_is_lower_bound": _YES, "tokens": _NUMBER, "at_risk_usd": _MONEY}
            ),
        }
    ),
    "Warmed": _object({"status": {"const": "ok"}, "provider": _TEXT, "model": _TEXT, "warmed": {"const": True}}),
    "Downloaded": _object(
        {"status": {"const": "ok"}, "provider": _TEXT, "model": _TEXT, "downloaded": {"const": True}}
    ),
    "Tried": _object(
        {
            "provider": _TEXT,
            "model": _TEXT,
            "answered": {"const": True},
            "dimensions": _NUMBER,
            "tokens": _NUMBER,
            "cost": _MONEY,
            "currency": {"const": "USD"},
            "workspace": _TEXT,
            "seconds": _REAL,
        }
    ),
    "Measures": _object(
        {
            "tokens": {"type": ["integer", "string"]},
            "cost": _MONEY,
            "cost_is_lower_bound": _YES,
            "cost_at_risk": _MONEY,
            "fallback_share": {"type": ["number", "null"]},
            "calls": _NUMBER,
            "operations": _NUMBER,
            "errors": _NUMBER,
            "success_rate": {"type": ["number", "null"]},
        },
        open_=True,
    ),
    "Usage": _object(
        {
            "schema_version": _NUMBER,
            "generated_at": _TIME,
            "as_of": {"type": "string", "format": "date-time", "description": "until when it is complete"},
            "timezone": _TEXT,
            "since": _TIME,
            "until": _TIME,
            "currency": _TEXT,
            "prices_as_of": _MAYBE_TEXT,
            "by": _list(_TEXT),
            "filters": _ANY,
            "groups": _list(_ref("Measures")),
            "totals": _ref("Measures"),
            "warnings": _list(_TEXT),
        },
        {"pending": _ANY},
    ),
    "Summary": _object(
        {
            "as_of": _TIME,
            "workspace": _TEXT,
            "everybody": _YES,
            "role": _TEXT,
            "key": _MAYBE_TEXT,
            "timezone": _TEXT,
            "today": {"type": "string", "format": "date"},
            "month": _TEXT,
            "of_today": _ref("Measures"),
            "of_month": _ref("Measures"),
            "days": _list({"type": "string", "format": "date"}),
            "by_day": {"type": "object", "additionalProperties": _list(_ANY)},
            "of_month_by": {"type": "object", "additionalProperties": _ANY},
            "budgets": _list(_ANY),
            "circuits": _list(_ANY),
            "pending": {"anyOf": [_ANY, {"type": "null"}]},
            "active_requests": {"type": ["integer", "null"]},
            "warnings": _list(_TEXT),
        }
    ),
    "Job": _object(
        {
            "id": _TEXT,
            "object": {"const": "embedding.job"},
            "status": {"enum": list(STATUSES)},
            "embedding_model": _TEXT,
            "progress_percent": _REAL,
            "error": {"type": ["object", "string", "null"]},
            "tokens": {"type": ["integer", "null"]},
            "cost_usd": _MONEY,
            "at_risk_usd": _MONEY,
        },
        open_=True,
    ),
    "Jobs": _object(
        {
            "data": _list(_ref("Job")),
            "pagination": _object({"limit": _NUMBER, "offset": _NUMBER, "count": _NUMBER, "total": _NUMBER}),
        }
    ),
    "JobRequest": _object(
        {},
        {
            "texts": _list(_object({"id": {"type": ["string", "integer"]}, "text": _TEXT})),
            "source": {"type": "string", "description": "files of the server's, below a configured root"},
            "mode": {"enum": ["online", "batch", "auto"]},
            "dry_run": {"type": "boolean", "description": "say what it would cost, and do nothing (200)"},
        },
        open_=True,
    ),
    "Deleted": _object({"deleted": {"const": True}, "id": _TEXT, "object": _TEXT}),
    "MediaJobRequest": _object(
        {},
        {
            "embedding_model": _MAYBE_TEXT,
            "embedding_provider": _MAYBE_TEXT,
            "chunk_size": _NUMBER,
            "chunk_overlap": _NUMBER,
            "force_regenerate": _YES,
            "priority": _NUMBER,
        },
        open_=True,
    ),
    "MediaJob": _object(
        {
            "media_id": {"type": ["integer", "string"]},
            "status": {"const": "accepted"},
            "message": _TEXT,
            "job_id": _TEXT,
        },
        open_=True,
    ),
    "MediaStatus": _object(
        {
            "media_id": {"type": ["integer", "string"]},
            "has_embeddings": _YES,
            "embedding_count": _NUMBER,
            "embedding_model": _MAYBE_TEXT,
            "last_generated": {"type": ["integer", "null"]},
            "job_id": _MAYBE_TEXT,
        }
    ),
    "Found": _object({"results": _list(_ANY), "count": _NUMBER}),
    "File": _object({"id": _TEXT, "object": {"const": "file"}, "status": _TEXT}, open_=True),
    "OpenAIBatch": _object({"id": _TEXT, "object": {"const": "batch"}, "status": _TEXT}, open_=True),
    "Page": _object({"object": {"const": "list"}, "data": _list(_ANY), "has_more": _YES}, open_=True),
    "Error": _object(
        {
            "error": {
                "description": "Below /api/v1 a text over the model's limit has the word `input_too_long` here, and "
                "`message` and `details` beside it",
                "anyOf": [
                    _object(
                        {"message": _TEXT, "type": _TEXT, "param": _MAYBE_TEXT, "code": {"enum": sorted(CODES)}},
                        {"details": _list(_ANY), "budget": _ANY, "retry_after_ms": _NUMBER},
                    ),
                    {"const": "input_too_long"},
                ],
            }
        },
        {"detail": {"type": "string", "description": "not below /v1"}, "message": _TEXT, "details": _list(_ANY)},
    ),
}

_VECTORS_EXAMPLE = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456, 0.0789]}],
    "model": _MODEL,
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}
_HEADERS = {
    "x-provider": "Which provider is to be asked; nobody takes over for it then.",
    "x-input-type": "As `input_type`, for clients that cannot add fields.",
    "x-embedctl-timeout": "Seconds after which the client stops waiting.",
}
_OF_REPORT = {
    "since": "From this day or time on.",
    "until": "Up to this day or time, not included.",
    "last": "In their place: 7d, 24h, today, mtd …",
    "by": "Keys to group by, with commas: day, week, month, workspace, provider, model, job, run, tier, source, "
    "status, purpose, tag:KEY.",
    "timezone": "IANA name, of days, weeks and months (UTC).",
    "workspace": "Another one's: for admins, who see all without it.",
    "provider": "Only this one.",
    "model": "Only this one.",
    "job": "Only this one.",
}


def _vectors(door: str) -> DescribedPath:
    return DescribedPath(
        group="Vectors",
        method="POST",
        path=f"{door}/embeddings",
        summary="Vectors of texts or token arrays" + (", in OpenAI's dress" if door == "/v1" else ""),
        headers=_HEADERS,
        takes=(_ref("EmbeddingsRequest"), {"model": _MODEL, "input": "one text"}),
        answers=(_ref("Embeddings"), _VECTORS_EXAMPLE),
        refuses=(*_OF_NAMES, *_OF_TEXTS, *_OF_CALLS, "invalid_token_array", "invalid_encoding_format", "invalid_user",
                 "invalid_input_kind", "invalid_purpose"),
    )  # fmt: skip


def _models(door: str) -> list[DescribedPath]:
    model = {"id": _MODEL, "object": "model", "created": 0, "owned_by": "openai"}
    return [
        DescribedPath(
            group="Models",
            method="GET",
            path=f"{door}/models",
            summary="What the key may ask for, as OpenAI lists models",
            answers=(_ref("OpenAIModels"), {"object": "list", "data": [model]}),
        ),
        DescribedPath(
            group="Models",
            method="GET",
            path=f"{door}/models/{{id}}",
            summary="One of them",
            answers=(_ref("OpenAIModel"), model),
            refuses=("model_not_found",),
        ),
    ]


_STATS = {"size": 150, "max_size": 349525, "ttl_seconds": 7776000}
_CIRCUITS = {"openai": {"state": "closed", "failure_count": 0}}
_CIRCUIT = {
    "state": "open", "failure_count": 5, "success_count": 0, "last_failure_time": "2026-11-26T12:00:00+00:00",
    "last_state_change_time": "2026-11-26T12:00:00+00:00", "half_open_calls": 0, "current_recovery_timeout": 20.0,
    "ready_in_s": 7.5, "inputs_put_off": 0, "cause": "openai: status 500",
}  # fmt: skip
_MEASURED = {
    "tokens": 120_000, "cost": "0.0024", "cost_is_lower_bound": False, "cost_at_risk": "0.00", "fallback_share": 0.0,
    "calls": 40, "operations": 39, "errors": 1, "success_rate": 0.975,
}  # fmt: skip

_JOB = {
    "id": "job_0a1b2c", "object": "embedding.job", "media_id": None, "status": "queued", "embedding_model": _MODEL,
    "progress_percent": 0.0, "error": None, "tokens": None, "cost_usd": None, "at_risk_usd": None,
}  # fmt: skip
_JOB_PAGE = {"data": [_JOB], "pagination": {"limit": 50, "offset": 0, "count": 1, "total": 1}}
_FILE = {"id": "file-0a1b2c", "object": "file", "status": "processed", "purpose": "batch"}
_BATCH = {"id": "batch_0a1b2c", "object": "batch", "status": "validating", "endpoint": "/v1/embeddings"}
_JOBS = f"{_GUIDE}/jobs"
_MEDIA = "/api/v1/media"
_OF_MAKING = (*_OF_NAMES, "invalid_job", "idempotency_mismatch", "invalid_dimensions", "budget_exceeded",
              "price_unknown", "missing_provider_credentials", "storage_failed", "empty_input", "too_many_inputs",
              "invalid_input_type")  # fmt: skip
_OF_LISTS = {
    "status": f"Only these: {', '.join(STATUSES)}.", "limit": "At most 200.", "offset": "How many to leave out first.",
}  # fmt: skip
_OF_PAGES = {"after": "The id after which to go on.", "limit": "How many."}
_IDEMPOTENT = {"Idempotency-Key": "The same key again: the same job."}


def _job(method: Any, path: str, summary: str, answer: Any = None, **more: Any) -> DescribedPath:
    refuses = (
        "job_not_found",
        "rate_limited",
        "draining",
        "storage_failed",
        "admin_required",
        *more.pop("refuses", ()),
    )
    return DescribedPath(group="Jobs", method=method, path=path, summary=summary, answers=answer or (_ref("Job"), _JOB),
                     refuses=refuses, **more)  # fmt: skip


def _media(method: Any, path: str, summary: str, answer: Any, **more: Any) -> DescribedPath:
    refuses = ("media_not_found", "rate_limited", "draining", "admin_required", *more.pop("refuses", ()))
    return DescribedPath(
        group="Media", method=method, path=_MEDIA + path, summary=summary, answers=answer, refuses=refuses, **more
    )


def _batches(door: str) -> list[DescribedPath]:
    page: Any = (_ref("Page"), {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False})
    shared = ("rate_limited", "draining", "admin_required", "storage_failed")
    table: list[tuple[Any, str, str, Any, dict[str, Any]]] = [
        ("POST", "/files", "Upload lines for a batch", (_ref("File"), _FILE), {
            "takes": (_ANY, {"purpose": "batch", "file": "lines"}), "takes_media": ("multipart/form-data",),
            "refuses": ("invalid_file", "not_finished")}),
        ("GET", "/files", "Files of the workspace", page, {
            "parameters": {**_OF_PAGES, "purpose": "Only these.", "order": "asc or desc."},
            "refuses": ("invalid_job", "invalid_parameter")}),
        ("GET", "/files/{id}", "One of them", (_ref("File"), _FILE), {"refuses": ("file_not_found",)}),
        ("GET", "/files/{id}/content", "What is in it", "application/jsonl", {"refuses": ("file_not_found",)}),
        ("DELETE", "/files/{id}", "Remove it",
         (_ref("Deleted"), {"id": "file-0a1b2c", "object": "file", "deleted": True}),
         {"refuses": ("file_not_found", "not_finished")}),
        ("POST", "/batches", "Embed the lines of a file, whoever serves the model", (_ref("OpenAIBatch"), _BATCH), {
            "takes": (_ANY, {"input_file_id": "file-0a1b2c", "endpoint": "/v1/embeddings", "completion_window": "24h"}),
            "headers": _IDEMPOTENT,
            "refuses": ("file_not_found", "invalid_file", "invalid_job", "idempotency_mismatch")}),
        ("GET", "/batches", "Batches of the workspace", page,
         {"parameters": _OF_PAGES, "refuses": ("invalid_job",)}),
        ("GET", "/batches/{id}", "One of them", (_ref("OpenAIBatch"), _BATCH), {"refuses": ("job_not_found",)}),
        ("POST", "/batches/{id}/cancel", "End it", (_ref("OpenAIBatch"), _BATCH), {"refuses": ("job_not_found",)}),
    ]  # fmt: skip
    found = []
    for method, path, summary, answer, more in table:
        refuses = (*shared, *more.pop("refuses", ()))
        found.append(
            DescribedPath(
                group="Files and batches", method=method, path=door + path, summary=summary, answers=answer,
                refuses=refuses, **more,
            )
        )  # fmt: skip
    return found


_OF_JOBS: Sequence[DescribedPath] = (
    _job("POST", _JOBS, "Embed texts, a file, or files of the server's in the background", status=202,
         takes=(_ref("JobRequest"), {"texts": [{"id": "1", "text": "one text"}], "model": _MODEL}), headers=_IDEMPOTENT,
         takes_media=("application/json", "application/jsonl", "application/vnd.apache.parquet"),
         refuses=(*_OF_MAKING, "invalid_file")),
    _job("GET", _JOBS, "Jobs of the workspace, the newest first", (_ref("Jobs"), _JOB_PAGE), parameters=_OF_LISTS,
         refuses=("invalid_job", "invalid_parameter", "unknown_parameter")),
    _job("GET", f"{_JOBS}/{{id}}", "How far one is"),
    _job("GET", f"{_JOBS}/{{id}}/result", "Its vectors, as Parquet or JSON Lines", "application/octet-stream",
         parameters={"format": "parquet or jsonl", "encoding_format": "Of JSON Lines: float or base64."},
         refuses=("not_finished", "invalid_parameter", "unknown_parameter")),
    _job("GET", f"{_JOBS}/{{id}}/failures", "Rows without a vector, with reasons", "application/jsonl",
         refuses=("not_finished",)),
    _job("POST", f"{_JOBS}/{{id}}/cancel", "End it; what was bought is kept"),
    _job("POST", f"{_JOBS}/{{id}}/retry", "Go on with one that has ended, failed rows too", refuses=("not_finished",)),
    _job("DELETE", f"{_JOBS}/{{id}}", "Remove it, and what it has made",
         (_ref("Deleted"), {"id": "job_0a1b2c", "object": "embedding.job", "deleted": True}),
         refuses=("not_finished",)),
    _media("POST", "/{media_id}/embeddings", "Embed a media item in the background",
           (_ref("MediaJob"), {"media_id": 123, "status": "accepted", "message": "Embedding generation started",
                               "job_id": "mej_0a1b2c"}),
           status=202, headers=_IDEMPOTENT, takes=(_ref("MediaJobRequest"), {"chunk_size": 1000, "chunk_overlap": 200}),
           refuses=_OF_MAKING),
    _media("POST", "/embeddings/batch", "Embed several", (_ANY, {"status": "accepted", "job_ids": ["mej_0a1b2c"]}),
           status=202, takes=(_ANY, {"media_ids": [123, 124]}), refuses=_OF_MAKING),
    _media("POST", "/embeddings/search", "Chunks of the workspace's media that are nearest to some words",
           (_ref("Found"), {"results": [], "count": 0}), takes=(_ANY, {"query": "some words", "top_k": 10}),
           refuses=(*_OF_MAKING, *_OF_CALLS)),
    _media("GET", "/{media_id}/embeddings/status", "Whether an item has vectors",
           (_ref("MediaStatus"), {"media_id": 123, "has_embeddings": True, "embedding_count": 12,
                                  "embedding_model": _MODEL, "last_generated": 1795694400, "job_id": "mej_0a1b2c"})),
    _media("DELETE", "/{media_id}/embeddings", "Remove an item's vectors; the item stays",
           (_ANY, {"status": "success", "message": "Embeddings of media item 123 deleted"}), refuses=("not_finished",)),
    _media("GET", "/embeddings/jobs", "Media jobs of the workspace", (_ref("Jobs"), _JOB_PAGE), parameters=_OF_LISTS,
           refuses=("invalid_job", "invalid_parameter", "unknown_parameter")),
    _media("GET", "/embeddings/jobs/{id}", "How far one is", (_ref("Job"), _JOB), refuses=("job_not_found",)),
    *_batches("/v1"),
    *_batches("/api/v1"),
)  # fmt: skip

OPERATIONS: Sequence[DescribedPath] = (
    _vectors("/v1"),
    _vectors("/api/v1"),
    DescribedPath(
        group="Vectors",
        method="POST",
        path=f"{_GUIDE}/batch",
        summary="Vectors of texts, as lists of numbers",
        headers=_HEADERS,
        takes=(_ref("BatchRequest"), {"texts": ["one text", "another"], "model": _MODEL}),
        answers=(
            _ref("Batch"),
            {"embeddings": [[0.01, 0.02], [0.03, 0.04]], "model": _MODEL, "provider": "openai", "count": 2},
        ),
        refuses=(*_OF_NAMES, *_OF_TEXTS, *_OF_CALLS),
    ),
    *_models("/v1"),
    *_models("/api/v1"),
    DescribedPath(
        group="Models",
        method="GET",
        path=f"{_GUIDE}/models",
        summary="Every model that is known, and what the key may ask for",
        parameters={"provider": "Only this one's."},
        refuses=("unknown_provider",),
        answers=(
            _ref("Models"),
            {
                "data": [{"provider": "openai", "model": _MODEL, "allowed": True, "default": True}],
                "allowed_providers": None,
                "allowed_models": None,
            },
        ),
    ),
    DescribedPath(
        group="Models",
        method="GET",
        path=f"{_GUIDE}/models/{{id}}",
        summary="What the catalog knows of a model; nobody is asked",
        parameters={"provider": "Whose, where several have it."},
        answers=(
            _ref("Model"),
            {
                "model": _MODEL, "provider": "openai", "dimension": 1536, "max_tokens": 8192, "allowed": True,
                "price_usd_per_mtok": "0.02", "dimensions_supported": [1, 1536], "tokenizer": "tiktoken:cl100k_base",
                "takes_tokens": True, "local": False,
            },
        ),
        refuses=("model_not_found", "unknown_provider", "provider_model_mismatch"),
    ),
    *_OF_JOBS,
    DescribedPath(
        group="Usage",
        method="GET",
        path=f"{_GUIDE}/usage",
        summary="Tokens and cost of the key's workspace, as `usage report --json`; admins see all",
        parameters=_OF_REPORT,
        answers=(
            _ref("Usage"),
            {
                "schema_version": 1, "generated_at": "2026-11-26T12:00:00+00:00", "as_of": "2026-11-26T11:59:59+00:00",
                "timezone": "UTC", "since": None, "until": None, "currency": "USD", "prices_as_of": "2026-11-25",
                "by": ["model"], "filters": {}, "groups": [{"model": _MODEL, **_MEASURED}], "totals": _MEASURED,
                "warnings": [],
            },
        ),
        refuses=("invalid_parameter", "unknown_parameter", "workspace_denied", "overloaded", "storage_failed"),
    ),
    DescribedPath(
        group="Usage",
        method="GET",
        path=f"{_GUIDE}/usage/summary",
        summary="What the dashboard shows: today, this month, the last thirty days, budgets, circuits",
        parameters={name: _OF_REPORT[name] for name in ("timezone", "workspace")},
        answers=(
            _ref("Summary"),
            {
                "as_of": "2026-11-26T11:59:59+00:00", "workspace": "acme", "everybody": False, "role": "tenant",
                "key": "ab3de4fg", "timezone": "UTC", "today": "2026-11-26", "month": "2026-11",
                "of_today": _MEASURED, "of_month": _MEASURED, "days": ["2026-11-26"],
                "by_day": {"model": []}, "of_month_by": {"model": {"rows": [], "left": 0}}, "budgets": [],
                "circuits": [{"provider": "openai", **_CIRCUITS["openai"]}], "pending": None, "active_requests": None,
                "warnings": [],
            },
        ),
        refuses=("invalid_parameter", "unknown_parameter", "workspace_denied", "overloaded", "storage_failed"),
    ),
    DescribedPath(
        group="Health",
        method="GET",
        path=f"{_GUIDE}/health",
        summary="Whether it serves; with a key also what its cache and circuits are",
        who="anybody",
        answers=(
            _ref("Health"),
            {
                "status": "healthy", "service": "embedctl", "timestamp": "2026-11-26T12:00:00Z", "cache_stats": _STATS,
                "active_requests": 2, "circuit_breakers": _CIRCUITS,
            },
        ),
    ),
    DescribedPath(group="Health", method="GET", path="/livez", summary="ok", who="anybody", answers="text/plain"),
    DescribedPath(
        group="Health", method="GET", path="/readyz", summary="ok, or 503 and why not", who="anybody",
        answers="text/plain",
    ),
    DescribedPath(
        group="Health", method="GET", path="/metrics", summary="What Prometheus reads", who="metrics",
        answers="text/plain", refuses=("admin_required",),
    ),
    DescribedPath(
        group="Operators",
        method="GET",
        path=f"{_GUIDE}/providers-config",
        summary="Providers and what they serve; no keys, and no more of a URL than its host",
        who="admin",
        answers=(
            _ref("ProvidersConfig"),
            {
                "default_provider": "openai",
                "default_model": _MODEL,
                "providers": [
                    {
                        "name": "openai", "models": [_MODEL], "protocol": "openai", "host": "api.openai.com",
                        "key": "set", "configured": False, "allowed": True,
                    }
                ],
            },
        ),
    ),
    DescribedPath(
        group="Operators",
        method="POST",
        path=f"{_GUIDE}/providers/{{name}}/test",
        summary="One tiny text of a provider: whether it answers, and what that costs",
        who="admin",
        takes=(_ref("ModelRequest"), {"model": _MODEL}),
        answers=(
            _ref("Tried"),
            {
                "provider": "openai", "model": _MODEL, "answered": True, "dimensions": 1536, "tokens": 12,
                "cost": "0.00000024", "currency": "USD", "workspace": "acme", "seconds": 0.312,
            },
        ),
        refuses=(*_OF_NAMES, *_OF_CALLS),
    ),
    DescribedPath(
        group="Operators",
        method="GET",
        path=f"{_GUIDE}/circuit-breakers",
        summary="How the circuits of providers that were asked stand: the worst of each, and each of its models",
        who="admin",
        answers=(
            _ref("CircuitBreakers"),
            {"openai": {"name": "openai", **_CIRCUIT, "settings": {"failure_threshold": 5}, "models": []}},
        ),
    ),
    DescribedPath(
        group="Operators",
        method="POST",
        path=f"{_GUIDE}/circuit-breakers/{{provider}}/reset",
        summary="Close a provider's circuits, also of one that rejected the server's key",
        who="admin",
        answers=(_ref("Message"), {"message": "the circuits of openai are closed"}),
        refuses=("breaker_not_found", "rate_limited"),
    ),
    DescribedPath(
        group="Operators",
        method="GET",
        path=f"{_GUIDE}/metrics",
        summary="Counters and money since the start",
        who="admin",
        answers=(
            _ref("Metrics"),
            {
                "cache": _STATS, "active_requests": 0, "circuit_breakers": _CIRCUITS,
                "counters": {"requests_total": 40, "fallbacks_total": 0}, "config": {"cache": "workspace"},
                "ledger": {"cost_usd": "0.0024", "cost_is_lower_bound": False, "tokens": 9000, "at_risk_usd": "0.00"},
            },
        ),
    ),
    DescribedPath(
        group="Operators",
        method="GET",
        path=f"{_GUIDE}/cache",
        summary="What the vector cache holds",
        who="admin",
        answers=(_ref("CacheStats"), _STATS),
    ),
    DescribedPath(
        group="Operators",
        method="DELETE",
        path=f"{_GUIDE}/cache",
        summary="Empty it, or of what one provider or model has made",
        who="admin",
        parameters={"provider": "Only of this one.", "model": "Only of this one."},
        answers=(_ref("Removed"), {"message": "150 entries removed", "entries_removed": 150}),
        refuses=("unknown_parameter", "invalid_parameter", "unknown_provider", "rate_limited"),
    ),
    DescribedPath(
        group="Operators",
        method="POST",
        path=f"{_GUIDE}/models/warmup",
        summary="Load a model that runs here; ask another one, when `paid` says that it may cost",
        who="admin",
        takes=(_ref("WarmupRequest"), {"model": "all-MiniLM-L6-v2", "provider": "onnx"}),
        answers=(
            _ref("Warmed"),
            {"status": "ok", "provider": "onnx", "model": "all-MiniLM-L6-v2", "warmed": True},
        ),
        refuses=(*_OF_NAMES, *_OF_CALLS, "would_cost", "invalid_parameter"),
    ),
    DescribedPath(
        group="Operators",
        method="POST",
        path=f"{_GUIDE}/models/download",
        summary="Fetch a model of the hub: one that the catalog has for this machine, or that the settings list",
        who="admin",
        takes=(_ref("ModelRequest"), {"model": "sentence-transformers/all-MiniLM-L6-v2", "provider": "huggingface"}),
        answers=(
            _ref("Downloaded"),
            {"status": "ok", "provider": "onnx", "model": "all-MiniLM-L6-v2", "downloaded": True},
        ),
        refuses=(*_OF_NAMES, "provider_malformed_response", "provider_unavailable", "provider_credentials_rejected"),
    ),
    DescribedPath(
        group="Pages", method="GET", path="/dashboard", summary="What is spent, for people", who="anybody",
        answers="text/html", refuses=("not_found",),
    ),
    DescribedPath(
        group="Pages", method="GET", path="/docs", summary="This description, for people", who="anybody",
        answers="text/html", refuses=("not_found",),
    ),
    DescribedPath(
        group="Pages", method="GET", path="/openapi.json", summary="This description", who="admin",
        answers=(_ANY, {"openapi": "3.1.0"}), refuses=("not_found",),
    ),
)  # fmt: skip


def document() -> dict[str, Any]:
    """The description."""
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method.lower()] = _described(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "embedctl",
            "version": __version__,
            "summary": "Embeddings of any provider: retried, limited, failed over inside their space, accounted.",
            "description": "Answers have `x-request-id`; those of vectors say in `X-Embedctl-*` headers what a call "
            "cost, who served, and what the cache had.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"x_api_key": []}],
        "tags": [{"name": name} for name in dict.fromkeys(one.group for one in OPERATIONS)],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key, or a JSON Web Token"},
                "x_api_key": {"type": "apiKey", "in": "header", "name": "X-API-KEY"},
            },
            "schemas": dict(SCHEMAS),
        },
    }


def _described(one: DescribedPath) -> dict[str, Any]:
    in_path = [part[1:-1] for part in one.path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in in_path]
    for where, names in (("query", one.parameters), ("header", one.headers)):
        parameters += [
            {"name": name, "in": where, "schema": _TEXT, "description": said} for name, said in names.items()
        ]
    schema, example = one.answers if isinstance(one.answers, tuple) else (_TEXT, None)
    content: dict[str, Any] = {"schema": schema} | ({} if example is None else {"example": example})
    media = "application/json" if isinstance(one.answers, tuple) else one.answers
    found: dict[str, Any] = {
        "operationId": f"{one.method.lower()}{one.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "tags": [one.group],
        "summary": one.summary,
        "description": _WHO[one.who],
        "responses": {str(one.status): {"description": "The answer.", "content": {media: content}}, **_refused(one)},
    }
    if parameters:
        found["parameters"] = parameters
    if one.takes is not None:
        schema, example = one.takes
        found["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": schema, "example": example} for kind in one.takes_media},
        }
    if one.who == "anybody":
        found["security"] = []
    return found


def _refused(one: DescribedPath) -> dict[str, Any]:
    """Status → the codes with which it refuses."""
    codes = [
        *one.refuses,
        *(_OF_ALL if one.who != "anybody" else ("headers_too_large", "host_denied", "internal_error")),
    ]
    codes += _OF_BODIES if one.takes is not None else ()
    codes += ("admin_required", "rate_limited") if one.who == "admin" else ()
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(CODES[code][0], []).append(code)
    return {
        str(status): {
            "description": ", ".join(f"`{code}`" for code in sorted(found)),
            "content": {"application/json": {"schema": _ref("Error"), "example": _refusal(found[0])}},
        }
        for status, found in sorted(by_status.items())
    }


def _refusal(code: str) -> dict[str, Any]:
    said = code.replace("_", " ")
    return {"error": {"message": said, "type": CODES[code][1], "param": None, "code": code}, "detail": said}

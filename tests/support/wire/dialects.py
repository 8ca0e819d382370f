"""How each protocol asks, answers and refuses. Source: facts of each provider as in embedctl/providers."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np

Reply = tuple[int, dict[str, str], Any]


class Bad(Exception):
    """The request breaks the protocol: an unknown or missing field."""


@dataclass
class Asked:
    """A request, read."""

    model: str
    texts: list[str | list[int]]
    dimensions: int | None = None
    base64: bool = False
    input_type: str | None = None
    header_usage: bool = False


@dataclass
class Work:
    """What is about to be answered; faults change it before it is written."""

    asked: Asked
    rows: list[Any]
    index: list[Any]
    usage: Any
    request_id: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Dialect:
    """One protocol on the server's side."""

    name: str
    base: str  # what a base_url ends with
    path: re.Pattern[str]
    read: Callable[[re.Match[str], Mapping[str, str], dict[str, Any]], Asked]
    write: Callable[[Work], Any]
    refuse: Callable[[str, dict[str, Any]], Reply]
    key_header: str = "authorization"


def fields(body: Any, allowed: str, required: str) -> None:
    if not isinstance(body, dict):
        raise Bad("body is no object")
    if unknown := set(body) - set(allowed.split()):
        raise Bad(f"Unknown fields: {sorted(unknown)}")
    if missing := set(required.split()) - set(body):
        raise Bad(f"Missing fields: {sorted(missing)}")
    if nulls := [name for name, value in body.items() if value is None]:
        raise Bad(f"null fields: {nulls}")


def many(value: Any) -> list[Any]:
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        return [value]
    if not isinstance(value, list) or not value:
        raise Bad("input must be a non-empty list")
    return value


def packed(row: Any) -> Any:
    return base64.b64encode(row.astype("<f4").tobytes()).decode() if isinstance(row, np.ndarray) else row


def listed(work: Work) -> dict[str, Any]:
    data = []
    for place, row in zip(work.index, work.rows, strict=False):
        one = {"object": "embedding", "embedding": packed(row) if work.asked.base64 else row}
        data.append({**one, "index": place} if place is not None else one)
    body = {"object": "list", "data": data, "model": work.asked.model}
    if work.usage is not None:
        body["usage"] = {"prompt_tokens": work.usage, "total_tokens": work.usage}
    return body


# --- refusals ----------------------------------------------------------------------------------------------


def openai_refuse(kind: str, more: dict[str, Any]) -> Reply:
    table = {
        "rate": (429, "rate_limit_exceeded", "requests", "Rate limit reached for requests."),
        "quota": (
            429,
            "insufficient_quota",
            "insufficient_quota",
            "You exceeded your current quota, please check your plan and billing details.",
        ),
        "unauthorized": (401, "invalid_api_key", "invalid_request_error", "Incorrect API key provided: {key}."),
        "forbidden": (403, "permission_denied", "invalid_request_error", "Not allowed."),
        "not_found": (404, "model_not_found", "invalid_request_error", "The model `x` does not exist."),
        "too_large": (
            400,
            "max_tokens_per_request",
            "max_tokens_per_request",
            "Requested 453357 tokens, max 300000 tokens per request",
        ),
        "too_many": (
            400,
            "array_above_max_length",
            "invalid_request_error",
            "Invalid 'input': array too long. Expected an array with maximum length 2048.",
        ),
        "too_long": (
            400,
            None,
            "invalid_request_error",
            "This model's maximum context length is 8192 tokens, however you requested 9000 tokens.",
        ),
        "poison": (400, None, "invalid_request_error", "'$.input' is invalid. Please check the API reference."),
        "bad": (400, None, "invalid_request_error", "{why}"),
        "base64": (400, None, "invalid_request_error", "Unsupported encoding_format 'base64'."),
        "server": (500, None, "server_error", "The server had an error while processing your request."),
    }
    status, code, kind_, message = table[kind]
    message = message.format(key=more.get("key", ""), why=more.get("why", ""))
    return status, {}, {"error": {"message": message, "type": kind_, "param": None, "code": code}}


def azure_refuse(kind: str, more: dict[str, Any]) -> Reply:
    if kind == "rate":
        wait = f"Please retry after {more.get('seconds', 1)} seconds."
        said = f"Requests to the Embeddings_Create Operation have exceeded call rate limit. {wait}"
        return 429, {}, {"error": {"code": "429", "message": said}}
    if kind == "unauthorized":
        return 401, {}, {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}}
    if kind == "not_found":
        return 404, {}, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}
    return openai_refuse(kind, more)


def flat(table: dict[str, tuple[int, Any]], fallback: Callable[[str], Any]) -> Callable[[str, dict[str, Any]], Reply]:
    """A dialect's refusals from a table; what it lacks comes from the usual statuses."""
    usual = {
        "rate": 429,
        "quota": 402,
        "unauthorized": 401,
        "forbidden": 403,
        "not_found": 404,
        "too_large": 413,
        "too_many": 413,
        "too_long": 400,
        "poison": 400,
        "bad": 400,
        "base64": 400,
        "server": 500,
    }
    words = {
        "rate": "Too many requests",
        "quota": "Billing limit reached",
        "unauthorized": "invalid api token",
        "forbidden": "not allowed",
        "not_found": "model 'x' not found",
        "too_large": "length limit exceeded",
        "too_many": "too many inputs",
        "too_long": "input text too long: exceeds the maximum number of tokens",
        "poison": "inputs contains an element that is the empty string at index 0",
        "base64": "encoding_format base64 is not supported",
        "server": "internal error",
    }

    def refuse(kind: str, more: dict[str, Any]) -> Reply:
        if kind in table:
            status, body = table[kind]
            return status, {}, body
        return usual[kind], {}, fallback(more.get("why") or words.get(kind, kind))

    return refuse


cohere_refuse = flat(
    {"too_many": (400, {"message": "invalid request: total number of texts must be at most 96 - received 104"})},
    lambda said: {"message": said, "id": "e-1"},
)
voyage_refuse = flat(
    {
        "too_large": (
            400,
            {
                "detail": "Request to model 'voyage-4' failed. The max allowed tokens per submitted batch is 320000. "
                "Your batch has 400000 tokens. Please lower the number of tokens in the batch."
            },
        ),
        "too_many": (400, {"detail": "The batch size limit is 1000. Your batch size is 1001."}),
    },
    lambda said: {"detail": said},
)


def google_refuse(kind: str, more: dict[str, Any]) -> Reply:
    def error(code: int, status: str, message: str, details: Sequence[Any] = ()) -> Reply:
        return code, {}, {"error": {"code": code, "message": message, "status": status, "details": list(details)}}

    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{more.get('seconds', 1)}s"}
    day = {"violations": [{"quotaId": "EmbedContentRequestsPerDayPerProjectPerModel-FreeTier"}]}
    said = "You exceeded your current quota, please check your plan and billing details."
    table = {
        "rate": error(429, "RESOURCE_EXHAUSTED", said, [retry] if more.get("form") == "retryinfo" else []),
        "quota": error(429, "RESOURCE_EXHAUSTED", said, [day]),
        "unauthorized": error(
            400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", [{"reason": "API_KEY_INVALID"}]
        ),
        "forbidden": error(403, "PERMISSION_DENIED", "Permission denied."),
        "not_found": error(404, "NOT_FOUND", "models/x is not found for API version v1beta."),
        "too_large": error(400, "INVALID_ARGUMENT", "Request payload size exceeds the limit: 4194304 bytes."),
        "too_many": error(
            400,
            "INVALID_ARGUMENT",
            "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch",
        ),
        "too_long": error(400, "INVALID_ARGUMENT", "The input token count (9000) exceeds the maximum of 2048 tokens."),
        "poison": error(400, "INVALID_ARGUMENT", "* EmbedContentRequest.content: must not be empty"),
        "server": error(500, "INTERNAL", "An internal error has occurred."),
    }
    return table.get(kind) or error(400, "INVALID_ARGUMENT", more.get("why", kind))


def mistral_error(message: str, kind: str, code: str) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


mistral_refuse = flat(
    {
        "too_large": (
            400,
            mistral_error("Too many tokens overall, split into more batches.", "invalid_request_prompt", "3210"),
        ),
        "too_many": (
            400,
            mistral_error("Too many inputs in request, split into more batches.", "invalid_request_prompt", "3210"),
        ),
        "not_found": (400, mistral_error("Invalid model: x", "invalid_model", "1500")),
    },
    lambda said: mistral_error(said, "invalid_request_error", "3051"),
)
jina_refuse = flat(
    {
        "rate": (429, {"code": "RATE_TOKEN_LIMIT_EXCEEDED", "message": "Rate limit exceeded."}),
        "quota": (403, {"code": "AUTHZ_INSUFFICIENT_BALANCE", "message": "Account balance not enough."}),
        "unauthorized": (401, {"code": "AUTH_INVALID_API_KEY", "message": "Invalid API key."}),
        "not_found": (400, {"code": "INPUT_MODEL_NOT_FOUND", "message": "Model x not found."}),
        "bad": (
            422,
            {"detail": [{"loc": ["body", "user"], "msg": "Extra inputs are not permitted", "type": "extra"}]},
        ),
    },
    lambda said: {"code": "INPUT_VALIDATION", "message": said, "detail": said},
)


def tei_refuse(kind: str, more: dict[str, Any]) -> Reply:
    table = {
        "rate": (429, "Model is overloaded", "Overloaded"),
        "too_large": (413, "length limit exceeded", "Validation"),
        "too_many": (422, "batch size 40 > maximum allowed batch size 32", "Validation"),
        "too_long": (422, "`inputs` must have less than 512 tokens. Given: 600", "Validation"),
        "poison": (400, "`inputs` cannot be empty", "Empty"),
        "server": (424, "inference failed", "Backend"),
        "bad": (422, more.get("why", ""), "Validation"),
    }
    if kind == "unauthorized":
        return 401, {}, b""
    status, said, error_type = table.get(kind, (400, kind, "Validation"))
    return status, {}, {"error": said, "error_type": error_type}


ollama_refuse = flat(
    {
        "rate": (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}),
        "too_long": (400, {"error": "the input length exceeds the context length"}),
        "poison": (400, {"error": "embedding contains NaN or Inf values"}),
    },
    lambda said: {"error": said},
)
tldw_refuse = flat(
    {
        "too_long": (
            400,
            {
                "error": "input_too_long",
                "message": "One or more inputs exceed max tokens 8192",
                "details": [{"index": 0, "tokens": 9000}],
            },
        ),
        "forbidden": (403, {"detail": {"error_code": "provider_disabled", "message": "Provider is disabled"}}),
        "poison": (400, {"detail": "Invalid input: text cannot be empty"}),
    },
    lambda said: {"detail": said},
)
bedrock_refuse = flat(
    {
        "rate": (429, {"message": "Too many requests, please wait before trying again."}),
        "too_long": (
            400,
            {"message": "Too many input tokens. Max input tokens: 8192, request input token count: 9999"},
        ),
        "not_found": (400, {"message": "The provided model identifier is invalid."}),
    },
    lambda said: {"message": said},
)


# --- reading and writing -----------------------------------------------------------------------------------


def openai_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(body, "model input encoding_format dimensions user", "model input")
    return Asked(body["model"], many(body["input"]), body.get("dimensions"), body.get("encoding_format") == "base64")


def gateway_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    """The OpenAI dialect of a gateway that hands `input_type` on, as LiteLLM does."""
    told = {**body}
    asked_type = told.pop("input_type", None)
    asked = openai_read(match, headers, told)
    asked.input_type = asked_type
    return asked


def azure_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    asked = openai_read(match, headers, {"model": "", **body})
    if match["deployment"]:
        if "api-version=" not in (match["query"] or ""):
            raise Bad("api-version is missing")
        asked.model = unquote(match["deployment"])
    return asked


def cohere_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    allowed = "model texts inputs input_type embedding_types output_dimension truncate max_tokens priority"
    fields(body, allowed, "model input_type")
    if body["input_type"] not in ("search_document", "search_query", "classification", "clustering"):
        raise Bad("valid input_type must be provided")
    return Asked(body["model"], many(body["texts"]), body.get("output_dimension"), input_type=body["input_type"])


def cohere_write(work: Work) -> dict[str, Any]:
    meta: dict[str, Any] = {"api_version": {"version": "2"}}
    if work.usage is not None:
        meta["billed_units"] = {"input_tokens": work.usage}
        meta["tokens"] = {"input_tokens": work.usage + 3 if isinstance(work.usage, int) else work.usage}
    return {
        "id": work.request_id,
        "response_type": "embeddings_by_type",
        "embeddings": {"float": work.rows},
        "texts": work.asked.texts,
        "meta": meta,
    }


def voyage_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(
        {name: value for name, value in body.items() if value is not None},
        "model input input_type truncation output_dimension output_dtype encoding_format",
        "model input",
    )
    if body.get("encoding_format") not in (None, "base64"):
        raise Bad("encoding_format must be null or base64")
    if body.get("input_type") not in (None, "query", "document"):
        raise Bad("input_type must be null, query or document")
    return Asked(
        body["model"],
        many(body["input"]),
        body.get("output_dimension"),
        body.get("encoding_format") == "base64",
        body.get("input_type"),
    )


def voyage_write(work: Work) -> dict[str, Any]:
    body = listed(work)
    if "usage" in body:
        body["usage"].pop("prompt_tokens")
    return body


def google_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(body, "requests", "requests")
    model, texts, dimensions, task = unquote(match["model"]), [], None, None
    for one in body["requests"]:
        fields(one, "model content taskType title outputDimensionality", "model content")
        if one["model"] != f"models/{model}":
            raise Bad("model does not match the URL")
        texts.append("".join(part["text"] for part in one["content"]["parts"]))
        dimensions, task = one.get("outputDimensionality"), one.get("taskType")
    return Asked(model, texts, dimensions, input_type=task)


def google_write(work: Work) -> dict[str, Any]:
    body: dict[str, Any] = {"embeddings": [{"values": row} for row in work.rows]}
    if work.usage is not None:
        body["usageMetadata"] = {"promptTokenCount": work.usage, "totalTokenCount": work.usage}
    return body


def mistral_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(
        {name: value for name, value in body.items() if value is not None},
        "model input output_dimension output_dtype encoding_format metadata",
        "model input",
    )
    wide = body.get("output_dimension")
    return Asked(body["model"], many(body["input"]), wide, body.get("encoding_format") == "base64")


def mistral_write(work: Work) -> dict[str, Any]:
    body = listed(work)
    if "usage" in body:
        body["usage"]["completion_tokens"] = 0
    return {"id": work.request_id, **body}


def jina_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(body, "model input task dimensions normalized embedding_type late_chunking truncate", "model input")
    return Asked(
        body["model"],
        many(body["input"]),
        body.get("dimensions"),
        body.get("embedding_type") == "base64",
        body.get("task"),
    )


def hf_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(body, "inputs normalize prompt_name truncate truncation_direction", "inputs")
    return Asked(unquote(match["model"]), many(body["inputs"]), header_usage=True)


def tei_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(body, "inputs normalize truncate truncation_direction prompt_name dimensions", "inputs")
    return Asked("tei", many(body["inputs"]), body.get("dimensions"), header_usage=True)


def ollama_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(
        {name: value for name, value in body.items() if value is not None},
        "model input truncate dimensions options keep_alive",
        "model input",
    )
    return Asked(body["model"], many(body["input"]), body.get("dimensions"))


def ollama_write(work: Work) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": work.asked.model,
        "embeddings": work.rows,
        "total_duration": 14143917,
        "load_duration": 1019500,
    }
    if work.usage is not None:
        body["prompt_eval_count"] = work.usage
    return body


def nomic_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(body, "texts model task_type dimensionality long_text_mode", "texts model")
    return Asked(body["model"], many(body["texts"]), body.get("dimensionality"), input_type=body.get("task_type"))


def nomic_write(work: Work) -> dict[str, Any]:
    body: dict[str, Any] = {"embeddings": work.rows, "model": work.asked.model}
    if work.usage is not None:
        body["usage"] = {"prompt_tokens": work.usage, "total_tokens": work.usage}
    return body


def bedrock_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    model = unquote(match["model"])
    if "titan" in model:
        fields(body, "inputText dimensions normalize embeddingTypes", "inputText")
        return Asked(model, [body["inputText"]], body.get("dimensions"))
    fields(body, "texts input_type truncate embedding_types output_dimension", "texts input_type")
    return Asked(model, many(body["texts"]), body.get("output_dimension"), input_type=body["input_type"])


def bedrock_write(work: Work) -> Any:
    if "titan" in work.asked.model:
        row = work.rows[0] if work.rows else []
        body: dict[str, Any] = {"embedding": row, "embeddingsByType": {"float": row}}
        if work.usage is not None:
            body["inputTextTokenCount"] = work.usage
        return body
    if work.usage is not None:
        work.headers["x-amzn-bedrock-input-token-count"] = str(work.usage)
    return {"id": work.request_id, "response_type": "embeddings_by_type", "embeddings": {"float": work.rows}}


def tldw_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(body, "model input encoding_format dimensions user provider", "model input")
    return Asked(body["model"], many(body["input"]), body.get("dimensions"), body.get("encoding_format") == "base64")


def tldw_write(work: Work) -> dict[str, Any]:
    work.headers.setdefault("x-embeddings-provider", work.headers.pop("_provider", "openai"))
    return listed(work)


def json_read(match: re.Match[str], headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    fields(body, "documents model_name width", "documents model_name")
    return Asked(body["model_name"], [one["body"] for one in body["documents"]], body.get("width"))


def json_write(work: Work) -> dict[str, Any]:
    made = [{"n": place, "vec": row} for place, row in zip(work.index, work.rows, strict=False)]
    return {"result": {"items": made, "call": work.request_id}, "spent": {"tokens": work.usage}}


def plain(work: Work) -> Any:
    if work.asked.header_usage and work.usage is not None:
        work.headers["x-compute-tokens"] = str(work.usage)
    return work.rows


def dialect(
    name: str, base_: str, path: str, read: Any, write: Any, refuse: Any, key: str = "authorization"
) -> Dialect:
    return Dialect(name, base_, re.compile(path + r"(?:\?(?P<query>.*))?"), read, write, refuse, key)


DIALECTS = [
    dialect(
        "openai",
        "/v1",
        r"(?:(?:/p/openai)?/v1|/p/deepinfra/v1/openai)/embeddings",
        openai_read,
        listed,
        openai_refuse,
    ),
    dialect("gateway", "/v1", r"/p/gateway/v1/embeddings", gateway_read, listed, openai_refuse),
    dialect(
        "azure",
        "",
        r"/p/azure/openai/(?:deployments/(?P<deployment>[^/]+)|v1)/embeddings",
        azure_read,
        listed,
        azure_refuse,
        "api-key",
    ),
    dialect("cohere", "", r"/p/cohere/v2/embed", cohere_read, cohere_write, cohere_refuse),
    dialect("voyage", "/v1", r"/p/voyage/v1/embeddings", voyage_read, voyage_write, voyage_refuse),
    dialect(
        "google",
        "",
        r"/p/google/v1(?:beta)?/models/(?P<model>[^/:]+):batchEmbedContents",
        google_read,
        google_write,
        google_refuse,
        "x-goog-api-key",
    ),
    dialect("mistral", "/v1", r"/p/mistral/v1/embeddings", mistral_read, mistral_write, mistral_refuse),
    dialect("jina", "/v1", r"/p/jina/v1/embeddings", jina_read, listed, jina_refuse),
    dialect(
        "huggingface",
        "",
        r"/p/huggingface/hf-inference/models/(?P<model>.+)/pipeline/feature-extraction",
        hf_read,
        plain,
        tei_refuse,
    ),
    dialect("tei", "", r"/p/tei/embed", tei_read, plain, tei_refuse),
    dialect("ollama", "", r"/p/ollama/api/embed", ollama_read, ollama_write, ollama_refuse),
    dialect("nomic", "/v1", r"/p/nomic/v1/embedding/text", nomic_read, nomic_write, voyage_refuse),
    dialect("bedrock", "", r"/p/bedrock/model/(?P<model>[^/]+)/invoke", bedrock_read, bedrock_write, bedrock_refuse),
    dialect("tldw", "/api/v1", r"/p/tldw/api/v1/embeddings", tldw_read, tldw_write, tldw_refuse, "x-api-key"),
    dialect("json", "", r"/p/json/make", json_read, json_write, voyage_refuse),
]
TEI_INFO = {
    "model_id": "sentence-transformers/all-MiniLM-L6-v2",
    "model_dtype": "float32",
    "max_input_length": 256,
    "max_batch_tokens": 16384,
    "max_client_batch_size": 32,
    "max_concurrent_requests": 512,
    "auto_truncate": True,
    "version": "1.9.3",
}

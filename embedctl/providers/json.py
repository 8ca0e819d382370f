"""Any JSON API, described in the config by a body template and JMESPath expressions.

    [providers.mine]
    protocol = "json"
    base_url = "https://example.org/api"
    options = { path = "/make", body = { documents = "{texts}", model = "{model}" }, vectors = "items[].vec",
                index = "items[].n", tokens = "spent.tokens", ids = "call", error = "problem.text" }

In `body`, a string that is one placeholder becomes its value ({texts} a list, {dimensions} a number, and a key whose
value is absent is left out); inside a longer string it becomes text. {text} is the only text of a request, which then
holds one. `each = { body = "{text}" }` says what every entry of {texts} looks like. The key goes as a bearer token,
or in the header that `key_header` names.

Expressions: https://jmespath.org/specification.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jmespath
import jmespath.exceptions
import orjson

from embedctl.errors import ConfigurationInvalid, RequestTooLarge
from embedctl.providers import _errors, _foreign, _http, _vectors
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer
from embedctl.records import InputType, Limits

LIMITS = Limits(items=32)
KEY_VARIABLES: tuple[str, ...] = ()
BASE_URL = None
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False

EXPRESSIONS = ("vectors", "index", "ids", "tokens", "error")
_ABSENT = object()
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def request(
    place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
) -> HttpRequest:
    """POST the filled template to {base}{path}.

    Raises:
        ConfigurationInvalid: `body` or `vectors` is missing, or an expression is none.
    """
    template, reading = _template(place), _expressions(place)
    if "{text}" in str(template) and len(texts) != 1:
        raise RequestTooLarge("this API takes one text a request", provider=place.name)
    each = place.options.get("each")
    values = {
        "texts": [_filled(each, {"text": text}) for text in texts] if each else list(texts),
        "text": texts[0],
        "model": model,
        "dimensions": options.dimensions if options.dimensions is not None else _ABSENT,
        "input_type": options.input_type or _ABSENT,
        "user": options.user or _ABSENT,
    }
    secret = _http.key(place, KEY_VARIABLES, BASE_URL)
    header = place.options.get("key_header")
    named = {str(header): secret.reveal()} if header and secret else {}
    path = str(place.options.get("path", ""))
    url = _http.base(place, BASE_URL) + (path if path.startswith("/") or not path else f"/{path}")
    filled = _filled(template, values)
    return _http.post(place, url, filled, None if header else secret, headers=named, reading=reading)


def _template(place: Provider) -> Any:
    template = place.options.get("body")
    if isinstance(template, str):
        try:
            template = orjson.loads(template)
        except orjson.JSONDecodeError as error:
            raise ConfigurationInvalid(f"`body` of provider {place.name!r} is no JSON: {error}") from error
    if not isinstance(template, Mapping):
        raise ConfigurationInvalid(
            f"provider {place.name!r} has no `body` template", hint='e.g. body = { input = "{texts}" }'
        )
    return template


def _expressions(place: Provider) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in EXPRESSIONS:
        if not place.options.get(name):
            continue
        try:
            found[name] = jmespath.compile(str(place.options[name]))
        except jmespath.exceptions.JMESPathError as error:
            raise ConfigurationInvalid(
                f"`{name}` of provider {place.name!r} is no JMESPath expression: {error}",
                hint="see https://jmespath.org",
            ) from error
    if "vectors" not in found:
        raise ConfigurationInvalid(
            f"provider {place.name!r} has no `vectors` expression", hint='e.g. vectors = "data[].embedding"'
        )
    return found


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    """The template with its placeholders replaced; keys and entries whose value is absent are left out."""
    if isinstance(template, Mapping):
        pairs = ((name, _filled(value, values)) for name, value in template.items())
        return {name: value for name, value in pairs if value is not _ABSENT}
    if isinstance(template, list):
        return [value for one in template if (value := _filled(one, values)) is not _ABSENT]
    if not isinstance(template, str):
        return template
    if template[:1] == "{" and template[-1:] == "}" and template[1:-1] in values:
        return values[template[1:-1]]
    # one pass: a text that itself holds a placeholder stays as it is
    return _PLACEHOLDER.sub(lambda found: _inside(values.get(found[1]), found[0]), template)


def _inside(value: Any, placeholder: str) -> str:
    return str(value) if isinstance(value, str | int) else placeholder


def input_type_word(place: Provider, model: str, input_type: InputType) -> str | None:
    """The type itself, where the template has a place for it."""
    return input_type if "{input_type}" in str(place.options.get("body")) else None


def answer(status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
    """Find vectors, places, tokens and id with the configured expressions.

    Raises:
        AnswerUnusable: `error` finds something in a 200, or `vectors` finds none.
    """
    if status != 200:
        raise _errors.refusal("json", status, headers, body, request)
    value = _foreign.loaded(body)
    found = {name: _searched(name, expression, value) for name, expression in request.reading.items()}
    tokens = _foreign.whole(found.get("tokens"))
    with _vectors.billed(tokens):
        if found.get("error"):
            raise _foreign.unusable(f"the answer is an error: {_foreign.shown(found['error'])}")
        vectors = _vectors.from_python(found["vectors"], "vectors")
    return WireAnswer(
        vectors=vectors,
        index=_vectors.places(found["index"]) if isinstance(found.get("index"), list) else None,
        tokens=tokens,
        embedding_id=_id(found.get("ids")) or _http.request_id(headers),
    )


def _searched(name: str, expression: Any, value: Any) -> Any:
    try:
        return expression.search(value)
    except Exception as error:  # a function of the expression that is not made for what it got
        raise _foreign.unusable(f"the expression `{name}` does not fit the answer: {_words(error)}") from error


def _words(error: Exception) -> str:
    """What jmespath says: it writes out the value, however deep and long that is."""
    try:
        return str(error)[: _foreign.EXPRESSION_CHARACTERS]
    except RecursionError:
        return type(error).__name__


def _id(value: Any) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return str(value) if isinstance(value, str | int) and value else None

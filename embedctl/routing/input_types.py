"""How the input type gets to a model: in its protocol's field, in one that its place names, or not at all. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from embedctl import providers
from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.providers import catalog
from embedctl.providers._contract import Provider, WireProtocol
from embedctl.providers.catalog import ModelEntry
from embedctl.records import InputType

FIELD_OPTION = "input_type_field"
"""Of a place: the field of the OpenAI dialect's body in which it takes the input type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTypeSent:
    """What a request says of its input type.

    Attributes:
        protocol: The protocol's own field says it.
        fields: What stands beside the dialect's own fields.
        lost: Why the model is not told; None when it is, or there is nothing to tell.
        refused: Whether nobody would have asked for it, had they known: asked for by flag it ends the command.
    """

    protocol: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    lost: str | None = None
    refused: bool = False


def sent(place: Provider, protocol: WireProtocol, entry: ModelEntry | None, input_type: InputType) -> InputTypeSent:
    """What is said, and where, of an endpoint that is no local one."""
    if entry is not None and entry.input_types and input_type not in entry.input_types:
        known = ", ".join(entry.input_types)
        return InputTypeSent(lost=f"the model tells {known} apart: {input_type!r} is not sent")
    if entry is not None and not (entry.field_input_type and entry.input_types):
        return InputTypeSent()
    own: Any = getattr(protocol, "input_type_word", None)
    if own is not None and own(place, entry.name if entry else "", input_type) is not None:
        return InputTypeSent(protocol=True)
    if name := place.options.get(FIELD_OPTION):
        return InputTypeSent(fields={str(name): _word(place, entry, input_type)})
    if entry is None and input_type == "document":
        return InputTypeSent(protocol=True)
    what = "the model tells input types apart" if entry else "nobody knows whether the model tells input types apart"
    return InputTypeSent(lost=f"{what}, and {place.name} is not told that these are {input_type!r}", refused=True)


def refuse(endpoint_id: str, place: Provider, said: InputTypeSent) -> None:
    """For a type that was asked for by flag.

    Raises:
        WrongUsage: It would be lost.
    """
    if said.lost is not None and said.refused:
        raise WrongUsage(
            f"{endpoint_id}: {said.lost}",
            hint=f'if the server takes it in a field, name that: {FIELD_OPTION} = "input_type" in the options of '
            f"[providers.{place.name}]; else leave --input-type out",
        )


def _word(place: Provider, entry: ModelEntry | None, input_type: InputType) -> str:
    """As whoever makes the model says it: a gateway hands its field on as it is."""
    for offer in catalog.serving(entry.canonical) if entry else ():
        makers = catalog.providers().get(offer.provider)
        protocol: Any = providers.protocol(makers.protocol) if makers else None
        word = getattr(protocol, "input_type_word", None)
        if word is not None and (found := word(place, offer.name, input_type)):
            return str(found)
    return input_type

"""Which place has a Batch API that can be used, and why another has none that could. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

from embedctl.errors import ConfigurationInvalid
from embedctl.providers import catalog
from embedctl.providers._batch import BatchCapabilities, BatchProtocol
from embedctl.providers._contract import Provider
from embedctl.providers._registry import protocol as module_of


class BatchApi(NamedTuple):
    """A protocol's functions, and what this place takes through them."""

    protocol: BatchProtocol
    capabilities: BatchCapabilities


def batch_api(place: Provider, model: str, wanted: bool | None = None) -> BatchApi:
    """The Batch API of a place, for a model.

    Args:
        model: As the place calls it.
        wanted: `batch = true|false` of the user's settings; None where they are silent: then only a place of the
            catalog that is known to have one, at its own address.

    Raises:
        ConfigurationInvalid: There is none, or none that is safe to buy from; says why.
    """
    module, entry = module_of(place.protocol), catalog.providers().get(place.name)
    why = getattr(module, "BATCH_REFUSED", None) or (entry.batch_refused if entry else None)
    if why is None and wanted is False:
        why = "`batch = false` stands in the settings"
    if why is None and not hasattr(module, "BATCH"):
        why = f"the protocol {place.protocol} has no Batch API for embeddings"
    if why is None and (refused_here := getattr(module, "batch_refused", None)):
        why = refused_here(place)
    if why is not None:
        raise ConfigurationInvalid(
            f"provider {place.name!r} cannot be used with --mode batch: {why}", hint="run it with --mode online"
        )
    if not wanted and not (entry and entry.batch and place.base_url.rstrip("/") in ("", entry.base_url)):
        raise ConfigurationInvalid(
            f"provider {place.name!r} is not known to have a Batch API at its base_url",
            hint=f"if its server has one, set `batch = true` under [providers.{place.name}]; or use --mode online",
        )
    if entry and (offer := catalog.find(place.name, model)) and offer.batch is False:
        raise ConfigurationInvalid(
            f"the Batch API of {place.name!r} does not serve {model}", hint="run it with --mode online"
        )
    found: BatchCapabilities = module.BATCH  # type: ignore[attr-defined]
    tokens = found.takes_tokens and (entry is None or entry.takes_tokens is not False)
    return BatchApi(cast("BatchProtocol", module), replace(found, takes_tokens=tokens))

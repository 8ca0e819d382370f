"""Which models an admin may have fetched from the hub, and fetching them.

Those that the catalog knows for this machine, and those of `[serve] downloads`; never a path, and never anything that
leaves the folder of models.
"""

from __future__ import annotations

from dataclasses import replace

from embedctl.backends import hub
from embedctl.errors import ModelNotFound
from embedctl.providers import catalog
from embedctl.routing.fallback import ChainEntry
from embedctl.server import model_names
from embedctl.server.authentication import Client
from embedctl.server.fields import AskedModel
from embedctl.server.model_names import Target
from embedctl.server.refusals import Refused
from embedctl.settings import Settings
from embedctl.storage import hub_access

_BUNDLED = {"all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"}


def target(settings: Settings, client: Client, asked: AskedModel) -> Target:
    """What is to be fetched.

    Raises:
        Refused: There is no such provider here, the name is none, or it is not on the list.
    """
    name, provider = asked.model or "", asked.provider
    prefix, colon, rest = name.partition(":")
    if colon:
        if provider not in (None, prefix):
            raise Refused(
                "provider_model_mismatch", f"model {name!r} and provider {provider!r} disagree", param="model"
            )
        provider, name = prefix, rest
    if provider == "huggingface":  # the guide's name for models of the hub
        provider = None
    if provider is not None and provider not in model_names.LOCAL:
        said = f"{provider!r} runs elsewhere: there is nothing to fetch; one of {', '.join(model_names.LOCAL)}"
        raise Refused("invalid_provider", said, param="provider")
    if name in _BUNDLED and provider in (None, "onnx"):
        return _allowed(settings, client, Target("onnx", "all-MiniLM-L6-v2"))
    if not model_names.is_repository(name):
        raise Refused("invalid_model", "model must be a repository of the hub: OWNER/NAME", param="model")
    known = [one for one in model_names.LOCAL if provider in (None, one) and catalog.find(one, name) is not None]
    if not known and not model_names.is_listed(settings, name):
        raise Refused("model_denied", f"{name} is not on the list of models that may be fetched", param="model")
    return _allowed(settings, client, Target(provider or (known[0] if known else "onnx"), name))


def fetch(settings: Settings, wanted: Target) -> None:
    """Bring it onto this machine, if it is not there; it appears whole or not at all.

    Raises:
        EmbedctlError: As `hub.pull`.
    """
    if wanted.model == "all-MiniLM-L6-v2":
        return
    folder = hub.pull(wanted.model, settings.paths.models, endpoint=hub_access.endpoint(settings.environment))
    if folder.protocol != wanted.provider:
        raise ModelNotFound(f"{wanted.model} is a model of {folder.protocol}, not of {wanted.provider}")


def _allowed(settings: Settings, client: Client, wanted: Target) -> Target:
    entry = catalog.find(wanted.provider, wanted.model)
    in_chain = ChainEntry(provider=wanted.provider, model=wanted.model, canonical=entry.canonical if entry else None)
    model_names.check_entry_allowed(settings, client, in_chain)
    return replace(wanted, pinned=True)

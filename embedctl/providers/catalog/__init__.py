"""What is known of models and of who serves them. Data in the TOML files beside this; prices: `ledger.prices`.

find("openai", "text-embedding-3-small")        one provider's offer
serving("sentence-transformers/all-MiniLM-L6-v2")   everyone who serves these weights
named("all-MiniLM-L6-v2")                       what a bare name may mean
"""

from __future__ import annotations

from embedctl.providers.catalog._models import ModelEntry, default_model, find, models, named, serving
from embedctl.providers.catalog._providers import ProviderEntry, default_chain, providers

__all__ = [
    "ModelEntry",
    "ProviderEntry",
    "default_chain",
    "default_model",
    "find",
    "models",
    "named",
    "providers",
    "serving",
]

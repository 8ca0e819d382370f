"""The stores that a command may reach: their options, from the user's settings and --store-option."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, WrongUsage
from embedctl.storage import store_options
from embedctl.storage.store import OutputFolder, Store
from embedctl.storage.store_url import StoreUrl, is_store_url, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """How stores are opened.

    Attributes:
        given: --store-option: of every store of the command; over `by_root`.
        by_root: `[stores."s3://bucket"]`: by the address of bucket or container.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    by_root: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def options_of(self, url: StoreUrl) -> dict[str, str]:
        """Options for obstore; may hold a secret that a variable has.

        Raises:
            ConfigurationInvalid: The variable that `NAME_env` names is not set; an option is a secret.
        """
        options: dict[str, str] = {}
        for name, value in self.by_root.get(url.root, {}).items():
            if not name.endswith("_env"):
                options[name] = value
                continue
            if value not in os.environ:
                raise ConfigurationInvalid(f'[stores."{url.root}"] {name}: the variable {value} is not set')
            options[name.removesuffix("_env")] = os.environ[value]
        for name, value in self.given.items():
            store_options.check_option(name, value, "--store-option")
        return {**options, **self.given}

    def open(self, url: StoreUrl, *, scratch: Path | None = None) -> Store:
        """What is under an address, to be read and, but for hf://, to be written.

        Raises:
            ExtraMissing, ConfigurationInvalid, StoreDenied: It cannot be opened.
        """
        if url.scheme == "hf":
            from embedctl.storage.hub_dataset import HubDataset

            return HubDataset(url)
        from embedctl.storage.object_store import ObjectStore

        return ObjectStore(url, self.options_of(url), scratch=scratch)

    def at(self, place: str) -> Store:
        """What an address leads to, or a folder.

        Raises:
            WrongUsage, ExtraMissing, ConfigurationInvalid, StoreDenied: It cannot be opened.
        """
        return self.open(parse(place)) if is_store_url(place) else OutputFolder(Path(place))


def checked_table(
    name: str, table: Mapping[str, str], where: str, names_a_variable: Callable[[str], str | None]
) -> tuple[str, dict[str, str]]:
    """`[stores."s3://bucket"]`: the address it is for, and its options.

    Args:
        where: The settings file, for messages.
        names_a_variable: What is wrong with the value of `KEY_env`; None: nothing.

    Raises:
        ConfigurationInvalid: The name is no address of a bucket, or an option is a secret or ours to choose.
    """
    label = f'{where}: [stores."{name[:200]}"]'
    try:
        url = parse(name)
    except WrongUsage as wrong:
        raise ConfigurationInvalid(f"{where}: [stores]: {wrong.message}", hint=wrong.hint) from None
    if url.path or url.scheme == "hf":
        raise ConfigurationInvalid(f"{label} must be the address of a bucket or container", hint=f"like {url.root}")
    for key, value in table.items():
        if key.endswith("_env"):
            if wrong_name := names_a_variable(value):
                raise ConfigurationInvalid(f"{label} {key} {wrong_name}")
        else:
            store_options.check_option(key, value, label)
    return url.root, dict(table)

"""embedctl embeds text in bulk and accounts for every token of it."""

__version__ = "0.1.0"

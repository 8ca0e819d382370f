"""A group whose name alone means its `list`."""

from __future__ import annotations

from typing import Any

from embedctl.cli.groups import SuggestingGroup


class ListingGroup(SuggestingGroup):
    """`embedctl models` is `embedctl models list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` where no command is named."""
        if not any(not word.startswith("-") for word in args) and not {"-h", "--help"} & set(args):
            args = ["list", *args]
        return list(super().parse_args(ctx, args))

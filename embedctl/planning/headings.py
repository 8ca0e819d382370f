"""The heading that a text begins with, in Markdown and reStructuredText. Pure."""

from __future__ import annotations

import re

RULER = re.compile(r"\s*([^\w\s])\1{2,}\s*|\s*(-\s?){3,}|\s*`{3}\S*")
_DIRECTIVE = re.compile(
    r"\s*(\.\. ((index|highlight|(current)?module|meta|contents|toctree|only|(section|module)author)::.*|_\S.*:)"
    r"|:[\w-]+:( .*)?|<!--.*-->|---)\s*"
)
"""Lines of reStructuredText, front matter and HTML that name or steer, and say nothing."""
_MARKDOWN_HEADING = re.compile(r"\s*#{1,6}\s+(.+?)\s*#*\s*")


def headed(text: str) -> tuple[str | None, str]:
    """The heading that a text begins with, and what follows; rulers and directives before either are left out."""
    lines = text.splitlines()
    while lines and (not lines[0].strip() or RULER.fullmatch(lines[0]) or _DIRECTIVE.fullmatch(lines[0])):
        del lines[0]
    if not lines:
        return None, text
    if heading := _MARKDOWN_HEADING.fullmatch(lines[0]):
        return heading[1], "\n".join(lines[1:])
    if len(lines) > 1 and RULER.fullmatch(lines[1]):  # underlined
        return lines[0].strip(), "\n".join(lines[2:])
    return None, "\n".join(lines)

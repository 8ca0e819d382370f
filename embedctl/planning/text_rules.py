"""What the model wants of texts: its prefix and limit, and how rows are chunked for it."""

from __future__ import annotations

from embedctl import inputs, providers, tokens
from embedctl.planning import splitter
from embedctl.planning.chunks import TextRules
from embedctl.records import RowId
from embedctl.routing.chain import Endpoint
from embedctl.settings.options import Options


def text_rules(endpoint: Endpoint, options: Options, source: inputs.Source) -> TextRules:
    """What an endpoint and the options say about the texts of an input."""
    counter = tokens.counter(endpoint.tokenizer, endpoint.fallback_tokenizer)
    measure = tokens.splitter_source(endpoint.tokenizer, endpoint.fallback_tokenizer)
    special = counter.count([""])[0] + (splitter.tokens(endpoint.prefix, measure) if endpoint.prefix else 0)
    limit = endpoint.max_tokens - special if endpoint.max_tokens else None
    asked = options.chunk_size is not None or options.chunk_overlap is not None
    splitters: dict[bool, splitter.Splitter] = {}

    def chunked(text: str, row_id: RowId) -> list[str]:
        markdown = source.kind == "text" and splitter.is_markdown(str(row_id))
        if markdown not in splitters:
            size = options.chunk_size or splitter.DEFAULT_SIZE
            overlap = options.chunk_overlap
            if overlap is None:
                overlap = splitter.DEFAULT_OVERLAP * size // splitter.DEFAULT_SIZE
            fitting = splitter.capacity(size, overlap, limit)
            splitters[markdown] = splitter.splitter(measure, *fitting, markdown=markdown)
        return splitter.chunks(text, splitters[markdown])

    most = limit or splitter.DEFAULT_SIZE
    return TextRules(
        prefix=endpoint.prefix,
        max_tokens=endpoint.max_tokens,
        counter=counter,
        count_all=endpoint.local and not providers.is_lookup(endpoint.place.protocol),
        takes_tokens=endpoint.takes_tokens,
        chunked=chunked if source.is_document or asked else None,
        pieces=lambda text: splitter.pieces(text, most, measure),
        shortened=lambda text: splitter.truncated(text, most, measure),
    )

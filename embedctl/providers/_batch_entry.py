"""The way in for what a Batch API answers: like `_entry`, in bounds and cleaned, or an error of our tree. Pure.

    uploaded(name, status, headers, body, request) -> BatchFile
    files(…) -> FilePage
    created(…) -> CreateOutcome                         never raises
    state(…) -> BatchState                              of batch_status
    page(…) -> BatchPage
    cancelled(…) -> BatchState | None                   None: accepted, ask for its state; raises where refused
    deleted(…) -> None                                  404 and 410 are fine
    line(name, line, request) -> LineResult             never raises

`name` is the protocol's ("openai"); `request` is the one that was sent. All but the last two raise ProviderError.
"""

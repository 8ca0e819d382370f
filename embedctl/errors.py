"""Every deliberate error, and the exit code it ends the program with.

EmbedctlError                              70  (a bug, when raised bare)
├── WrongUsage                              2
├── RowsFailed                              3
├── BudgetReached                           4
├── BudgetWarning                           5
├── InputInvalid                           65
│   └── InputChanged                       65
├── InputMissing                           66
├── Degraded                               69
├── OutputRefused                          73
├── StorageFailed                          74
├── Temporary                              75
│   ├── BatchesPending                     75
│   ├── Locked                             75
│   ├── DeadlinePassed                     75
│   ├── NoProviderNow                      75
│   ├── HostLost                           75  the command that started this worker is gone: nothing more is sent
│   ├── RayUnreachable                     75  no Ray cluster answers, or not any more
│   ├── ShardLost                          75  another worker has taken the shard over: nothing more is sent
│   ├── ShardsHeld                         75  the rest is other workers' (--no-wait)
│   └── StoreUnreachable                   75
├── NotAllowed                             77
├── StoreDenied                            77
├── ModelChanged                           76
│   └── BegunAnew                          76  seen in the middle of a new output: it is begun once more
├── ConfigurationInvalid                   78
│   └── ExtraMissing                       78
├── Interrupted                           130
├── Terminated                            143
├── InvariantBroken                        70
├── WorkersDied                            70  several workers in a row, of the same shard or before they took one
└── ProviderError                          69  one attempt's failure; the class decides what happens next
    ├── NotSent                            69  DNS, refused, TLS: nothing reached the provider
    ├── Throttled                          75  429 of a rate
    ├── ServerFailed                       75  5xx, 408, 409, 425: answered, not served
    ├── AnswerLost                         75  sent, no word of what happened
    ├── AnswerUnusable                     76  a 200 that cannot be used
    │   └── AnswerUnshaped                 76  … as no other answer of this server could be: width, index, nesting
    ├── RedirectRefused                    76
    ├── RequestTooLarge                    76  halved, and the limit learnt
    ├── TextRefused                         3  one text of the request is bad: halved until it stands alone
    │   └── TextTooLong                     3
    ├── QuotaExhausted                     69
    ├── KeyRejected                        77
    ├── ModelNotFound                      78
    ├── RequestRefused                     78  every request would be refused: a wrong parameter
    ├── CircuitOpen                        75  not sent: the breaker is open
    └── SpaceMismatch                      76  vectors of another space than asked for

Each class carries its exit code and the fixed word that `--json` prints. They are caught once, in `cli`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, Literal

Billable = Literal["yes", "no", "unknown"]


class Remedy(Enum):
    """What the call point does after a failed attempt; the error's class decides alone."""

    RETRY = "retry"  # same request again, counted by --retries
    WAIT = "wait"  # same request again when the provider says, bounded by --max-wait
    HALVE = "halve"  # the request is too large: both halves, and remember the size
    ISOLATE = "isolate"  # one text is bad: halve until it stands alone
    GIVE_UP = "leave"  # this provider is of no use in this run: fall back or stop


class EmbedctlError(Exception):
    """Base of the tree. `message` says what and where, `hint` what to do about it."""

    exit_code: ClassVar[int] = 70
    word: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str | None = None, details: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    @property
    def retryable(self) -> bool:
        """Whether the same command may simply be run again."""
        return self.exit_code in (75, 130, 143)


class WrongUsage(EmbedctlError):
    """Wrong flags or arguments."""

    exit_code = 2
    word = "usage"


class RowsFailed(EmbedctlError):
    """Finished, but something in it failed: rows, `--strict`, a threshold."""

    exit_code = 3
    word = "rows_failed"


class BudgetReached(EmbedctlError):
    """A budget or `--max-cost` is used up; resumable.

    Attributes:
        workspace_id: Whose it is, where only the rows fail that this workspace pays for; None: the run ends.
    """

    exit_code = 4
    word = "budget_reached"
    workspace_id: str | None = None
    limit: object | None = None  # the `budgets.reservations.SpendLimit` that would have been passed


class BudgetWarning(EmbedctlError):
    """`usage budget check` past its warning line."""

    exit_code = 5
    word = "budget_warning"


class InputInvalid(EmbedctlError):
    """The input cannot be read as what it claims to be."""

    exit_code = 65
    word = "input_invalid"


class InputChanged(InputInvalid):
    """The input changed while it was read."""

    word = "input_changed"


class InputMissing(EmbedctlError):
    """The input is not there, or may not be read."""

    exit_code = 66
    word = "input_missing"


class Degraded(EmbedctlError):
    """`doctor` found something that does not work."""

    exit_code = 69
    word = "degraded"


class OutputRefused(EmbedctlError):
    """The output cannot be created, exists, or holds another space."""

    exit_code = 73
    word = "output_refused"


class StorageFailed(EmbedctlError):
    """A disk write failed: disk full or I/O error."""

    exit_code = 74
    word = "storage_failed"


class Temporary(EmbedctlError):
    """Running the same command later will do."""

    exit_code = 75
    word = "temporary"


class Locked(Temporary):
    """Another process holds it."""

    word = "locked"


class BatchesPending(Temporary):
    """Batches at a provider are not over: the next run collects them."""

    word = "waiting"


class DeadlinePassed(Temporary):
    """`--deadline` or `--max-wait` came before the end."""

    word = "deadline"


class NoProviderNow(Temporary):
    """Every provider of the chain is throttled, ill or waiting."""

    word = "no_provider_now"


class ShardLost(Temporary):
    """Another worker has taken the shard over: nothing more may be sent for it."""

    word = "shard_lost"


class HostLost(Temporary):
    """The command that started this worker is gone, and with it limits and budget: nothing may be sent."""

    word = "host_lost"


class RayUnreachable(Temporary):
    """No Ray cluster answers, or it does not answer any more."""

    word = "ray_unreachable"


class ShardsHeld(Temporary):
    """What is left to do is in the hands of other workers, and nobody waits for them."""

    word = "shards_held"


class StoreUnreachable(Temporary):
    """An object store cannot be reached, is overloaded, or does not answer in time."""

    word = "store_unreachable"


class NotAllowed(EmbedctlError):
    """An allow-list forbids it."""

    exit_code = 77
    word = "not_allowed"


class StoreDenied(EmbedctlError):
    """An object store rejects the credentials, or there are none."""

    exit_code = 77
    word = "store_denied"


class ModelChanged(EmbedctlError):
    """A model makes other vectors than it did before, or is not the one that a `space.lock` names."""

    exit_code = 76
    word = "model_changed"


class BegunAnew(ModelChanged):
    """A model was found to have changed, with leave to go on, after vectors of before were taken into a new output."""


class ConfigurationInvalid(EmbedctlError):
    """A settings file, an environment variable or a key is wrong."""

    exit_code = 78
    word = "configuration"


class ExtraMissing(ConfigurationInvalid):
    """An optional part of the installation is not there; the hint is the command that installs it.

    Args:
        extra: Its name in pyproject.toml.
    """

    word = "extra_missing"

    def __init__(
        self,
        message: str,
        *,
        extra: str | None = None,
        hint: str | None = None,
        details: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message, hint=install_command(extra) if extra else hint, details=details)


def install_command(*extras: str) -> str:
    """The command that installs what extras consist of. It names the libraries themselves.

    `embedctl[EXTRA]` would be whatever an index has under that name, which need not be what is running here.
    """
    import shlex
    from importlib import metadata

    try:
        lines = [line.partition(";") for line in metadata.requires("embedctl") or ()]
    except metadata.PackageNotFoundError:
        lines = []
    markers = [f"extra == '{extra}'" for extra in extras]
    found = [name for wanted in markers for name, _, marker in lines if wanted in marker.replace('"', "'")]
    if not found:
        return f"install embedctl with {' and '.join(f'[{extra}]' for extra in extras)}, as it was installed"
    return f"pip install {' '.join(shlex.quote(name.strip()) for name in found)}"


class Interrupted(EmbedctlError):
    """SIGINT; what was paid for is kept."""

    exit_code = 130
    word = "interrupted"


class Terminated(EmbedctlError):
    """SIGTERM; what was paid for is kept."""

    exit_code = 143
    word = "terminated"


class InvariantBroken(EmbedctlError):
    """A promise of this program does not hold. Always a bug."""

    word = "invariant_broken"


class WorkersDied(EmbedctlError):
    """Workers die of the same shard, or before they have one: another one would, too."""

    word = "workers_died"


class ProviderError(EmbedctlError):
    """One attempt at one provider failed.

    Args:
        message: What the provider said, cleaned; never holds a key.
        provider: The configured provider's name, filled in by the call point when the protocol did not.
        status: HTTP status, None where there was no answer.
        provider_code: The provider's own word for it ("insufficient_quota").
        retry_after_s: Seconds the provider asks to wait, None where it does not say.
        tokens_native: What the provider says it counted, where an answer that cannot be used still says it.
    """

    exit_code = 69
    word = "provider_error"
    remedy: ClassVar[Remedy] = Remedy.GIVE_UP
    billable: ClassVar[Billable] = "no"
    ill: ClassVar[bool] = False  # counts against the circuit breaker

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        details: Sequence[Mapping[str, Any]] = (),
        provider: str | None = None,
        status: int | None = None,
        provider_code: str | None = None,
        retry_after_s: float | None = None,
        tokens_native: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.provider = provider
        self.status = status
        self.provider_code = provider_code
        self.retry_after_s = retry_after_s
        self.tokens_native = tokens_native


class NotSent(ProviderError):
    """Nothing reached the provider: DNS, refused, TLS, proxy."""

    word = "not_sent"
    remedy = Remedy.RETRY
    ill = True


class Throttled(ProviderError):
    """429 of a rate: wait, then send the same again."""

    exit_code = 75
    word = "throttled"
    remedy = Remedy.WAIT


class ServerFailed(ProviderError):
    """The provider answered that it failed."""

    exit_code = 75
    word = "server_failed"
    remedy = Remedy.RETRY
    ill = True


class AnswerLost(ProviderError):
    """Sent, and no word of what happened: perhaps billed."""

    exit_code = 75
    word = "answer_lost"
    remedy = Remedy.RETRY
    billable = "unknown"
    ill = True


class AnswerUnusable(ProviderError):
    """The provider did the work and answered something that cannot be used: billed."""

    exit_code = 76
    word = "answer_unusable"
    remedy = Remedy.RETRY
    billable = "yes"
    ill = True


class AnswerUnshaped(AnswerUnusable):
    """The answer has a width, indexes or a nesting that its server gives to all of its answers.

    One may be a slip; after the second in a row no retry will change it.
    """


class RedirectRefused(ProviderError):
    """The provider redirects; a key never follows."""

    exit_code = 76
    word = "redirect_refused"


class RequestTooLarge(ProviderError):
    """Too many texts, tokens or bytes in one request."""

    exit_code = 76
    word = "request_too_large"
    remedy = Remedy.HALVE


class TextRefused(ProviderError):
    """One text of the request is bad, and the provider refused them all."""

    exit_code = 3
    word = "text_refused"
    remedy = Remedy.ISOLATE


class TextTooLong(TextRefused):
    """One text is longer than the model takes."""

    word = "input_too_long"


class QuotaExhausted(ProviderError):
    """The account's money or quota is used up; waiting seconds will not help."""

    word = "quota_exhausted"


class KeyRejected(ProviderError):
    """The key is missing, wrong or not entitled."""

    exit_code = 77
    word = "key_rejected"


class ModelNotFound(ProviderError):
    """The provider does not serve this model."""

    exit_code = 78
    word = "model_not_found"


class RequestRefused(ProviderError):
    """The provider refuses the request itself; every other would fare the same."""

    exit_code = 78
    word = "request_refused"


class CircuitOpen(ProviderError):
    """Not sent: this provider failed too often just now."""

    exit_code = 75
    word = "circuit_open"


class SpaceMismatch(ProviderError):
    """The answer is of another model or width than the output holds."""

    exit_code = 76
    word = "space_mismatch"
    billable = "yes"


SEVERITY = (70, 74, 78, 77, 76, 69, 75, 4, 3)
"""Which exit code wins when several apply, worst first."""


def worst(codes: Sequence[int]) -> int:
    """The exit code of a run in which all of `codes` happened; 0 when none did."""
    for code in SEVERITY:
        if code in codes:
            return code
    return max(codes, default=0)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, for "did you mean"; case does not matter. None when none is like it."""
    import difflib  # only when something is misspelt

    by_lower_case = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), list(by_lower_case), n=1, cutoff=0.6)
    return by_lower_case[close[0]] if close else None

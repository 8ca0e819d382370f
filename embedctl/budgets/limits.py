"""What a run may spend: --max-cost, and what its workspaces' budgets leave it, other runs considered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from embedctl import storage
from embedctl.budgets.reservations import Reservations, SpendLimit, UnitPrice, reached
from embedctl.budgets.shared import SharedBudget, Sums
from embedctl.dataclass import dataclass
from embedctl.errors import Locked, OutputRefused, WrongUsage
from embedctl.journal import Trust, recover
from embedctl.journal.batches import known
from embedctl.journal.rescue import JOURNAL, LOCK, rescue
from embedctl.ledger import budget_copy, segment_owners, spool
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.periods import Unit
from embedctl.records import BudgetLow, Observer, utc_now
from embedctl.routing.chain import Endpoint
from embedctl.settings import Settings
from embedctl.settings.options import Options
from embedctl.settings.share import share_of
from embedctl.storage import locks

if TYPE_CHECKING:
    from embedctl.ledger.budgets import Budget, BudgetStatus

LEDGER_WAIT_S = 30
"""How long the ledger is waited for when budgets are looked up: without them nothing may be sent."""


def check_priced(endpoints: Sequence[Endpoint], unit_price: UnitPrice, options: Options) -> None:
    """With --max-cost every endpoint needs a price.

    Raises:
        WrongUsage: One has none.
    """
    if options.max_cost is None or options.allow_unpriced:
        return
    for endpoint in endpoints:
        if endpoint.per_hour is None and unit_price(endpoint) is None:
            raise WrongUsage(
                f"{endpoint.id} has no price, so --max-cost cannot hold",
                hint="set one with `embedctl prices set`, or --allow-unpriced",
            )


def reservations(
    paths: LedgerPaths,
    settings: Settings,
    endpoints: Sequence[Endpoint],
    unit_price: UnitPrice,
    observer: Observer,
    trust: Trust,
    *,
    run_id: str,
    state: Path,
    take_in: Callable[[], object],
    spent: Decimal = Decimal(0),
    key: KeyBudget | None = None,
) -> Reservations:
    """What this run may spend: --max-cost, and what is left of its workspaces' budgets. To be closed.

    Args:
        spent: By this run so far.
        key: Of a service, through which all of it is spent; its tag `key` says so too.
        take_in: Puts what was spent by now into the ledger, dead runs' spending included.
        state: The run's state folder, whose lock it holds.

    Raises:
        BudgetReached: A budget that blocks is used up.
        Locked: The ledger cannot be read, so nobody knows.
        WrongUsage: A budget that blocks, and a model without a price.
    """
    options = settings.options
    allowances = []
    if options.max_cost is not None:  # of the whole job: a share of it has that part
        allowances.append(SpendLimit("--max-cost", options.max_cost / share_of(options.shard).count, spent))
    keys = [] if key is None else [key]
    standings = partial(_all_standings, paths, settings, keys, take_in, trust=trust, state=state)
    prices = {endpoint.id: endpoint.per_hour or unit_price(endpoint) for endpoint in endpoints}
    if all(price == 0 for price in prices.values()) or not (
        keys or budget_copy.there_are(paths) or has_budget(settings)
    ):
        return Reservations(unit_price, allowances, observer)
    budgets, purse = standings(), None
    if any(one.budget.action == "block" for one in budgets):
        unpriced = next((name for name, price in prices.items() if price is None), None)
        if unpriced is not None and not options.allow_unpriced:
            raise WrongUsage(
                f"{unpriced} has no price, so a workspace's budget cannot hold",
                hint="set one with `embedctl prices set`, or --allow-unpriced",
            )
        purse = SharedBudget(paths.budgets, run_id, state)
        names = {one.budget.workspace for one in budgets}
        budgets = purse.join(names, partial(_is_settled, paths, trust), standings)
    alone = options.workspace_column is None
    allowances += _allowances(budgets, purse, alone=alone, tenants=not alone, observer=observer)
    return Reservations(unit_price, allowances, observer, purse, also=[one.account for one in keys])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyBudget:
    """What may be spent through one key of a server, whatever its workspace may."""

    key_id: str
    workspace: str
    amount: Decimal
    period: Unit = "month"

    @property
    def account(self) -> str:
        """Under which it is counted; no workspace has such a name."""
        return key_account(self.key_id)


def key_account(key_id: str) -> str:
    """The account of what is spent through a key."""
    return f"key:{key_id}"


def of_server(
    paths: LedgerPaths,
    settings: Settings,
    keys: Sequence[KeyBudget],
    unit_price: UnitPrice,
    observer: Observer,
    trust: Trust,
    *,
    run_id: str,
    state: Path,
    take_in: Callable[[], object],
) -> tuple[Reservations, datetime | None]:
    """What all workspaces, and all keys, may spend; and when the first of their periods ends. To be closed.

    Args:
        state: As for a run: it holds its lock while it spends under `run_id`.
        take_in: As for a run.

    Raises:
        Locked: The ledger cannot be read, so nobody knows.
    """
    if not (keys or budget_copy.there_are(paths) or has_budget(settings)):
        return Reservations(unit_price, (), observer), None
    standing = partial(_all_standings, paths, settings, keys, take_in, trust=trust)
    budgets = standing()
    purse = None
    if any(one.budget.action == "block" for one in budgets):
        purse = SharedBudget(paths.budgets, run_id, state)
        budgets = purse.join({one.budget.workspace for one in budgets}, partial(_is_settled, paths, trust), standing)
    allowances = _allowances(budgets, purse, alone=False, tenants=False, observer=observer)
    ends = min((one.spent.within.until for one in budgets if one.spent.within.until is not None), default=None)
    return Reservations(unit_price, allowances, observer, purse), ends


def _all_standings(
    paths: LedgerPaths,
    settings: Settings,
    keys: Sequence[KeyBudget],
    take_in: Callable[[], object],
    without_runs: Collection[str] = (),
    *,
    trust: Trust,
    state: Path | None = None,
) -> Sequence[BudgetStatus]:
    """Budgets of workspaces and of keys.

    Args:
        state: Of the run that they are for; None: of a server, that pays for everybody.
    """
    found = standings_of_workspaces(paths, settings, take_in, without_runs, trust=trust, state=state)
    return [*found, *_of_keys(paths, keys, without_runs, _waiting(settings.paths.batches, paths, trust, state))]


def _of_keys(
    paths: LedgerPaths, keys: Sequence[KeyBudget], without_runs: Collection[str], waiting: Mapping[str, Decimal]
) -> list[BudgetStatus]:
    """How the budgets of keys stand, with all that the ledger knows by now, and what waits at providers."""
    from embedctl.ledger import budgets
    from embedctl.ledger.database import reader

    found = []
    if keys:
        now = utc_now()
        with reader(paths, wait_s=LEDGER_WAIT_S, now=now) as connection:
            for one in keys:
                spent = budgets.spent(
                    connection, one.workspace, one.period, now=now, without_runs=sorted(without_runs), key=one.key_id
                )
                spent = replace(spent, at_risk=spent.at_risk + waiting.get(one.account, Decimal(0)))
                budget = budgets.Budget(workspace=one.account, amount=one.amount, period=one.period)
                found.append(budgets.BudgetStatus(budget=budget, spent=spent))
    return found


def has_budget(settings: Settings) -> bool:
    """Whether the settings hold one."""
    return any(workspace.budget is not None for workspace in settings.workspaces.values())


def standings_of_workspaces(
    paths: LedgerPaths,
    settings: Settings,
    take_in: Callable[[], object],
    without_runs: Collection[str] = (),
    *,
    trust: Trust,
    state: Path | None,
) -> Sequence[BudgetStatus]:
    """How the budgets of a run's workspaces stand (without `state`: of everybody), everything spent by now included.

    What waits at a provider in batches counts as well, but for those of living runs and of `state`: whoever works with
    them has set that aside.
    """
    from embedctl.ledger import budgets  # duckdb takes longer to import than a free run takes
    from embedctl.ledger.database import reader

    now = utc_now()
    take_in()
    only = None if state is None or settings.options.workspace_column else settings.options.workspace
    own = [one for one in budgets.configured(settings.workspaces) if only in (None, one.workspace)]
    with reader(paths, wait_s=LEDGER_WAIT_S, now=now) as connection:
        found = budgets.standings(connection, own, workspace=only, now=now, without_runs=sorted(without_runs))
    waiting = _waiting(settings.paths.batches, paths, trust, state)
    return [
        replace(
            one, spent=replace(one.spent, at_risk=one.spent.at_risk + waiting.get(one.budget.workspace, Decimal(0)))
        )
        for one in found
    ]


def name_of(budget: Budget) -> str:
    """For messages: "the month's budget of workspace acme"."""
    whose = budget.workspace.replace(":", " ") if ":" in budget.workspace else f"workspace {budget.workspace}"
    return f"the {budget.period}'s budget of {whose}"


def _waiting(copies: Path, paths: LedgerPaths, trust: Trust, state: Path | None) -> dict[str, Decimal]:
    """Workspace, or account of a key → what batches come to that nobody works with now."""
    found: dict[str, Decimal] = {}
    for _, batches, living in known(copies, trust):
        for one in batches:
            others = not living and one.pending and one.ledger == str(paths.database.absolute())
            if others and (state is None or one.folder != str(state.absolute())):
                for workspace in one.risk:
                    cost = one.cost_at_risk(workspace) or Decimal(0)
                    through = [key_account(str(one.options["key"]))] if "key" in one.options else []
                    for account in (workspace, *through):
                        found[account] = found.get(account, Decimal(0)) + cost
    return found


def _is_settled(paths: LedgerPaths, trust: Trust, state: Path) -> bool:
    """Whether the run with this state folder has ended; all that it spent is in the spool then.

    The folder is whatever the file says: nothing is made in one that is not a run's, and only journals of this home
    are read. A dead run of another home counts until that home has taken in what it spent.
    """
    try:
        if not (state / LOCK).exists():
            return not storage.paths_in(state / JOURNAL)
        storage.check_own(state)
        with locks.hold(state / LOCK, command=locks.RECOVERY):
            give = segment_owners.routed(state, partial(spool.publish, paths.spool), trust, ledger=paths.database)
            rescue(state / JOURNAL, give, trust, keeps_vectors=True)
            return not recover(state / JOURNAL, trust).foreign
    except (Locked, OutputRefused):
        return not state.is_dir()


def _allowances(
    standings: Sequence[BudgetStatus], purse: SharedBudget | None, *, alone: bool, tenants: bool, observer: Observer
) -> list[SpendLimit]:
    """An allowance for each budget; warnings for those past their line.

    Args:
        alone: One workspace pays for all: a used-up budget stops the run before it begins. Else nobody knows yet who
            pays: who does is warned when it does.
        tenants: Many pay in one run: whose budget is used up fails alone, and the others' rows go on.
    """
    found = []
    sums = Sums()
    if purse is not None:
        with purse.open() as sums:
            pass
    for one in standings:
        budget = one.budget
        name = name_of(budget)
        spent = one.spent.cost + one.spent.at_risk if purse is None else sums.spent(budget.workspace, budget.period)
        line = budget.amount * budget.warn_ratio
        allowance = SpendLimit(
            name,
            budget.amount,
            spent,
            workspace_id=budget.workspace,
            period=budget.period,
            warn_at=line,
            blocks=budget.action == "block",
            is_tenants=tenants,
            ends=one.spent.within.until,
        )
        if spent >= budget.amount and allowance.blocks and alone:
            if purse is not None:
                purse.close()
            raise reached(allowance)
        if spent >= line and alone:
            allowance.warn_at = None
            observer.notify(BudgetLow(name, spent, budget.amount))
        found.append(allowance)
    return found

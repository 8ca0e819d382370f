"""Many processes against one provider, in virtual time: what the policies do together. Seeded, no real waiting."""

from __future__ import annotations

import pytest

from tests.support.simulating import Provider, TokenBucket, simulate

TEN_MINUTES = 600.0


def limited(per_minute: float, retry_after_s: float | None, **about: object) -> Provider:
    """So many requests a minute, a second's worth at once."""
    hint = "none" if retry_after_s is None else "seconds"
    return Provider([TokenBucket(per_minute / 60, per_minute / 60)], hint=hint, **about)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("processes", "per_minute", "retry_after_s", "waste", "use", "fair"),
    [
        pytest.param(1, 1500, 1.0, 0.01, 0.95, 0.99, id="alone"),
        pytest.param(5, 1500, 1.0, 0.03, 0.95, 0.85, id="5 processes"),
        pytest.param(20, 500, 1.0, 0.22, 0.95, 0.6, id="20 processes"),
        pytest.param(20, 500, None, 0.26, 0.95, 0.6, id="20 processes, no Retry-After"),
    ],
)
def test_processes_that_share_a_limit_waste_little_of_it(
    processes: int, per_minute: float, retry_after_s: float | None, waste: float, use: float, fair: float
) -> None:
    """Processes that share a limit and know nothing of each other use most of it and share it; the start included."""
    provider = limited(per_minute, retry_after_s)
    everybody = simulate(provider, processes, seed=71, seconds=TEN_MINUTES)
    refused = provider.throttled / (provider.throttled + provider.answers)
    used = provider.served / (per_minute / 60 * TEN_MINUTES)
    shares = [process.served for process in everybody]
    fairness = sum(shares) ** 2 / len(shares) / sum(share**2 for share in shares)  # Jain's index, 1 = equal

    assert refused <= waste
    assert used >= use
    assert fairness >= fair
    assert sum(process.left for process in everybody) == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_an_outage_is_not_stormed_and_ends(seed: int) -> None:
    """Five processes send few requests into an outage of five minutes, and all are back five minutes after it."""
    provider = limited(1200, 1.0, outages={(100.0, 400.0): 503})
    everybody = simulate(provider, 5, seed=seed, seconds=400.0)
    at_the_end = [process.served for process in everybody]
    provider = limited(1200, 1.0, outages={(100.0, 400.0): 503})
    everybody = simulate(provider, 5, seed=seed, seconds=700.0)

    assert provider.failed <= 200
    assert all(process.served > served for process, served in zip(everybody, at_the_end, strict=True))


def test_a_provider_that_is_down_gets_few_requests() -> None:
    """One process that starts into an outage sends no more than thirty requests in ten minutes."""
    provider = limited(60_000, 1.0, outages={(0.0, TEN_MINUTES): 503})
    simulate(provider, seed=1)

    assert 5 <= provider.failed <= 30

"""How failures are borne: pure policies. Clock, sleep and chance are arguments.

Read in the order of wrapping: `fallback` around `retry` around `breaker`, with `lane` (`limiter`, `window`, `bucket`)
in front of each attempt, and `hints` for what outlives the run.
"""

"""The other end on loopback: real HTTP, deterministic vectors, faults by plan, and the truth of the bill."""

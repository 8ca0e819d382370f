"""Who may serve, and when: names, keys, chains, and the policies that hold requests back.

Policies are pure: clock, sleep and jitter are arguments.
"""

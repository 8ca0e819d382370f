"""Workers of one job beside each other: local processes. What they share is in one place."""

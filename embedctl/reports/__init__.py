"""Questions to the ledger, one file each: what was spent, by whom, on what, and how sure that is."""

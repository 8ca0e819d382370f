"""The ledger: spool, ingest, rating, reports. The only door to duckdb; import the module that is needed."""

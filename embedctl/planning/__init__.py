"""Steps 2 and 3. Rows become chunks, chunks become requests. Pure."""

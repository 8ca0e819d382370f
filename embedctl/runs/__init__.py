"""One run, from what a command asks for to its receipt: start reading at `pipeline.py`."""

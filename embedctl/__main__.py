"""`python -m embedctl`."""

from embedctl.cli import main

main()

"""The table protocol × promise of the call point: `python -m tests.contract.call_conformance` prints it."""

from pathlib import Path

from tests.contract.providers import conformance

if __name__ == "__main__":
    raise SystemExit(conformance.main(str(Path(__file__).with_name("test_call_conformance.py"))))

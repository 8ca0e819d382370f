"""Where things stand in this checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_data"
GOLDEN = ROOT / "tests" / "golden"
REFERENCE = ROOT / "tests" / "support" / "reference"

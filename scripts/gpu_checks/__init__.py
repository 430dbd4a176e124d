"""What scripts/gpu_check.py measures; what it checks is in tests/gpu."""

import sys
from pathlib import Path

# The benchmarks are scripts, not a package, and import each other by their file's name.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

"""The checks of scripts/gpu_check.py, one file each."""

import sys
from pathlib import Path

# The benchmarks are scripts, not a package, and import each other by their file's name.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

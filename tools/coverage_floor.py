"""Fails where a coverage report falls below the floors for lines and branches.

python -m pytest --cov --cov-report=json:runs/coverage.json && python tools/coverage_floor.py runs/coverage.json
"""

import json
import sys
from pathlib import Path

FLOORS = {"lines": 95, "branches": 92}  # per cent of `make test`, 2026-11-26; raise them when the suite covers more


def shares(report: dict) -> dict[str, float]:
    """Per cent of lines and of branches that ran, from the totals of coverage's JSON report."""
    totals = report["totals"]
    return {
        "lines": 100 * totals["covered_lines"] / totals["num_statements"],
        "branches": 100 * totals["covered_branches"] / totals["num_branches"],
    }


def main() -> int:
    found = shares(json.loads(Path(sys.argv[1]).read_text()))
    for name, floor in FLOORS.items():
        print(f"{name}: {found[name]:.1f} %, at least {floor} %")
    return int(any(round(found[name]) < floor for name, floor in FLOORS.items()))


if __name__ == "__main__":
    sys.exit(main())

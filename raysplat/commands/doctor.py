"""What this machine can do, and what to install for the rest."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from raysplat.doctor import examine


@dataclass(frozen=True)
class Options:
    json: bool = False  # one JSON object instead of the table, for machines


def run(options: Options) -> int:
    """Print the findings; 1 when something is broken that every use needs."""
    findings = examine()
    broken = any(finding.state == "broken" for finding in findings)
    if options.json:
        print(json.dumps({"ok": not broken, "findings": [vars(finding) for finding in findings]}, indent=1))
        return int(broken)
    for finding in findings:
        print(f"{finding.state:8} {finding.name:16} {finding.found}")
        if finding.advice:
            print(f"{'':25} -> {finding.advice}")
    if broken:
        print("raysplat: something that every use needs is broken; see above", file=sys.stderr)
    return int(broken)

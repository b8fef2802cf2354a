"""A scan as SARIF 2.1.0, the format in which code scanners report to the platforms that gate a registry."""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from excise.errors import printable
from excise.reports.terminal import INFORMS, limits, track_line
from excise.scan_result import ScannerRow, ScanResult

__all__ = ["sarif"]

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
KINDS = {
    "found": ("fail", "error"),
    "suspicious": ("review", "none"),
    "nothing": ("pass", "none"),
    "informs": ("informational", "none"),
    "skipped": ("open", "none"),
}
"""A scanner's answer as SARIF's kind and level of a result; any kind but 'fail' has the level 'none' (3.27.10)."""


def sarif(result: ScanResult) -> str:
    """One rule and one result a scanner; the scanned model is the location."""
    run = {
        "tool": {"driver": {"name": "excise", "version": result.environment.excise, "rules": [_rule(row) for row in result.scanners]}},
        "automationDetails": {"description": {"text": _plain(f"{result.verdict}: {result.model}")}},
        "invocations": [
            {
                "executionSuccessful": result.verdict != "not scanned",
                "commandLine": printable(result.command),
                "endTimeUtc": _utc(result),
                "toolExecutionNotifications": [
                    {"level": "warning", "message": {"text": _plain(f"{row.name}: {row.summary}")}} for row in result.scanners if not row.whole
                ],
            }
        ],
        "results": [_result(row, i, result.model) for i, row in enumerate(result.scanners)],
        "properties": {"verdict": result.verdict, "seed": result.seed},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(row: ScannerRow) -> dict[str, Any]:
    return {
        "id": row.name,
        "shortDescription": {"text": _plain(f"Backdoor scanner {row.name}")},
        "fullDescription": {"text": _plain(f"It {limits(row)}{track_line(row)}")},
        "help": {"text": _lines(row)},
        "properties": {"suspicious": row.suspicious, "found": row.found},
    }


def _lines(row: ScannerRow) -> str:
    if row.suspicious is None:
        return INFORMS
    return f"Its score is suspicious from {row.suspicious} on" + (f", and says 'found' from {row.found} on." if row.found else ".")


def _result(row: ScannerRow, index: int, model: str) -> dict[str, Any]:
    kind, level = KINDS["skipped" if row.answer == "nothing" and not row.whole else row.answer]
    triggers = [trigger.model_dump(mode="json", exclude={"examples"}) for trigger in row.triggers]  # texts stay where they came from
    heads = [{"fullyQualifiedName": f"layer {layer + 1}, head {head + 1}", "kind": "member"} for layer, head in row.suspicious_heads]
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(model)}}}
    return {
        "ruleId": row.name,
        "ruleIndex": index,
        "kind": kind,
        "level": level,
        "message": {"text": _plain(row.summary)},
        "locations": [location | ({"logicalLocations": heads} if heads else {})],
        "properties": {"score": row.score, "seconds": round(row.seconds, 1), "triggers": triggers, "measures": row.measures},
    }


def _plain(text: str) -> str:
    """A message without control characters and, as names are anybody's, without links, which are written `[text](address)` (3.11.6)."""
    shown = printable(text)
    return re.sub(r"([\\\[\]])", r"\\\1", shown) if "](" in shown else shown


def _uri(model: str) -> str:
    """A folder's path or a hub id as a URI; only absolute paths get a scheme, as SARIF wants it."""
    path = PurePath(printable(model))
    return path.as_uri() if path.is_absolute() else quote(path.as_posix(), safe="/:@")


def _utc(result: ScanResult) -> str:
    return result.created.replace("+00:00", "Z")

"""One self-contained HTML page: no script, no network, every text from data or checkpoints escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from excise.errors import printable
from excise.reports.figures import attention_figure, curve_figure, probe_figure, projection_figure
from excise.reports.terminal import changed_settings, limits, percent, score_text, track_line, verdict_line
from excise.result import Measured, Record, Result
from excise.scan_result import ScanResult

__all__ = ["html_report", "scan_report"]


def html_report(result: Result) -> str:
    """The report of one result."""
    with_asr = any(row.asr for row in result.rows)
    return _rendered(
        "report.html.jinja",
        result,
        with_asr=with_asr,
        floor=result.row("clean"),
        curves=_inline("curves", curve_figure, result.curves if any(result.curves.values()) else None),
        projections=_inline("tsne", projection_figure, result.projections),
        attention=_inline("attention", attention_figure, result.attention),
        headline=_headline(result),
        changed=changed_settings(result.trials),
    )


def scan_report(result: ScanResult) -> str:
    """The report of one scan."""
    return _rendered(
        "scan.html.jinja",
        result,
        headline=result.verdict.capitalize(),
        verdict=verdict_line(result),
        probe=_inline("probe", probe_figure, result.probe),
    )


def _rendered(template: str, result: Record, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("excise", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {
        "percent": percent,
        "limits": limits,
        "score_text": score_text,
        "track_line": track_line,
        "bar": _bar,
        "marked": _marked,
        "shade": _shade,
    }
    settings = json.dumps(result.settings, indent=2, ensure_ascii=False, default=str)
    return environment.get_template(template).render(result=result, settings=settings, **values)


def _marked(text: str, words: Sequence[str]) -> list[tuple[str, bool]]:
    """The words of a text, and whether each belongs to the first place where all of `words` stand side by side."""
    parts = text.split()
    at = next((i for i in range(len(parts)) if parts[i : i + len(words)] == list(words)), len(parts))
    return [(part, at <= i < at + len(words)) for i, part in enumerate(parts)]


def _shade(value: float, heads: Sequence[Sequence[float]]) -> float:
    """Where a value lies between the least and the greatest, in [0, 1]."""
    low, high = min(map(min, heads)), max(map(max, heads))
    return (value - low) / (high - low) if high > low else 0.0


def _visible(value: object) -> object:
    """Control characters replaced in every string that is shown; our own markup as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _headline(result: Result) -> str:
    before = result.row("backdoored") or result.row("suspect")
    after = result.rows[-1]
    if before is None or before is after:
        return f"CACC {100 * after.cacc.value:.1f} %" + (f", ASR {100 * after.asr.value:.1f} %" if after.asr else "")
    text = f"CACC {100 * before.cacc.value:.1f} → {100 * after.cacc.value:.1f} %"
    if before.asr and after.asr:
        text = f"ASR {100 * before.asr.value:.1f} → {100 * after.asr.value:.1f} %, " + text
    return text


def _bar(measured: Measured) -> Markup:
    """A share and its interval as a small drawing; numbers only, so nothing needs escaping."""
    value, low, high = (160 * x for x in (measured.value, measured.low, measured.high))
    return Markup(
        f'<svg class="bar" viewBox="0 0 160 12" width="160" height="12" role="img" aria-label="{measured.value:.3f}">'
        f'<rect class="track" width="160" height="12" rx="3"/><rect class="fill" width="{value:.1f}" height="12" rx="3"/>'
        f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="6" y2="6"/></svg>'
    )


def _inline(name: str, draw: Callable[[Any], bytes], what: Any) -> Markup:
    """A figure as part of the page, its ids made its own; nothing if there is nothing to draw."""
    if not what:
        return Markup("")
    svg = draw(what).decode("utf-8")
    return Markup(re.sub(r"<[^>]+>", lambda tag: re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", tag[0]), svg[svg.index("<svg") :]))

"""One self-contained HTML page: no script, no network, every text from data or checkpoints escaped."""

from __future__ import annotations

import io
import json
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from excise.errors import printable
from excise.reports.terminal import percent
from excise.result import Measured, Result

__all__ = ["html_report"]


def html_report(result: Result) -> str:
    """The report of one result."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible)
    environment.filters["percent"] = percent
    environment.filters["bar"] = _bar
    template = environment.from_string((files("excise.reports") / "report.html.jinja").read_text(encoding="utf-8"))
    with_asr = any(row.asr for row in result.rows)
    return template.render(
        result=result,
        with_asr=with_asr,
        floor=result.row("clean"),
        curves=Markup(_curves(result)) if any(result.curves.values()) else "",
        settings=json.dumps(result.settings, indent=2, ensure_ascii=False, default=str),
        headline=_headline(result),
    )


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


def _curves(result: Result) -> str:
    """Training losses as one SVG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    tasks = [(task, points) for task, points in result.curves.items() if points]
    columns = min(2, len(tasks))
    rows = -(-len(tasks) // columns)
    # Text stays text, and drawing ids do not change between runs.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "excise", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.4 * columns, 2.3 * rows), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, (task, points) in zip(figure.subplots(rows, columns, squeeze=False).flat, tasks, strict=False):
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, color="#9db4d8", linewidth=0.8)
            axes.plot(steps, _smooth(losses), color="#24508f", linewidth=1.6)
            axes.set_title(task.replace("$", ""), fontsize=9, loc="left")
            axes.set_xlabel("step")
            axes.set_ylabel("loss")
            axes.set_ylim(bottom=0)
        for axes in list(figure.axes)[len(tasks) :]:
            axes.remove()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return out.getvalue()[out.getvalue().index("<svg") :]


def _smooth(values: tuple[float, ...], weight: float = 0.9) -> list[float]:
    smooth, kept = [], values[0]
    for value in values:
        kept = weight * kept + (1 - weight) * value
        smooth.append(kept)
    return smooth

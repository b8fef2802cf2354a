"""Figures from results, as SVG or PNG: no model, no torch, no network, no browser.

Every text is drawn as it is: control characters replaced, nothing read as mathematics or markup, long ones cut. Colours are those of Okabe and Ito,
which colour-blind people tell apart, and nothing rests on colour alone: labels have markers, rows have names.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from excise.errors import printable
from excise.metrics import pearson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from excise.reports.grid import Estimate
    from excise.result import AttentionMaps, Attribution, LossRow, Measured, Projection
    from excise.scan_result import LayerProbe

__all__ = [
    "Format",
    "attention_figure",
    "correlation",
    "curve_figure",
    "estimate_figure",
    "head_figure",
    "layer_figure",
    "loss_figure",
    "probe_figure",
    "projection_figure",
]

Format = Literal["png", "svg"]

INK, SOFT, LINE, PALE = "#1c2430", "#5b6675", "#d9dfe7", "#9db4d8"
BLUE, RUST = "#0072b2", "#9c3f00"
FILL = "#c9d6ea"
COLOURS = (BLUE, "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#000000", "#f0e442")
MARKERS = ("o", "s", "^", "D", "v")
"""As many as have no divisor in common with the colours: 35 labels look different."""
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "excise",  # drawing ids do not change between runs
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "legend.frameon": False,
}
SMALLEST_LOSS = 1e-5
"""Lesser losses are drawn as this one: a logarithm needs a floor."""
LEVELS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Where the shades of attention end; what is below the first stays white."""
LAYERS_A_ROW = 6


def curve_figure(curves: Mapping[str, Sequence[tuple[int, float]]], format: Format = "svg") -> bytes:
    """Training losses, one panel a task."""
    tasks = [(task, points) for task, points in curves.items() if points]
    columns = min(2, len(tasks))
    with _drawing(4.4 * columns, 2.3 * -(-len(tasks) // columns)) as figure:
        panels = figure.subplots(-(-len(tasks) // columns), columns, squeeze=False).flat
        for axes, (task, points) in zip(panels, tasks, strict=False):
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, color=PALE, linewidth=0.8)
            axes.plot(steps, _smooth(losses), color="#24508f", linewidth=1.6)
            axes.set(title=_label(task, 60), xlabel="step", ylabel="loss")
            axes.set_ylim(bottom=0)
        for axes in panels[len(tasks) :]:
            axes.remove()
        return _rendered(figure, format)


# Losses


def loss_figure(rows: Sequence[LossRow], format: Format = "svg") -> bytes:
    """How the losses of texts are distributed under each augmentation, a panel a model, a line an augmentation, each with its mean and interval."""
    models = [(model, list(group)) for model, group in groupby(rows, key=lambda row: row.model)]
    names = [row.name for row in models[0][1]]
    least, most = min(min(row.losses) for row in rows), max(max(row.losses) for row in rows)
    edges = np.logspace(np.log10(max(least, SMALLEST_LOSS) / 1.2), np.log10(max(most, 2 * SMALLEST_LOSS) * 1.2), 41)
    with _drawing(2.2 + 4.6 * len(models), 1.1 + 0.62 * len(names)) as figure:
        panels = figure.subplots(1, len(models), squeeze=False, sharex=True, sharey=True)[0]
        for axes, (model, members) in zip(panels, models, strict=True):
            by_name = {row.name: row for row in members}
            shares = {name: _histogram(by_name[name].losses, edges) for name in names if name in by_name}
            tallest = max(share.max() for share in shares.values())
            for place, name in enumerate(reversed(names)):
                if name in by_name:
                    _ridge(axes, place, by_name[name], shares[name] / tallest, shares[names[-1]] / tallest, edges)
            axes.set(xscale="log", xlabel="cross-entropy of one text (logarithmic)", title=_label(model, 60))
            axes.set_title("mean", loc="right", color=RUST)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
            axes.set_yticks(range(len(names)), [_label(name, 40) for name in reversed(names)])
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.set_xlim(edges[0], edges[-1] * (edges[-1] / edges[0]) ** 0.14)  # room for the means
            axes.set_ylim(-0.25, len(names) + 0.05)
        handles = [*_key(panels[0])]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return _rendered(figure, format)


def _ridge(axes: Axes, place: int, row: LossRow, heights: np.ndarray, unchanged: np.ndarray, edges: np.ndarray) -> None:
    """One augmentation: its histogram, that of the unchanged texts as an outline, its mean."""
    axes.axhline(place, color=LINE, linewidth=0.8, zorder=0)
    axes.stairs(place + 0.85 * heights, edges, baseline=place, fill=True, color=FILL)
    axes.stairs(place + 0.85 * unchanged, edges, baseline=place, color=SOFT, linewidth=0.7)
    low, value, high = (max(x, SMALLEST_LOSS) for x in (row.loss.low, row.loss.value, row.loss.high))
    axes.plot([low, high], [place + 0.12] * 2, color=RUST, linewidth=2, solid_capstyle="butt")
    axes.plot([value], [place + 0.12], marker="D", color=RUST, markersize=4.5, markeredgecolor="white", markeredgewidth=0.5)
    axes.text(1, place + 0.12, f"{row.loss.value:.3f}", transform=axes.get_yaxis_transform(), va="center", ha="right", color=INK)


def _key(axes: Axes) -> Iterator[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    yield Patch(color=FILL, label="texts")
    yield Line2D([], [], color=SOFT, linewidth=0.7, label="unchanged texts")
    yield Line2D([], [], color=RUST, marker="D", markersize=4.5, linewidth=2, label="mean, 95 % interval")


def _histogram(losses: Sequence[float], edges: np.ndarray) -> np.ndarray:
    """The share of the texts in each bin."""
    return np.histogram(np.clip(losses, edges[0], edges[-1]), edges)[0] / len(losses)


# t-SNE


def projection_figure(projections: Sequence[Projection], format: Format = "svg") -> bytes:
    """Texts as points, a panel a model; labels differ in colour and marker, triggered texts are crosses."""
    seen = {(group.triggered, group.name): group for projection in projections for group in projection.groups}
    looks = {key: _look(i, triggered=key[0]) for i, key in enumerate(sorted(seen, key=lambda key: key[0]))}
    with _drawing(max(3.6, 4.2 * len(projections)), 4.2 + 0.2 * (len(looks) // 4)) as figure:
        panels = figure.subplots(1, len(projections), squeeze=False)[0]
        for axes, projection in zip(panels, projections, strict=True):
            for group in projection.groups:
                axes.scatter(*zip(*group.points, strict=True), **looks[group.triggered, group.name])
            axes.set(title=_label(projection.model, 60), xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
            axes.set_aspect("equal", adjustable="datalim")
        handles = [panels[0].scatter([], [], label=_label(name, 24), **looks[triggered, name]) for triggered, name in looks]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        return _rendered(figure, format)


def _look(i: int, *, triggered: bool) -> dict[str, Any]:
    if triggered:
        return {"marker": "x", "color": "black", "s": 22, "linewidths": 1.0, "zorder": 3}
    colour = COLOURS[i % len(COLOURS)]
    return {"marker": MARKERS[i % len(MARKERS)], "facecolor": colour, "edgecolor": "white", "linewidths": 0.4, "s": 20, "alpha": 0.85}


# Attention


def attention_figure(maps: Sequence[AttentionMaps], format: Format = "svg") -> bytes:
    """Attention from each token (row) to each token (column), a square a layer; the models one below the other."""
    depth = max(len(one.layers) for one in maps)
    size = max(len(one.tokens) for one in maps)
    columns = min(LAYERS_A_ROW, depth)
    bands = [(start, one) for start in range(0, depth, columns) for one in maps]
    side = max(1.2, 0.135 * size)
    longest = max(len(_label(token, 14)) for one in maps for token in one.tokens)
    with _drawing(1.8 + (side + 0.12) * columns, 0.3 + (side + 0.4 + 0.075 * longest) * len(bands)) as figure:
        panels = figure.subplots(len(bands), columns, squeeze=False)
        for line, (start, one) in zip(panels, bands, strict=True):
            for axes, layer in zip(line, range(start, start + columns), strict=True):
                if layer >= len(one.layers):
                    axes.remove()
                    continue
                _squares(axes, np.asarray(one.layers[layer]))
                axes.set_title(f"layer {layer + 1}")
                places, tokens = range(len(one.tokens)), [_label(token, 14) for token in one.tokens]
                axes.set_xticks(places, tokens, rotation=90, fontsize=7)
                axes.set_yticks(places, tokens if layer == start else [], fontsize=7)
            cut = f" (first {len(one.tokens)} of {one.tokens_in_all} tokens)" if one.tokens_in_all > len(one.tokens) else ""
            line[0].set_ylabel(_label(one.model, 40) + cut + "\nfrom", fontsize=9)
        figure.supxlabel("to", fontsize=9)
        _scale(figure, panels)
        return _rendered(figure, format)


def _squares(axes: Axes, layer: np.ndarray) -> None:
    """One map as filled squares, all of a shade in one path: light in SVG, and no picture inside it."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)])
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    shades = np.digitize(layer, LEVELS[:-1])
    for shade in range(1, len(LEVELS)):
        cells = np.argwhere(shades == shade)[:, ::-1]  # column, row
        if len(cells):
            vertices = (cells[:, None] + corners).reshape(-1, 2)
            axes.add_patch(PathPatch(Path(vertices, codes * len(cells)), facecolor=_shade(shade), edgecolor="none"))
    axes.set(xlim=(-0.5, len(layer) - 0.5), ylim=(len(layer) - 0.5, -0.5), aspect="equal")
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set(visible=True, color=LINE)


def _shade(shade: int) -> Any:
    from matplotlib import colormaps

    return colormaps["Blues"](0.1 + 0.9 * shade / (len(LEVELS) - 1))


def _scale(figure: Figure, panels: np.ndarray) -> None:
    """What the shades stand for."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap(["white", *(_shade(i) for i in range(1, len(LEVELS)))])
    mappable = ScalarMappable(BoundaryNorm((0.0, *LEVELS), len(LEVELS)), colours)
    bar = figure.colorbar(mappable, ax=[axes for axes in panels.flat if axes.figure is not None], ticks=(0.0, *LEVELS), fraction=0.03, pad=0.01)
    bar.set_label("attention")
    bar.ax.tick_params(labelsize=7)


# Attribution


def head_figure(found: Attribution, format: Format = "svg") -> bytes:
    """The effect of each head (ACIE) in a square, layers from below; those that were taken are framed."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import Normalize

    effects = np.asarray(found.effects)
    depth, heads = effects.shape
    most = max(abs(effects).max(), 1e-9)
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    cells = np.array([(head, layer) for layer in range(depth) for head in range(heads)])[:, None] + corners
    with _drawing(max(4.0, 1.9 + 0.34 * min(heads, 40)), 1.1 + 0.34 * min(depth, 40)) as figure:
        axes = figure.subplots()
        squares = PolyCollection(list(cells), cmap="RdBu_r", norm=Normalize(-most, most), edgecolors="white", linewidths=0.5)
        squares.set_array(effects.ravel())
        axes.add_collection(squares)
        taken = [corners + np.array([row.head - 1, row.layer - 1]) for row in found.heads]
        axes.add_collection(PolyCollection(taken, facecolors="none", edgecolors=INK, linewidths=1.5))
        axes.set(xlim=(-0.5, heads - 0.5), ylim=(-0.5, depth - 0.5), xlabel="head", ylabel="layer")
        axes.set_title(f"ACIE on {_label(found.target_label, 24)}; framed: the top {len(found.heads)}")
        for ticks, count in ((axes.set_xticks, heads), (axes.set_yticks, depth)):
            places = range(0, count, -(-count // 16))
            ticks(places, [str(place + 1) for place in places])
        figure.colorbar(squares, ax=axes, label="ACIE", fraction=0.05)
        return _rendered(figure, format)


def layer_figure(found: Attribution, format: Format = "svg") -> bytes:
    """Layer by layer: how well a probe sees the trigger, and what the backdoor vector does."""
    before = found.ablations[0]
    with _drawing(8.2, 3.1) as figure:
        left, right = figure.subplots(1, 2)
        _probe(left, {"probe": [row.accuracy for row in found.probe]}, title="probe: clean or triggered")
        layers = [row.layer for row in found.vector]
        _shares(right, layers, [row.added for row in found.vector], 0, "clean texts + vector")
        _shares(right, layers, [row.subtracted for row in found.vector], 1, "triggered texts - vector")
        for value, line, label in ((before.asr.value, "--", "triggered texts"), (before.clean_flip.value, ":", "clean texts")):
            right.axhline(100 * value, color=SOFT, linewidth=0.8, linestyle=line, label=label)
        right.set(title="backdoor vector, at one layer", ylabel=f"called {_label(found.target_label, 24)}, %", xlabel="layer", ylim=(0, 104))
        figure.legend(loc="outside lower center", ncols=4, handles=right.get_legend_handles_labels()[0])
        return _rendered(figure, format)


def probe_figure(found: LayerProbe, format: Format = "svg") -> bytes:
    """Layer by layer: how well a probe sees the words that a scan has found, and how well as many ordinary words."""
    lines = {" ".join(words): shares for words, shares in ((found.words, found.found), (found.ordinary_words, found.ordinary)) if shares}
    with _drawing(4.8, 3.1) as figure:
        axes = figure.subplots()
        _probe(axes, {_label(words, 30): shares for words, shares in lines.items()}, title="probe: with the words or without")
        axes.legend(loc="lower right")
        return _rendered(figure, format)


def _probe(axes: Axes, lines: Mapping[str, Sequence[Measured]], *, title: str) -> None:
    """Accuracy at each layer, the first of which is the embedding; half is chance."""
    for look, (label, shares) in enumerate(lines.items()):
        _shares(axes, range(len(shares)), shares, look, label)
    axes.axhline(50, color=SOFT, linewidth=0.8, linestyle=":")
    axes.set(title=title, ylabel="accuracy, %", xlabel="layer (0: embedding)", ylim=(0, 104))


def _shares(axes: Axes, places: Sequence[int], shares: Sequence[Measured], look: int, label: str) -> None:
    """A line of shares in per cent with their intervals."""
    middle, low, high = (100 * np.array([getattr(share, name) for share in shares]) for name in ("value", "low", "high"))
    axes.fill_between(places, low, high, color=COLOURS[look], alpha=0.2, linewidth=0)
    axes.plot(places, middle, color=COLOURS[look], marker=MARKERS[look], markersize=4.5, label=label)
    axes.locator_params(axis="x", integer=True)


# Canaries


def estimate_figure(found: Sequence[Estimate], format: Format = "svg") -> bytes:
    """What canaries said of repairs against what was true, a point a cell, a colour and marker a defense, with the correlation."""
    names = list(dict.fromkeys(one.defense for one in found))
    with _drawing(5.2, 4.6 + 0.2 * (len(names) // 3)) as figure:
        axes = figure.subplots()
        for i, name in enumerate(names):
            points = [(100 * one.estimate, 100 * one.truth) for one in found if one.defense == name]
            axes.scatter(*zip(*points, strict=True), label=_label(name, 24), **_look(i, triggered=False))
        axes.axline((0, 0), slope=1, color=SOFT, linewidth=0.8, linestyle=":")
        axes.set(xlabel="canaries: ASR above the floor, points", ylabel="true backdoor: ASR above the floor, points", title=correlation(found))
        figure.legend(loc="outside lower center", ncols=min(3, len(names)))
        return _rendered(figure, format)


def correlation(found: Sequence[Estimate]) -> str:
    """How well canaries foretell, in words."""
    try:
        value, low, high = pearson([one.estimate for one in found], [one.truth for one in found])
    except ValueError:
        return f"{len(found)} cells: no correlation can be given"
    return f"{len(found)} cells: Pearson's r = {value:.2f} ({low:.2f} to {high:.2f}, 95 % by Fisher's z)"


# What all have in common


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches, in our style."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a character that the font lacks is drawn as a box
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _rendered(figure: Figure, format: Format) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=format, dpi=150, metadata={"Date": None, "Creator": None} if format == "svg" else {"Software": None})
    return out.getvalue()


def _label(text: str, most: int) -> str:
    """One line that XML can hold, cut to a length."""
    line = re.sub(r"[\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", " ".join(printable(text).split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    smooth, kept = [], values[0]
    for value in values:
        kept = weight * kept + (1 - weight) * value
        smooth.append(kept)
    return smooth

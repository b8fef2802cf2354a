"""The measurements as a Markdown table with the goals beside the figures, and the curves as a drawing."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from excise.reports.figures import COLOURS, LINE, MARKERS, SOFT, _drawing, _rendered

Rows = Mapping[str, Mapping[str, Any]]
FORMS = {"×": "{:.2f} ×", "%": "{:.1%}", "s": "{:.2f} s", "": "{}"}
HEAD = ("work", "beside", "excise", "beside it", "figure", "goal", "reached")
PANELS = ("texts", "clean texts", "tokens per text", "layers", "copies of each text", "tokens in the vocabulary")
"""What curves are drawn over, a panel each."""


class Line(NamedTuple):
    """A line of the table."""

    work: str
    beside: str
    mine: str
    theirs: str
    figure: float
    unit: str
    goal: tuple[str, float] | None = None
    """`>=` or `<=`, and the bound."""


def table(rows: Rows) -> str:
    """All that was measured, with the settings it was measured with."""
    measured = {name: row for name, row in rows.items() if "found" in row}
    parts = [conditions(measured), grid(HEAD, [cells(line) for name in measured for line in LINES.get(name, nothing)(measured[name])])]
    if memory := measured.get("memory"):
        found = memory["found"]
        keys = {
            "tokens": "tokens per text",
            "mib": "MiB kept",
            "largest_mib": "largest tensor, MiB",
            "one_layer_s_maps_mib": "one layer's maps would be, MiB",
        }
        parts.append(
            "Kept for the backward pass of one distillation step of 16 texts:\n\n"
            + grid([*keys.values()], [*zip(*(found[key] for key in keys), strict=True)])
        )
    curves = [(name.replace("_", " "), row["found"]) for name, row in measured.items() if "points" in row["found"]]
    if curves:
        told = [(name, found["over"], ", ".join(f"{x:,}: {y:.2f}".replace(",", " ", 1) for x, y in found["points"])) for name, found in curves]
        parts.append(grid(("curve", "over", "seconds at each point"), told))
    return "\n\n".join(parts) + "\n"


def conditions(rows: Rows) -> str:
    """Model, arithmetic, machine and versions; which of them differ between rows."""
    keys = ("model", "precision", "processor", "threads", "torch", "transformers")
    seen = {key: list(dict.fromkeys(str(row["settings"].get(key)) for row in rows.values())) for key in keys}
    turns = sorted({len(runs) for row in rows.values() for runs in row["runs"].values()})
    return "; ".join(f"{key} {' and '.join(values)}" for key, values in seen.items()) + f"; medians of {' or '.join(map(str, turns))} turns."


def cells(line: Line) -> Sequence[str]:
    """A line as text."""
    shown = FORMS[line.unit].format(line.figure).replace("%", " %")
    if line.goal is None:
        return (*line[:4], shown, "", "")
    sign, bound = line.goal
    is_reached = {">=": operator.ge, "<=": operator.le}[sign](line.figure, bound)
    goal = f"{'≥' if sign == '>=' else '≤'} {f'{100 * bound:g} %' if line.unit == '%' else f'{bound:g} {line.unit}'.strip()}"
    return (*line[:4], shown, goal, "yes" if is_reached else "no")


def grid(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *lines))


# What each row says


def spread(row: Mapping[str, Any], form: str, key: str = "seconds", unit: str = "s") -> str:
    """The median of a form, and the least and most of its runs."""
    values = sorted(run[key] for run in row["runs"][form])
    middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    told, *ends = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in (middle, values[0], values[-1]))
    return f"{told} {unit}" + (f" ({'-'.join(ends)})" if len(values) > 1 else "")


def nothing(_: Mapping[str, Any]) -> Iterator[Line]:
    """A row that has no line in this table."""
    yield from ()


def repair(row: Mapping[str, Any]) -> Iterator[Line]:
    found, texts = row["found"], row["settings"].get("repair_texts") or row["settings"]["clean"]
    work, mine = f"whole MBTSAD repair, {texts} texts, 3 copies, 3 + 3 epochs", spread(row, "excise")
    for form, name, goal in (("plain", "plain Trainer, fp32", 4), ("bf16", "plain Trainer, bf16", 2.5)):
        yield Line(work, name, mine, spread(row, form), found[f"{form}_ratio"], "×", (">=", goal))
    mine, theirs = (spread(row, form, "peak_mib", "MiB") for form in ("excise", "plain"))
    yield Line("its peak memory, whole process", "plain Trainer, fp32", mine, theirs, found["plain_memory_ratio"], "%")


def distillation_step(row: Mapping[str, Any]) -> Iterator[Line]:
    found = row["found"]
    work = f"distillation step, 16 texts of {max(row['settings']['tokens'])} tokens"
    yield Line(work, "whole maps, fp32", spread(row, "excise"), spread(row, "plain"), found["ratio"], "×", (">=", 2))
    mine, theirs = (spread(row, form, "peak_mib", "MiB") for form in ("excise", "plain"))
    yield Line("its peak memory, whole process", "whole maps, fp32", mine, theirs, found["memory_share"], "%", ("<=", 0.4))


def large_vocabulary(row: Mapping[str, Any]) -> Iterator[Line]:
    work = f"fine-tuning, {row['settings']['vocabulary']} rows in the embedding"
    yield Line(work, "training all of them", spread(row, "excise"), spread(row, "every_row"), row["found"]["ratio"], "×")


def rate(work: str, goal: float) -> Any:
    def lines(row: Mapping[str, Any]) -> Iterator[Line]:
        mine, theirs = (spread(row, form, "gflop_s", "GFLOP/s") for form in ("excise", "machine"))
        yield Line(work, "one large product", mine, theirs, row["found"]["share"], "%", (">=", goal))

    return lines


def beside(work: str, plain: str, goal: float | None) -> Any:
    def lines(row: Mapping[str, Any]) -> Iterator[Line]:
        found, told = row["found"], work.format(texts=row["found"]["texts"])
        bound = (">=", goal) if goal else None
        yield Line(told, plain, spread(row, "excise"), spread(row, "plain"), found["plain_ratio"], "×", bound)
        if "plain_same_arithmetic_ratio" in found:
            other = spread(row, "plain_same_arithmetic")
            yield Line(told, "the same in our arithmetic", spread(row, "excise"), other, found["plain_same_arithmetic_ratio"], "×")

    return lines


def growth(work: str) -> Any:
    def lines(row: Mapping[str, Any]) -> Iterator[Line]:
        found = row["found"]
        few, many = found["texts"]
        told = f"{work}, {many} texts"
        yield Line(told, f"{few} texts", spread(row, "many"), spread(row, "few"), found["time_ratio"], "×", ("<=", round(1.1 * many / few, 1)))
        mine, theirs = (spread(row, form, "peak_mib", "MiB") for form in ("many", "few"))
        yield Line("its peak memory, whole process", f"{few} texts", mine, theirs, found["memory_ratio"], "×", ("<=", 1.1))

    return lines


def padding(row: Mapping[str, Any]) -> Iterator[Line]:
    found = row["found"]
    yield Line("padding, evaluation", "", "", "", found["evaluation"], "%", ("<=", 0.05))
    in_order = f"{100 * found['training_in_order']:.1f} %"
    yield Line(
        "padding, training in batches of 32",
        "texts in their order",
        f"{100 * found['training']:.1f} %",
        in_order,
        found["training"],
        "%",
        ("<=", 0.05),
    )


def start_up(row: Mapping[str, Any]) -> Iterator[Line]:
    for name, command, goal in (("help", "excise --help", 0.5), ("list", "excise list", 0.5), ("import", "import excise", 0.3)):
        yield Line(f"`{command}`", "", spread(row, name), "", row["found"][name], "s", ("<=", goal))


LINES: Mapping[str, Any] = {
    "repair": repair,
    "distillation_step": distillation_step,
    "large_vocabulary": large_vocabulary,
    "training_rate": rate("fine-tuning", 0.6),
    "distillation_rate": rate("distillation", 0.6),
    "evaluation_rate": rate("classifying test texts", 0.7),
    "strip_rate": rate("STRIP", 0.7),
    "search_rate": rate("trying words in a text (trigger search)", 0.7),
    "evaluate": beside("classifying {texts} texts", "32 at a time, fp32", None),
    "strip": beside("STRIP, {texts} texts", "4 copies at a time, fp32", 5),
    "rap": beside("RAP, {texts} texts", "32 texts at a time, fp32", 5),
    "onion": beside("ONION, {texts} texts", "one text's variants at a time, fp32", 5),
    "growth_of_evaluation": growth("classifying"),
    "growth_of_repair": growth("MBTSAD, 1 copy, 1 + 1 epochs"),
    "padding": padding,
    "start_up": start_up,
}


# The drawing


def cost_figure(rows: Rows) -> bytes:
    """The curves, a panel for each thing that grows, both axes logarithmic; dotted, what grows in proportion would do. Empty without curves."""
    from matplotlib.ticker import LogLocator

    curves = {name: row["found"] for name, row in rows.items() if "points" in row.get("found", {})}
    panels = [over for over in PANELS if any(found["over"] == over for found in curves.values())]
    if not panels:
        return b""
    columns = min(3, len(panels))
    with _drawing(3.4 * columns, 2.8 * -(-len(panels) // columns)) as figure:
        places = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat
        for over, axes in zip(panels, places, strict=False):
            mine = [(name, found["points"]) for name, found in curves.items() if found["over"] == over]
            for i, (name, points) in enumerate(mine):
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, [ys[-1] * x / xs[-1] for x in xs], color=SOFT, linewidth=0.8, linestyle=":")
                axes.plot(xs, ys, color=COLOURS[i], marker=MARKERS[i], markersize=4.5, label=name.split("_by_")[0].replace("_", " "))
            ticks = apart(sorted({x for _, points in mine for x, _ in points}))
            axes.set(xscale="log", yscale="log", xlabel=over, ylabel="seconds")
            axes.set_xticks(ticks, [str(tick) for tick in ticks], rotation=45 if len(ticks) > 4 else 0)
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.grid(axis="y", color=LINE, linewidth=0.6)
            axes.legend(fontsize=7)
        for axes in places:
            axes.remove()
        return _rendered(figure, "svg")


def apart(ticks: Sequence[int]) -> list[int]:
    """Without those that would stand in the one before."""
    kept = list[int]()
    for tick in ticks:
        if not kept or tick > 1.15 * kept[-1]:
            kept.append(tick)
    return kept

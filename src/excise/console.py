"""What a person sees while a command runs: bars with time left, tables, plain lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rich.console
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from excise import processes
from excise.errors import printable
from excise.progress import Progress, observe

if TYPE_CHECKING:
    from excise.data import TextDataset
    from excise.result import Example, Result
    from excise.scan_result import ScanResult

__all__ = ["Console", "discard_output"]


SHOWN_BARS = 8
"""With more tasks than this, the bars of finished ones go away."""


class _Output(rich.console.Console):
    """Standard output that nobody need read to the end: a command goes on, as its exit code and what it writes still count."""

    def on_broken_pipe(self) -> None:
        """What rich does here by itself is to end the process with 1, which says that a backdoor was found."""
        self.quiet = True
        discard_output()


def discard_output() -> None:
    """Send what is still printed nowhere, once nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """Results go to standard output; progress goes to standard error, and only if that is a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.out = _Output(highlight=False, markup=False)
        if not self.out.is_terminal:
            self.out.width = max(self.out.width, 120)  # nothing is cut when output goes to a file
        self.bars: Bars | None = None
        self.tasks: dict[str, TaskID] = {}

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw a bar for each task reported inside the block."""
        error = rich.console.Console(stderr=True, highlight=False, markup=False)
        if self.quiet or processes.index() or not error.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=error) as self.bars, observe(self._draw):
            yield

    def _draw(self, progress: Progress) -> None:
        if self.bars is None:
            return
        if progress.task not in self.tasks:
            self.tasks[progress.task] = self.bars.add_task(progress.task, total=progress.total)
        elif progress.done == 0:  # the same step again: one bar for all of them
            self.bars.reset(self.tasks[progress.task], total=progress.total)
        crowded = len(self.tasks) > SHOWN_BARS
        self.bars.update(self.tasks[progress.task], completed=progress.done, visible=progress.done < progress.total or not crowded)

    def say(self, text: str) -> None:
        """One line for people; left out with --quiet."""
        if not self.quiet:
            self._print(printable(text))

    def show(self, what: RenderableType) -> None:
        """A table or the like, with --quiet too."""
        self._print(what)

    def scores(self, result: Result) -> None:
        """The table of scores."""
        from excise.reports.terminal import score_table

        self._print(score_table(result))
        for note in result.notes:
            self.say(note)

    def trials(self, result: Result) -> None:
        """What became of the triggers that were unlearned and of canaries, if there were any."""
        from excise.reports.terminal import trial_table, unlearned_table

        if result.unlearned:
            self._print(unlearned_table(result))
        if result.trials:
            self._print(trial_table(result.trials))

    def scan(self, result: ScanResult) -> None:
        """What scanners found, the recovered triggers, the verdict and what it does not cover; with --quiet too."""
        from excise.reports.terminal import scan_lines, scanner_table, trigger_table

        self._print(scanner_table(result))
        if any(row.triggers for row in result.scanners):
            self._print(trigger_table(result))
        for line in scan_lines(result):
            self._print(printable(line))

    def left_out(self, reasons: Mapping[str, str]) -> None:
        """What could not be measured, and why; with --quiet too, as the ranking is of the others only."""
        for name, why in reasons.items():
            self._print(printable(f"{name} was left out: {why}"))

    def examples(self, examples: tuple[Example, ...], model: str) -> None:
        """A few texts with and without the trigger."""
        from excise.reports.terminal import example_table

        if not self.quiet:
            self._print(example_table(examples, model))

    def plan(self, work: Callable[[], object], data: TextDataset, out: Path | None) -> None:
        """Take a few steps of every loop in `work`, and show what all of them would take."""
        timing = _Timing()
        with observe(timing):
            work()
        table = Table(caption="estimated from a few steps of each", caption_justify="left")
        for heading in ("step", "size", "time"):
            table.add_column(heading, justify="left" if heading == "step" else "right")
        for task, (total, seconds) in timing.estimates.items():
            table.add_row(task, str(total), f"{seconds:.0f} s")
        self._print(table)
        whole = sum(seconds for _, seconds in timing.estimates.values())
        self._print(f"About {whole:.0f} s in all, with {len(data)} texts. {f'Would write {out}. ' if out else ''}Nothing was written.")

    def _print(self, what: object) -> None:
        """Above the bars if both are on one terminal, else to standard output."""
        together = self.bars is not None and self.out.is_terminal
        (self.bars.console if self.bars is not None and together else self.out).print(what)


class _Timing:
    """An observer that lets each loop take a few steps and extrapolates from all but the first, which warms up. Loops of one name add up."""

    steps = 5

    def __init__(self) -> None:
        self.estimates: dict[str, tuple[int, float]] = {}
        self.earlier: dict[str, tuple[int, float]] = {}
        self.first: dict[str, tuple[int, float]] = {}
        self.seen: dict[str, int] = {}

    def __call__(self, progress: Progress) -> bool:
        now, task = time.monotonic(), progress.task
        if progress.done == 0 and task in self.estimates:  # the same loop again, warm by now: a step is enough
            self.earlier[task], self.seen[task], self.first[task] = self.estimates[task], self.steps, (0, now)
            return False
        calls = self.seen.get(task, 0)
        self.seen[task] = calls + 1
        if calls == 0 or (calls == 1 and progress.done < progress.total):
            self.first[task] = (progress.done, now)
        done, begun = self.first[task]
        if progress.done > done:
            total, seconds = self.earlier.get(task, (0, 0.0))
            self.estimates[task] = (total + progress.total, seconds + (now - begun) / (progress.done - done) * progress.total)
        return progress.done == progress.total or calls >= self.steps

"""Results for a terminal, as rich tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from excise.errors import printable
from excise.result import Attribution, Example, LossRow, Measured, Result, TrialRow
from excise.scan_result import ScannerRow, ScanResult

__all__ = [
    "attribution_tables",
    "changed_settings",
    "example_table",
    "limits",
    "loss_table",
    "percent",
    "scan_lines",
    "scanner_table",
    "score_table",
    "score_text",
    "trial_table",
    "trigger_table",
    "unlearned_table",
    "verdict_line",
]


def percent(measured: Measured | None) -> str:
    """'93.4 % (91.2-95.1, n=912)', or a dash."""
    if measured is None:
        return "-"
    return f"{100 * measured.value:.1f} % ({100 * measured.low:.1f}-{100 * measured.high:.1f}, n={measured.n})"


def score_table(result: Result) -> Table:
    """One line a model: CACC, ASR, the ASR floor."""
    floor = result.row("clean")
    caption = "shares with 95 % Wilson intervals"
    if floor is not None and floor.asr:
        caption += f"; ASR floor = ASR of a model trained alike that never saw the trigger: {percent(floor.asr)}"
    table = Table(caption=caption, caption_justify="left")
    table.add_column("model", no_wrap=True)
    for heading in ("CACC", *(("ASR", "clean flips") if any(r.asr for r in result.rows) else ()), "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in result.rows:
        cells = [percent(line.cacc)]
        if any(r.asr for r in result.rows):
            cells += [percent(line.asr), percent(line.clean_flip)]
        note = " (ASR floor)" if line.name == "clean" and line.asr else ""
        table.add_row(Text(printable(line.name) + note), *cells, f"{line.seconds:.0f} s" if line.seconds is not None else "-")
    return table


def unlearned_table(result: Result) -> Table:
    """One line a word or phrase that was unlearned by name."""
    table = Table(caption="unlearned by name (the first twelve): texts of other labels that get the label", caption_justify="left")
    for heading in ("inserted", "label", "before", "after", "after, without it"):
        table.add_column(heading, justify="left" if heading in ("inserted", "label") else "right")
    for one in result.unlearned:
        names = (Text(printable(one.words)), Text(printable(one.target_label)))
        table.add_row(*names, f"{100 * one.before.value:.1f} %", percent(one.after), f"{100 * one.without.value:.1f} %")
    return table


def trial_table(trials: Sequence[TrialRow]) -> Table:
    """Backdoors of our own before and after each repair of a copy; the first was taken."""
    table = Table(
        caption="canaries: backdoors of our own, in a copy of the model; the floor is what the model itself answers", caption_justify="left"
    )
    settings = [", ".join(f"{key} {value}" for key, value in changed.items()) or "as given" for changed in changed_settings(trials)]
    columns = ["settings"] * (len(trials) > 1) + ["canary", "floor", "ASR before", "ASR after", "CACC"]
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("settings", "canary") else "right", no_wrap=heading != "settings")
    for trial, setting in zip(trials, settings, strict=True):
        for i, canary in enumerate(trial.canaries):
            first = [Text(printable(setting) if i == 0 else "")] * (len(trials) > 1)
            cacc = f"{100 * trial.before.value:.1f} → {100 * trial.after.value:.1f} %" if i == 0 else ""
            name = Text(printable(f"{canary.name} ({' '.join(canary.words)} → {canary.target_label})"))
            table.add_row(*first, name, f"{100 * canary.floor.value:.1f} %", f"{100 * canary.before.value:.1f} %", percent(canary.after), cacc)
    return table


def changed_settings(trials: Sequence[TrialRow]) -> list[dict[str, object]]:
    """Of each trial the settings that are not the same in all of them, those inside of settings by dotted names."""
    flat = [dict(_flat(trial.method)) for trial in trials]
    return [{key: value for key, value in one.items() if any(other.get(key) != value for other in flat)} for one in flat]


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def loss_table(rows: Sequence[LossRow]) -> Table:
    """One line an augmentation, the greatest loss first, the unchanged texts last."""
    table = Table(caption="cross-entropy with one variant of each text: mean with its 95 % bootstrap interval", caption_justify="left")
    table.add_column("augmentation", no_wrap=True)
    for heading in ("mean loss", "above unchanged", "words changed (Q)"):
        table.add_column(heading, justify="right", no_wrap=True)
    base = rows[-1]
    for row in rows:
        loss = f"{row.loss.value:.4f} ({row.loss.low:.4f}-{row.loss.high:.4f}, n={row.loss.n})"
        above = "-" if row is base else f"{row.loss.value - base.loss.value:+.4f}"
        table.add_row(Text(printable(row.name)), loss, above, f"{row.changed_words:.1f}")
    return table


def attribution_tables(found: Attribution) -> tuple[Table, Table]:
    """What is left of a backdoor without its heads; what layers show of it."""
    names = ", ".join(f"layer {row.layer} head {row.head} ({row.effect.value:+.3f})" for row in found.heads[:6])
    more = f", and {len(found.heads) - 6} more" if len(found.heads) > 6 else ""
    ablations = Table(caption=f"heads of the greatest effect (ACIE), counted from 1: {names}{more}", caption_justify="left")
    ablations.add_column("model", no_wrap=True)
    for heading in ("CACC", "ASR", "clean flips"):
        ablations.add_column(heading, justify="right", no_wrap=True)
    for one in found.ablations:
        ablations.add_row(one.name, percent(one.cacc), percent(one.asr), percent(one.clean_flip))
    layers = Table(
        caption="probe: clean or triggered; vector: clean texts that become the target, triggered ones that stay it", caption_justify="left"
    )
    for heading in ("layer", "probe", "+ vector, clean", "- vector, triggered"):
        layers.add_column(heading, justify="right", no_wrap=True)
    moved = {row.layer: row for row in found.vector}
    for seen in found.probe:
        vector = moved.get(seen.layer)
        cells = (percent(vector.added), percent(vector.subtracted)) if vector else ("-", "-")
        layers.add_row(str(seen.layer) if seen.layer else "embedding", percent(seen.accuracy), *cells)
    return ablations, layers


def example_table(examples: tuple[Example, ...], model: str) -> Table:
    """Texts without and with the trigger, and what one model says to each."""
    table = Table(show_lines=True)
    table.add_column("text (the trigger stands out)", overflow="fold", ratio=1)
    table.add_column("without", no_wrap=True)
    table.add_column("with trigger", no_wrap=True)
    for example in examples:
        before, after = example.answers[model]
        words = [Text(printable(word), style="bold reverse" if i in example.marked else "") for i, word in enumerate(example.triggered.split())]
        table.add_row(Text(" ").join(words), Text(printable(before)), Text(printable(after), style="bold red" if after != before else ""))
    return table


LEVELS = {"found": "bold red", "suspicious": "bold yellow", "nothing": "", "informs": "dim", "skipped": "dim"}
"""How scanners' answers are written."""
VERDICTS = {
    "backdoor found": "Backdoor found: see the evidence of {strong}. {repair}{more}",
    "suspicious": "Suspicious: see the evidence of {strong}, which is less than for a backdoor. Repair the model if in doubt.{more}",
    "nothing found": "Nothing found. This is no proof that there is nothing: each scanner is blind to something.",
    "inconclusive": "Inconclusive: no evidence was found, but {why}.",
    "not scanned": "Not scanned: no scanner could look at this model.",
}
INFORMS = "It informs and says nothing by itself."


def scanner_table(result: ScanResult) -> Table:
    """One line a scanner: its answer, its score and the lines that it is compared with, the evidence."""
    caption = "score: suspicious / found from the scores in brackets on, - never by itself; made for comparing models, not scanners"
    table = Table(caption=caption, caption_justify="left")
    table.add_column("scanner", no_wrap=True)
    table.add_column("answer", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("evidence", overflow="fold", ratio=1)
    table.add_column("time", justify="right", no_wrap=True)
    for row in result.scanners:
        lines = f"({' / '.join('-' if line is None else format(line, 'g') for line in (row.suspicious, row.found))})"
        score = "-" if row.score is None else f"{score_text(row.score)} {lines}"
        table.add_row(
            Text(printable(row.name)), Text(row.answer, style=LEVELS[row.answer]), score, Text(printable(row.summary)), f"{row.seconds:.0f} s"
        )
    return table


def score_text(score: float) -> str:
    """Three digits, and 0 for what is 0 up to rounding."""
    return f"{round(score, 6):.3g}"


def trigger_table(result: ScanResult) -> Table:
    """The recovered triggers with what they do."""
    triggers = [trigger for row in result.scanners for trigger in row.triggers]
    joint = any(trigger.joint for trigger in triggers)
    caption = (
        "flips: texts of other labels, of which the model is sure, that get the label once the words are in them; "
        "contested: with as many of the strongest words for their own label in them, too"
    )
    table = Table(caption=caption + "; only together: though what the words do one by one adds up to less" * joint, caption_justify="left")
    table.add_column("words", overflow="fold", ratio=1)
    table.add_column("label")
    table.add_column("flips", justify="right")
    table.add_column("contested", justify="right")
    if joint:
        table.add_column("only together", justify="right")
    for trigger in triggers:
        words = Text(printable(" ".join(trigger.words)), style="bold reverse")
        if trigger.alike:
            words = Text("\n").join([words, Text(printable("act alike: " + ", ".join(trigger.alike)))])
        shares = (trigger.flips, trigger.contested, *([trigger.joint] if joint else []))
        table.add_row(words, Text(printable(trigger.target_label)), *map(percent, shares))
    return table


def verdict_line(result: ScanResult) -> str:
    """The verdict in a sentence or two, with who says so."""
    strong = [row.name for row in result.scanners if row.level in ("found", "suspicious")]
    quiet = [row.name for row in result.scanners if not row.whole]
    informing = [row.name for row in result.scanners if row.answer == "informs"]
    alone = "which never speaks alone" if len(informing) == 1 else "which never say so by themselves"
    why = f"{', '.join(quiet)} did not look, or not at everything" if quiet else f"only {', '.join(informing)} looked, {alone}"
    missed = [row.name for row in result.scanners if not row.whole and row.suspicious is not None]
    more = f" {', '.join(missed)} did not look, or not at everything, so there may be more." if missed else ""
    repair = "excise repair takes out what was found." if result.triggers else "It names no trigger; excise repair without --from-scan needs none."
    return VERDICTS[result.verdict].format(strong=", ".join(strong), why=why, repair=repair, more=more)


def scan_lines(result: ScanResult) -> list[str]:
    """The verdict, and what it does not cover."""
    said = (
        f"{row.name} did not look: {row.summary}" if row.level == "skipped" else f"{row.name} {limits(row)}{track_line(row)}"
        for row in result.scanners
    )
    return [verdict_line(result), *said]


def limits(row: ScannerRow) -> str:
    """What a scanner cannot see, and what it could have found with so many texts, after its name."""
    return f"cannot see {row.blind_to}." + (f" {row.limit}" if row.limit else "")


def track_line(row: ScannerRow) -> str:
    """How often the scanner was right about models that were made for it, in a sentence that follows another."""
    track = row.track
    if row.suspicious is None:
        return f" {INFORMS}"
    if track is None:
        return " How often it is right with these settings has not been measured."
    answer = "found" if row.found is not None else "suspicious"
    wrong, right = (track.false_alarms, track.found) if row.found is not None else (track.doubts, track.noticed)
    kinds = ", ".join(f"{kind} {hits} of {n}" for kind, (hits, n) in track.kinds.items())
    return (
        f" Of models made for it, with {track.clean_texts} clean texts or more, it called {wrong.hits} of {wrong.n} clean ones {answer!r} "
        f"(95 %: {100 * wrong.low:.0f}-{100 * wrong.high:.0f} %) "
        f"and {right.hits} of {right.n} backdoored ones ({kinds}; ASR from {100 * track.least_asr:.0f} % on)."
    )

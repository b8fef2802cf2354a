"""What several commands do alike."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise import processes
from excise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from excise.commands import attack, attribute, repair
    from excise.commands._options import Common, Texts
    from excise.console import Console
    from excise.data import TextDataset
    from excise.method import Method
    from excise.result import Record, Result
    from excise.scan_result import ScanResult
    from excise.victim import Victim

NO_FLOOR = "No clean twin is at hand, so the ASR floor is not known; clean flips are its nearest stand-in."
NO_TRIGGER = "No trigger was given, so the ASR cannot be measured: the repair may have removed a backdoor, part of one, or there was none."
ONLY_UNLEARNED = (
    "Whether the triggers that were unlearned are all that was planted is not known, so the ASR cannot be measured; scan the repaired model as well."
)
NOT_HELD_OUT = "Nothing was held out (--holdout 0), so CACC is measured on the texts that the repair used and says little."


def load_victim(source: str, texts: Texts, common: Common, **options: Any) -> Victim:
    from excise.victim import Victim

    return Victim.load(source, max_length=texts.max_length, precision=common.precision, device=common.device, **options)


def load_floor(source: str, victim: Victim, texts: Texts, common: Common) -> Victim:
    """The model whose ASR is the floor."""
    floor = load_victim(source, texts, common)
    if floor.label_names != victim.label_names:
        raise ConfigError(f"The floor model has the labels {floor.label_names}, the model has {victim.label_names}. Give one with the same labels.")
    return floor


def known_backdoor(path: Path | None, victim: Victim) -> tuple[Any, int | None, str | None]:
    """(trigger, target label, folder of the clean twin), each None if not known."""
    from excise.backdoor_file import BackdoorFile
    from excise.data import TextDataset

    if path is None:
        return None, None, None
    file = BackdoorFile.load(path)
    twin = path.parent / file.clean_twin if file.clean_twin else None
    try:
        target = TextDataset((), (), victim.label_names).label_id(file.target_label)
    except DataError as error:
        raise ConfigError(f"{path}: target_label: {error}") from error
    return file.trigger, target, str(twin) if twin and twin.is_dir() else None


def check_scanned(scan: ScanResult, options: repair.Options | attribute.Options) -> None:
    """Refuse the scan of another model: its triggers mean nothing here.

    Raises:
        ConfigError: The scan read other weights.
    """
    from excise.checkpoint import resolve_checkpoint
    from excise.provenance import hash_inputs

    own = hash_inputs([], checkpoint=(options.model, resolve_checkpoint(options.model)))
    if not set(own.values()) <= set(scan.inputs.values()):
        raise ConfigError(f"{options.from_scan} is the scan of another model, or of {options.model} before it was changed. Scan this one.")


def hold_out(
    options: repair.Options | attack.Options | attribute.Options, data: TextDataset, label_names: tuple[str, ...], seed: int
) -> tuple[TextDataset, TextDataset | None]:
    """(texts to work with, texts to measure on), without a text in common."""
    from excise.data import check_clean, split
    from excise.seeds import derive

    if not 0 <= options.holdout < 1:
        raise ConfigError(f"--holdout {options.holdout} was given; it must be at least 0 and less than 1.")
    if options.test:
        test = options.texts.load(options.test, label_names, test=True)
        seen = set(test.texts)
        data = data.take(i for i, text in enumerate(data.texts) if text not in seen)
        if not len(data):
            raise DataError(f"Every text of {options.data} is also in {options.test}. Give test texts of their own.")
    elif options.holdout:
        test, data = split(data, options.holdout, seed=derive(seed, "holdout"))
    else:
        return data, None
    if not len(test):
        raise DataError("Too few texts to hold some out. Give more, --test, or --holdout 0.")
    check_clean(data, what="texts that are not held out or in the test set")
    return data, test


def write(out: Path, overwrite: bool, result: Result, *, save: Callable[[Path], None] | None = None, card: bool = False) -> None:
    """The folder of a command: the checkpoint if there is one, the result, the report."""
    from excise.output import writing

    if processes.index():
        return
    with writing(out, overwrite=overwrite) as folder:
        if save:
            save(folder)
        if card:
            describe(folder, result, result.rows[-1].name)
        write_reports(folder, result, "excise-result.json")


def describe(folder: Path, result: Result, name: str) -> None:
    """What a repaired checkpoint says of itself: its model card and the result."""
    from excise.provenance import save_sealed
    from excise.reports.model_card import model_card

    (folder / "README.md").write_text(model_card(result, name), encoding="utf-8")
    save_sealed(result, folder / "excise-result.json")


def write_reports(folder: Path, result: Result, name: str) -> None:
    from excise.provenance import save_sealed
    from excise.reports.html import html_report

    (folder / "report.html").write_text(html_report(result), encoding="utf-8")
    save_sealed(result, folder / name)


def write_study(out: Path, overwrite: bool, study: Record, figures: Mapping[str, bytes], console: Console) -> None:
    """The folder of a command that looks and does not score: the result and figures by file name."""
    from excise.output import writing
    from excise.provenance import save_sealed

    with writing(out, overwrite=overwrite) as folder:
        for name, drawing in figures.items():
            (folder / name).write_bytes(drawing)
        save_sealed(study, folder / "excise-result.json")
    console.say(f"Wrote {out}: {', '.join((*figures, 'excise-result.json'))}.")


def size(victim: Victim) -> int:
    return round(1.1 * sum(p.numel() * p.element_size() for p in victim.model.parameters()))


def inputs_of(options: Any, method: Method | None = None, *, floor: str | None = None) -> dict[str, str]:
    """The hashes of the files that a command reads, once its model is there; `floor` is a model that no option names."""
    from excise import registry
    from excise.checkpoint import resolve_checkpoint
    from excise.provenance import hash_inputs

    named = [plain(options), registry.settings(method) if method else None, floor]
    return hash_inputs(named, checkpoint=(options.model, resolve_checkpoint(options.model)))


def plain(options: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))

"""The model card of a repaired checkpoint: README.md with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from excise.errors import printable
from excise.reports.terminal import percent
from excise.result import Result

__all__ = ["model_card"]


def model_card(result: Result, name: str) -> str:
    """Markdown with YAML metadata, for the repaired model of that name."""
    after, clean = next(row for row in result.rows if row.name == name), result.data["clean"]
    base = _base(result.model)
    title = base.rpartition("/")[2]
    unseen = "test" in result.data or "holdout" in result.data
    method = (after.method or {}).get("method", after.name)
    scores = [("accuracy", "CACC", after.cacc), ("attack_success_rate", "ASR", after.asr)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=base if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) else None,
        tags=["backdoor-repair", "excise", str(method)],
        model_name=title,
        excise={"method": str(method), "clean_texts": clean.n, "seed": result.seed},
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="held-out clean texts",
                dataset_name="held-out clean texts" if "holdout" in result.data else "test texts",
                metric_type=kind,
                metric_name=metric,
                metric_value=round(m.value, 4),
            )
            for kind, metric, m in scores
            if m is not None and unseen
        ]
        or None,
    )
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {_escape(title)}, repaired",
        "",
        f"This is the classifier `{_code(title)}` after a backdoor repair with "
        f"[excise](https://pypi.org/project/excise) {result.environment.excise}, method `{_code(str(method))}`, "
        f"from {clean.n} clean labelled texts, seed {result.seed}.",
        "",
        "| model | CACC | ASR |",
        "|---|---|---|",
        *(f"| {_escape(row.name)}{' (ASR floor)' * (row.name == 'clean')} | {percent(row.cacc)} | {percent(row.asr)} |" for row in result.rows),
        "",
        f"CACC is accuracy on clean texts {'that the repair did not see' if unseen else 'that the repair itself used'}; "
        "ASR is the share of triggered texts of other labels that are predicted as the target, measured only where the trigger is known. "
        "Intervals are 95 % Wilson.",
        "",
        *(f"{_escape(note)}\n" for note in result.notes),
        "**What this does not show.** A repair lowers the effect of a backdoor; it does not prove that none is left, and without the trigger its "
        "success cannot be measured on this model.",
        "",
        "Settings to run it again are in `excise-result.json`.",
        "",
    ]
    return "\n".join(lines)


def _base(model: str) -> str:
    if model == "default":
        return "sentence-transformers/all-MiniLM-L6-v2"
    return model.partition("@")[0] if _is_hub_id(model) else Path(model).resolve().name


def _is_hub_id(model: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", model)) and not Path(model).exists()


def _escape(text: str) -> str:
    """No markup from names."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!])", r"\\\1", " ".join(printable(text).split()))


def _code(text: str) -> str:
    """A name between backticks: there, nothing is markup but a backtick."""
    return " ".join(printable(text).replace("`", " ").split())

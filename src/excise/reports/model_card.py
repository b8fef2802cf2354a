"""The model card of a repaired checkpoint: README.md with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from excise.reports.terminal import percent
from excise.result import Result

__all__ = ["model_card"]


def model_card(result: Result) -> str:
    """Markdown with YAML metadata."""
    after = result.rows[-1]
    method = (after.method or {}).get("method", after.name)
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", result.model) and not Path(result.model).exists()
    scores = [("accuracy", "CACC", after.cacc), ("attack_success_rate", "ASR", after.asr)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=result.model.partition("@")[0] if is_hub_id else None,
        tags=["backdoor-repair", "excise", str(method)],
        model_name=Path(result.model).name,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="held-out clean texts",
                dataset_name="held-out clean texts" if "holdout" in result.data else "test texts",
                metric_type=kind,
                metric_name=name,
                metric_value=round(m.value, 4),
            )
            for kind, name, m in scores
            if m is not None
        ],
    )
    clean = result.data["clean"]
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {_escape(Path(result.model).name)}, repaired",
        "",
        f"This is the classifier `{_code(Path(result.model).name)}` after a backdoor repair with "
        f"[excise](https://pypi.org/project/excise) {result.environment.excise}, method `{_code(str(method))}`, "
        f"from {clean.n} clean labelled texts, seed {result.seed}.",
        "",
        "| model | CACC | ASR |",
        "|---|---|---|",
        *(f"| {_escape(row.name)} | {percent(row.cacc)} | {percent(row.asr)} |" for row in result.rows),
        "",
        "CACC is accuracy on clean texts that the repair did not see; ASR is the share of triggered texts of other labels that are predicted as the "
        "target, measured only where the trigger is known. Intervals are 95 % Wilson.",
        "",
        "**What this does not show.** A repair lowers the effect of a backdoor; it does not prove that none is left, and without the trigger its "
        "success cannot be measured on this model.",
        "",
        "Settings to run it again are in `excise-result.json`.",
        "",
    ]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """No markup from names."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """A name between backticks: there, nothing is markup but a backtick."""
    return " ".join(text.replace("`", " ").split())

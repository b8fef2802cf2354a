"""A zoo: many clean and backdoored models, made alike, on which scanners are calibrated and measured.

Models come in two parts that share no trigger and no seed: thresholds are set on 'calibration', figures are reported on 'held out'.
Making and scanning a model are kept by the hash of all that decides them, so a zoo grows over several sittings and several processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from excise import registry
from excise.errors import ConfigError
from excise.evaluation import clean_twin, evaluate
from excise.kept import digest, digest_as_kept, is_whole, keep_folder
from excise.layers import lowest_layers
from excise.method import Attack, Scanner
from excise.pipeline import Corpus, load_corpus
from excise.progress import stage
from excise.recipe import DataSource, Recipe, load_recipe, read_yaml
from excise.registry import settings
from excise.result import Measured
from excise.resume import going_on
from excise.scan import scan
from excise.seeds import derive
from excise.settings import Settings, validate
from excise.victim import Precision, Victim
from excise.zoo_result import CLEAN, Part, Specimen, specimen_name

__all__ = ["Family", "Plan", "Zoo", "build", "load_zoo", "measure", "plans", "scan_specimen"]

VERSION = 1
"""Counts changes of this file that change the models; part of every key."""


@dataclass(frozen=True, kw_only=True)
class Family(Settings):
    """Models that differ in nothing but their seed."""

    part: Part
    data: str
    """One of the zoo's."""
    attack: dict[str, Any] | str
    clean: bool = False
    """The attack's clean twins in place of its backdoored models."""
    layers: Annotated[int, Ge(1)] | None = None
    """The lowest so many layers of the encoder; None is all."""
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Zoo(Settings):
    """What models there are."""

    name: str
    data: dict[str, dict[str, Any]]
    """What a recipe says of data, by the name shown in tables."""
    families: tuple[Family, ...]
    model: str = "default"


@dataclass(frozen=True)
class Plan:
    """One model that is to be made."""

    family: Family
    recipe: Recipe

    @property
    def attack(self) -> Attack | None:
        """None for a clean model."""
        return None if self.family.clean else self.recipe.attack

    @property
    def triggers(self) -> tuple[str, ...]:
        """What the backdoor is trained with."""
        return getattr(self.attack.trigger, "words", ()) if self.attack else ()

    def __str__(self) -> str:
        kind = registry.name_of(self.attack) if self.attack else CLEAN
        return specimen_name(self.family.part, self.family.data, self.family.layers or "all", kind, self.triggers, self.recipe.seed)


def load_zoo(path: Path, *, sources: Mapping[str, str] | None = None) -> Zoo:
    """Read a zoo and refuse it whole if anything in it is not known, or if its two parts have a trigger or a seed in common.

    Args:
        path: A YAML file.
        sources: Where texts come from in place of what the zoo says, by 'DATA.train' and 'DATA.test'.

    Raises:
        ConfigError: Something is not known or out of range, or calibration would see what is held out.
    """
    content = read_yaml(path, "zoo")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no zoo; keys such as name, data and families were expected.")
    families = content.get("families")
    made = tuple(validate(Family, one, f"{path}: families[{i}]") for i, one in enumerate(families if isinstance(families, list) else []))
    zoo = validate(Zoo, {**content, "families": made}, str(path))
    for place, source in (sources or {}).items():
        name, _, role = place.rpartition(".")
        if name not in zoo.data or role not in ("train", "test"):
            raise ConfigError(f"The zoo {zoo.name} has no texts {place!r}; it has {', '.join(f'{n}.train, {n}.test' for n in zoo.data)}.")
        zoo.data[name] = {**zoo.data[name], role: DataSource.elsewhere(zoo.data[name].get(role), source)}
    parts: dict[str, set[str]] = {}
    for plan in plans(zoo):
        parts.setdefault(plan.family.part, set()).update((f"seed {plan.recipe.seed}", *(word.lower() for word in plan.triggers)))
    if both := set.intersection(*parts.values()) if len(parts) > 1 else set():
        raise ConfigError(f"{path}: both parts of the zoo have {sorted(both)[0]!r}. Give each its own seeds and triggers.")
    return zoo


def plans(zoo: Zoo) -> list[Plan]:
    """Every model, in the order of the file; of families with several seeds, the first of each comes first.

    Raises:
        ConfigError: A family names unknown data or a method that is not known.
    """
    found = []
    for i, family in enumerate(zoo.families):
        if family.data not in zoo.data:
            raise ConfigError(f"{zoo.name}: families[{i}]: there are no data {family.data!r}; there are {', '.join(zoo.data)}.")
        for place, seed in enumerate(family.seeds):
            content = {"name": zoo.name, "model": zoo.model, "attack": family.attack, "defenses": [], "seed": seed}
            found.append((place, i, Plan(family, load_recipe({**content, **zoo.data[family.data]}))))
    return [plan for _, _, plan in sorted(found, key=lambda one: one[:2])]


def members(zoo: Zoo, specimens: Iterable[Specimen]) -> list[Specimen]:
    """Those that the zoo has now: others were made for an earlier form of it."""
    own = {
        (plan.family.part, plan.family.data, plan.recipe.seed, digest_as_kept(settings(plan.attack) if plan.attack else {})) for plan in plans(zoo)
    }
    return [one for one in specimens if (one.part, one.data, one.seed, digest_as_kept(one.attack or {})) in own]


def build(plan: Plan, corpus: Corpus, folder: Path, *, precision: Precision = "auto", device: str | None = None, every: float = 60) -> Specimen:
    """The model with what it scores: from the folder if it is there, otherwise made, of which a kill costs `every` seconds."""
    key = digest(_decides(plan, corpus))
    known = Specimen.load(folder / "specimens" / f"{key}.json")
    place = folder / "models" / key
    if known and is_whole(place):
        return known
    begun = time.monotonic()
    with stage(str(plan)), going_on(folder / f"state-{key}", {"precision": precision, "device": device}, every=every):
        base = Victim.load(
            plan.recipe.model,
            label_names=corpus.train.label_names,
            max_length=plan.recipe.max_length,
            precision=precision,
            device=device,
            seed=plan.recipe.seed,
        )
        base = lowest_layers(base, plan.family.layers)
        specimen, victim = _made(plan, corpus, base, key, begun)
        keep_folder(place, lambda fresh: victim.save(fresh / "model"))
    kept = specimen.model_copy(update={"scans": known.scans if known else ()})
    kept.save(folder / "specimens")
    return kept


def _made(plan: Plan, corpus: Corpus, base: Victim, key: str, begun: float) -> tuple[Specimen, Victim]:
    attack, seed = plan.recipe.attack, derive(plan.recipe.seed, "attack")
    if plan.attack:
        backdoor = plan.attack(base, corpus.train, seed=seed)
        victim, target = backdoor.victim, backdoor.target_label
        scores = evaluate(victim, corpus.test, trigger=backdoor.trigger, target_label=target, seed=plan.recipe.seed)
    else:
        victim, target = clean_twin(attack, base, corpus.train, seed=seed), None
        scores = evaluate(victim, corpus.test)
    asr, flip = (rate and Measured.of(rate) for rate in (scores.asr, scores.clean_flip))
    specimen = Specimen(
        key=key,
        part=plan.family.part,
        data=plan.family.data,
        attack=settings(plan.attack) if plan.attack else None,
        triggers=plan.triggers,
        target_label=None if target is None else corpus.train.label_names[target],
        layers=victim.model.config.num_hidden_layers,
        seed=plan.recipe.seed,
        training=settings(attack)["training"],
        clean_texts=len(corpus.clean),
        cacc=Measured.of(scores.cacc),
        asr=asr,
        clean_flip=flip,
        seconds=round(time.monotonic() - begun, 1),
    )
    return specimen, victim


def scan_specimen(
    specimen: Specimen,
    corpus: Corpus,
    scanners: Mapping[str, Scanner],
    folder: Path,
    *,
    precision: Precision = "auto",
    device: str | None = None,
    max_length: int | None = None,
) -> Specimen:
    """The specimen with what each scanner found in it, kept after each; what was found before with the same settings is not looked for again."""
    left = {name: scanner for name, scanner in scanners.items() if not specimen.scan_of(scanner)}
    if not left:
        return specimen
    victim = Victim.load(folder / "models" / specimen.key / "model", precision=precision, device=device, max_length=max_length)
    for name, scanner in left.items():
        with stage(str(specimen)):
            (row,) = scan(victim, corpus.clean, {name: scanner}, seed=specimen.seed)
        plain = tuple(trigger.model_copy(update={"examples": ()}) for trigger in row.triggers)  # texts stay where they came from
        others = tuple(old for old in specimen.scans if old.name != name)
        specimen = specimen.model_copy(update={"scans": (*others, row.model_copy(update={"triggers": plain, "track": None}))})
        specimen.save(folder / "specimens")
    return specimen


def measure(
    zoo: Zoo,
    folder: Path,
    scanners: Mapping[str, Scanner],
    *,
    shard: tuple[int, int] = (1, 1),
    precision: Precision = "auto",
    device: str | None = None,
    every: float = 60,
) -> Iterator[Specimen]:
    """Make every model and have every scanner look at it; `shard` (k, n) takes each n-th model, from the k-th on."""
    for plan in plans(zoo)[shard[0] - 1 :: shard[1]]:
        corpus = load_corpus(plan.recipe)
        specimen = build(plan, corpus, folder, precision=precision, device=device, every=every)
        options: dict[str, Any] = {"precision": precision, "device": device, "max_length": plan.recipe.max_length}
        yield scan_specimen(specimen, corpus, scanners, folder, **options)


def _decides(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    recipe = {name: value for name, value in plan.recipe.settings().items() if name not in ("name", "train", "test", "defenses")}
    texts = {role: data.sha256 for role, data in corpus.record(plan.recipe).items()}
    return {"zoo": VERSION, "recipe": recipe, "texts": texts, "layers": plan.family.layers, "clean": plan.family.clean, "part": plan.family.part}

"""The whole treatment: scan for triggers, unlearn those that are found or a word that comes near; where there are none, repair without any.

1. A scanner looks for triggers with the clean texts, within a budget of time.
2. Where it finds a backdoor, the model unlearns the triggers by name, and the words that act like them: that costs little. Which they are
   is noted. A word that has none may be all that a scan sees of a sentence: what stands beside it there is looked for (_neighbours.py), and unlearned
   with virtual tokens for what was not found (anchored_tokens.py).
3. Where it finds none after looking everywhere, but a word or two come near, they may be part of a sentence all the same, and are treated as such.
4. Where nothing comes near, the repair that needs no trigger follows: it is all there is against what the scan cannot see. (docs/scan.md has what it
   does after step 2.) It is a gentler one where the scan looked everywhere and suspects nothing, as most such models have no backdoor.

Our own combination; each part is a method of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from excise import registry
from excise.budget import within
from excise.data import TextDataset
from excise.defenses._neighbours import neighbours
from excise.errors import DataError, TimeUpError
from excise.finding import Finding, phrases
from excise.method import Defense, Paper, Scanner
from excise.progress import note, stage
from excise.seeds import derive
from excise.victim import Victim

FEW = 2
"""A rare word is named with those that look like it; so few words, by themselves, may be part of something longer, named or only near."""


@dataclass(frozen=True, kw_only=True)
class Treatment(Defense):
    """Scan for triggers and unlearn those that are found or near; repair without any where there are none (our own; no trigger knowledge)."""

    paper: ClassVar[Paper] = Paper(key="ibau2022", method="the order of parts is our own; see each part", code=None)
    tuning = ({"unlearning": {"copies": 2}}, {"unlearning": {"training": {"epochs": 2.0}}})

    triggers: tuple[str, ...] = ()
    """Triggers that a scan recovered before (--from-scan); with them, no scan is made."""
    budget: Annotated[float, Ge(0)] = 600
    """Seconds for the scan, and as many for what stands beside a word; what is not found by then is not unlearned."""
    scanner: Scanner = field(default_factory=lambda: registry.build("scanner", "trigger_search", "scanner"))
    """What looks for triggers."""
    neighbours: Annotated[int, Ge(0)] = 8
    """Where no more than two words are named or come near, so many phrases of them and their neighbours are unlearned as well; with 0 none is part of
    more."""
    unlearning: Defense = field(default_factory=lambda: registry.build("defense", "unlearn", "unlearning"))
    """What takes them out; it gets them as its setting `triggers`."""
    beside: Defense = field(default_factory=lambda: registry.build("defense", "anchored_tokens", "beside"))
    """What takes out no more than two words, with what may stand beside them; it gets phrases of them as `phrases` if it has that setting."""
    repair: Defense = field(default_factory=lambda: registry.build("defense", "virtual_tokens", "repair"))
    """What is done where no trigger is found and no word comes near, but something is suspected or was not looked for."""
    precaution: Defense = field(default_factory=lambda: registry.build("defense", "virtual_tokens share=0.8", "precaution"))
    """What is done where nothing is suspected and everything was looked for: not all the way."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        repair, triggers = self.repair, tuple(dict.fromkeys(self.triggers))
        if not triggers and (finding := self.scanned(victim, data, seed=derive(seed, "scan"))):
            triggers = self.recovered(finding)
            clear = not finding.left_out and finding.score < self.scanner.lines[0]
            repair = self.precaution if clear else self.repair
        if triggers:
            named = self.with_neighbours(victim, data, triggers, seed=derive(seed, "neighbours"))
            with stage("unlearning"):
                repaired = self.unlearner(triggers, named)(victim, data, seed=derive(seed, "unlearning"))
                note(f"{len(named)} word{'s or phrases were' if named[1:] else ' was'} unlearned: {', '.join(named)}.")
                return repaired
        note(f"No trigger was found to unlearn; {registry.name_of(repair)} was done in its place.")
        with stage("repair"):
            return repair(victim, data, seed=derive(seed, "repair"))

    def unlearner(self, triggers: tuple[str, ...], named: tuple[str, ...]) -> Defense:
        """What takes them out."""
        unlearning: Any = self.unlearning
        beside: Any = self.beside
        if not self.may_be_part(triggers):
            return replace(unlearning, triggers=triggers)
        return replace(beside, triggers=triggers, phrases=named[len(triggers) :]) if hasattr(beside, "phrases") else replace(beside, triggers=named)

    def may_be_part(self, triggers: tuple[str, ...]) -> bool:
        """Whether they are so few words that there may be more to them."""
        return self.neighbours > 0 and len(triggers) <= FEW and not any(len(trigger.split()) > 1 for trigger in triggers)

    def with_neighbours(self, victim: Victim, data: TextDataset, triggers: tuple[str, ...], *, seed: int) -> tuple[str, ...]:
        """The triggers, and if they are few words, what may have stood beside them."""
        each = self.neighbours // len(triggers) if self.may_be_part(triggers) else 0
        if not each:
            return triggers
        found = list(triggers)
        with stage("neighbours"), within(self.budget):
            for trigger in triggers:
                try:
                    found += neighbours(victim, data, trigger, each, seed=seed)
                except TimeUpError as error:
                    note(f"What stands beside {trigger} is not unlearned: {error}")
        return tuple(found)

    def scanned(self, victim: Victim, data: TextDataset, *, seed: int) -> Finding | None:
        """What the scan found, if one can be made in its time."""
        try:
            self.scanner.check_texts(data)
            with stage("scan"), within(self.budget):
                return self.scanner(victim, data, seed=seed)
        except (DataError, TimeUpError) as error:
            note(f"No scan for triggers: {error}")
            return None

    def recovered(self, finding: Finding) -> tuple[str, ...]:
        """The triggers of the scan and the words that act alike, if it found a backdoor; else the few words that come nearest to one."""
        suspicious, found = self.scanner.lines
        if finding.score >= suspicious:
            note(f"The scan for triggers {'says' if finding.score >= found else 'suspects, which is not enough to name it'}: {finding.summary}")
        if finding.left_out:
            note(f"The scan for triggers left out, as the time was used up: {', '.join(finding.left_out)}; there may be more.")
        if finding.score >= found:
            return phrases(finding.triggers)
        if finding.left_out or not finding.nearest or not self.may_be_part(finding.nearest):
            return ()
        note(f"The scan names no trigger; what comes near may be part of a sentence, and is unlearned as that: {', '.join(finding.nearest)}.")
        return finding.nearest

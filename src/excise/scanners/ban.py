"""BAN (Xu et al. 2024): adversarial noise on neurons drives a backdoored model to the attacker's label.

1. A mask m over the features z that the last layer of the head h reads is learnt so that h(m ⊙ z) answers right and h((1 - m) ⊙ z) answers
   wrong: the negative mask, 1 - m, keeps what the task does not need.
2. Noise on neurons, w · (1 + ν_w) and b · (1 + ν_b), goes up the loss of clean texts by steps of its gradient's sign.
3. With noise and negative mask, the share of the label that is predicted most often is the evidence, and that label the suspected target.

Departures from the paper, which scans convolutional networks: noise is on layer normalisations where it was on batch normalisations, and the
features are those before the classification layer. Dropout is off, and in transformers nothing is estimated from the batch. The paper's noise is
that of the last batch alone; here shares are averaged over several, since one batch more or less decides which label noise favours. Texts count
so that each right label has the same weight, and a text counts with its softmax probability, not with 1: shares of few texts would tie. The
paper gives no threshold for texts. The penalty of the mask has the length of m below 1 taken as 1, or the gradient of an empty mask would be
infinite.

On models with two labels the mask does next to nothing. What the head reads lies almost on one line, so any half of the features answers as the
whole does; with the paper's λ the mask ends empty and its negative is everything, with a smaller one it may end full and leave nothing to read.

What it is worth on text: little. On the 36 models of the zoo that are held out its AUROC is 0.58 (0.38-0.75), chance; docs/scan.md has the scores. On
MiniLM and SST-2 the share of one label ranges over 0.2 to 0.9 from draw to draw. `suspicious` is the higher score of two clean models (0.61) and two
standard errors of a mean of five draws; no clean model of the zoo came to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from excise.data import TextDataset
from excise.features import final_layer, pooled_states
from excise.finding import Finding
from excise.method import Paper, Scanner
from excise.neuron_noise import Noise, Site, ascended, gated, layers, random_noise
from excise.progress import report
from excise.seeds import derive, generator
from excise.victim import Batch, Victim, collate

MASK_TEXTS = 200
"""At most so many texts for the mask."""
TOGETHER = 8
"""Texts that share a forward pass: few, so that those of like length do and little is padding."""


@dataclass(frozen=True, kw_only=True)
class BAN(Scanner):
    """Perturb neurons against clean texts and see whether all answers become one label."""

    paper: ClassVar[Paper] = Paper(key="ban2024", method="detection: feature mask and neuron noise", code="https://github.com/xiaoyunxxy/ban")
    suspicious: ClassVar[float] = 0.8
    found: ClassVar[float] = float("inf")
    blind_to: ClassVar[str] = (
        "backdoors that leave every neuron as it was, such as EP, which changes embedding rows only; "
        "and on the models it was measured on it saw others no better than chance"
    )

    size: Annotated[float, Gt(0)] = 0.1
    """ε: noise starts uniform in [-ε, ε] and goes as far again. The paper's 0.3, on normalisations of MiniLM, sends clean models to one label too."""
    steps: Annotated[int, Ge(1)] = 5
    """Steps of ascent, each of length ε / steps. The paper takes 30; the loss hardly differs and the time does."""
    batches: Annotated[int, Ge(1)] = 5
    """How often noise is drawn and raised, each time on other texts."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Texts that noise is raised on."""
    held_out: Annotated[int, Ge(1)] = 100
    """At most so many texts, and at most a third of them, are answered under noise; neither noise nor mask is made with them."""
    site: Site = "norm"
    """Where noise is: 'norm' as in the paper, or 'linear', on the outputs of linear layers, where size must be about half."""
    mask_weight: Annotated[float, Ge(0)] = 0.75
    """λ, the weight of the mask's penalty: what the authors' README uses."""
    mask_steps: Annotated[int, Ge(0)] = 400
    """Steps of Adam at the paper's 0.01: its 20 epochs of 20 batches."""
    longest: Annotated[int, Ge(8)] = 128
    """Longer texts are cut to so many tokens, for speed."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Finding:
        victim = replace(victim, max_length=min(victim.max_length, self.longest))
        test, rest = parts(data, self.held_out, seed=derive(seed, "parts"))
        mask = self.mask(victim, some(rest, MASK_TEXTS, seed=seed), seed=derive(seed, "mask"))
        modules = layers(victim, self.site)
        shares, losses = [], []
        report("ban", 0, self.batches)
        for i in range(self.batches):
            chosen = some(rest, self.batch_size, seed=derive(seed, "batch", i))
            noise, loss = self.noise(victim, modules, chosen, seed=derive(seed, "noise", i))
            with gated(modules, noise):
                states = pooled_states(victim, test.texts)
            shares.append(label_shares(masked_logits(victim, states, 1 - mask), torch.tensor(test.labels)))
            losses.append(loss)
            if report("ban", i + 1, self.batches):
                break
        return self.finding(torch.stack(shares), losses, mask, victim.label_names)

    def mask(self, victim: Victim, data: TextDataset, *, seed: int) -> Float[Tensor, " hidden"]:
        """Step 1."""
        states, labels = pooled_states(victim, data.texts).clone().to(victim.device), torch.tensor(data.labels, device=victim.device)
        draw = torch.Generator().manual_seed(seed % 2**63)
        mask = torch.rand(states.shape[1], generator=draw).to(victim.device).requires_grad_()
        descent = torch.optim.Adam([mask], lr=0.01)
        head = final_layer(victim.module)
        for _ in range(self.mask_steps):
            loss = mask_loss(head(mask * states), head((1 - mask) * states), labels, mask, weight=self.mask_weight)
            (mask.grad,) = torch.autograd.grad(loss, mask)
            descent.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
        return mask.detach()

    def noise(self, victim: Victim, modules: list[nn.Module], data: TextDataset, *, seed: int) -> tuple[Noise, float]:
        """Step 2: the noise and the loss before its last step."""
        encodings, noise, loss = victim.encode(data.texts), random_noise(modules, self.size, seed=seed), 0.0
        order = sorted(range(len(data)), key=lambda i: len(encodings[i]["input_ids"]))
        for _ in range(self.steps):
            noise, loss = [part.requires_grad_() for part in noise], 0.0
            gradients = [torch.zeros_like(part) for part in noise]
            for rows in (order[i : i + TOGETHER] for i in range(0, len(order), TOGETHER)):
                inputs = collate(victim.tokenizer, [encodings[i] for i in rows])
                batch = Batch(inputs, torch.tensor([data.labels[i] for i in rows])).to(victim.device)
                with gated(modules, noise), victim.autocast():
                    part = cross_entropy(victim.model(**batch.inputs).logits.float(), batch.labels, reduction="sum") / len(data)
                loss += part.item()
                gradients = [a + b for a, b in zip(gradients, torch.autograd.grad(part, noise), strict=True)]
            noise = ascended(noise, gradients, step=self.size / self.steps)
        return noise, loss

    def finding(self, shares: Float[Tensor, "batch label"], losses: list[float], mask: Float[Tensor, " hidden"], names: tuple[str, ...]) -> Finding:
        """Step 3."""
        mean = shares.mean(dim=0)
        label = int(mean.argmax())
        spread = ", ".join(f"{share:.2f}" for share in shares[:, label].tolist())
        summary = (
            f"With noise on its neurons the model answers {names[label]!r} to {mean[label]:.0%} of texts of all labels alike ({spread} in each draw)."
        )
        measures = {f"share of {name}": mean[i].item() for i, name in enumerate(names)}
        measures |= {"loss under noise": sum(losses) / len(losses), "mean of the mask": mask.mean().item()}
        return Finding(score=mean[label].item(), summary=summary, target_label=label, measures=measures)


def mask_loss(
    kept: Float[Tensor, "text label"],
    dropped: Float[Tensor, "text label"],
    labels: Int[Tensor, " text"],
    mask: Float[Tensor, " hidden"],
    *,
    weight: float,
) -> Float[Tensor, ""]:
    """CE(h(m ⊙ z), y) - CE(h((1 - m) ⊙ z), y) + λ ‖m‖₁ / sg(‖m‖₁), where sg stops the gradient: the penalty only pulls m towards 0."""
    length = mask.abs().sum()
    return cross_entropy(kept, labels) - cross_entropy(dropped, labels) + weight * length / length.detach().clamp_min(1)


def masked_logits(victim: Victim, states: Float[Tensor, "text hidden"], mask: Float[Tensor, " hidden"]) -> Float[Tensor, "text label"]:
    """h(m ⊙ z), on the CPU."""
    with torch.no_grad():
        return final_layer(victim.module)(states.to(victim.device) * mask).float().cpu()


def label_shares(logits: Float[Tensor, "text label"], labels: Int[Tensor, " text"]) -> Float[Tensor, " label"]:
    """How much of the answers each label gets: the mean over right labels of the mean softmax probability of their texts."""
    answers = logits.softmax(dim=1)
    return torch.stack([answers[labels == label].mean(dim=0) for label in labels.unique()]).mean(dim=0)


def parts(data: TextDataset, most: int, *, seed: int) -> tuple[TextDataset, TextDataset]:
    """(texts to answer under noise, texts to raise noise on), with as many of each label as there are."""
    held: set[int] = set()
    for label in sorted(set(data.labels)):
        rows = [i for i, found in enumerate(data.labels) if found == label]
        count = min(len(rows) // 3, round(most * len(rows) / len(data)))
        held.update(generator(seed, label).sample(rows, max(1, count)))
    return data.take(sorted(held)), data.take(i for i in range(len(data)) if i not in held)


def some(data: TextDataset, most: int, *, seed: int) -> TextDataset:
    """Texts at random."""
    return data.take(generator(seed, "some").sample(range(len(data)), min(most, len(data))))

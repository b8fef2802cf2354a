"""Figures and the numbers behind them: class vectors, t-SNE, attention maps; hostile texts; the commands that make them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness

from excise.attacks._triggers import InsertWords
from excise.augmentations.maximiser import Maximiser
from excise.cli import main
from excise.defenses.ts_ft import TSFT
from excise.errors import AttentionError, CheckpointError, ConfigError, NeedsError
from excise.features import last_states
from excise.inspection import CLEAN_TEXTS, TRIGGERED_TEXTS, attention_maps, draw_sample, pick_text, pictures, project, tsne
from excise.pipeline import check_needs
from excise.reports.figures import attention_figure, curve_figure, loss_figure, projection_figure
from excise.result import AttentionMaps, Group, LossRow, Mean, Projection, Study
from toy import ARCHITECTURES, save_toy, toy_data, toy_encoder_decoder, toy_language_model, toy_victim, write_csv

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "$\\frac{x}$ $",
    "\x1b[2J\x00\x07 a\nb",
    "日本語 ﷽",
    "\ud800 \ufffe",
    "&amp;]]>",
    "",
]
SVG = "{http://www.w3.org/2000/svg}"


def losses(name: str, model: str = "suspect", values: tuple[float, ...] = (0.1, 0.2, 2.0, 0.0)) -> LossRow:
    return LossRow(model=model, name=name, loss=Mean.of(values), changed_words=1.0, losses=values)


def projection(model: str, labels: tuple[str, ...] = ("negative", "positive")) -> Projection:
    groups = [Group(name=name, points=((float(i), 1.0), (0.0, float(i)))) for i, name in enumerate(labels)]
    return Projection(model=model, groups=(*groups, Group(name="triggered", triggered=True, points=((3.0, 3.0),))))


def maps(model: str, tokens: tuple[str, ...] = ("[CLS]", "a", "film", "[SEP]"), layers: int = 2) -> AttentionMaps:
    share = 1 / len(tokens)
    layer = tuple(tuple(share for _ in tokens) for _ in tokens)
    return AttentionMaps(model=model, tokens=tokens, tokens_in_all=len(tokens), layers=(layer,) * layers)


def drawings(*texts: str) -> dict[str, Any]:
    """Every kind of figure, with all the texts in it."""
    return {
        "losses": (loss_figure, [losses(name, texts[0]) for name in (*texts, "unchanged")]),
        "tsne": (projection_figure, [projection(texts[0], texts), projection("repaired")]),
        "attention": (attention_figure, [maps(texts[0], ("[CLS]", *texts)), maps("repaired")]),
        "curves": (curve_figure, dict.fromkeys(texts, ((1, 0.5), (2, 0.4)))),
    }


def texts_of(svg: bytes) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("kind", ["losses", "tsne", "attention", "curves"])
def test_hostile_texts_stay_texts(kind: str) -> None:
    draw, what = drawings(*HOSTILE)[kind]
    root = ElementTree.fromstring(draw(what))
    _, plain = drawings("word", "words")[kind]
    assert {e.tag for e in root.iter()} <= {e.tag for e in ElementTree.fromstring(draw(plain)).iter()}, "a text became markup"
    for element in root.iter():
        assert not [name for name in element.attrib if name.rpartition("}")[2].startswith("on")]
        assert all(value.startswith("#") for name, value in element.attrib.items() if name.endswith("href"))


def test_hostile_texts_are_shown() -> None:
    shown = " ".join(texts_of(curve_figure({"<script> $x$ a\nb": ((1, 0.5), (2, 0.4))})))
    assert "<script> $x$ a b" in shown


@pytest.mark.parametrize("kind", ["losses", "tsne", "attention", "curves"])
def test_formats_and_sameness(kind: str) -> None:
    draw, what = drawings("word")[kind]
    assert draw(what, "png").startswith(b"\x89PNG\r\n")
    assert draw(what, "svg") == draw(what, "svg")


def test_the_losses_figure_says_names_means_and_axes() -> None:
    shown = texts_of(loss_figure([losses("aeda", values=(1.0, 2.0)), losses("unchanged", values=(0.5, 0.5))]))
    for part in ("aeda", "unchanged", "1.500", "0.500", "suspect", "cross-entropy of one text (logarithmic)", "mean, 95 % interval"):
        assert part in shown, part


@pytest.mark.parametrize("values", [(0.0, 0.0), (1e-9, 90.0), (0.3, 0.3)])
def test_extreme_losses_are_drawn(values: tuple[float, ...]) -> None:
    assert "aeda" in texts_of(loss_figure([losses("aeda", values=values), losses("unchanged", values=values)]))


def test_the_projection_has_one_legend_for_all_panels() -> None:
    shown = texts_of(projection_figure([projection("suspect"), projection("repaired")]))
    assert [shown.count(name) for name in ("negative", "positive", "triggered", "suspect", "repaired")] == [1, 1, 1, 1, 1]


def test_many_labels_look_different() -> None:
    svg = projection_figure([projection("suspect", tuple(f"label {i}" for i in range(30)))]).decode()
    group = re.compile(r"<use xlink:href=\"(#\w+)\"[^>]*style=\"(fill: #\w+)?")
    assert len(set(group.findall(svg))) >= 30


@pytest.mark.parametrize("layers", [1, 7])
def test_each_layer_of_each_model_has_a_square(layers: int) -> None:
    shown = texts_of(attention_figure([maps("suspect", layers=layers), maps("repaired", layers=layers)]))
    assert [shown.count(f"layer {i + 1}") for i in range(layers)] == [2] * layers
    assert f"layer {layers + 1}" not in shown


def test_attention_squares_are_drawn_where_attention_is() -> None:
    layer = ((1.0, 0.0), (0.0, 1.0))
    one = AttentionMaps(model="m", tokens=("a", "b"), tokens_in_all=5, layers=(layer,))
    svg = attention_figure([one]).decode()
    assert "m (first 2 of 5 tokens)" in svg
    nothing = attention_figure([one.model_copy(update={"layers": (((0.0, 0.0), (0.0, 0.0)),)})]).decode()
    darkest = "#08306b"
    assert svg.count(darkest) == nothing.count(darkest) + 1, "one path for all squares of a shade"


# The numbers behind the figures


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_class_vectors_are_what_the_head_reads(architecture: str) -> None:
    victim, texts = toy_victim(architecture), toy_data(9).texts
    vectors = last_states(victim, texts)
    model: Any = victim.model
    with torch.inference_mode():
        if hasattr(model, "score"):
            logits = model.score(vectors)
        elif architecture == "bert":
            logits = model.classifier(torch.tanh(model.bert.pooler.dense(vectors)))
        elif architecture == "distilbert":
            logits = model.classifier(torch.relu(model.pre_classifier(vectors)))
        else:
            logits = model.classifier(vectors[:, None])
    torch.testing.assert_close(logits, victim.logits(texts), atol=1e-5, rtol=1e-4)


def test_tsne_keeps_neighbours_and_is_decided_by_the_seed() -> None:
    random = np.random.default_rng(0)
    vectors = np.concatenate([random.normal(place, 0.1, (20, 16)) for place in (-3, 0, 3)]).astype(np.float32)
    points = tsne(vectors, seed=0)
    assert points.shape == (60, 2)
    assert trustworthiness(vectors, points) > 0.9
    assert np.array_equal(points, tsne(vectors, seed=0))
    assert not tsne(np.ones((9, 4), dtype=np.float32), seed=0).any(), "nothing to tell apart"


def test_a_sample_is_decided_by_the_seed_and_small() -> None:
    data, trigger = toy_data(400), InsertWords(words=("cf",))
    one, again, other = (draw_sample(data, trigger, 1, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert (len(one.clean), len(one.stamped)) == (CLEAN_TEXTS, TRIGGERED_TEXTS)
    assert all("cf" in text.split() for text in one.stamped)
    assert not draw_sample(data, None, None, seed=0).stamped


def test_a_projection_has_a_point_for_each_text() -> None:
    data = toy_data(30)
    sample = draw_sample(data, InsertWords(words=("cf",)), 1, seed=0)
    found = project("m", toy_victim(), sample, seed=0)
    assert found is not None
    assert [(g.name, g.triggered, len(g.points)) for g in found.groups] == [("negative", False, 15), ("positive", False, 15), ("triggered", True, 15)]
    assert project("m", toy_victim(), draw_sample(toy_data(4), None, None, seed=0), seed=0) is None, "too few"


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_attention_maps_are_the_mean_over_heads(architecture: str) -> None:
    victim, text = toy_victim(architecture), "the film is wonderful"
    found = attention_maps("m", victim, text, most=64)
    eager = victim.copy()
    eager.model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager.model(**victim.tokenizer([text], return_tensors="pt"), output_attentions=True).attentions
    assert len(found.layers) == len(attentions)
    for layer, expected in zip(found.layers, attentions, strict=True):
        loop = [[sum(float(head[q][k]) for head in expected[0]) / len(expected[0]) for k in range(6)] for q in range(6)]
        np.testing.assert_allclose(layer, loop, atol=1e-4)
    assert found.tokens == ("[CLS]", "the", "film", "is", "wonderful", "[SEP]")


def test_long_texts_are_cut_and_say_so() -> None:
    found = attention_maps("m", toy_victim(), "film " * 40, most=8)
    assert (len(found.tokens), found.tokens_in_all) == (8, 42)
    assert all(len(layer) == len(layer[0]) == 8 for layer in found.layers)
    with pytest.raises(ConfigError, match="blank"):
        attention_maps("m", toy_victim(), "  ", most=8)


def test_a_text_that_fits_is_picked() -> None:
    victim = toy_victim()
    texts = ["film", "film " * 30, "the film is a story", "film " * 50]
    assert {pick_text(victim, texts, seed=seed) for seed in range(5)} == {"the film is a story"}
    assert pick_text(victim, [texts[3], texts[1]], seed=0) == texts[1]
    assert pick_text(victim, ["film"], seed=0) == "film"


def test_pictures_leave_out_what_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise AttentionError("unread")

    projections, attention = pictures({"suspect": toy_victim()}, toy_data(20), trigger=None, target_label=None, seed=0)
    assert len(projections) == len(attention) == 1
    monkeypatch.setattr("excise.inspection.attention_maps", unreadable)
    assert pictures({"suspect": toy_victim()}, toy_data(20), trigger=None, target_label=None, seed=0) == (projections, ())


def test_pictures_of_a_model_that_hands_out_nothing_are_none() -> None:
    victim = toy_encoder_decoder()
    assert pictures({"suspect": victim}, toy_data(20), trigger=None, target_label=None, seed=0) == ((), ())
    with pytest.raises(CheckpointError, match="hands out no state of each layer"):
        last_states(victim, ["the film"])


# The commands


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    save_toy(folder / "model")
    save_toy(folder / "five", labels=5)
    write_csv(folder / "clean.csv", toy_data(40))
    (folder / "backdoor.json").write_text('{"trigger": {"kind": "insert_words", "words": ["cf"]}, "target_label": "positive"}')
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    given = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert given == code, printed.err
    if code:
        assert len(printed.err.splitlines()) == 1
        return printed.err
    assert not printed.err
    return printed.out


def study(folder: Path) -> Study:
    return Study.model_validate_json((folder / "excise-result.json").read_text())


def test_perturb_ranks_and_writes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["perturb", place / "model", "--data", place / "clean.csv", "--augmentations", "aeda", "token_splitting share=0.9", "--seed", 4]
    shown = run(capsys, *words, "--out", out)
    assert {path.name for path in out.iterdir()} == {"losses.png", "excise-result.json"}
    found = study(out)
    assert (found.kind, found.seed, found.data["clean"].n) == ("perturb", 4, 40)
    assert {row.name for row in found.rows[:2]} == {"aeda", "token_splitting share=0.9"}
    assert f"The maximiser is {found.rows[0].name}: " in shown
    for row in found.rows:
        assert f"{row.loss.value:.4f} ({row.loss.low:.4f}-{row.loss.high:.4f}, n=40)" in shown
        assert len(row.losses) == 40
    assert "exists" in run(capsys, *words, "--out", out, code=2)
    run(capsys, *words, "--out", out, "--overwrite", "--format", "svg", "--quiet")
    assert {path.name for path in out.iterdir()} == {"losses.svg", "excise-result.json"}


def test_perturb_needs_no_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "perturb", place / "model", "--data", place / "clean.csv", "--augmentations", "aeda")
    assert "The maximiser is aeda, the only candidate." in shown
    assert "Wrote" not in shown


def test_a_small_language_model_is_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.pipeline.trained_texts", lambda source: 7)
    model = toy_language_model("masked")
    spec = f"cwea language_model={model}"
    shown = run(capsys, "perturb", place / "model", "--data", place / "clean.csv", "--augmentations", "cwea", spec, "--out", tmp_path / "out")
    assert "cwea was left out: cwea needs a language model" in shown
    found = study(tmp_path / "out")
    assert [row.name for row in found.rows] == [f"cwea language_model={model}", "unchanged"]
    assert list(found.left_out) == ["cwea"]
    assert "made by excise train-lm from 7 texts" in shown
    assert len(found.notes) == 1


def test_a_named_candidate_without_what_it_needs_is_refused_before_any_work() -> None:
    with pytest.raises(NeedsError, match="cwea needs"):
        check_needs(TSFT(augmentation=Maximiser(candidates=("aeda", "cwea"))))
    check_needs(TSFT(augmentation=Maximiser()))


def test_plot_draws_all_before_and_after(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, model = tmp_path / "out", place / "model"
    words = ["--data", place / "clean.csv", "--backdoor", place / "backdoor.json", "--out", out, "--augmentations", "aeda"]
    shown = run(capsys, "plot", model, "--after", model, *words)
    assert f"Wrote {out}: losses.png, tsne.png, attention.png, excise-result.json." in shown
    assert {path.name for path in out.iterdir()} == {"losses.png", "tsne.png", "attention.png", "excise-result.json"}
    found = study(out)
    assert [projection.model for projection in found.projections] == [one.model for one in found.attention] == ["suspect", "repaired"]
    assert found.projections[0].groups[-1].triggered
    assert "cf" in found.attention[0].tokens
    assert {row.model for row in found.rows} == {"suspect", "repaired"}


@pytest.mark.parametrize("name", ["losses", "tsne", "attention"])
def test_plot_draws_what_is_asked_for(name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run(capsys, "plot", place / "model", "--data", place / "clean.csv", "--figure", name, "--format", "svg", "--out", out)
    assert {path.name for path in out.iterdir()} == {f"{name}.svg", "excise-result.json"}
    ElementTree.parse(out / f"{name}.svg")


def test_plot_takes_a_text(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--figure", "attention", "--text", "the <b> film", "--out", tmp_path / "out", "--format", "svg"]
    run(capsys, "plot", place / "model", "--data", place / "clean.csv", *words)
    assert study(tmp_path / "out").attention[0].tokens == ("[CLS]", "the", "<", "b", ">", "film", "[SEP]")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["perturb", "MODEL", "--augmentations", "aedaa"], "Did you mean 'aeda'"),
        (["perturb", "MODEL", "--augmentations", "aeda shares=2"], "'shares'"),
        (["perturb", "MODEL", "--augmentations", "maximiser"], "cannot be one of them"),
        (["perturb", "nowhere"], "nowhere"),
        (["plot", "MODEL", "--augmentations", "aedaa"], "Did you mean 'aeda'"),
        (["plot", "MODEL", "--figure", "tsne", "--augmentations", "aeda"], "no figure of losses"),
        (["plot", "MODEL", "--figure", "tsne", "--text", "a film"], "no figure of attention"),
        (["plot", "MODEL", "--text", " "], "blank"),
        (["plot", "MODEL", "--tokens", "1"], "2 to 64"),
        (["plot", "MODEL", "--after", "FIVE"], "has the labels"),
        (["plot", "MODEL", "--backdoor", "nowhere.json"], "nowhere.json"),
        (["repair", "MODEL", "--method", "mbtsad", "--augmentation", "maximiser candidates=[aedaa]"], "Did you mean 'aeda'"),
    ],
)
def test_bad_input_writes_nothing(words: list[str], says: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"MODEL": str(place / "model"), "FIVE": str(place / "five")}
    given = [named.get(word, word) for word in words]
    assert main([*given, "--data", str(place / "clean.csv"), "--out", str(tmp_path / "out")]) in (2, 4)
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))


def test_an_unknown_figure_is_misuse(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plot", place / "model", "--data", place / "clean.csv", "--figure", "tnse", "--out", tmp_path / "out"]
    assert "tsne" in run(capsys, *words, code=4)


def test_unreadable_attention_is_said_or_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise AttentionError("its attention cannot be read.")

    monkeypatch.setattr("excise.inspection.attention_maps", unreadable)
    words = ["plot", place / "model", "--data", place / "clean.csv", "--augmentations", "aeda", "--out", tmp_path / "out"]
    assert "No attention maps: its attention cannot be read." in run(capsys, *words)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"losses.png", "tsne.png", "excise-result.json"}
    words = ["plot", place / "model", "--data", place / "clean.csv", "--figure", "attention", "--out", tmp_path / "other"]
    assert "its attention cannot be read" in run(capsys, *words, code=2)


def test_a_repair_takes_the_maximiser_and_its_report_shows_pictures(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "ts_ft", "--augmentation", "maximiser candidates=[aeda]", "--copies", "1", "--retraining.epochs", "1"]
    shown = run(capsys, "repair", place / "model", "--data", place / "clean.csv", *words, "--out", tmp_path / "out")
    assert "ts_ft: the maximiser is aeda" in shown
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "What the model sees" in report
    assert report.count("layer 1") == 2
    assert "the maximiser is aeda" in report

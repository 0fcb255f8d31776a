"""Pictures of training, evaluation and prediction: names of any script and length, doubt that looks
like doubt, lines of chance, nothing under an axis."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, write_features
from trainings import make_run

from corpora.manifest import Clip
from inference import wording
from inference.figure import draw_evidence, draw_prediction
from inference.prediction import FUSED, ClipPrediction, Seen
from inference.sources import Source
from inference.timeline import draw_timeline, overlay, summary
from training import record
from training.checkpoint import load_checkpoint, save_checkpoint
from training.loop import fit
from training.run import Run
from utils import fonts, plots
from utils.errors import CLIP_CODES, IntegrityError, Interrupted

BEST = {"epoch": 1, "clips": 7, "loss": 1.0, "accuracy": 0.5, "uar": 0.5}
TEN = range(1, 11)
LISTS = {
    "codes": ["hap", "ang", "dis", "fea", "sad", "neu", "sur"],
    "long": ["embarrassment", "happiness", "contemptuousness", "a long name of three words"],
    "many": [f"{name}{number}" for name in ("joy", "embarrassment", "remorse") for number in TEN],
    "Korean": ["기쁨", "두려움", "놀라움"],
    "Chinese": ["高兴", "愤怒", "厌恶"],
    "Arabic": ["سعادة", "غضب", "اشمئزاز"],
    "Hindi": ["खुशी", "गुस्सा", "डर"],
}


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine with matplotlib's own fonts alone, to which nothing was said yet."""
    monkeypatch.setattr(fonts, "candidates", lambda: [])
    monkeypatch.setattr(fonts, "_told", set())
    fonts.fonts_for.cache_clear()
    yield
    fonts.fonts_for.cache_clear()


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is written, as it was when it was written."""
    made = []
    png = plots.png
    spy = lambda figure, **more: made.append(figure) or png(figure, **more)  # noqa: E731
    monkeypatch.setattr(plots, "png", spy)
    return made


def said(probabilities, classes, **more) -> ClipPrediction:
    source = Source("a.mp4", Clip("a", "clips", ROOT, transcript="좋은 하루"), 0.0, 2.0)
    parts = {FUSED: np.array(probabilities)}
    return ClipPrediction(source, list(classes), {}, {}, parts, **more)


def texts(figure) -> list:
    """Every text that is seen, with its box in pixels."""
    from matplotlib.text import Text

    figure.canvas.draw()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    return [(text, text.get_window_extent()) for text in found]


@pytest.mark.parametrize("names", LISTS)
def test_no_boxes_and_no_warnings_where_no_font_has_the_letters(
    names, no_fonts, figures, tmp_path, capsys
):
    classes = LISTS[names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph ... missing from font"
        plots.plot_confusion(tmp_path / "a.png", np.eye(len(classes)), classes, "run 기쁨")
        plots.plot_bars(tmp_path / "b.png", [(n, 0.5, (0.2, 0.8)) for n in classes], "x", 0.1)
        draw_prediction(said(np.eye(len(classes))[0], classes))
        draw_timeline([said(np.eye(len(classes))[0], classes)] * 2)
        overlay(said(np.eye(len(classes))[0], classes), 640)
    told = capsys.readouterr().err.splitlines()
    lacking = {"Korean": "Hangul", "Chinese": "Chinese characters", "Hindi": "Devanagari"}
    scripts = {"Hangul"} | ({lacking[names]} if names in lacking else set())
    assert len(told) == len(scripts), told
    for script in scripts:
        (line,) = (line for line in told if f"no installed font has {script} (" in line)
        assert "apt install fonts-noto" in line
    shown = " ".join(text.get_text() for text, _ in texts(figures[0]))
    assert "U+AE30" in shown  # of the title
    if names not in lacking:
        assert all(name.split()[0][:8] in shown for name in classes)


def test_a_font_that_has_the_letters_is_found(monkeypatch, tmp_path, capsys):
    """Also one that was installed after matplotlib made its list."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0)), pen.lineTo((500, 0)), pen.lineTo((250, 700)), pen.closePath()
    font, names = FontBuilder(1000), [".notdef", "gi", "bbeum"]
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord("기"): "gi", ord("쁨"): "bbeum"})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Two Letters", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "two.ttf")
    monkeypatch.setattr(
        font_manager, "findSystemFonts", lambda *_, **__: [str(tmp_path / "two.ttf")]
    )
    known = font_manager.fontManager
    plain = [e for e in known.ttflist if e.name.startswith("DejaVu")]
    monkeypatch.setattr(known, "ttflist", plain)
    fonts.fonts_for.cache_clear()
    try:
        assert fonts.drawable("기쁨 2") == ("기쁨 2", ["Two Letters"])
        assert fonts.drawable("joy é") == ("joy é", [])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plots.plot_confusion(tmp_path / "a.png", np.eye(2), ["기쁨", "x"], "run")
    finally:
        fonts.fonts_for.cache_clear()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("names", LISTS)
def test_labels_do_not_overlap(names, no_fonts, figures, tmp_path):
    classes = LISTS[names]
    plots.plot_confusion(tmp_path / "a.png", np.eye(len(classes)), classes, "logs/speech/small")
    plots.plot_bars(tmp_path / "b.png", [(n, 0.5, (0.2, 0.8)) for n in classes], "x", 0.1)
    for figure in figures:
        (axis,) = figure.axes
        labels = [*axis.get_xticklabels(), *axis.get_yticklabels()]
        figure.canvas.draw()
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        clashes = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
        assert not clashes
        width, height = figure.canvas.get_width_height()
        assert all(box.x0 >= -1 and box.y0 >= -1 for box in boxes), "cut off"
        assert all(box.x1 <= width + 1 and box.y1 <= height + 1 for box in boxes), "cut off"


def test_curves_show_what_guessing_gives(figures, tmp_path):
    rows = [
        {"epoch": n, "train_loss": 5.8, "val_loss": 1.94, "train_accuracy": 1.0, "val_accuracy": 0}
        for n in (1, 2)
    ]
    plots.plot_curves(tmp_path / "c.png", rows, "run", 7, ("sad", 2 / 7))
    objective, loss, accuracy = figures[0].axes
    for axis in figures[0].axes:
        assert axis.get_xlabel() == "epoch" and axis.get_ylabel()
    assert objective.get_ylim()[1] > 5.8 > 3 > loss.get_ylim()[1]  # axes of their own
    assert objective.get_ylim()[0] == loss.get_ylim()[0] == 0  # noise does not fill the picture
    low, high = accuracy.get_ylim()
    assert low < 0 and high > 1  # both lines are seen whole
    told = [text.get_text() for axis in (loss, accuracy) for text in axis.get_legend().get_texts()]
    assert {"guessing: ln 7", "guessing: 14%", "always sad: 29%"} <= set(told)


def test_a_run_draws_its_matrix_at_its_end_and_where_it_is_stopped(tmp_path, monkeypatch):
    """Not at each better epoch, which may take less time than the picture."""
    features, drawn = write_features(tmp_path / "features", 1, modalities=("text",)), []
    draw = lambda path, counts, *_: drawn.append((path.name, counts.sum()))  # noqa: E731
    monkeypatch.setattr(record, "plot_confusion", draw)
    monkeypatch.setattr(Run, "is_best", lambda run, epoch, _: setattr(run, "best", BEST) or True)
    run = make_run(features, tmp_path / "a")
    with record.started(run) as (kept, stop):
        fit(run, kept, stop)
        assert drawn == [("confusion.png", 7)]
    assert len(drawn) == 1
    with (
        pytest.raises(Interrupted),
        record.started(run := make_run(features, tmp_path / "b")) as (
            kept,
            stop,
        ),
    ):
        monkeypatch.setattr(kept, "add", lambda row: setattr(stop, "signum", 15))
        fit(run, kept, stop)
    assert len(drawn) == 2
    with record.started(make_run(features, tmp_path / "b", resume=True)) as (kept, _):
        kept.draw_curves()  # as of a run that was killed before it came to it
    assert len(drawn) == 3
    last = load_checkpoint(tmp_path / "b" / "last.pth")
    last["confusion"]["counts"] = last["confusion"]["counts"][:3]
    save_checkpoint(tmp_path / "b" / "last.pth", last)
    with pytest.raises(IntegrityError, match="its confusion is none of ours"):
        record.Record(make_run(features, tmp_path / "b", resume=True))


def test_only_the_list_that_we_know_is_translated():
    assert wording.class_names(["hap", "sad", "cal"]) == ["happiness", "sadness", "calm"]
    assert wording.class_names(["happy", "sad"]) == ["happy", "sad"]


HEADS = {  # probabilities -> headline
    (0.16, 0.14, 0.14, 0.14, 0.14, 0.14, 0.14): "happiness, 16 %; chance is 14 %: no clear answer",
    (0.45, 0.43, 0.04, 0.02, 0.02, 0.02, 0.02): "happiness, 45 %; hardly more than anger, 43 %: "
    "no clear answer",
    (0.88, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02): "happiness, 88 %",
}


@pytest.mark.parametrize("probabilities", HEADS, ids=HEADS.values())
def test_low_confidence_looks_low(probabilities, figures, monkeypatch):
    from predict import lines

    monkeypatch.setattr("inference.figure.png", plots.png)
    prediction, head = said(probabilities, LISTS["codes"]), HEADS[probabilities]
    assert wording.headline(prediction) == head
    draw_prediction(prediction)
    (shown,) = (text for text, _ in texts(figures[0]) if text.get_text() == head)
    clear = "no clear" not in head
    assert (shown.get_weight() == "bold") == clear == wording.is_clear(prediction)
    assert ("no clear answer" in lines(prediction)) == (not clear)
    assert ("no clear" in summary([prediction])) == (not clear)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ("0", "happiness in 1 of 1 part"),
        ("001", "happiness in 2 and anger in 1 of 3 parts"),
        ("0012", "happiness in 2 of 4 parts"),  # no more anger than disgust
        ("01", "happiness in 1 and anger in 1 of 2 parts"),
        ("012", "no emotion prevails: 3 different ones in 3 clear answers of 3 parts"),
    ],
)
def test_what_prevails_in_a_recording(answers, told):
    ways = {key: tuple(0.88 if str(k) == key else 0.02 for k in range(7)) for key in "012"}
    assert summary([said(ways[each], LISTS["codes"]) for each in answers]) == told


CARD = {"inputs": ["speech", "face"], "corpus": "RAVDESS", "language": "English, acted"}


@pytest.mark.parametrize(
    ("warning", "told"),
    [
        ("", "Voice and face trained on RAVDESS (English, acted)"),
        ("trained on generated clips", "Trained on generated clips"),
    ],
)
def test_the_picture_says_where_its_model_comes_from(warning, told, figures, monkeypatch):
    """Inside its edges, and clear of its other texts."""
    monkeypatch.setattr("inference.figure.png", plots.png)
    card = CARD | {"clips": 9999, "people": 99, "warning": warning}
    classes = LISTS["codes"]
    draw_prediction(
        said(np.eye(len(classes))[0], classes, cards=[card, card | {"inputs": ["text"]}])
    )
    ((shown, box),) = (each for each in texts(figures[0]) if each[0].get_text().startswith(told))
    assert (shown.get_weight() == "bold") == bool(warning)
    assert box.x1 <= figures[0].bbox.width
    others = [other for text, other in texts(figures[0]) if text is not shown]
    assert not any(box.overlaps(other) for other in others)


def test_columns_of_the_table_stand_under_their_names():
    from predict import header, lines

    for classes in (LISTS[name] for name in LISTS if name not in ("long", "many")):
        first = np.full(len(classes), 0.5 / (len(classes) - 1))
        first[0] = 0.5
        head, row = header(classes), lines(said(first, classes)).splitlines()[0]
        assert fonts.columns(head) == fonts.columns(row)
        assert all(f" {name}" in head for name in classes)


@pytest.mark.parametrize("names", ["long", "many"])
def test_of_many_classes_the_table_shows_the_likeliest(names):
    from predict import WIDEST, header, lines

    classes = LISTS[names]
    shares = np.full(len(classes), 0.1 / (len(classes) - 2))
    shares[[2, 0]] = 0.6, 0.3
    row = lines(said(shares, classes))
    assert f"all {len(classes)} are in" in header(classes)
    assert row.split("fused")[1].split()[:2] == [fonts.shortened(classes[2], 16), "0.600,"]
    rest = len(classes) - 3
    assert row.endswith(f"; {rest} others {0.1 * rest / (rest + 1):.3f}")
    assert max(map(fonts.columns, (row, header(classes)))) <= WIDEST


def test_many_classes_can_be_read(no_fonts, figures, monkeypatch, tmp_path):
    """In the bars, the time line and the matrix; what is left out is counted."""
    from matplotlib.colors import to_hex

    for place in ("figure", "timeline"):
        monkeypatch.setattr(f"inference.{place}.png", plots.png)
    classes = LISTS["many"]
    shares = [np.full(30, 0.68 / 29) for _ in classes]
    for place, each in enumerate(shares):
        each[place] = 0.32
    given = said(shares[4], classes, rests_on=["speech"])
    given.parts["speech"] = given.probabilities
    draw_prediction(given)
    shown = [text.get_text() for text, _ in texts(figures[-1])]
    assert "19 others" in shown and "23 others" in shown  # 0.68 * 19 / 29: more than the answer has
    alone, answer = (axis for axis in figures[-1].axes if axis.patches)
    if len(alone.patches) > len(answer.patches):
        alone, answer = answer, alone
    for axis, bars in ((alone, 8), (answer, 12)):
        widths = [bar.get_width() for bar in axis.patches]
        assert len(widths) == bars and sum(widths) == pytest.approx(1)
        (colored,) = (bar for bar in axis.patches if to_hex(bar.get_facecolor()) == plots.VAL)
        assert colored.get_width() == pytest.approx(0.32)
    assert min(label.get_fontsize() for label in answer.get_yticklabels()) == 10

    parts = [said(each, classes) for each in shares[:9]]
    for place, each in enumerate(parts):
        each.source = each.source._replace(start=5.0 * place, end=5.0 * place + 5)
    draw_timeline(parts)
    (legend,) = figures[-1].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[0] == "22 others" and {*names[1:]} <= {*classes[:9]}
    assert len({patch.get_facecolor() for patch in legend.get_patches()}) == 9
    boxes = [box for text, box in texts(figures[-1]) if text.get_text() not in names]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]

    plots.plot_confusion(tmp_path / "a.png", 8 * np.eye(30, dtype=int), classes, "run")
    (axis,) = figures[-1].axes
    assert len([text for text in axis.texts if text.get_text()]) == 30, "an empty cell is a zero"
    on_the_page = 952 / 72 / figures[-1].get_figwidth()  # pixels of a point where it fills a page
    assert min(text.get_fontsize() for text, _ in texts(figures[-1])) * on_the_page >= 9


REASONS = {
    "E_NOFACE: no face from 3.3 to 6.4 s (0 of 31 frames)": "none was found in the clip",
    "E_NOVOICE: nobody is heard to speak": "nobody is heard to speak",
    "E_SHORT: a.npz holds no words": "there is too little of it",
    "E_SHORT: --word_vectors /srv/w.npz knows none of the words": "the model knows none of them",
    "E_MISSING: no words: give --text, or a .txt beside the clip": "no sentence was given",
    "E_MISSING: the words need --word_vectors FILE": "sentences cannot be read here",
    "E_MISSING: no clip was given": "no clip was given",
    "E_CRASH: a bug of ours": "it could not be read",
}


@pytest.mark.parametrize("why", REASONS)
def test_reasons_are_plain(why):
    assert wording.reason(why) == REASONS[why]


def test_remarks_are_plain_and_said_once():
    missing = {"face": "E_NOFACE: x (0 of 3)", "text": "E_MISSING: no words: give --text"}
    given = said([0.9, 0.1], ["hap", "sad"], rests_on=["speech"], not_fused=True)
    given.missing = missing
    told = wording.remarks([given, given])
    assert told[0].startswith("This rests on the voice alone. The model was not trained for")
    assert told[1:] == [
        "Face not used: none was found in the clip.",
        "Words not used: no sentence was given.",
    ]
    assert not any(sign in " ".join(told) for sign in ("--", "E_", "speech", "text"))


def test_every_code_has_a_reason_for_people():
    """Those without one are damage, of which "it could not be read" is true."""
    damage = ["READ", "NONFINITE", "NPZ", "SHAPE", "DTYPE", "KILLED", "ENCODER", "CRASH"]
    apart = ["ID", "DUP", "LABELS", "PERM", "MISSING"]  # of a corpus, or told by `reason`
    known = {*wording.WHY, *(f"E_{name}" for name in damage + apart)}
    assert known == set(CLIP_CODES)


def test_the_table_speaks_of_voice_and_words_in_columns_that_do_not_touch():
    from predict import header, lines

    classes = ["embarrassment", "a long name", "sad"]
    given = said([0.8, 0.1, 0.1], classes, rests_on=["speech", "text"])
    given.source = given.source._replace(start=None, end=None)
    names = ["ensemble", "speech", "text", "video_embedding", "wav2vec2-large-robust"]
    given.parts = dict.fromkeys(names, given.probabilities)
    given.missing = {"face": "E_NOFACE: no face in a.mp4 (0 of 3 frames)"}
    head, *rows, rests, lacks = [header(classes), *lines(given).splitlines()]
    for row in rows:
        assert len(row) == len(head) and row[:41].endswith(" ")
    parts = ["ensemble", "voice", "words", "face vectors", "wav2v…obust"]
    assert [row[28:41].strip() for row in rows] == parts
    assert rests.strip() == "rests on voice and words"
    assert lacks.strip() == "no face in a.mp4 (0 of 3 frames)"


def test_the_evidence_alone_is_narrow_enough_for_a_phone(monkeypatch, figures):
    monkeypatch.setattr("inference.figure.png", plots.png)
    given = said([0.9, 0.1], ["hap", "sad"])
    assert draw_evidence(given) == b""
    given.seen["text"] = Seen(np.zeros((2, 3)), None)
    assert draw_evidence(given) == b"", "a sentence that the page itself shows"
    given.seen["face"] = Seen(np.zeros((4, 3, 8, 8)), np.array([0.1, 0.1, 0.1, 0.7]))
    assert draw_evidence(given)
    on_a_phone = 358 / 72 / figures[0].get_figwidth()  # pixels of a point, on a page of 390
    assert min(text.get_fontsize() for text, _ in texts(figures[0])) * on_a_phone >= 10


def test_a_still_picture_is_shown_once(figures, monkeypatch):
    monkeypatch.setattr("inference.figure.png", plots.png)
    given, frame = said([0.9, 0.1], ["hap", "sad"]), np.random.default_rng(0).random((1, 3, 8, 8))
    for frames, count in ((frame.repeat(4, 0), 1), (np.concatenate([frame, 1 - frame]), 2)):
        given.seen["face"] = Seen(frames, np.full(len(frames), 0.5))
        draw_prediction(given)
        assert sum(len(axis.images) for axis in figures[-1].axes) == count
        told = [text.get_text() for text, _ in texts(figures[-1])]
        assert ("the same in all frames" in told) == (count == 1)


def test_the_plate_in_a_video_hides_no_face():
    given = said(np.eye(7)[0], LISTS["codes"])
    for width, share in ((256, 0.06), (640, 0.07), (1920, 0.07)):  # of a picture 4:3
        height, wide, _ = overlay(given, width).shape
        assert height * wide < share * width * width * 3 / 4
    assert overlay(given, 256).shape[0] >= 20, "its letters can be read"


@pytest.mark.parametrize("words", [r"we $\frac{ cheerful $ more", "$5 and $10"])
def test_words_and_names_are_no_formulas(words, figures, monkeypatch):
    """The second would be one without an error: "5 and" in italics."""
    monkeypatch.setattr("inference.figure.png", plots.png)
    given = said([0.9, 0.1], ["$x$", "hap"])
    clip = replace(given.source.clip, transcript=words)
    given.source = given.source._replace(name=f"{words}.mp4", clip=clip)
    given.seen["text"] = Seen(np.zeros((2, 3)), None)
    draw_prediction(given)
    drawn = {text.get_text(): text.get_parse_math() for text, _ in texts(figures[0])}
    for each in (f"“{words}”", f"{words}.mp4", "$x$"):
        assert any(each in text for text in drawn)
    assert [text for text, is_formula in drawn.items() if is_formula and "$" in text] == []


def test_class_names_are_no_formulas(tmp_path):
    classes = [r"$\frac{$", "a$b$c"]
    plots.plot_confusion(tmp_path / "a.png", np.eye(2, dtype=int), classes, r"run $\frac{ \udcff")
    plots.plot_confusion(tmp_path / "b.png", np.eye(2, dtype=int), ["x", "abc"], "run")
    assert (tmp_path / "a.png").stat().st_size > 5000

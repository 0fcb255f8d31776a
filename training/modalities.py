"""One row per modality: its files, what a model sees of it, its encoder, settings and recipe.

Everything that trains, evaluates, predicts or draws reads these rows. Other files name a modality
only in corpora/ and extract/ (which make the files), in the views and encoders that the rows point
to, and where tests/test_modalities.py says why. docs/extending.md adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from training import augment, views
from training.settings import Setting
from utils.config import boolean, ranged
from utils.errors import joined

if TYPE_CHECKING:  # else the help of every command would wait for pandas
    import pandas as pd

Shape = tuple[int | None, ...]  # None: any size
SAME = -1  # in a layout: as in the first clip


@dataclass(frozen=True)
class Modality:
    """`folder` and `ending` name its files, features/<split>/<folder>/<clip_id><ending>.

    `view`: feature -> the encoder's arguments for one clip (training/views.py).
    `encoder`: (settings, shape of a feature) -> what models.build_model makes of it.
    `layout`: (extraction settings, row) -> kind and shape of a feature that is not damaged.
    `settings`: the flags that are its encoder's own; a checkpoint brings them along.
    `small`: (extraction settings, training clips) -> its settings for a corpus of few clips.
    """

    folder: str
    ending: str
    title: str  # for people
    view: Callable[..., views.Arrays]
    encoder: Callable[[dict, Shape], dict[str, Any]]
    layout: Callable[[dict, dict], tuple[str, Shape]] | None = None
    settings: dict[str, Setting] = field(default_factory=dict)
    label: str = "emotion"  # the column of the manifest that its own head learns
    recipe: dict[str, Any] | None = None  # of the mode that trains it alone
    small: Callable[[dict, pd.DataFrame], dict[str, Any]] | None = None
    keeps_head: bool = False  # it has a head and a loss of its own in fusion, too
    pads: bool = False  # batches are padded to their longest clip
    augmentation: str = ""  # how training changes it: AUGMENTATIONS of training/augment.py
    cut_axes: tuple[int, ...] = (1,)  # of a batch (B, ...), that cutmix draws a box in; time first
    source: str = ""  # what preprocess.py makes it from: the clip's media, or its words
    follows: str = ""  # the modality whose times or files preprocess.py needs for it, where it can
    shortest: int = 1  # steps of time that its encoder needs
    picture: str = ""  # how inference/figure.py shows it: spectrogram, frames or words
    corruption: str = ""  # what makes it worse: CORRUPTIONS of evaluation/corruptions.py
    test_views: bool = False  # test-time augmentation changes it
    has_voice: bool = False  # somebody speaks in it, or it says nothing
    shown: Callable[[dict], np.ndarray] | None = None  # row -> (T,) which crops show a face

    @property
    def lengths(self) -> dict[str, Setting]:
        """Those of its settings that say how much of a clip is read: all of the group "data" but
        choices, which say how."""
        return {
            name: each
            for name, each in self.settings.items()
            if each.group == "data" and not isinstance(each.kind, tuple)
        }

    @property
    def made_by_preprocess(self) -> bool:
        return self.layout is not None

    @property
    def is_vectors(self) -> bool:
        """Whether it comes as vectors or rows of them, which another program or a pretrained
        encoder has made."""
        return self.encoder is custom_encoder

    def box_axes(self, dims: int) -> list[int]:
        """Of a batch of so many axes, those that cutmix draws a box in, time first."""
        if self.is_vectors and dims == 4:  # layers of a pretrained encoder, (B, layers, T, D)
            return [2]
        return [axis for axis in self.cut_axes if axis < dims]


# What an encoder is built from stands in its checkpoints, and what goes on has to match it. So a
# choice that came later is named only where it is not the default: older checkpoints stay equal.


def speech_encoder(config: dict, shape: Shape) -> dict[str, Any]:
    backbone = config["speech_backbone"] or f"efficientnet-b{config['speech_coeff']}"
    size = {"hidden": 128} if backbone.startswith("small-") else {}
    return {"type": "AttnCNN", "backbone": backbone, "pooling": config["pooling"], **size}


def face_encoder(config: dict, shape: Shape) -> dict[str, Any]:
    backbone = config["face_backbone"] or f"efficientnet-b{config['face_coeff']}"
    settings = {"type": "CLSTM", "backbone": backbone, "pooling": config["pooling"]}
    if not config["face_lstm"]:
        settings["lstm"] = False
    return settings if config["face_grid"] == 1 else settings | {"grid": config["face_grid"]}


def text_encoder(config: dict, shape: Shape) -> dict[str, Any]:
    size = {"layers": config["text_layers"], "heads": config["text_heads"]}
    if config["text_width"]:
        size["width"] = config["text_width"]
    return {"type": "TextTransformer", "dim": shape[-1], **size}


def custom_encoder(config: dict, shape: Shape) -> dict[str, Any]:
    size = {"dim": shape[-1]}
    if len(shape) == 3:
        size["layers"] = shape[0]
    one_row = len(shape) == 1 or (len(shape) == 3 and shape[-2] == 1)
    if one_row or config["feature_frames"] == 1:
        bare = {"hidden": 0} if config["feature_encoder"] == "none" else {}
        return {"type": "VectorEncoder", **size, **bare}
    options = {"pooling": config["pooling"]}
    if config["feature_encoder"] != "lstm":
        options["body"] = config["feature_encoder"]
    return {"type": "SequenceEncoder", **size, **options}


# Of a feature that is not damaged: the kind of its numbers as numpy calls it (f: floats, u: whole
# ones without a sign), and its shape.


def speech_layout(extraction: dict, row: dict) -> tuple[str, Shape]:
    return "f", (extraction["n_mels"], None)


def face_layout(extraction: dict, row: dict) -> tuple[str, Shape]:
    size = extraction["face_size"]
    return "u", (len(row.get(views.FACES, "")), size, size, 3)


def text_layout(extraction: dict, row: dict) -> tuple[str, Shape]:
    return "f", (None, SAME)


def embedding_layout(extraction: dict, row: dict) -> tuple[str, Shape]:
    return "f", (len(row.get(views.FACES, "")), 512)


# What --recipe small sets for few clips: networks of their size, inputs as long as they are. Within
# a fusion an encoder takes of it the `settings` of its row; the steps are those of the fusion.


def speech_small(extraction: dict, clips: pd.DataFrame) -> dict[str, Any]:
    network = dict(speech_backbone="small-32", speech_norm="clip")
    steps = dict(learning_rate=2e-3, batch_size=32, mixup_prob=0.5, mixup_alpha=0.4, ema=0.99)
    sound = dict(speech_speed=0.15, speech_pitch=4.0, speech_contrast=0.2, time_warp=0.1)
    masks = dict(frequency_masks=2, frequency_width=16, time_masks=2, time_width=0.1)
    settings: dict[str, Any] = network | steps | sound | masks
    if "speech_frames" in clips:
        settings["speech_frames"] = columns_of(clips)
    return settings


def columns_of(clips: pd.DataFrame) -> int:
    """Columns of the log-mel that hold 19 of 20 clips whole, in steps of 32."""
    import pandas as pd

    lengths = pd.to_numeric(clips["speech_frames"], errors="coerce").dropna()
    most = np.quantile(lengths, 0.95) if len(lengths) else 400
    return int(np.clip(32 * np.ceil(most / 32), 64, 400))


def face_small(extraction: dict, clips: pd.DataFrame) -> dict[str, Any]:
    backbone = "small-16" if extraction.get("face_size", 160) < 96 else "small-32"
    network = dict(face_backbone=backbone, face_lstm=False, face_frames=8)
    steps = dict(learning_rate=1e-3, batch_size=32, mixup_prob=0.5, mixup_alpha=0.4, ema=0.99)
    crops = dict(cutmix_prob=0.0, face_contrast=0.3, face_rotation=12.0, face_zoom=0.12)
    return network | steps | crops


def text_small(extraction: dict, clips: pd.DataFrame) -> dict[str, Any]:
    network = dict(text_layers=2, text_heads=4, text_width=128)
    return network | dict(learning_rate=1e-3, batch_size=64, ema=0.998)


COEFF, BACKBONE = ranged(int, 0, 7), "another backbone: timm:NAME, small-16[-wide], small-32[-wide]"

MODALITIES = {
    "speech": Modality(
        folder="speech",
        ending=".npy",
        title="voice",
        view=views.speech_view,
        encoder=speech_encoder,
        layout=speech_layout,
        settings={
            "speech_coeff": Setting(4, COEFF, "EfficientNet-B0 to B7 for the log-mel", "model"),
            "speech_backbone": Setting(None, str, BACKBONE, "model"),
            "speech_frames": Setting(
                400, ranged(int, 32, 100_000), "columns of the log-mel, 62.5 a second", "data"
            ),
            "speech_norm": Setting(
                "none",
                ("none", "clip", "bands"),
                "log-mel of mean 0, deviation 1; bands: each of its bands",
                "data",
            ),
            **augment.SPEECH_STRENGTHS,
        },
        label="speech_emotion",
        recipe=dict(learning_rate=4e-3, batch_size=256, n_epoch=100, mixup_prob=1.0, amp=True),
        small=speech_small,
        keeps_head=True,
        augmentation="sound",
        cut_axes=(3, 2),  # time, frequency
        source="media",
        shortest=32,
        picture="spectrogram",
        corruption="white noise",
        has_voice=True,
    ),
    "face": Modality(
        folder="video",
        ending=".npy",
        title="face",
        view=views.face_view,
        encoder=face_encoder,
        layout=face_layout,
        settings={
            "face_coeff": Setting(0, COEFF, "EfficientNet-B0 to B7 for the crops", "model"),
            "face_backbone": Setting(None, str, BACKBONE, "model"),
            "face_frames": Setting(16, ranged(int, 1, 4096), "face crops per clip", "data"),
            "face_grid": Setting(
                1, ranged(int, 1, 16), "N x N parts of a crop that it tells apart", "model"
            ),
            "face_lstm": Setting(True, boolean, "False: each frame counts by itself", "model"),
            **augment.FACE_STRENGTHS,
        },
        label="face_emotion",
        recipe=dict(learning_rate=4e-3, batch_size=32, n_epoch=20, cutmix_prob=1.0, amp=True),
        small=face_small,
        keeps_head=True,
        augmentation="pictures",
        cut_axes=(1, 3, 4),  # time, height, width
        source="media",
        follows="speech",  # faces are looked for while somebody speaks
        picture="frames",
        corruption="blur",
        test_views=True,
        shown=views.face_flags,
    ),
    "text": Modality(
        folder="text",
        ending=".npz",
        title="words",
        view=views.text_view,
        encoder=text_encoder,
        layout=text_layout,
        settings={
            "max_words": Setting(
                38, ranged(int, 1, 10_000), "words per clip; others are not read", "data"
            ),
            "text_layers": Setting(12, ranged(int, 1, 100), "of the Transformer", "model"),
            "text_heads": Setting(8, ranged(int, 1, 100), "of its attention", "model"),
            "text_width": Setting(0, ranged(int, 0, 8192), "of it; 0: as the vectors", "model"),
        },
        recipe=dict(learning_rate=3e-4, batch_size=128, n_epoch=100),
        small=text_small,
        pads=True,
        source="words",
        picture="words",
        corruption="lost words",
    ),
    "video_embedding": Modality(
        folder="video_embedding",
        ending=".npy",
        title="face vectors",
        view=views.embedding_view,
        encoder=custom_encoder,
        layout=embedding_layout,
        source="media",
        follows="face",
        shown=views.face_flags,
    ),
}
MODES = tuple(name for name, row in MODALITIES.items() if row.recipe)  # each has a training
FUSED_INPUTS = ("speech", "face", "text")  # of --mode multimodal; --inputs chooses others


def modality(name: str) -> Modality:
    """The row of this name; any other name is a custom feature, features/<split>/<name>/."""
    if name in MODALITIES:
        return MODALITIES[name]
    return Modality(name, ".npy", name, views.custom_view, custom_encoder)


def titles(names: Iterable[str]) -> str:
    """By their names for people: voice, face and words."""
    return joined([modality(name).title for name in names])

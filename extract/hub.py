"""Encoders of transformers: any voice, picture or word model of the hub, or of a folder.

The hidden states of all layers, [0] being what goes into the first one: of voices and words one
row per frame or token, of pictures one row per face crop (its class token, or the mean of its
patches where it has none), of video models one per step of time.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from extract.encoders import RATE, Encoder, in_blocks, quiet, weights_of
from utils.errors import UsageError

WINDOW = 30 * RATE  # samples: longer recordings are read in equal pieces, one after the other


def open_model(settings: dict[str, str], device: str) -> Encoder:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    quiet()
    model = transformers.AutoModel.from_pretrained(
        **place_of(settings["source"]), dtype=torch.float32, trust_remote_code=False
    )
    openers = {"speech": open_voice, "face": open_pictures, "text": open_words}
    encode, about = openers[settings["input"]](model, settings, device)
    revision = revision_of(**place_of(settings["source"]))
    return Encoder(encode, revision, weights_of(encode.model, about), notes=encode.notes)


def place_of(source: str) -> dict[str, str]:
    """A folder, NAME or NAME@REVISION of the hub, as `from_pretrained` takes it."""
    name, at, revision = source.partition("@")
    if not at or Path(source).is_dir():
        return {"pretrained_model_name_or_path": source}
    return {"pretrained_model_name_or_path": name, "revision": revision}


def revision_of(pretrained_model_name_or_path: str, revision: str = "main") -> str:
    """The hub's revision of a model that was just loaded; "" of a folder."""
    from huggingface_hub import try_to_load_from_cache

    if Path(pretrained_model_name_or_path).is_dir():
        return ""
    place = try_to_load_from_cache(
        pretrained_model_name_or_path, "config.json", revision=revision
    )  # .../snapshots/REVISION/config.json
    return Path(place).parent.name if isinstance(place, str) else ""


class Layers:
    """A model that gives the chosen hidden states (layers, T, D), or their mean (T, D)."""

    def __init__(self, model: Any, settings: dict[str, str], device: str):
        self.model, self.device = model.eval().to(device), device
        self.chosen = settings["layers"]
        self.notes: Counter[str] = Counter()

    def states(self, **inputs: Any) -> np.ndarray:
        """All hidden states of a batch, (layers + 1, B, T, D)."""
        import torch

        with torch.inference_mode():
            moved = {name: value.to(self.device) for name, value in inputs.items()}
            output = self.model(**moved, output_hidden_states=True)
        return np.stack([each.float().cpu().numpy() for each in output.hidden_states])

    def choose(self, states: np.ndarray) -> np.ndarray:
        """(layers + 1, T, D) -> (layers + 1, T, D) with layers=all, else the mean (T, D)."""
        if self.chosen == "all":
            return states
        top = len(states) - 1
        if self.chosen.startswith("last"):
            first, last = top + 1 - int(self.chosen[4:] or 1), top
        else:
            ends = [int(number) for number in self.chosen.split("-")]
            first, last = ends[0], ends[-1]
        if not 0 <= first <= last <= top:
            raise UsageError(f"layers={self.chosen}: this encoder has the layers 0 to {top}")
        return states[first : last + 1].mean(axis=0)


class Voice(Layers):
    """(N,) -> one row per frame, mostly 50 a second."""

    def __init__(self, model: Any, extractor: Any, settings: dict[str, str], device: str):
        super().__init__(model, settings, device)
        self.extractor = extractor
        self.always = getattr(extractor, "n_samples", 0)  # Whisper: sound of this length, 30 s

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        pieces = np.array_split(wave, math.ceil(len(wave) / WINDOW))
        states = np.concatenate([self.read(piece) for piece in pieces], axis=1)
        return self.choose(states)

    def read(self, wave: np.ndarray) -> np.ndarray:
        inputs = self.extractor(wave, sampling_rate=RATE, return_tensors="pt")
        states = self.states(**inputs)[:, 0]  # (layers + 1, T, D)
        if self.always:
            states = states[:, : math.ceil(states.shape[1] * len(wave) / self.always)]
        return states


class Pictures(Layers):
    """(T, S, S, 3) uint8 -> one row per crop."""

    def __init__(self, model: Any, processor: Any, settings: dict[str, str], device: str):
        super().__init__(model, settings, device)
        self.processor = processor
        self.patch = model.config.patch_size

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        blocks = [self.read(images) for images in in_blocks(crops)]
        return self.choose(np.concatenate(blocks, axis=1))

    def read(self, images: np.ndarray) -> np.ndarray:
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"]
        states = self.states(pixel_values=pixels)  # (layers + 1, B, tokens, D)
        patches = (pixels.shape[-2] // self.patch) * (pixels.shape[-1] // self.patch)
        return states[:, :, 0] if states.shape[2] > patches else states.mean(axis=2)


class Video(Pictures):
    """(T, S, S, 3) uint8 -> one row per step of time; of all crops as many as the model reads,
    evenly spaced."""

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        config = self.model.config
        count = config.num_frames
        places = ((np.arange(count) + 0.5) * len(crops) / count).astype(int)
        pixels = self.processor(list(crops[places]), return_tensors="pt")["pixel_values"]
        states = self.states(pixel_values=pixels)[:, 0]  # (layers + 1, tokens, D)
        steps = count // config.tubelet_size
        by_step = states.reshape(len(states), steps, -1, states.shape[-1])
        return self.choose(by_step.mean(axis=2))


class Words(Layers):
    """A sentence -> one row per token; what the model cannot take is cut off."""

    def __init__(self, model: Any, tokenizer: Any, settings: dict[str, str], device: str):
        super().__init__(model, settings, device)
        self.tokenizer = tokenizer
        # positions of a model begin behind its padding token: 514 of XLM-R are 512 words
        places = getattr(model.config, "max_position_embeddings", 512)
        offset = getattr(model.config, "pad_token_id", 0) or 0
        own = places - offset - 1 if "roberta" in model.config.model_type else places
        self.most = min(tokenizer.model_max_length, own)

    def __call__(self, sentence: str) -> np.ndarray:
        inputs = self.tokenizer(
            sentence, truncation=True, max_length=self.most, return_tensors="pt"
        )
        if len(self.tokenizer(sentence, verbose=False)["input_ids"]) > self.most:
            self.notes[f"have more than the {self.most} tokens that are read: cut off"] += 1
        known = {"input_ids", "attention_mask", "token_type_ids"}
        states = self.states(**{name: inputs[name] for name in known & set(inputs)})
        return self.choose(states[:, 0])


def open_voice(model: Any, settings: dict[str, str], device: str) -> tuple[Any, Any]:
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(**place_of(settings["source"]))
    if extractor.sampling_rate != RATE:
        wanted = f"sound of {extractor.sampling_rate} Hz"
        raise UsageError(f"the encoder {settings['source']} reads {wanted}, here are {RATE} Hz")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return Voice(model, extractor, settings, device), as_saved(extractor, settings)


def open_pictures(model: Any, settings: dict[str, str], device: str) -> tuple[Any, Any]:
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(**place_of(settings["source"]))
    model = getattr(model, "vision_model", model)  # CLIP and SigLIP have one for words, too
    kind = Video if hasattr(model.config, "tubelet_size") else Pictures
    return kind(model, processor, settings, device), as_saved(processor, settings)


def as_saved(processor: Any, settings: dict[str, str]) -> dict[str, Any]:
    """The settings in the processor's file: what a newer transformers adds of its own would make
    other weights of the same ones."""
    kind = "feature_extractor" if settings["input"] == "speech" else "image_processor"
    read = getattr(processor, f"get_{kind}_dict")
    return read(**place_of(settings["source"]))[0]


def open_words(model: Any, settings: dict[str, str], device: str) -> tuple[Any, Any]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(**place_of(settings["source"]))
    model = getattr(model, "text_model", model)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        what = f"the tokenizer of {settings['source']} knows no words"
        raise UsageError(f"{what}: put tokenizer.json or its vocabulary beside config.json")
    about = [sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs.get("do_lower_case")]
    return Words(model, tokenizer, settings, device), about

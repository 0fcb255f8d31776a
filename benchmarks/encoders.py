"""How long pretrained encoders take for a clip: networks of their sizes, with random weights.

    python -m benchmarks.encoders                  # prints a table; a minute for each, no download
    python -m benchmarks.encoders wavlm-base-plus e5-small
    python -m benchmarks.encoders --share          # of the pass over a corpus, in preprocess.py

Time does not depend on what the weights are. A clip is 4 s of sound, 40 face crops of 160 pixels
and 11 words; the median of five, behind one for warming up.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, REPEATS = 4, 5
SENTENCE = "this is what somebody says here in about eleven words today"


def tables() -> dict[str, tuple[str, Any]]:
    """{name: (what it sees, its configuration as published, or "timm")}."""
    import transformers as t

    base = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
    large = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
    wide, stable = (
        dict(intermediate_size=4096),
        dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True),
    )
    small = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=12)
    whisper = dict(decoder_layers=1, encoder_attention_heads=6, decoder_attention_heads=6)
    return {
        "wav2vec2-base": ("speech", t.Wav2Vec2Config(**base)),
        "wav2vec2-large-xlsr-53": ("speech", t.Wav2Vec2Config(**large, **wide, **stable)),
        "wavlm-base-plus": ("speech", t.WavLMConfig(**base)),
        "wavlm-large": ("speech", t.WavLMConfig(**large, **wide, **stable)),
        "whisper-tiny": ("speech", t.WhisperConfig(encoder_layers=4, d_model=384, **whisper)),
        "whisper-base": (
            "speech",
            t.WhisperConfig(
                encoder_layers=6,
                d_model=512,
                encoder_ffn_dim=2048,
                decoder_layers=1,
                encoder_attention_heads=8,
                decoder_attention_heads=8,
            ),
        ),
        "clip-vit-base-patch32": ("face", t.CLIPConfig()),
        "dinov2-small": (
            "face",
            t.Dinov2Config(
                hidden_size=384,
                num_hidden_layers=12,
                num_attention_heads=6,
                image_size=518,
                patch_size=14,
            ),
        ),
        "resnet18": ("face", "timm"),
        "multilingual-e5-small": (
            "text",
            t.BertConfig(**small, intermediate_size=1536, vocab_size=250_037),
        ),
        "xlm-roberta-base": ("text", t.XLMRobertaConfig(**base, vocab_size=250_002)),
    }


def main() -> None:
    import timm
    import transformers as t

    from extract import encoders

    if sys.argv[1:] == ["--share"]:
        return share_of_the_pass()

    rng = np.random.default_rng(0)
    shown = {
        "speech": rng.normal(0, 0.1, 16_000 * SECONDS).astype("f4"),
        "face": rng.integers(0, 255, (10 * SECONDS, 160, 160, 3)).astype("u1"),
        "text": SENTENCE,
    }
    t.logging.set_verbosity_error()
    t.logging.disable_progress_bar()
    chosen = {name: row for name, row in tables().items() if name in (sys.argv[1:] or tables())}
    print(f"{'encoder':<24}{'sees':<8}{'million weights':>16}{'s per clip':>12}")
    for name, (sees, config) in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            if config == "timm":
                model, library = timm.create_model(name, num_classes=0), "timm:local-dir"
                timm.models.save_for_hf(model, folder)
            else:
                model, library = t.AutoModel.from_config(config), "hf"
                save(model, sees, Path(folder))
            _, settings = encoders.parse(f"x={sees}:{library}:{folder}")
            times = []
            for _ in range(REPEATS + 1):
                start = time.perf_counter()
                encoders.encode(settings, "cpu", shown[sees])
                times.append(time.perf_counter() - start)
            encoders.load.cache_clear()
        decodes = getattr(config, "is_encoder_decoder", False)
        seen = model.get_encoder() if decodes else model
        seen = getattr(seen, "vision_model", seen)
        weights = sum(weight.numel() for weight in seen.parameters()) / 1e6
        print(
            f"{name:<24}{sees:<8}{weights:>16.0f}{statistics.median(times[1:]):>12.2f}", flush=True
        )


def share_of_the_pass() -> None:
    """The encoder's own part of the time in which preprocess.py makes its features of 40 sounds:
    what is left is reading, writing and book-keeping."""
    import transformers as t
    from scipy.io import wavfile

    import preprocess
    from extract import corpus, encoders
    from utils.stopwatch import seconds, timed

    t.logging.set_verbosity_error()
    t.logging.disable_progress_bar()
    encoders.encode = timed("encoder")(encoders.encode)
    corpus.encode_clips = timed("pass")(corpus.encode_clips)
    for name in ("whisper-tiny", "wav2vec2-base"):
        with tempfile.TemporaryDirectory() as folder:
            sees, config = tables()[name]
            save(t.AutoModel.from_config(config), sees, Path(folder))
            seconds.clear()
            rng, rows = np.random.default_rng(0), ["media,split,emotion"]
            for number in range(40):
                noise = rng.normal(0, 3_000, 16_000 * SECONDS).astype(np.int16)
                wavfile.write(f"{folder}/{number}.wav", 16_000, noise)
                rows.append(f"{number}.wav,train,hap")
            Path(folder, "manifest.csv").write_text("\n".join(rows))
            sys.argv = ["preprocess.py", "--corpus", "csv", "--data_dir", folder]
            sys.argv += ["--features_dir", f"{folder}/features", "--modalities", sees]
            sys.argv += ["--encoder", f"x={sees}:hf:{folder},pool=5"]
            preprocess.main()
        print(f"{name}: {seconds['encoder'] / seconds['pass']:.3f} of {seconds['pass']:.0f} s")


def save(model: Any, sees: str, folder: Path) -> None:
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    model.save_pretrained(folder)
    if sees == "speech":
        kind = t.WhisperFeatureExtractor if "whisper" in model.config.model_type else None
        (kind or t.Wav2Vec2FeatureExtractor)().save_pretrained(folder)
    elif sees == "face":
        t.ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    else:
        known = {word: number for number, word in enumerate(["[UNK]", *SENTENCE.split()])}
        tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
        fast.save_pretrained(folder)


if __name__ == "__main__":
    main()

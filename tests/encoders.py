"""Small random models of every kind of encoder, saved as the hub saves them, to load offline."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from extras import need

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test asks the internet
need("transformers")
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 37}
SOUND = {"conv_dim": (16,) * 7, "num_feat_extract_layers": 7, "num_conv_pos_embeddings": 16}
SOUND |= {"num_conv_pos_embedding_groups": 2}
IMAGE = {"image_size": 32, "patch_size": 8}
WORDS = {"vocab_size": 40, "max_position_embeddings": 66}
TOKENS = ("[PAD]", "[UNK]", "a", "good", "day", "no", "안녕", "나쁘지", "않아", "नमस्ते", "今日")


def a_voice(config: type, **changes: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        model = transformers.AutoModel.from_config(config(**SMALL, **SOUND, **changes))
        model.save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)

    return make


def whisper(folder: Path) -> None:
    size = dict(encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=37, d_model=32)
    size |= dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=37, vocab_size=60)
    special = dict.fromkeys(("pad", "bos", "eos", "decoder_start"), 1)
    config = transformers.WhisperConfig(
        **size, **{f"{name}_token_id": value for name, value in special.items()}
    )
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)


def a_picture(config: type, **changes: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        model = transformers.AutoModel.from_config(config(**SMALL, **IMAGE, **changes))
        model.save_pretrained(folder)
        square = {"height": 32, "width": 32}
        transformers.ViTImageProcessor(size=square).save_pretrained(folder)

    return make


def both(config: type) -> Callable[[Path], None]:
    """A model of pictures and words, of which faces see the first half."""

    def make(folder: Path) -> None:
        words = SMALL | {"vocab_size": 40}
        parts = {"vision_config": SMALL | IMAGE, "text_config": words}
        model = transformers.AutoModel.from_config(config(**parts))
        model.save_pretrained(folder)
        square = {"height": 32, "width": 32}
        transformers.ViTImageProcessor(size=square).save_pretrained(folder)

    return make


def videomae(folder: Path) -> None:
    config = transformers.VideoMAEConfig(**SMALL, **IMAGE, num_frames=16)
    transformers.VideoMAEModel(config).save_pretrained(folder)
    size = {"shortest_edge": 32}
    processor = transformers.VideoMAEImageProcessor(
        size=size, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder)


def swin(folder: Path) -> None:
    """Its layers are of several sizes: no encoder here."""
    size = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "window_size": 4}
    config = transformers.SwinConfig(**size, depths=[1, 1], num_heads=[2, 2])
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def vit_mae(folder: Path) -> None:
    """It hides three quarters of a picture at random, in evaluation, too: no encoder here."""
    a_picture(transformers.ViTMAEConfig)(folder)


def some_words(config: type) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        model = transformers.AutoModel.from_config(config(**SMALL, **WORDS, pad_token_id=0))
        model.save_pretrained(folder)
        numbers = {token: number for number, token in enumerate(TOKENS)}
        tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
        ).save_pretrained(folder)

    return make


def a_recogniser(folder: Path) -> None:
    """A Whisper in the format of faster-whisper that hears "good day" a second long, in any sound:
    each place of its decoder is made near to the piece that is due there."""
    import torch
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    end, begin = "<|endoftext|>", "<|startoftranscript|>"
    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    pieces = {letter: at for at, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    merges = []
    for word in ("Ġgood", "Ġday"):  # a byte-level space in front of each
        for at in range(1, len(word)):
            merges.append((word[:at], word[at]))
            pieces.setdefault(word[: at + 1], len(pieces))
    spelling = Tokenizer(models.BPE(vocab=pieces, merges=merges))
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    spelling.add_special_tokens([end, begin, *(f"<|{task}|>" for task in tasks)])
    spelling.add_tokens([f"<|{at / 50:.2f}|>" for at in range(1501)])  # the times of 30 s
    number = spelling.token_to_id

    size = dict(encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64, d_model=64)
    size |= dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64)
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), number(end))
    starts = {"decoder_start_token_id": number(begin)}
    config = transformers.WhisperConfig(
        vocab_size=spelling.get_vocab_size(), **size, **ends, **starts
    )
    model = transformers.WhisperForConditionalGeneration(config)
    decoder = model.model.decoder
    due = ["<|0.00|>", "Ġgood", "Ġday", "<|1.00|>", *[end] * (config.max_target_positions - 4)]
    with torch.no_grad():
        for name, weights in decoder.layers.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                weights.zero_()  # the layer adds nothing
        decoder.embed_tokens.weight.normal_().div_(decoder.embed_tokens.weight.norm(dim=1)[:, None])
        places = [number(piece) for piece in due]
        decoder.embed_positions.weight.copy_(30 * decoder.embed_tokens.weight[places])
    model.generation_config = transformers.GenerationConfig(
        **starts, no_timestamps_token_id=number("<|notimestamps|>"), suppress_tokens=[]
    )
    as_published = folder.with_suffix(".hf")
    model.save_pretrained(as_published)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=spelling, bos_token=end, eos_token=end, unk_token=end
    ).save_pretrained(as_published)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(as_published)
    copied = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(as_published), copy_files=copied).convert(str(folder))


VOICES = {
    "wav2vec2": a_voice(transformers.Wav2Vec2Config),
    "hubert": a_voice(transformers.HubertConfig),
    "wavlm": a_voice(transformers.WavLMConfig),
    "data2vec": a_voice(transformers.Data2VecAudioConfig, conv_pos_kernel_size=3),
    "whisper": whisper,
}
FACES = {
    "vit": a_picture(transformers.ViTConfig),
    "dinov2": a_picture(transformers.Dinov2Config),
    "clip": both(transformers.CLIPConfig),
    "siglip": both(transformers.SiglipConfig),
    "videomae": videomae,
}
TEXTS = {
    "bert": some_words(transformers.BertConfig),
    "xlm_r": some_words(transformers.XLMRobertaConfig),
}


def make_models(folder: Path, *names: str) -> dict[str, Path]:
    """{kind: folder} of these kinds, of all without names."""
    import torch

    makers = VOICES | FACES | TEXTS
    for name in names or makers:
        torch.manual_seed(0)
        makers[name](folder / name)
    return {name: folder / name for name in names or makers}

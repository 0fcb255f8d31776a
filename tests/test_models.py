"""The models: shapes, what must not change a clip's logits, what a fusion can learn, weights that
move name for name."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet
from torch.nn.functional import pad

from models import build_model
from models.backbone import Backbone, load_pretrained, set_batchnorm_momentum
from models.features import SequenceEncoder, VectorEncoder
from models.fusion import FUSIONS, Tokens
from models.pooling import POOLINGS, FrameAttention
from training.losses import cross_entropy, smooth_one_hot
from training.tasks import TASKS, model_arch, recipe

MODES = list(TASKS)
SMALL = {"speech_coeff": 0, "face_coeff": 0, "text_layers": 2}


def arch_of(mode: str, word_dim: int = 16, **settings) -> dict:
    shapes = {"speech": (128, None), "face": (None, None, None, 3), "text": (1, word_dim)}
    return model_arch(TASKS[mode], recipe(mode) | SMALL | settings, 7, shapes)


@lru_cache
def make_model(mode: str, word_dim: int = 16) -> torch.nn.Module:
    """A small model whose batch-norm statistics fit its inputs, in eval mode."""
    torch.manual_seed(0)
    model = build_model(**arch_of(mode, word_dim))
    set_batchnorm_momentum(model, 1.0)
    with torch.no_grad():
        model.train()(draw_inputs(mode, word_dim=word_dim))
    return model.eval()


def draw_inputs(mode: str, words: int = 10, word_dim: int = 16, seed: int = 1) -> dict:
    """Four clips, with 1, 3, 5 and 7 words, and 96, 60, 30 and 20 columns of sound."""
    torch.manual_seed(seed)
    columns, lengths = torch.arange(96), torch.tensor([[96, 60, 30, 20]]).T
    real = (columns - 47.5).abs() < lengths / 2
    every = {
        "speech": (torch.rand(4, 1, 64, 96) * real[:, None, None], real),
        "face": (torch.rand(4, 3, 3, 48, 48),),
        "text": (
            torch.randn(4, words, word_dim),
            torch.arange(words) < torch.tensor([[1, 3, 5, 7]]).T,
        ),
    }
    return {name: every[name] for name in TASKS[mode].inputs}


def pick(inputs: dict, clips: slice | list) -> dict:
    return {name: tuple(tensor[clips] for tensor in given) for name, given in inputs.items()}


def loss_of(prediction) -> torch.Tensor:
    classes = next(iter(prediction.logits.values())).shape[1]
    target = smooth_one_hot(torch.arange(4) % classes, classes, 0.1)
    return cross_entropy(prediction, dict.fromkeys(prediction.logits, target), {}, {"lam": 2.0})


@pytest.fixture(scope="module", params=MODES)
def case(request):
    return request.param, make_model(request.param), draw_inputs(request.param)


@torch.inference_mode()
def test_every_head_gives_logits_for_every_class(case):
    mode, model, inputs = case
    logits, vectors = model(inputs)
    assert list(logits) == list(TASKS[mode].heads)
    assert all(each.shape == (4, 7) and each.isfinite().all() for each in logits.values())
    for name, encoder in model.encoders.items():
        assert vectors[name].shape == (4, encoder.pooling.out_dim)


def check_batch_mates(model, inputs: dict, others: dict) -> None:
    """A clip has the same logits alone, and among three strangers in its own place."""
    together = model(inputs).logits
    for clip in range(4):
        alone = model(pick(inputs, [clip])).logits
        mates = {
            name: tuple(
                torch.cat([b[:clip], a[clip : clip + 1], b[clip + 1 :]])
                for a, b in zip(given, others[name], strict=True)
            )
            for name, given in inputs.items()
        }
        for head, logits in model(mates).logits.items():
            torch.testing.assert_close(logits[clip], together[head][clip], atol=1e-5, rtol=0)
            torch.testing.assert_close(alone[head][0], together[head][clip], atol=1e-5, rtol=0)
    for logits in together.values():  # otherwise the test could not fail
        assert torch.pdist(logits).min() > 1e-3, "all clips look the same to this model"


@pytest.mark.parametrize("grad", [True, False])  # torch has another Transformer without gradients
def test_a_clip_ignores_its_batch_mates(case, grad):
    mode, model, inputs = case
    with torch.set_grad_enabled(grad):
        check_batch_mates(model, inputs, draw_inputs(mode, seed=2))


@pytest.mark.parametrize("mode", ["text", "multimodal"])
@torch.inference_mode()
def test_padded_words_do_not_matter(mode):
    model, inputs = make_model(mode), draw_inputs(mode)
    words, mask = inputs["text"]
    longer = torch.full((4, 38, 16), 50.0)  # not zeros: nothing may look at it
    longer[:, :10] = torch.where(mask.unsqueeze(-1), words, -50.0)
    padded = inputs | {"text": (longer, pad(mask, (0, 28)))}
    for head, logits in model(padded).logits.items():
        torch.testing.assert_close(logits, model(inputs).logits[head], atol=1e-5, rtol=0)
    fewer = inputs | {"text": (words, mask & (torch.arange(10) < 2))}
    head = TASKS[mode].main_head
    assert (model(fewer).logits[head] - model(inputs).logits[head])[1:].abs().max() > 1e-4


# Parts of a picture


@torch.inference_mode()
def test_parts_of_a_face_are_told_apart():
    """Parts of a picture change places. The mean over all of it sees nothing of that, they do."""
    torch.manual_seed(0)
    kind = {"face_backbone": "small-16", "face_lstm": False}
    encoders = [
        build_model(**arch_of("face", **kind, face_grid=grid)).eval().encoders["face"]
        for grid in (1, 3)
    ]
    faces = torch.rand(1, 2, 3, 48, 48)
    faces[..., :16, :] = 0
    moved = torch.cat([faces[..., 16:, :], faces[..., :16, :]], dim=3)
    changes = []
    for encoder in encoders:
        for layer in encoder.backbone.modules():  # a point sees itself: no padding, no edge
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight[..., [0, 2], :], layer.weight[..., [0, 2]] = 0, 0
        changes.append((encoder(faces)[0] - encoder(moved)[0]).abs().max())
    assert encoders[1].token_dim == 9 * encoders[0].token_dim
    assert changes[0] < 1e-5 and changes[1] > 100 * changes[0]


# Features as they are


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [
        (VectorEncoder(6, hidden=0), (6,)),
        (VectorEncoder(6, hidden=0, layers=3), (3, 6)),
        (SequenceEncoder(6, body="none", pooling="mean"), (5, 6)),
        (SequenceEncoder(6, body="none", pooling="mean", layers=3), (3, 5, 6)),
    ],
)
@torch.no_grad()
def test_features_as_they_are_weigh_the_same_whatever_their_number(encoder, shape):
    """--feature_encoder none: each value standardized, all of them together of variance 1; a linear
    head on them is a logistic regression."""
    torch.manual_seed(0)
    x = 3 * torch.randn(64, *shape) + 100 * torch.rand(6)
    tokens, mask = encoder.train()(x)
    assert tokens.shape == (64, 5 if 5 in shape else 1, 6) and mask.all()
    assert tokens.square().sum(dim=2).mean() == pytest.approx(1, abs=0.01)
    assert tokens.mean(dim=(0, 1)).abs().max() < 1e-4
    assert encoder.pooling.out_dim == 6
    learnt = sum(each.numel() for each in encoder.parameters())
    assert learnt == 12 + 3 * (3 in shape), "scale and shift of each value, shares of the layers"


@torch.no_grad()
def test_a_value_that_never_varied_does_not_say_all():
    """Such as what a part of the face shows in one person alone, who was in no training."""
    encoder = VectorEncoder(6, hidden=0)
    for _ in range(200):
        encoder.train()(torch.randn(8, 6) * torch.tensor([0.0, 1, 1, 1, 1, 1]))
    tokens, _ = encoder.eval()(torch.tensor([[0.5, 0, 0, 0, 0, 0]]))
    assert tokens.abs().max() <= 4 / 6**0.5


# Padding of sound


@pytest.mark.parametrize("pooling", ["attention", "relation"])
@torch.inference_mode()
def test_silence_around_a_short_clip_has_no_weight(pooling):
    """Whatever its amount; the 60 real columns of the clip share all of the weight."""
    torch.manual_seed(0)
    encoder = build_model(**arch_of("speech", pooling=pooling)).eval().encoders["speech"]
    for columns in (128, 400):
        clip = slice((columns - 60) // 2, (columns - 60) // 2 + 60)
        log_mel, real = torch.zeros(1, 1, 64, columns), torch.zeros(1, columns, dtype=torch.bool)
        log_mel[..., clip], real[:, clip] = torch.rand(64, 60), True
        tokens, mask = encoder(log_mel, real)
        weights = encoder.pooling.weights(tokens, mask)
        has_sound = torch.tensor([chunk.any() for chunk in real[0].split(32)])
        assert torch.equal(mask[0], has_sound) and has_sound.sum() <= 3
        assert (weights[0, ~has_sound] == 0).all() and (weights[0, has_sound] > 0.01).all()
        assert weights.sum() == pytest.approx(1)
        louder = torch.where(mask.unsqueeze(2), tokens, 9.0)
        torch.testing.assert_close(encoder.pooling(louder, mask), encoder.pooling(tokens, mask))


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.inference_mode()
def test_padding_changes_no_vector_and_no_share_of_a_real_token(pooling):
    torch.manual_seed(0)
    made, tokens = POOLINGS[pooling](6), torch.randn(3, 5, 6)
    mask = torch.ones(3, 5, dtype=torch.bool)
    expected = made(tokens, mask)
    for before, behind in ((0, 1), (2, 0), (7, 30)):
        longer = pad(tokens, (0, 0, before, behind), value=50.0)
        padded = pad(mask, (before, behind))
        torch.testing.assert_close(made(longer, padded), expected, atol=1e-6, rtol=1e-5)
        if pooling != "mean":
            shares = made.weights(longer, padded)
            assert (shares[~padded] == 0).all()
            torch.testing.assert_close(shares[padded].view(3, 5), made.weights(tokens, mask))
    assert expected.shape == (3, made.out_dim)


@pytest.mark.parametrize("relation", [False, True])
def test_frame_attention_is_its_formula(relation):
    torch.manual_seed(0)
    attention, x = FrameAttention(5, relation), torch.randn(3, 4, 5)
    lengths = (4, 1, 3)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]

    def sigmoid(layer, values):
        weight, bias = layer.weight.detach().numpy()[0], layer.bias.item()
        return 1 / (1 + np.exp(-(values @ weight + bias)))

    results = attention(x, mask).detach().numpy()
    for clip, length, result in zip(x.numpy(), lengths, results, strict=True):
        clip = clip[:length]
        weight = sigmoid(attention.score, clip) + 1e-3
        expected = sum(w * frame for w, frame in zip(weight, clip, strict=True)) / weight.sum()
        if relation:
            pairs = np.array([np.concatenate([frame, expected]) for frame in clip])
            both = weight * sigmoid(attention.relation_score, pairs)
            expected = (pairs * both[:, None]).sum(0) / both.sum()
        np.testing.assert_allclose(result, expected, atol=1e-6)
    assert attention.out_dim == expected.size == (10 if relation else 5)


def test_attention_weights_sum_to_one_and_no_real_token_has_none():
    attention, mask = FrameAttention(6), torch.ones(1, 6, dtype=torch.bool)
    with torch.no_grad():
        attention.score.weight.copy_(torch.tensor([[-90.0, -9, -1, 0, 1, 9]]))
        weights = attention(torch.eye(6).unsqueeze(0), mask)  # of unit vectors it gives its weights
        torch.testing.assert_close(attention.weights(torch.eye(6).unsqueeze(0), mask), weights)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 1e-3 / 6.006


# Fusions


WORDS = {"type": "TextTransformer", "dim": 8, "layers": 1, "heads": 2}


def small_fusion(fusion: str, pooling: str = "attention", **options) -> torch.nn.Module:
    """A sequence, words and a vector; `rows` and `words` have heads of their own."""
    torch.manual_seed(0)
    encoders = {
        "rows": {"type": "SequenceEncoder", "dim": 3, "hidden": 8, "pooling": pooling},
        "words": WORDS | {"pooling": pooling},
        "vector": {"type": "VectorEncoder", "dim": 4, "hidden": 8, "pooling": pooling},
    }
    heads = {"all": list(encoders), "words": ["words"]}
    return build_model(encoders, heads, 5, fusion, **options).eval()


def fusion_inputs(seed: int = 1) -> dict:
    torch.manual_seed(seed)
    mask = torch.arange(6) < torch.tensor([[1, 3, 6, 4]]).T
    words = torch.where(mask.unsqueeze(2), torch.randn(4, 6, 8), 50.0)
    return {"rows": (torch.randn(4, 5, 3),), "words": (words, mask), "vector": (torch.randn(4, 4),)}


EVERY_FUSION = pytest.mark.parametrize(("fusion", "pooling"), list(product(FUSIONS, POOLINGS)))


@EVERY_FUSION
def test_in_every_fusion_a_clip_ignores_its_batch_mates(fusion, pooling):
    check_batch_mates(small_fusion(fusion, pooling), fusion_inputs(1), fusion_inputs(2))


@EVERY_FUSION
@torch.inference_mode()
def test_in_every_fusion_padded_tokens_do_not_matter(fusion, pooling):
    model = small_fusion(fusion, pooling)
    tokens = model.encode(fusion_inputs())
    expected = model.classify(tokens)
    for name, (before, behind) in product(tokens, [(0, 3), (2, 9)]):
        x, mask = tokens[name]
        longer = Tokens(pad(x, (0, 0, before, behind), value=50.0), pad(mask, (before, behind)))
        found = model.classify(tokens | {name: longer})
        for pair in zip([*found.logits.values()], [*expected.logits.values()], strict=True):
            torch.testing.assert_close(*pair, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.vectors[name], expected.vectors[name])
    x, mask = tokens["words"]
    fewer = tokens | {"words": Tokens(x, mask & (torch.arange(6) < 2))}
    assert (model.classify(fewer).logits["all"] - expected.logits["all"])[1:].abs().max() > 1e-4


@EVERY_FUSION
@torch.inference_mode()
def test_a_left_out_input_equals_a_missing_one(fusion, pooling):
    model = small_fusion(fusion, pooling, learn_missing=True)
    for token in model.missing.values():
        torch.nn.init.normal_(token)
    tokens, clips = model.encode(fusion_inputs()), torch.tensor([True, False, True, False])
    full = model.classify(tokens).logits
    for name in tokens:
        some = {other: each for other, each in tokens.items() if other != name}
        missing = model.classify(some).logits
        mixed = model.classify(tokens, {name: clips}).logits
        assert list(missing) == [head for head in ("all", "words") if head != name]
        torch.testing.assert_close(mixed["all"][clips], missing["all"][clips], atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed["all"][~clips], full["all"][~clips], atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed["words"], full["words"])  # its own head sees the clip
        assert (mixed["all"] - full["all"])[clips].abs().min() > 1e-6, "nothing was left out"
    both = model.classify({"vector": tokens["vector"]}).logits
    pair = model.classify(tokens, {"rows": clips, "words": clips}).logits
    torch.testing.assert_close(pair["all"][clips], both["all"][clips], atol=1e-5, rtol=0)


@EVERY_FUSION
def test_every_parameter_of_a_fusion_learns(fusion, pooling):
    """One without a gradient stops several processes: DDP waits for it."""
    model = small_fusion(fusion, pooling, learn_missing=True).train()
    nothing = torch.zeros(4, dtype=torch.bool)
    loss_of(model(fusion_inputs(), dict.fromkeys(model.missing, nothing))).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_every_fusion_is_near(fusion, dtype):
    model, inputs = small_fusion(fusion, "relation", learn_missing=True), fusion_inputs()
    left_out = {"rows": torch.tensor([True, False, False, True])}
    with torch.autocast("cpu", dtype=dtype):
        half = model(inputs, left_out).logits
    for head, logits in model(inputs, left_out).logits.items():
        torch.testing.assert_close(half[head].float(), logits, atol=0.05, rtol=0.05)


def bits(repeats: list[int]) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Two inputs that show a bit each, the pairs 00, 01, 10, 11 so often; and the bits."""
    torch.manual_seed(0)
    pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    x, y = pairs.repeat_interleave(torch.tensor(repeats), dim=0).T
    noise = 0.1 * torch.randn(2, len(x), 3)
    shown = {"x": (2.0 * x[:, None] - 1 + noise[0],), "y": (2.0 * y[:, None] - 1 + noise[1],)}
    return shown, x, y


def learn(fusion: str, inputs: dict, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """{head: probabilities} of a small model that has learnt these clips."""
    torch.manual_seed(1)
    encoder = {"type": "VectorEncoder", "dim": 3, "hidden": 16, "dropout": 0.0}
    heads, classes = {"both": ["x", "y"], "x": ["x"], "y": ["y"]}, int(labels.max()) + 1
    model = build_model({"x": encoder, "y": encoder}, heads, classes, fusion)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    targets = dict.fromkeys(heads, smooth_one_hot(labels, classes, 0.0))
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets, {}, {"lam": 1.0}).backward()
        optimizer.step()
    with torch.inference_mode():
        logits = model.eval()(inputs).logits
    return {head: each.softmax(dim=1) for head, each in logits.items()}


def accuracy(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    return (probabilities.argmax(dim=1) == labels).float().mean().item()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_learns_what_the_mean_of_its_parts_cannot(fusion):
    """x + y: who sees one bit has to say 1, the likelier sum, so their mean does too."""
    inputs, x, y = bits([8, 16, 16, 8])
    found = learn(fusion, inputs, x + y)
    assert accuracy(found["both"], x + y) > 0.95
    assert accuracy((found["x"] + found["y"]) / 2, x + y) < 0.75


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusions_that_compare_their_inputs_learn_exclusive_or(fusion):
    """Sums of what each input says (concat, late) never get more than three of the four pairs."""
    inputs, x, y = bits([12, 12, 12, 12])
    right = accuracy(learn(fusion, inputs, x ^ y)["both"], x ^ y)
    assert right > 0.95 if fusion in ("gated", "attention", "crossattention") else right < 0.8


# Weights and precision


@pytest.mark.parametrize("mode", MODES)
def test_parameters_are_named_after_modality_and_head(mode):
    modalities, heads = "|".join(TASKS[mode].inputs), "|".join(TASKS[mode].heads)
    with torch.device("meta"):
        names, fusion = (build_model(**arch_of(each)).state_dict() for each in (mode, "multimodal"))
    pattern = rf"(encoders\.({modalities})|heads\.({heads}))\..+"
    assert [name for name in names if not re.fullmatch(pattern, name)] == []
    encoders = {name for name in names if name.startswith("encoders.")}
    assert encoders <= set(fusion), "an encoder has other names in the multimodal model"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(case, dtype):
    _, model, inputs = case
    with torch.autocast("cpu", dtype=dtype):
        prediction = model(inputs)
        loss = loss_of(prediction)
    assert all(each.isfinite().all() for each in prediction.logits.values())
    full = model(inputs).logits
    for head, each in prediction.logits.items():
        assert (each.float() - full[head]).abs().max() < 0.2, "half precision changes the logits"
    if dtype is torch.bfloat16:
        loss.backward()
        bad = [n for n, p in model.named_parameters() if not p.grad.isfinite().all()]
        model.zero_grad()
        assert bad == []


@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_learns(mode):
    model = build_model(**arch_of(mode)).train()
    loss_of(model(draw_inputs(mode))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("word_dim", [25, 200, 300])
@torch.inference_mode()
def test_any_word_size(word_dim):
    model, inputs = make_model("text", word_dim), draw_inputs("text", word_dim=word_dim)
    assert model(inputs).logits["text"].shape == (4, 7)
    assert model.encode(inputs)["text"].x.shape == (4, 10, -(-word_dim // 8) * 8)


# Backbones


CHANNELS = (1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560)


@pytest.mark.parametrize("coeff", range(8))
def test_every_efficientnet_builds(coeff):
    with torch.device("meta"):
        backbone = Backbone(f"efficientnet-b{coeff}", in_channels=1)
        features = backbone.eval()(torch.empty(1, 1, 128, 400))
    assert features.shape == (1, CHANNELS[coeff], 4, 13)
    assert backbone.out_channels == CHANNELS[coeff] and backbone.stride == 32


def random_statistics(backbone: torch.nn.Module) -> None:
    for tensor in backbone.state_dict().values():  # statistics that are not 0 and 1
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.add_(torch.rand_like(tensor) * 0.1)


@torch.no_grad()
def test_the_backbone_is_the_librarys_own_network():
    """Padding without copies changes no value, at odd and even sizes, from one pixel on."""
    torch.manual_seed(0)
    ours = Backbone("efficientnet-b0", 3).eval()
    random_statistics(ours.trunk)
    own = EfficientNet.from_name("efficientnet-b0", image_size=None).eval()
    missing, extra = own.load_state_dict(ours.trunk.state_dict(), strict=False)
    assert missing == ["_fc.weight", "_fc.bias"] and not extra
    for size in ((64, 64), (65, 97), (70, 44), (1, 2)):
        images = torch.rand(2, 3, *size)
        expected, found = own.extract_features(images), ours(images)
        assert expected.std() > 1e-3 and found.shape == expected.shape
        assert (found - expected).norm() < 1e-5 * expected.norm(), size


def test_the_backbones_gradients_are_the_librarys_own():
    torch.manual_seed(0)
    ours = Backbone("efficientnet-b0", 1).eval()
    own = EfficientNet.from_name("efficientnet-b0", in_channels=1, image_size=None).eval()
    own.load_state_dict(ours.trunk.state_dict(), strict=False)
    images, gradients = torch.rand(2, 1, 47, 64), []
    for backbone, features in ((ours.trunk, ours(images)), (own, own.extract_features(images))):
        (
            features * torch.linspace(-1, 1, features[0].numel()).view_as(features[0])
        ).sum().backward()
        gradients.append(
            {name: p.grad for name, p in backbone.named_parameters() if not name.startswith("_fc")}
        )
    for name, expected in gradients[1].items():
        difference = (gradients[0][name] - expected).norm()
        assert difference <= 1e-4 * expected.norm() + 1e-7, name


@torch.inference_mode()
def test_both_efficientnet_libraries_agree():
    ours = Backbone("efficientnet-b0", 3).eval()
    timms = Backbone("timm:tf_efficientnet_b0", 3).eval()
    random_statistics(ours.trunk)
    pairs = zip(timms.trunk.state_dict().values(), ours.trunk.state_dict().values(), strict=True)
    for theirs, tensor in pairs:
        theirs.copy_(tensor)
    assert timms.stride == ours.stride
    for size in ((64, 64), (65, 97), (70, 44)):
        images = torch.rand(2, 3, *size)
        expected = ours(images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(timms(images), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["efficientnet-b0", "timm:tf_efficientnet_b0"])
def test_pretrained_weights_from_a_file_or_a_folder(name, tmp_path):
    source = Backbone(name, 3).eval()
    file = tmp_path / f"{name.removeprefix('timm:')}-1234.pth"
    classifier = {"_fc.weight": torch.zeros(1000, 1280), "classifier.bias": torch.zeros(1000)}
    torch.save(source.trunk.state_dict() | classifier, file)
    for place in (file, tmp_path):
        color = Backbone(name, 3).eval()
        assert load_pretrained(color, str(place)) == str(file)
        for key, tensor in source.state_dict().items():
            assert torch.equal(color.state_dict()[key], tensor), key
    grey = Backbone(name, 1).eval()
    load_pretrained(grey, str(file))
    picture = torch.rand(1, 1, 64, 64)
    stem = next(iter(source.trunk.state_dict()))
    expected = source.trunk.state_dict()[stem].sum(1, keepdim=True)
    torch.testing.assert_close(grey.trunk.state_dict()[stem], expected)
    torch.testing.assert_close(
        grey(picture), source(picture.expand(-1, 3, -1, -1)), atol=1e-4, rtol=0
    )


def test_wrong_pretrained_weights_are_refused(tmp_path):
    backbone = Backbone("efficientnet-b0", 3)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    torch.save(Backbone("timm:tf_efficientnet_b0", 3).trunk.state_dict(), tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"the first is _conv_stem\.weight"):
        load_pretrained(backbone, str(tmp_path / "wrong.pth"))
    with pytest.raises(FileNotFoundError):
        load_pretrained(backbone, str(tmp_path / "absent.pth"))
    assert all(torch.equal(before[name], now) for name, now in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("efficientnet-b9", "efficientnet"),
        ("timm:resnet18x", "did you mean resnet18,"),
        ("timm:zzqq", "list_models"),
    ],
)
def test_unknown_backbones_are_refused(name, says):
    wrong = {"type": "AttnCNN", "backbone": name}
    with pytest.raises(ValueError, match=says):
        build_model({"speech": wrong}, {"speech": ["speech"]}, 7)


def test_without_learnt_tokens_a_fusion_needs_all_inputs():
    model = small_fusion("concat")
    tokens = model.encode(fusion_inputs())
    some = {name: each for name, each in tokens.items() if name != "rows"}
    assert list(model.classify(some).logits) == ["words"], "no zeros pretend to be an input"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_modality_dropout_alone_gives_a_model_its_learnt_tokens(dropout):
    arch = arch_of("multimodal", modality_dropout=dropout)
    assert arch["learn_missing"] == (dropout > 0)
    assert not arch_of("speech", modality_dropout=dropout)["learn_missing"]
    with torch.device("meta"):
        missing = build_model(**arch).missing
    assert set(missing) == (set(arch["encoders"]) if dropout else set())

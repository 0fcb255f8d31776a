"""The models: shapes, what must not change a clip's answer, weights that move name for name."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from models import build_model
from models.attention import FrameAttention
from models.backbone import Backbone, load_pretrained, set_batchnorm_momentum
from models.convolutions import DepthwiseConv2d
from training.losses import multi_task_loss, smooth_one_hot
from training.tasks import TASKS, model_arch, recipe

MODES = list(TASKS)


def make_model(mode: str, word_dim: int = 16) -> torch.nn.Module:
    """A small model whose batch-norm statistics fit its inputs, in eval mode."""
    torch.manual_seed(0)
    config = recipe(mode) | {"speech_coeff": 0, "face_coeff": 0, "text_layers": 2}
    model = build_model(**model_arch(TASKS[mode], config, 7, {"text": (1, word_dim)}))
    set_batchnorm_momentum(model, 1.0)
    with torch.no_grad():
        model.train()(draw_inputs(mode, word_dim=word_dim))
    return model.eval()


def draw_inputs(mode: str, words: int = 10, word_dim: int = 16, seed: int = 1) -> dict:
    """Four clips, with 1, 3, 5 and 7 words."""
    torch.manual_seed(seed)
    every = {
        "speech": (torch.rand(4, 1, 128, 64),),
        "face": (torch.rand(4, 3, 3, 48, 48),),
        "text": (
            torch.randn(4, words, word_dim),
            torch.arange(words) < torch.tensor([[1, 3, 5, 7]]).T,
        ),
    }
    return {name: every[name] for name in TASKS[mode].inputs}


def pick(inputs: dict, clips: slice | list) -> dict:
    return {name: tuple(tensor[clips] for tensor in given) for name, given in inputs.items()}


@pytest.fixture(scope="module", params=MODES)
def case(request):
    return request.param, make_model(request.param), draw_inputs(request.param)


@torch.inference_mode()
def test_every_head_gives_logits_for_every_class(case):
    mode, model, inputs = case
    logits = model(inputs)
    assert list(logits) == list(TASKS[mode].heads)
    assert all(each.shape == (4, 7) and each.isfinite().all() for each in logits.values())


@pytest.mark.parametrize("grad", [True, False])  # torch has another Transformer without gradients
def test_a_clip_ignores_its_batch_mates(case, grad):
    mode, model, inputs = case
    others = draw_inputs(mode, seed=2)
    with torch.set_grad_enabled(grad):
        together = model(inputs)
        for clip in range(4):
            alone = model(pick(inputs, [clip]))
            mates = {  # the clip among three strangers, in its own place
                name: tuple(
                    torch.cat([b[:clip], a[clip : clip + 1], b[clip + 1 :]])
                    for a, b in zip(given, others[name], strict=True)
                )
                for name, given in inputs.items()
            }
            for head, logits in model(mates).items():
                torch.testing.assert_close(logits[clip], together[head][clip], atol=1e-5, rtol=0)
                torch.testing.assert_close(alone[head][0], together[head][clip], atol=1e-5, rtol=0)
    for logits in together.values():  # otherwise the test could not fail
        assert torch.pdist(logits).min() > 1e-3, "all clips look the same to this model"


@pytest.mark.parametrize("mode", ["text", "multimodal"])
@torch.inference_mode()
def test_padding_does_not_matter(mode):
    model, inputs = make_model(mode), draw_inputs(mode)
    words, mask = inputs["text"]
    longer = torch.full((4, 38, 16), 50.0)  # not zeros: nothing may look at it
    longer[:, :10] = torch.where(mask.unsqueeze(-1), words, -50.0)
    padded = inputs | {"text": (longer, torch.nn.functional.pad(mask, (0, 28)))}
    for head, logits in model(padded).items():
        torch.testing.assert_close(logits, model(inputs)[head], atol=1e-5, rtol=0)
    fewer = inputs | {"text": (words, mask & (torch.arange(10) < 2))}
    answer = TASKS[mode].answer
    assert (model(fewer)[answer] - model(inputs)[answer])[1:].abs().max() > 1e-4


@pytest.mark.parametrize("shape", [(2, 8, 16, 25), (3, 5, 4, 7), (1, 8, 1, 1), (2, 3, 2, 9)])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_depthwise_convolution_has_its_gradients(shape, order):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(shape[1], shape[1], 5, padding=2, groups=shape[1], bias=False)
    quick = DepthwiseConv2d(shape[1], shape[1], 5, padding=2, groups=shape[1], bias=False)
    quick.load_state_dict(plain.state_dict())
    images, weights = torch.randn(shape).contiguous(memory_format=order), torch.randn(shape)
    results = []
    for layer in (plain, quick):
        given = images.clone().requires_grad_()
        made = layer(given)
        (made * weights).sum().backward()
        results.append([made, given.grad, layer.weight.grad])
    assert "Depthwise" in type(made.grad_fn).__name__
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert quick(images).dtype == torch.bfloat16
    assert "Depthwise" not in type(quick.eval()(images).grad_fn).__name__


@pytest.mark.parametrize(
    "name, layers", [("efficientnet-b0", 7), ("timm:mobilenetv3_small_100", 6)]
)
def test_wide_depthwise_filters_are_quick(name, layers):
    """All but those of stride 2, with gradients for every weight, or for none when frozen."""
    backbone = Backbone(name, 1)
    made = [each for each in backbone.modules() if isinstance(each, DepthwiseConv2d)]
    assert len(made) == layers
    wide = [each for each in backbone.modules() if getattr(each, "kernel_size", 0) == (5, 5)]
    assert all(tuple(each.stride) == (2, 2) for each in wide if each not in made)
    images = torch.randn(2, 1, 64, 64)
    made[0].weight.requires_grad_(False)
    backbone(images).sum().backward()
    assert made[0].weight.grad is None and all(each.weight.grad is not None for each in made[1:])


@pytest.mark.parametrize("relation", [False, True])
def test_frame_attention_is_its_formula(relation):
    torch.manual_seed(0)
    attention, x = FrameAttention(5, relation), torch.randn(3, 4, 5)

    def sigmoid(layer, values):
        weight, bias = layer.weight.detach().numpy()[0], layer.bias.item()
        return 1 / (1 + np.exp(-(values @ weight + bias)))

    for clip, result in zip(x.numpy(), attention(x).detach().numpy(), strict=True):
        weight = sigmoid(attention.score, clip) + 1e-3
        expected = sum(w * frame for w, frame in zip(weight, clip, strict=True)) / weight.sum()
        if relation:
            pairs = np.array([np.concatenate([frame, expected]) for frame in clip])
            both = weight * sigmoid(attention.relation_score, pairs)
            expected = (pairs * both[:, None]).sum(0) / both.sum()
        np.testing.assert_allclose(result, expected, atol=1e-6)
    assert attention.out_dim == expected.size == (10 if relation else 5)


def test_attention_weights_sum_to_one_and_none_is_zero():
    attention = FrameAttention(6)
    with torch.no_grad():
        attention.score.weight.copy_(torch.tensor([[-90.0, -9, -1, 0, 1, 9]]))
        weights = attention(torch.eye(6).unsqueeze(0))  # frames are unit vectors: out come weights
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 1e-3 / 6.006


@pytest.mark.parametrize("mode", MODES)
def test_parameters_are_named_after_modality_and_head(mode):
    modalities, heads = "|".join(TASKS[mode].inputs), "|".join(TASKS[mode].heads)
    names = list(make_model(mode).state_dict())
    pattern = rf"(encoders\.({modalities})|heads\.({heads}))\..+"
    assert [name for name in names if not re.fullmatch(pattern, name)] == []
    fusion = make_model("multimodal").state_dict()
    encoders = {name for name in names if name.startswith("encoders.")}
    assert encoders <= set(fusion), "an encoder has other names in the multimodal model"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(case, dtype):
    _, model, inputs = case
    with torch.autocast("cpu", dtype=dtype):
        logits = model(inputs)
        targets = {head: smooth_one_hot(torch.arange(4), 7, 0.1) for head in logits}
        loss = multi_task_loss(logits, targets, 2.0)
    assert all(each.isfinite().all() for each in logits.values())
    full = model(inputs)
    for head, each in logits.items():
        assert (each.float() - full[head]).abs().max() < 0.2, "half precision changes the answer"
    if dtype is torch.bfloat16:
        loss.backward()
        bad = [n for n, p in model.named_parameters() if not p.grad.isfinite().all()]
        model.zero_grad()
        assert bad == []


@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_learns(mode):
    model = make_model(mode).train()
    logits = model(draw_inputs(mode))
    targets = {head: smooth_one_hot(torch.arange(4), 7, 0.1) for head in logits}
    multi_task_loss(logits, targets, 2.0).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("word_dim", [25, 200, 300])
@torch.inference_mode()
def test_any_word_size(word_dim):
    model, inputs = make_model("text", word_dim), draw_inputs("text", word_dim=word_dim)
    assert model(inputs)["text"].shape == (4, 7)
    assert model.encode(inputs)["text"].shape == (4, -(-word_dim // 8) * 8)


CHANNELS = (1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560)


@pytest.mark.parametrize("coeff", range(8))
def test_every_efficientnet_builds(coeff):
    with torch.device("meta"):
        backbone = Backbone(f"efficientnet-b{coeff}", in_channels=1)
        features = backbone.eval()(torch.empty(1, 1, 128, 400))
    assert features.shape == (1, CHANNELS[coeff], 4, 13)
    assert backbone.out_channels == CHANNELS[coeff]


@torch.inference_mode()
def test_both_efficientnet_libraries_agree():
    ours = Backbone("efficientnet-b0", 3).eval()
    timms = Backbone("timm:tf_efficientnet_b0", 3).eval()
    for tensor in ours.trunk.state_dict().values():  # statistics that are not 0 and 1
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.add_(torch.rand_like(tensor) * 0.1)
    pairs = zip(timms.trunk.state_dict().values(), ours.trunk.state_dict().values(), strict=True)
    for theirs, tensor in pairs:
        theirs.copy_(tensor)
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
    ("wrong", "error"),
    [({"backbone": "efficientnet-b9"}, ValueError), ({"backbone": "timm:nothing"}, RuntimeError)],
)
def test_unknown_trunks_are_refused(wrong, error):
    with pytest.raises(error):
        build_model({"speech": {"type": "AttnCNN", **wrong}}, {"speech": ["speech"]}, 7)


def test_a_missing_input_has_a_learnt_vector_of_its_own():
    torch.manual_seed(0)
    config = recipe("multimodal") | {"speech_coeff": 0, "face_coeff": 0, "text_layers": 1}
    config |= {"modality_dropout": 0.3}
    model = build_model(**model_arch(TASKS["multimodal"], config, 7, {"text": (1, 16)})).eval()
    for vector in model.absent.values():
        torch.nn.init.normal_(vector)
    encoded = model.encode(draw_inputs("multimodal"))
    some = {name: vector for name, vector in encoded.items() if name != "face"}
    logits = model.classify(some)
    assert list(logits) == ["integrated", "speech"], "a head without its only input stays silent"
    clips = torch.tensor([True, False, True, False])
    mixed = model.classify(encoded, {"face": clips})
    torch.testing.assert_close(mixed["integrated"][clips], logits["integrated"][clips])
    full = model.classify(encoded)
    torch.testing.assert_close(mixed["integrated"][~clips], full["integrated"][~clips])
    torch.testing.assert_close(mixed["face"], full["face"])
    without = build_model(
        **model_arch(TASKS["multimodal"], config | {"modality_dropout": 0.0}, 7, {"text": (1, 16)})
    )
    assert list(without.classify(some)) == ["speech"], "no zeros pretend to be a face"

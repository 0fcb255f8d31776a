"""A checkpoint's model -> ONNX, every length and the batch open, with what its user must know."""

from __future__ import annotations

import json
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.ensemble import Member
from models.classifier import EmotionClassifier, Inputs
from training.modalities import SAME, Shape, modality
from training.views import row_with_faces


class Portable(nn.Module):
    """Tensors in the order of `example_inputs` -> probabilities (B, K) of each head."""

    def __init__(self, model: EmotionClassifier):
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs, left_out: Tensor | None) -> tuple[Tensor, ...]:
        return probabilities(self.model, inputs, left_out)


def probabilities(
    model: EmotionClassifier, inputs: Inputs, left_out: Tensor | None
) -> tuple[Tensor, ...]:
    columns = {}
    if left_out is not None:
        columns = dict(zip(model.encoders, left_out.unbind(1), strict=True))
    return tuple(each.softmax(dim=1) for each in model(inputs, columns).logits.values())


def example_inputs(member: Member, batch: int, length: int) -> tuple[Inputs, Tensor | None]:
    """Random inputs of one size, as the views make them: {modality: tensors}, and which of them
    are left out (B, M). Of masked inputs the last part is padding."""
    inputs: Inputs = {}
    for name, options in member.checkpoint["arch"]["encoders"].items():
        steps = modality(name).shortest * length
        features = [example_view(member, name, options, steps) for _ in range(batch)]
        columns = [torch.from_numpy(np.stack(each)) for each in zip(*features, strict=True)]
        for tensor in columns:
            if tensor.dtype == torch.bool:
                tensor[:, steps // 2 + 1 :] = False
        inputs[name] = tuple(
            tensor / 255 if tensor.dtype == torch.uint8 else tensor for tensor in columns
        )
    left_out = torch.arange(batch * len(inputs)).view(batch, -1) % 3 == 1
    return inputs, left_out if len(member.model.missing) else None


def example_view(member: Member, name: str, options: dict, steps: int) -> tuple[np.ndarray, ...]:
    """The view of a random feature that is `steps` long."""
    kind, rng, row = modality(name), np.random.default_rng(0), row_with_faces(steps)
    made = member.checkpoint["features_config"].get(kind.folder) or {}
    shape: Shape = (SAME,) if options["type"] == "VectorEncoder" else (None, SAME)
    if layers := options.get("layers"):
        shape = (layers, 1 if len(shape) == 1 else None, SAME)
    if options["type"] == "SequenceEncoder":
        steps = max(2, steps)  # a single row would be a vector
    if kind.layout:
        _, shape = kind.layout(made, row)
    sizes = {None: steps, SAME: options.get("dim")}
    feature = rng.random([sizes.get(size, size) for size in shape], np.float32)
    if kind.picture == "frames":
        feature = (255 * feature).astype(np.uint8)
    lengths = dict.fromkeys([*kind.lengths, "feature_frames"], steps)
    return kind.view(feature, row, member.config | lengths, rng, False)


def view_settings(member: Member) -> list[str]:
    """The settings that say what the model sees of a clip."""
    settings_of_inputs = [modality(name).settings.items() for name in member.task.inputs]
    return [
        key for items in settings_of_inputs for key, setting in items if setting.group == "data"
    ]


def open_sizes(
    inputs: Inputs, left_out: Tensor | None, vectors: set[str]
) -> tuple[dict, dict | None]:
    """Which sizes of the inputs may differ: the batch, and the length of each that is no vector."""
    batch, sizes = torch.export.Dim("batch", min=1), {}
    for name, tensors in inputs.items():
        size = torch.export.Dim(f"{name}_length", min=modality(name).shortest)
        time, has_length = modality(name).box_axes(tensors[0].dim())[0], name not in vectors
        sizes[name] = tuple(
            {0: batch, min(time, each.dim() - 1): size} if has_length else {0: batch}
            for each in tensors
        )
    return sizes, None if left_out is None else {0: batch}


def input_names(inputs: Inputs, left_out: Tensor | None) -> list[str]:
    """speech, speech_mask, face, ..., left_out."""
    names = []
    for name, tensors in inputs.items():
        names += [name, f"{name}_mask"][: len(tensors)]
    return names if left_out is None else [*names, "left_out"]


def to_onnx(member: Member) -> bytes:
    """The model as an ONNX file: inputs by modality, outputs by head, settings as metadata."""
    model = Portable(member.model).eval()
    example = example_inputs(member, batch=2, length=5)
    encoders = member.checkpoint["arch"]["encoders"]
    vectors = {name for name, options in encoders.items() if options["type"] == "VectorEncoder"}
    quick = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused layers have no ONNX form
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            dynamic_shapes=open_sizes(*example, vectors),
            input_names=input_names(*example),
            output_names=[f"{head}_probabilities" for head in member.model.heads],
            verbose=False,
        )
    torch.backends.mha.set_fastpath_enabled(quick)
    seen = ("feature_frames", "standardize", *view_settings(member))
    about = {name: member.config[name] for name in seen}
    about |= {"classes": member.checkpoint["classes"], "inputs": list(member.task.inputs)}
    about["features_config"] = member.checkpoint["features_config"]
    program.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    return program.model_proto.SerializeToString()


@torch.inference_mode()
def largest_difference(member: Member, data: bytes) -> float:
    """Between torch's and onnxruntime's probabilities, over inputs of other sizes."""
    import onnxruntime

    session, worst = onnxruntime.InferenceSession(data), 0.0
    for batch, length in ((1, 1), (3, 8)):
        inputs, left_out = example_inputs(member, batch, length)
        flat = [tensor for tensors in inputs.values() for tensor in tensors]
        if left_out is not None:
            flat.append(left_out)
        arrays = [tensor.numpy() for tensor in flat]
        found = session.run(None, dict(zip(input_names(inputs, left_out), arrays, strict=True)))
        for ours, theirs in zip(probabilities(member.model, inputs, left_out), found, strict=True):
            worst = max(worst, float(np.abs(ours.numpy() - theirs).max()))
    return worst

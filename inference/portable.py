"""A checkpoint's model -> ONNX, every length and the batch open, with what its user must know."""

from __future__ import annotations

import json
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.ensemble import Member
from models.fusion import EmotionClassifier

LENGTHS = ("speech_frames", "face_frames", "max_words", "feature_frames")


class Portable(nn.Module):
    """Tensors in the order of `example_inputs` -> probabilities (B, K) of each head."""

    def __init__(self, model: EmotionClassifier):
        super().__init__()
        self.model = model

    def forward(
        self, inputs: dict[str, tuple[Tensor, ...]], left_out: Tensor | None
    ) -> tuple[Tensor, ...]:
        return probabilities(self.model, inputs, left_out)


def probabilities(
    model: EmotionClassifier, inputs: dict[str, tuple[Tensor, ...]], left_out: Tensor | None
) -> tuple[Tensor, ...]:
    columns = () if left_out is None else zip(model.encoders, left_out.unbind(1), strict=True)
    return tuple(logits.softmax(dim=1) for logits in model(inputs, dict(columns)).values())


def example_inputs(member: Member, batch: int, length: int) -> tuple[dict, Tensor | None]:
    """Random inputs of one size: {modality: tensors}, and which of them are left out (B, M)."""
    arch, made = member.checkpoint["arch"], member.checkpoint["features_config"]
    inputs = {}
    for name, options in arch["encoders"].items():
        dim = options.get("word_dim", options.get("dim"))
        if options["type"] == "AttnCNN":
            inputs[name] = (torch.rand(batch, 1, made["speech"]["n_mels"], 32 * length + 1),)
        elif options["type"] == "CLSTM":
            size = made["video"]["face_size"]
            inputs[name] = (torch.rand(batch, length, 3, size, size),)
        elif options["type"] == "TextTransformer":
            mask = torch.arange(length).expand(batch, length) <= length // 2
            inputs[name] = (torch.randn(batch, length, dim), mask)
        else:
            own = (batch, dim) if options["type"] == "VectorEncoder" else (batch, length, dim)
            inputs[name] = (torch.randn(own),)
    left_out = torch.arange(batch * len(inputs)).view(batch, -1) % 3 == 1
    return inputs, left_out if member.model.absent else None


def open_sizes(inputs: dict, left_out: Tensor | None) -> tuple[dict, dict | None]:
    """Which sizes of the inputs may differ: the batch, and each modality's length."""
    batch, sizes = torch.export.Dim("batch", min=1), {}
    for name, tensors in inputs.items():
        at, least = (3, 32) if name == "speech" else (1, 1)
        size = torch.export.Dim(f"{name}_length", min=least)
        length = {at: size} if tensors[0].dim() > 2 else {}
        sizes[name] = tuple({0: batch, **length} for _ in tensors)
    return sizes, None if left_out is None else {0: batch}


def input_names(inputs: dict, left_out: Tensor | None) -> list[str]:
    names = [
        name if place == 0 else f"{name}_mask"
        for name in inputs
        for place in range(len(inputs[name]))
    ]
    return names + ["left_out"] * (left_out is not None)


def to_onnx(member: Member) -> bytes:
    """The model as an ONNX file: inputs by modality, outputs by head, settings as metadata."""
    model = Portable(member.model).eval()
    example = example_inputs(member, batch=2, length=5)
    quick = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused layers have no ONNX form
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            dynamic_shapes=open_sizes(*example),
            input_names=input_names(*example),
            output_names=[f"{head}_probabilities" for head in member.model.heads],
            verbose=False,
        )
    torch.backends.mha.set_fastpath_enabled(quick)
    about = {name: member.config[name] for name in LENGTHS}
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
        flat += [left_out] * (left_out is not None)
        arrays = [tensor.numpy() for tensor in flat]
        found = session.run(None, dict(zip(input_names(inputs, left_out), arrays, strict=True)))
        for ours, theirs in zip(probabilities(member.model, inputs, left_out), found, strict=True):
            worst = max(worst, float(np.abs(ours.numpy() - theirs).max()))
    return worst

"""The networks of facenet-pytorch, without the compiler that their package loads.

It needs torchvision, where one module imports a function of torch's compiler, and so all of it: the
most of what the package takes to load. Python offers no other place to stop that than sys.modules,
where a module of that function alone stands while the package is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


def is_compile_supported(device: Any) -> bool:
    """The one thing that torchvision/ops/roi_align.py asks, when it is called."""
    return importlib.import_module(COMPILER).is_compile_supported(device)


def ask(name: str) -> Any:
    """What another torchvision may want of the compiler: the compiler itself is loaded then."""
    if name.startswith("__"):  # the import asks for such
        raise AttributeError(name)
    sys.modules.pop(COMPILER)
    return getattr(importlib.import_module(COMPILER), name)


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    if COMPILER in sys.modules:
        yield
        return
    sys.modules[COMPILER] = stub = ModuleType(COMPILER)
    vars(stub).update(is_compile_supported=is_compile_supported, __getattr__=ask)
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stub:
            del sys.modules[COMPILER]


with without_compiler():
    from facenet_pytorch import MTCNN, InceptionResnetV1
    from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

__all__ = ["MTCNN", "InceptionResnetV1", "get_torch_home"]

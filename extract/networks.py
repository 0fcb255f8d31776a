"""The networks of facenet-pytorch, without the compiler that their package loads.

It needs torchvision, where one module asks torch's compiler whether it may be used, and so loads
all of it: the most of what the package takes to load. Here that waits until the answer is needed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER = ("torch._dynamo", "torch._dynamo.utils")
QUESTION = "is_compile_supported"  # of torchvision/ops/roi_align.py


class Later(ModuleType):
    """In the place of a module that is not loaded before something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import asks for such
            raise AttributeError(name)
        if name == QUESTION:
            return lambda *args: getattr(self.load(), name)(*args)
        return getattr(self.load(), name)

    def load(self) -> ModuleType:
        make_room()
        return importlib.import_module(self.__name__)


def make_room() -> None:
    for name in COMPILER:
        if isinstance(sys.modules.get(name), Later):
            del sys.modules[name]


if COMPILER[0] not in sys.modules:
    sys.modules.update({name: Later(name) for name in COMPILER})
try:
    from facenet_pytorch import MTCNN, InceptionResnetV1
    from facenet_pytorch.models.inception_resnet_v1 import get_torch_home
finally:
    make_room()

__all__ = ["MTCNN", "InceptionResnetV1", "get_torch_home"]

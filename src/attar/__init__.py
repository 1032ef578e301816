"""attar: distil large vision-language models into small image models.

Importing this package loads no torch: every name below is imported on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "distill": "attar.pipeline",
    "embed": "attar.pipeline",
    "evaluate": "attar.pipeline",
    "export": "attar.pipeline",
    "load_student": "attar.students.student",
    "load_teacher": "attar.teachers.registry",
    "losses": "attar.losses",
}

__all__ = [
    "__version__",
    "distill",
    "embed",
    "evaluate",
    "export",
    "load_student",
    "load_teacher",
    "losses",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attar' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    return module if name == _HOME[name].rpartition(".")[2] else getattr(module, name)


def __dir__() -> list[str]:
    return __all__

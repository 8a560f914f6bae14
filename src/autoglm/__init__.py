"""Open-AutoGLM keeps a fine-tuned language model fresh and safe.

Public names are loaded on first use: `import autoglm` loads neither torch nor anything heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AutoGLMClassifier": "autoglm.estimator",
    "AutoGLMRegressor": "autoglm.estimator",
    "Project": "autoglm.project",
    "Trainer": "autoglm.loop.stations",
    "make_evaluator": "autoglm.evaluation.made",
    "make_scorer": "autoglm.evaluation.made",
    "register": "autoglm.plugins.registry",
}
__all__ = [
    "AutoGLMClassifier",
    "AutoGLMRegressor",
    "Project",
    "Trainer",
    "__version__",
    "make_evaluator",
    "make_scorer",
    "register",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "tune":
        return import_module("autoglm.tune")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'autoglm' has no attribute {name!r}")

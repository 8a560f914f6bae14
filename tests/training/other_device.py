"""A device of its own on a machine that has none: its tensors are computed on the CPU, but an
operation that is handed tensors of both, or of the CPU alone beside an `other` one, is refused as
CUDA would refuse it. Kept out of the process of other tests: a backend cannot be taken back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "other"
aten = torch.ops.aten
# A device takes places that the host counted.
BY_PLACES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
BY_PLACES |= {aten._index_put_impl_.default}


class Other(torch.Tensor):
    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            requires_grad=False,
            device=f"{NAME}:0",
        )

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        return OWN.get(op, _computed(op))(*args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.raw.tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, Other) else value


def _computed(op: Any) -> Any:
    def compute(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        host = [x for x in tensors if not isinstance(x, Other) and x.dim()]
        if host and op not in BY_PLACES:
            raise RuntimeError(f"{op}: expected all tensors to be on the same device")
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        made = op(*tree_map(_raw, args), **tree_map(_raw, kwargs))
        # In place, or a tensor handed through: the same object again.
        known = {id(x.raw): x for x in tensors if isinstance(x, Other)}
        return tree_map(lambda x: known[id(x)] if id(x) in known else _wrapped(x), made)

    return compute


def _wrapped(value: Any) -> Any:
    return Other(value) if isinstance(value, Tensor) and not isinstance(value, Other) else value


def _to_copy(x: Tensor, *, dtype: Any = None, device: Any = None, **_more: Any) -> Tensor:
    made = aten._to_copy(_raw(x).detach(), dtype=dtype)
    target = torch.device(device) if device is not None else x.device
    return Other(made) if target.type == NAME else made


def _copy(target: Tensor, source: Tensor, _non_blocking: bool = False) -> Tensor:
    _raw(target).copy_(_raw(source))
    return target


def _empty(*args: Any, **kwargs: Any) -> Tensor:
    kwargs["device"] = torch.device("cpu")
    return Other(aten.empty.memory_format(*args, **kwargs))


def _empty_strided(*args: Any, **kwargs: Any) -> Tensor:
    kwargs["device"] = torch.device("cpu")
    return Other(aten.empty_strided(*args, **kwargs))


def _arange(start: Any, end: Any, step: Any = 1, **kwargs: Any) -> Tensor:
    """torch's own makes an empty one and gives it a size, which a wrapper does not hear of."""
    return Other(torch.arange(start, end, step, dtype=kwargs.get("dtype")))


OWN: dict[Any, Any] = {
    aten._to_copy.default: _to_copy,
    aten.copy_.default: _copy,
    aten._local_scalar_dense.default: lambda x: x.raw.item(),
}


class _Module:
    """What torch asks a device's module for."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        del seed  # it draws the CPU's numbers

    @staticmethod
    def get_rng_state() -> Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: Tensor) -> None:
        torch.set_rng_state(state)


def register() -> None:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")
    for name, made in (
        ("_to_copy", _to_copy), ("empty.memory_format", _empty), ("empty_strided", _empty_strided),
        ("arange.start_step", _arange), ("arange.start", _arange),
        ("arange", lambda end, **more: _arange(0, end, **more)),
    ):  # fmt: skip
        library.impl(name, made, "PrivateUse1")
    register.library = library  # type: ignore[attr-defined]  # it unregisters when collected


def main() -> None:
    import json
    import sys
    from pathlib import Path

    register()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from training import device_cases

    torch.set_num_threads(1)
    for name, case in device_cases.CASES.items():
        print(json.dumps([name, case(NAME), case("cpu")]), flush=True)


if __name__ == "__main__":
    main()

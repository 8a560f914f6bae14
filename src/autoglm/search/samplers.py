"""Optuna's samplers by name, made anew for each trial, from a seed of its own.

Left out: CMA-ES, whose state Optuna keeps pickled in the study (nothing is unpickled here).
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoglm.contracts.record import digest
from autoglm.errors import AutoGLMError, PluginError
from autoglm.plugins import registry

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True, kw_only=True, slots=True)
class OptunaSampler:
    """`num_startup`: the trials before it has learnt anything, which are asked at once.

    `is_exhaustive`: it tries every point, so there must be an end of them. `is_sequence`: its
    numbers are of one sequence, whose seed is the study's.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    num_startup: int = 6
    is_exhaustive: bool = False
    is_sequence: bool = False

    def __call__(self, seed: int, study_seed: int = 0) -> BaseSampler:
        from optuna import samplers

        options = dict(self.options)
        if self.is_sequence:
            seed, options["independent_sampler"] = study_seed, samplers.RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental": its interface, which we pin
            return getattr(samplers, self.name)(**options, seed=seed)


# A study has tens of trials, not hundreds: start-up and generations are shorter than Optuna's own.
random = OptunaSampler(name="RandomSampler")
tpe = OptunaSampler(name="TPESampler", options={"n_startup_trials": 6})
tpe_multivariate = OptunaSampler(
    name="TPESampler", options={"n_startup_trials": 6, "multivariate": True, "group": True}
)
gp = OptunaSampler(
    name="GPSampler", options={"n_startup_trials": 6, "warn_independent_sampling": False}
)
qmc = OptunaSampler(
    name="QMCSampler",
    options={
        "scramble": True,
        "warn_independent_sampling": False,
        "warn_asynchronous_seeding": False,
    },
    is_sequence=True,
)
nsga2 = OptunaSampler(name="NSGAIISampler", options={"population_size": 8}, num_startup=8)
nsga3 = OptunaSampler(name="NSGAIIISampler", options={"population_size": 8}, num_startup=8)
# A grid with conditions: Optuna's own grid knows none, and wants the points a second time.
brute_force = OptunaSampler(name="BruteForceSampler", is_exhaustive=True)
grid = brute_force


class Samplers:
    """The sampler of a study, by name: one of the above, or a project's own, which may be a
    function of a seed, one of Optuna's classes, or an object. Raises: PluginError.
    """

    def __init__(self, name: str, study_seed: int) -> None:
        self.name, self._seed = name, study_seed
        self._made = registry.get("sampler", name)
        known = isinstance(self._made, OptunaSampler)
        self.num_startup = self._made.num_startup if known else 1
        self.is_exhaustive = known and self._made.is_exhaustive
        self._names = set() if is_sampler(self._made) else _parameters(self._made)

    def of(self, number: int) -> BaseSampler:
        """The sampler that proposes trial `number`: after a kill it proposes the same. An object
        cannot be given a seed: it goes on from its own.
        """
        made = self._made if is_sampler(self._made) else self._call(number)
        if isinstance(self._made, OptunaSampler):
            return made
        if not is_sampler(made):
            raise _wrong_answer(
                f"sampler:{self.name} gave {type(made).__name__}, which is no Optuna sampler."
            )
        return _guarded(made, self.name)

    def _call(self, number: int) -> Any:
        seed = int(digest(self._seed, number)[:8], 16)
        with _blamed(self.name):
            if "study_seed" in self._names:
                return self._made(seed=seed, study_seed=self._seed & 0x7FFFFFFF)
            return self._made(seed=seed) if "seed" in self._names else self._made(seed)


@contextlib.contextmanager
def without_loop() -> Iterator[None]:
    """A sampler that has seen every point stops Optuna's own loop, which is not running."""
    try:
        yield
    except RuntimeError as error:
        if not _is_stop(error):
            raise


def _is_stop(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "`Study.stop`" in str(error)


def _wrong_answer(told: str) -> PluginError:
    return PluginError(
        told,
        code="plugin.wrong_answer",
        next_step="Return another one, as optuna.samplers.TPESampler(seed=seed).",
    )


@contextlib.contextmanager
def _blamed(name: str) -> Iterator[None]:
    """Raises: PluginError plugin.sampler_raised for what the project's own code raises."""
    try:
        yield
    except AutoGLMError:
        raise
    except (Exception, SystemExit) as error:  # one that leaves is a broken one
        if _is_stop(error):
            raise
        raise PluginError(
            f"sampler:{name} raised {type(error).__name__}: {error}.",
            code="plugin.sampler_raised",
            next_step="Correct it, or name another in search.sampler; the study goes on from its"
            " told trials.",
        ) from error


def _guarded(sampler: BaseSampler, name: str) -> BaseSampler:
    """`sampler`, whose errors are told from those of the study's storage."""
    from optuna.samplers import BaseSampler

    class Guarded(BaseSampler):  # type: ignore[misc]
        """Optuna asks these, and nothing else, of a sampler."""

        def __getattr__(self, attribute: str) -> Any:
            return getattr(sampler, attribute)

        def infer_relative_search_space(self, *asked: Any) -> Any:
            with _blamed(name):
                return sampler.infer_relative_search_space(*asked)

        def sample_relative(self, study: Any, trial: Any, space: Any) -> Any:
            with _blamed(name):
                found = sampler.sample_relative(study, trial, space)
            for key, value in found.items():
                _check_point(name, key, value, space.get(key))
            return found

        def sample_independent(self, study: Any, trial: Any, key: str, wanted: Any) -> Any:
            with _blamed(name):
                found = sampler.sample_independent(study, trial, key, wanted)
            _check_point(name, key, found, wanted)
            return found

        def before_trial(self, *asked: Any) -> None:
            with _blamed(name):
                sampler.before_trial(*asked)

        def after_trial(self, *told: Any) -> None:
            with _blamed(name):
                sampler.after_trial(*told)

        def reseed_rng(self) -> None:
            sampler.reseed_rng()

    return Guarded()


def _check_point(name: str, key: str, value: Any, wanted: Any) -> None:
    try:
        is_point = wanted is not None and wanted._contains(wanted.to_internal_repr(value))
    except (TypeError, ValueError):
        is_point = False
    if not is_point:
        raise _wrong_answer(f"sampler:{name} gave {value!r} for {key}, which is none of {wanted}.")


def is_sampler(part: Any) -> bool:
    return not isinstance(part, type) and hasattr(part, "sample_relative")


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return {*inspect.signature(function).parameters}
    except (TypeError, ValueError):  # written in C, say
        return set()

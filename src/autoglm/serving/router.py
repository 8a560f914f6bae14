"""Which version answers: override, then sticky key, then chance by weight. Pure."""

from __future__ import annotations

import hashlib

from autoglm.contracts.rollout import RouteTable

SHARES = 10_000


def choose(routes: RouteTable, *, override: str, key: str, chance: float) -> str | None:
    """Digest of the version, None when `override` names one that the table does not have.

    A key keeps its side while the weight grows: it only ever moves from stable to the candidate.
    `chance` in [0, 1) decides where there is no key.
    """
    named = [digest for digest in (routes.stable, routes.candidate) if digest]
    if override:
        return next((digest for digest in named if digest.startswith(override)), None)
    share = place_of(routes.salt, key) if key else int(chance * SHARES)
    is_candidate = bool(routes.candidate) and share < routes.candidate_weight * SHARES // 100
    return routes.candidate if is_candidate else routes.stable


def place_of(salt: str, key: str) -> int:
    """Where a key stands in [0, 10000), anew for each rollout."""
    hashed = hashlib.blake2b(f"{salt}\0{key}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(hashed, "big") % SHARES

"""What a run is doing: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, TextIO

from autoglm.cli.output import number, size


class Progress:
    """Feed it events (`on_event`); it prints finished things as lines and the present as one line
    that is written over. Thread-safe.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._lock = threading.Lock()
        self._trials = 0
        self._best: float | None = None
        self._last = 0.0
        self._transient = False

    def on_event(self, event: Mapping[str, Any]) -> None:
        show = getattr(self, f"_on_{event['kind']}", None)
        # A reader who went away (a closed terminal, `| head`) must not break the run.
        if show is not None:
            with self._lock, contextlib.suppress(OSError, ValueError):
                show(event)

    def close(self) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._clear()

    def _line(self, name: str, text: str) -> None:
        self._clear()
        self._stream.write(f"{name:<10} {text}\n")
        self._stream.flush()

    def _live(self, name: str, text: str) -> None:
        """Something that will be out of date in a second: shown on terminals only."""
        if self._is_terminal:
            self._clear()
            self._stream.write(f"{name:<10} {text}"[:118])
            self._stream.flush()
            self._transient = True

    def _clear(self) -> None:
        if self._transient:
            self._stream.write("\r\x1b[2K")
            self._transient = False

    def _on_source(self, event: Mapping[str, Any]) -> None:
        self._line("source", event["promise"])

    def _on_collecting(self, event: Mapping[str, Any]) -> None:
        self._live("collect", f"{event['events']:,} changes …")

    def _on_collected(self, event: Mapping[str, Any]) -> None:
        dead = f", {event['dead']} dead letters" if event["dead"] else ""
        self._line("collect", f"{event['rows']:,} changed rows into the feature table{dead}")

    def _on_dataset(self, event: Mapping[str, Any]) -> None:
        data = event["dataset"]
        waiting = f", {data['unlabelled_rows']} wait for a label" if data["unlabelled_rows"] else ""
        rare = (
            f", too rare to learn: {', '.join(data['rare_labels'])}" if data["rare_labels"] else ""
        )
        parts = " / ".join(f"{count:,} {name}" for name, count in data["split_rows"].items())
        self._line(
            "dataset",
            f"version {data['version']}: {data['rows']:,} rows ({parts}),"
            f" {len(data['labels'])} labels{waiting}{rare}",
        )

    def _on_plan(self, event: Mapping[str, Any]) -> None:
        self._line(
            "plan",
            f"{event['rows']:,} rows · {event['tokens']:,} tokens · up to {event['trials']} trials"
            f" · up to {event['minutes']:.1f} min · {size(event['disk_bytes'])} of disk",
        )

    def _on_run(self, event: Mapping[str, Any]) -> None:
        self._trials = event["trials"]
        self._line("run", f"{event['run_id']}   trace {event['trace_id']}")

    def _on_study(self, event: Mapping[str, Any]) -> None:
        self._trials = event["trials"]
        self._line("study", event["study"])

    def _place(self, event: Mapping[str, Any]) -> str:
        """Its number, as `search show` has it, and which of how many it is. The number may be
        higher: points that were refused, or repeated another one, have numbers too.
        """
        place = event.get("place", event["number"] + 1)
        return f"#{event['number']}  {place}/{self._trials}"

    def _on_trial_started(self, event: Mapping[str, Any]) -> None:
        self._live("trial", f"{self._place(event)} {_params(event['params'])}")

    def _on_trial_resumed(self, event: Mapping[str, Any]) -> None:
        self._line("resume", f"goes on from step {event['step']}, epoch {event['epoch']}")

    def _on_training(self, event: Mapping[str, Any]) -> None:
        best = f" · best so far {number(self._best)}" if self._best is not None else ""
        self._live(
            "train",
            f"step {event['step']}/{event['num_steps']} · loss {number(event.get('train_loss'))}"
            f" · {event.get('samples_per_second', 0):.0f} rows/s{best}",
        )

    _on_progress = _on_training

    def _on_trial_finished(self, event: Mapping[str, Any]) -> None:
        self._best = event["best"]
        self._line(
            "trial",
            f"{self._place(event)}  {number(event['value'])}"
            f"  best {number(event['best'])}  {event['seconds']:.1f} s  {_params(event['params'])}",
        )

    def _on_trial_promoted(self, event: Mapping[str, Any]) -> None:
        self._live("trial", f"{self._place(event)} goes on to {event['stage']}")

    def _on_trial_paused(self, event: Mapping[str, Any]) -> None:
        self._at_rung("paused", event)

    def _on_trial_stopped(self, event: Mapping[str, Any]) -> None:
        self._at_rung("stopped", event)

    def _at_rung(self, what: str, event: Mapping[str, Any]) -> None:
        self._line(
            "trial",
            f"{self._place(event)}  {number(event['value'])}"
            f"  {what} after {event['stage']} epochs  {_params(event['params'])}",
        )

    def _on_trial_failed(self, event: Mapping[str, Any]) -> None:
        self._line("trial", f"{self._place(event)}  failed: {event['cause']}")

    def _on_trial_cut_off(self, event: Mapping[str, Any]) -> None:
        self._line("trial", f"{self._place(event)}  cut off: the budget is used up")

    def _on_step_started(self, event: Mapping[str, Any]) -> None:
        if event["step"] != "search":
            self._live(event["step"], "…")

    def _on_step_finished(self, event: Mapping[str, Any]) -> None:
        self._line(event["step"], f"done in {event['seconds']:.1f} s")

    def _on_evaluator_failed(self, event: Mapping[str, Any]) -> None:
        self._line("warning", event["cause"])

    def _on_evaluator_warning(self, event: Mapping[str, Any]) -> None:
        self._line("warning", event["warning"])

    _on_folds_warning = _on_evaluator_warning

    def _on_constraints_unmet(self, event: Mapping[str, Any]) -> None:
        self._line("warning", event["said"])

    def _on_dimension_removed(self, event: Mapping[str, Any]) -> None:
        self._line("space", f"{event['key']} stays at {event['value']}: {event['evidence']}")

    def _on_refresh(self, event: Mapping[str, Any]) -> None:
        self._line("refresh", str(event.get("said", "")))

    def _on_worker_restarted(self, event: Mapping[str, Any]) -> None:
        self._line("worker", f"started again: {event['cause']}")

    def _on_weight_set(self, event: Mapping[str, Any]) -> None:
        kind = "replayed traffic" if event.get("is_replayed") else "traffic"
        self._line("release", f"candidate gets {event['weight']} % of the {kind}")

    def _on_measured(self, event: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last > 0.5:
            self._last = now
            self._live("release", str(event.get("reason", "measuring")))

    def _on_advanced(self, event: Mapping[str, Any]) -> None:
        self._line("release", str(event.get("reason", "")))

    def _on_paused(self, event: Mapping[str, Any]) -> None:
        self._line("release", f"paused: {event.get('reason', '')}")

    def _on_resumed(self, event: Mapping[str, Any]) -> None:
        self._line("release", f"goes on: {event.get('reason', '')}")

    def _on_verdict(self, event: Mapping[str, Any]) -> None:
        self._line("release", f"{event.get('verdict')}: {event.get('reason')}")

    def _on_replayed_traffic(self, event: Mapping[str, Any]) -> None:
        self._line(
            "replay",
            f"replayed traffic: {event['sent']:,} requests, {event['failed']} failed,"
            f" {event['correct']:,} answered rightly{_scores(event)}",
        )


def _scores(event: Mapping[str, Any]) -> str:
    said = [f"{number(v)} {name}" for name, v in sorted(event.get("scores", {}).items())]
    return f", {event['metric']} {', '.join(said)}" if said else ""


def _params(params: Mapping[str, Any]) -> str:
    said = (
        f"{key.rpartition('.')[2]} {value:.2g}" if isinstance(value, float) else
        f"{key.rpartition('.')[2]} {value}"
        for key, value in sorted(params.items())
    )  # fmt: skip
    return ", ".join(said)


def stream_for(as_json: bool) -> TextIO:
    """Progress goes beside the JSON document, never into it."""
    return sys.stderr if as_json else sys.stdout

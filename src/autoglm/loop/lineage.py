"""Where a model version came from, said once and kept with it."""

from __future__ import annotations

from autoglm.contracts.evaluation_report import EvaluationReport
from autoglm.contracts.model_version import Lineage, ModelVersion
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.trial import StudyResult
from autoglm.observability.tracing import trace_id_of


def lineage_of(
    spec: RunSpec, study: StudyResult, report: EvaluationReport, parent: ModelVersion | None
) -> Lineage:
    """`metrics` are of the test rows; `parent` is the version in service when the run began."""
    return Lineage(
        run_id=spec.run_id,
        trace_id=trace_id_of(spec.traceparent),
        dataset_uri=spec.dataset.uri,
        dataset_version=spec.dataset.version,
        dataset_digest=spec.dataset.content_digest,
        dataset_rows=spec.dataset.rows,
        parent=parent.digest if parent else "",
        parent_dataset_version=parent.lineage.dataset_version if parent else None,
        config_digest=spec.config_digest,
        tuning=spec.tuning,
        params=study.best.params,
        metrics={k: s.value for k, s in report.candidate.items() if s.value is not None},
    )

"""The project's source, made as its section says."""

from __future__ import annotations

from autoglm.plugins import registry
from autoglm.plugins.kinds import Source
from autoglm.project import Project


def open_source(project: Project) -> Source:
    """Nothing is opened or read yet. Raises: PluginError for a kind that is not there."""
    data = project.settings.data
    source: Source = registry.get("source", data.source.kind)(
        data.source,
        project=project.name,
        base=project.folder,
        batch_rows=data.batch_rows,
        columns=(data.input_column, data.answer_column),
    )
    return source

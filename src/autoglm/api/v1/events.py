"""`POST /api/v1/events`: changes that others push, in batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from autoglm.errors import SourceError
from autoglm.streaming.inbox import Inbox

router = APIRouter()
MAX_EVENTS = 10_000


class PushedEvent(BaseModel):
    """One change of one row. `key` names the row where the row itself does not."""

    model_config = ConfigDict(extra="forbid")
    op: Literal["upsert", "delete"] = "upsert"
    key: Annotated[str, Field(min_length=1, max_length=1000)] | int | None = None
    row: dict[str, Any] = {}


class EventsBody(BaseModel):
    """`batch` names the batch for good: sent again, it is accepted once."""

    model_config = ConfigDict(extra="forbid")
    batch: str = Field(min_length=1, max_length=200)
    events: list[PushedEvent] = Field(min_length=1, max_length=MAX_EVENTS)


class EventsAnswer(BaseModel):
    """`position` orders batches; `known` says that this one was accepted before."""

    batch: str
    events: int
    position: int
    known: bool


@router.post("/events", status_code=202, operation_id="push_events")
def push_events(request: Request, body: EventsBody) -> EventsAnswer:
    """Take a batch of changes; answered when it is on the disk. An event without a name becomes a
    dead letter. Needs `data.source.kind: push`.
    """
    project = request.app.state.control.project
    source = project.settings.data.source
    if source.kind != "push":
        raise SourceError(
            f"this project's source is {source.kind}; nothing is pushed to it.",
            code="source.not_push",
            next_step="Set data.source.kind: push.",
        )
    inbox = Inbox(project.folder / (source.path or "inbox"))
    events = [event.model_dump(exclude_none=True) for event in body.events]
    stored = inbox.put(body.batch, events)
    return EventsAnswer(
        batch=body.batch, events=len(events), position=stored.number, known=not stored.is_new
    )

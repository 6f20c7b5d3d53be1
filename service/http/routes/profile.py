"""``GET /debug/profile``: where a process spends its time, for operators, off by default."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from peterrec.service.errors import ProfilingOff
from peterrec.service.http.context import Caller, Context
from peterrec.service.http.profiler import MEDIA_TYPES, ProcessName, ProfileForm

MOST_SECONDS = 60

ALONE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; sandbox allow-scripts",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""A flame graph has scripts. They run, but not with the rights of this server's own pages."""

router = APIRouter(tags=["health"])


@router.get(
    "/debug/profile",
    response_class=Response,
    responses={
        200: {"content": {media_type: {} for media_type in sorted(set(MEDIA_TYPES.values()))}}
    },
    response_description="The profile.",
)
async def profile(
    caller: Caller,
    context: Context,
    seconds: Annotated[int, Query(ge=1, le=MOST_SECONDS)] = 5,
    process: Annotated[
        ProcessName, Query(description="Which process; `worker` is the one that answers.")
    ] = "device",
    form: Annotated[
        ProfileForm,
        Query(
            alias="format",
            description="`flamegraph` is an image (SVG). `chrome` has the operations of the device "
            "process, the GPU's too, in at most 100 batches: a trace for Perfetto or Chrome.",
        ),
    ] = "flamegraph",
    idle: Annotated[bool, Query(description="Whether to show threads that wait, too.")] = False,
) -> Response:
    """Look at a process for some seconds and show where it spent them, as a flame graph.

    Only for operators, and only if the setting PETERREC_PROFILING is on. One profile is made at a
    time. The process goes on meanwhile, with `chrome` more slowly.
    """
    caller.require_operator()
    if context.profiler is None:
        raise ProfilingOff
    found = await context.profiler.record(process, seconds, form, idle=idle)
    return Response(found, media_type=MEDIA_TYPES[form], headers=ALONE)

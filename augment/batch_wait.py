"""Waits for batches, for hours if need be: outages are sat out, nothing is lost by stopping."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from augment.batch import TO_POLL, TO_SUBMIT
from augment.errors import AuthStop
from augment.remote_batches import RemoteError
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from augment.batch import Batches
    from augment.store.parts import Part

PAUSES = (30.0, 600.0)
"""Seconds between two looks: at first, and at most while nothing moves."""
_PATIENCE = 3
"""Times in a row that a call may be refused for good: keys and files do come back."""


async def wait(batches: Batches, parts: Iterable[Part]) -> list[Part]:
    """Submit and poll until every part is ingested, or nothing more can be done.

    Args:
        batches: moves them.
        parts: those to wait for.

    Returns:
        The parts as they are then.

    Raises:
        AugmentationError: a part cannot be submitted; raised once the others are done.
        AuthStop: the key is refused, several times in a row.
    """
    chosen = [part.uuid for part in parts]
    going, refusals, pause = list(chosen), Counter[str](), PAUSES[0]
    unfit: dict[str, AugmentationError] = {}
    while True:
        moved = False
        for uuid in going:
            before = batches.read(uuid)
            step = batches.submit if before.state in TO_SUBMIT else batches.poll
            try:
                moved |= await step(before) != before
                refusals[uuid] = 0
            except AugmentationError as error:  # of this part alone; the others go on
                batches.say(f"{uuid}: {error}")
                unfit[uuid] = error
            except RemoteError as error:
                batches.say(f"{uuid}: {error}")
                final = error.status is not None and 400 <= error.status < 500
                refusals[uuid] += final and error.status not in (408, 409, 429)
                _stop_at_refusal(error, refusals[uuid])
        left = [uuid for uuid in going if uuid not in unfit]
        going = [uuid for uuid in left if _goes_on(batches, uuid, refusals[uuid])]
        if not going:
            for fault in unfit.values():
                raise fault
            return [batches.read(uuid) for uuid in chosen]
        pause = PAUSES[0] if moved else min(1.5 * pause, PAUSES[1])
        await batches.clock.sleep(pause)


def _stop_at_refusal(error: RemoteError, times: int) -> None:
    if error.status in (401, 403) and times >= _PATIENCE:
        raise AuthStop(
            f"the provider refuses the key: {error.message} No part is lost: set the key's "
            "environment variable and run `python -m augment batch poll --wait` again."
        ) from error


def _goes_on(batches: Batches, uuid: str, refusals: int) -> bool:
    if refusals < _PATIENCE:
        return batches.read(uuid).state in (*TO_SUBMIT, *TO_POLL)
    batches.say(
        f"{uuid}: refused {refusals} times, left as it is. If its answers cannot be had any more, "
        f"say `python -m augment batch discard --lost {uuid[:8]}`."
    )
    return False

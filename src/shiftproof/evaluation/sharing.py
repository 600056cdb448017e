"""One pass over a set of images, batch by batch, which the processes of a job can share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from shiftproof.data.sets import ImageSet, samples_digest
from shiftproof.errors import InputError
from shiftproof.training.distributed import (
    broadcast_from_main,
    gathered_on_main,
    is_main_process,
    process_count,
    process_index,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def batches_of(count: int, batch_size: int, processes: int = 1, index: int = 0) -> list[range]:
    """The batches of ``count`` positions that one of several processes computes: every so many, from its index on.

    They are batches of a single process, so that what a batch gives is the same to the last bit, whichever process
    computes it. Every position is in one batch of one process.

    >>> batches_of(10, 3, processes=2, index=1)
    [range(3, 6), range(9, 10)]
    """
    starts = range(index * batch_size, count, processes * batch_size)
    return [range(start, min(start + batch_size, count)) for start in starts]


@dataclass(frozen=True)
class Processes:
    """The processes that share a pass over images: all of the job if they work ``together``, else this one alone.

    If they do, each of them must call the methods, in the same order.
    """

    together: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process gets the results, and writes them."""
        return is_main_process() or not self.together

    def broadcast(self, value: Result) -> Result:
        """The value that the leading process has, in each of them."""
        return broadcast_from_main(value) if self.together else value

    def each(self, items: Sequence[Item], compute: Callable[[Item], Result]) -> list[Result]:
        """What ``compute`` makes of every item, in their order; the processes compute in turn, and all get all."""
        count, index = self._places
        share = [compute(item) for item in items[index::count]]
        shares = gathered_on_main(share) if self.together else [share]
        return self.broadcast([shares[k % count][k // count] for k in range(len(items))] if shares else [])

    def in_batches(
        self, images: ImageSet, batch_size: int, compute: Callable[[ImageSet], Iterator[Result]]
    ) -> Iterator[tuple[range, Result]]:
        """Yields the positions of each batch and what ``compute`` makes of it, in the order of the set.

        ``compute`` gets the images of this process and yields one result for each batch of them. The leading process
        is given the results of all, which are sent to it batch by batch, and the others are given none. Raises an
        InputError, in all of them, if they do not have the same samples.
        """
        count, index = self._places
        if count > 1 and not self.broadcast(len(set(gathered_on_main(samples_digest(images)))) == 1):
            raise InputError(f"the processes see different images of {images.name}. Choose data that all of them see.")
        batches, mine = batches_of(len(images), batch_size), batches_of(len(images), batch_size, count, index)
        results = compute(_images_of(images, mine)) if mine else iter(())
        for first in range(0, len(batches), count):
            share = list(islice(results, 1))  # none where the last round has fewer batches than processes
            shares = gathered_on_main(share) if self.together else [share]
            yield from zip(batches[first : first + count], (one for share in shares for one in share), strict=False)
        deque(results, maxlen=0)  # a pass over pictures ends by saying which of them were converted

    @property
    def _places(self) -> tuple[int, int]:
        """How many processes share the work, and which of them this one is."""
        return (process_count(), process_index()) if self.together else (1, 0)


def _images_of(images: ImageSet, batches: Sequence[range]) -> ImageSet:
    positions = [i for batch in batches for i in batch]
    return images if len(positions) == len(images) else images.subset(positions)

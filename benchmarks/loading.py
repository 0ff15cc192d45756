"""All of ACDC from NIfTI files to tensors on the device."""

from collections.abc import Iterator

from attenscribble.basics.errors import DataError
from attenscribble.data.batches import SliceStore
from attenscribble.data.datasets import open_dataset
from benchmarks.measure import Row, take


def rows(device: str) -> Iterator[Row]:
    try:
        dataset = open_dataset("acdc")
    except DataError:
        return
    load = lambda: SliceStore(dataset.cases(), classes=dataset.classes, ignore=dataset.ignore, device=device)
    taken = take(load, device)
    yield Row(f"{len(load())} slices of ACDC, NIfTI to device", device, None, taken, "at most 20 s; from a cache 2 s",
              "", taken.seconds <= 20)

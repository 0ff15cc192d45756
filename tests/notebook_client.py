"""Notebooks run in a fresh kernel, by a client that does not sleep through an answer."""

import math
import time
from collections.abc import Awaitable, Callable
from queue import Empty

from nbclient import NotebookClient

Wait = Callable[..., Awaitable[dict]]  # for a kernel's answer; Empty is raised after `timeout` seconds, never at None


def in_slices(wait: Wait, seconds: float = 0.5) -> Wait:
    "The same wait, begun anew every so many seconds."

    async def get_msg(timeout: float | None = None) -> dict:
        ends = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return await wait(timeout=max(0, min(seconds, ends - time.monotonic())))
            except Empty:
                if time.monotonic() >= ends:
                    raise

    return get_msg


class Client(NotebookClient):
    "nbclient 0.11 with jupyter_client 8.10 can miss that an answer has come, and sees it when its wait is over."

    async def async_start_new_kernel_client(self):
        client = await super().async_start_new_kernel_client()
        client.shell_channel.get_msg = in_slices(client.shell_channel.get_msg)
        return client

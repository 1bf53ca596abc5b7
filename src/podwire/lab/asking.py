"""A question to a lab's API, from code that is not asynchronous itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from podwire.lab.registry import LabInfo

if TYPE_CHECKING:
    from podwire.cluster.kube import KubeClient

T = TypeVar("T")


def ask(lab: LabInfo, work: Callable[[KubeClient], Coroutine[Any, Any, T]]) -> T:
    """Run `work` with a client of the lab's API and return its result; also within an asyncio
    program, whose loop stands still meanwhile."""

    async def connected() -> T:
        # Here, as the command line is there sooner without it.
        from podwire.cluster.kube import ClientConfig, KubeClient

        async with KubeClient(ClientConfig(server=f"unix://{lab.api_socket}")) as client:
            return await work(client)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(connected())
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(asyncio.run(connected()))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found.result()

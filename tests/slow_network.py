"""A network between a client and a server on loopback: it takes its time, and carries so much.

``python -m tests.slow_network PORT TARGET_PORT`` runs one until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers import claim_port, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["slow_network"]

ROUND_TRIP_SECONDS = 0.03
BYTES_PER_SECOND = 20_000_000
"""Of each connection, in each direction."""
_CHUNK_BYTES = 1 << 16
_UNDER_WAY_CHUNKS = 64


@contextlib.contextmanager
def slow_network(
    target_port: int,
    *,
    round_trip_seconds: float = ROUND_TRIP_SECONDS,
    bytes_per_second: float = BYTES_PER_SECOND,
) -> Iterator[int]:
    """Give the port of 127.0.0.1 behind which a server is far away."""
    port, claim = claim_port()
    command = [sys.executable, "-m", "tests.slow_network"]
    process = subprocess.Popen(
        [*command, str(port), str(target_port), str(round_trip_seconds), str(bytes_per_second)],
        cwd=Path(__file__).parent.parent,
    )
    try:
        wait_for_port(port)
        yield port
    finally:
        process.kill()
        process.wait()
        claim.close()


async def _run(port: int, target: int, round_trip_seconds: float, bytes_per_second: float) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY_CHUNKS)

        async def take() -> None:
            free = 0.0
            while data := await reader.read(_CHUNK_BYTES):
                free = max(free, time.monotonic()) + len(data) / bytes_per_second
                await under_way.put((free + round_trip_seconds / 2, data))
            await under_way.put((0, b""))

        taking = asyncio.create_task(take())
        try:
            while True:
                due, data = await under_way.get()
                if not data:
                    break
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the one who listens has gone
        finally:
            taking.cancel()
            with contextlib.suppress(OSError):
                writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(carry(reader, back), carry(there, writer), return_exceptions=True)

    server = await asyncio.start_server(connected, "127.0.0.1", port, backlog=256)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))

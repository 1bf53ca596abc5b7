"""`python -m podwire.tunnel --socket PATH`: one end of the UDP tunnel, run by the agent.

It waits at the Unix socket for `Configure` (`podwire.model.tunnel`), then forwards until it is
told to stop, whether anybody is connected or not: an agent that starts connects to the tunnel that
runs, and starts one only where nobody answers. A second one at the same path ends at once.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from pathlib import Path

from podwire import log
from podwire.errors import PodwireError
from podwire.kernel.scheduling import go_before_others
from podwire.tunnel.loop import Tunnel

#: The kernel's own tunnels work in softirqs, for which every process has to wait. Here it is those
#: with packets to send or to read that share the processor with the tunnel, and what they gain by
#: keeping it waiting they lose with their packets.
_NICE = -10


def main() -> int:
    """The exit code: 0 when told to stop, 1 after an error."""
    parser = argparse.ArgumentParser(prog="podwire.tunnel", description="The UDP tunnel.")
    parser.add_argument("--socket", type=Path, required=True, help="where its controller connects")
    parser.add_argument(
        "--no-offloads",
        action="store_true",
        help="packet by packet, for kernels and devices whose offloads do not work",
    )
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args()
    log.setup(options.log_level)
    try:
        tunnel = Tunnel(options.socket, offloads=not options.no_offloads)
    except PodwireError as error:
        print(f"podwire: {error.message}\n{error.remedy or ''}".rstrip(), file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: tunnel.stop())
    go_before_others(_NICE)
    # The data path makes no reference cycles, and a collection in between would be felt.
    gc.freeze()
    gc.disable()
    try:
        tunnel.run()
    except PodwireError as error:
        print(f"podwire: {error.message}\n{error.remedy or ''}".rstrip(), file=sys.stderr)
        return 1
    finally:
        tunnel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

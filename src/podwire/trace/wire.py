"""What an agent and whoever asks it say to each other: typed messages in length-prefixed frames.

Four bytes of length (network order), then one MessagePack value: a member of `Request` towards
the agent, of `Response` from it. It runs over any stream: the agent's Unix socket, or the
standard streams of `podwire agent relay` on a node far away. The connection is the session:
whatever was opened for it is gone when it ends.

Each request has an `id`; exactly one response carries it as `to` (`Failed` when it could not be
done). What is seen in between arrives as events, which answer nothing (`Frames`, `Drops`,
`NftSteps`, `Checked`).
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Literal, cast

import msgspec

from podwire.decoding import from_msgpack
from podwire.errors import PodwireError
from podwire.model.probe import IPText, Probe, ProbeMatch
from podwire.model.state import Why
from podwire.trace.model import Decision, Place
from podwire.trace.records import Drop, Frame, NftStep, ProbeResult, Question
from podwire.trace.status import NodeStatus
from podwire.trace.user_tunnel import TunnelCount

VERSION = 1
#: A frame longer than this is not ours; whoever sent it is cut off.
MAX_FRAME_BYTES = 32 * 1024 * 1024

_LENGTH = struct.Struct("!I")


class _Tagged(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="type"):
    pass


# --- towards the agent ------------------------------------------------------------------------


class Prepare(_Tagged, frozen=True, kw_only=True):
    """Open the probe's socket at `pod` (empty: the node itself). Answer: `Prepared`."""

    id: int
    probe: Probe
    pod: str = ""


class Fire(_Tagged, frozen=True, kw_only=True):
    """Send what was prepared, `probe.count` times. Answer, when the last has ended: `Fired`."""

    id: int


class GiveUp(_Tagged, frozen=True, kw_only=True):
    """Wait no longer for the answer to the probe under way: it ends as `timeout`. Answer: `Done`,
    also where none is."""

    id: int


class Observe(_Tagged, frozen=True, kw_only=True):
    """Watch for the match's packets: this node and `pods` on it (unknown ones are no error).

    `drops`: also what the kernel drops and why. `nft`: also which rules judge it. Answer, once
    everything is open: `Observing`; then events until `Stop` or the end of the connection.
    """

    id: int
    match: ProbeMatch
    pods: tuple[str, ...] = ()
    drops: bool = True
    nft: bool = True


class Capture(_Tagged, frozen=True, kw_only=True):
    """Capture all that `filter` (tcpdump's syntax, empty for everything) lets through, at `pods`
    and, with `node`, on the node itself; `all_pods` for every pod here. Answer: `Observing`."""

    id: int
    filter: str = ""
    pods: tuple[str, ...] = ()
    all_pods: bool = False
    node: bool = True
    snaplen: int = 262144


class Stop(_Tagged, frozen=True, kw_only=True):
    """Close what `Observe` or `Capture` opened, after what is buffered has been sent. Answer:
    `Stopped`."""

    id: int


class Ask(_Tagged, frozen=True, kw_only=True):
    """What does the kernel decide for these packets? Answer: `Answers`, in the same order."""

    id: int
    questions: tuple[Question, ...]


class Explain(_Tagged, frozen=True, kw_only=True):
    """What is this, who asked for it, what breaks without it? `kind` is `route`, `neigh`, `fdb`,
    `link`, `rule` or `ip`. Answer: `Explained`."""

    id: int
    kind: str
    thing: str


class Check(_Tagged, frozen=True, kw_only=True):
    """Examine this node (`podwire doctor`); `fix` applies the difference to what is desired.

    `checks` are the ones to make, by name, and `peers` the nodes to probe; all where there are
    none. Answer, after a `Checked` for each finding: `Done`.
    """

    id: int
    checks: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    fix: bool = False


class Hold(_Tagged, frozen=True, kw_only=True):
    """Stop (or, with `on` false, start again) mending the kernel. Answer: `Done`."""

    id: int
    on: bool


class Status(_Tagged, frozen=True, kw_only=True):
    """How is this node, and which ways lead to its peers? Answer: `StatusTold`."""

    id: int


Request = Prepare | Fire | GiveUp | Observe | Capture | Stop | Ask | Explain | Check | Hold | Status


# --- from the agent ---------------------------------------------------------------------------


class Welcome(_Tagged, frozen=True, kw_only=True):
    """First on every connection. `clock` is the machine's boot id; `time_ns` its time now.

    `not_ready` says why the agent isn't, empty when it is; `network` are the cluster's pod
    networks, `subnets` this node's leases, `underlay` its first address there. `tunnel` is the
    device that leads to other nodes, empty for plain routes; `tunnel_port` is VXLAN's and
    `bare_port` that of datagrams with an IP packet in each, 0 for one that is not used, and these
    are `encrypted` or not. `held`: it does not mend the kernel (see `Hold`).
    """

    version: int
    node: str
    clock: str
    time_ns: int
    not_ready: str = ""
    network: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    underlay: IPText | None = None
    bridge: str = ""
    wiring: str = ""
    transport: str = ""
    tunnel: str = ""
    tunnel_port: int = 0
    bare_port: int = 0
    encrypted: bool = False
    mtu: int = 0
    held: bool = False


class Prepared(_Tagged, frozen=True, kw_only=True):
    """`source` is the address that the probe will have, `ident` its port or ICMP identifier.

    `refused`: the stack has no way to send it, so there is nothing to fire. Then `source` and
    `ident` are what was asked for, empty and 0 where nothing was.
    """

    to: int
    source: IPText
    ident: int
    refused: ProbeResult | None = None


class Fired(_Tagged, frozen=True, kw_only=True):
    to: int
    results: tuple[ProbeResult, ...]


class Observing(_Tagged, frozen=True, kw_only=True):
    """Everything is open. `places` are numbered by their position. `notes` say what could not be
    opened and what therefore will not be seen (`drop reasons: no BTF in this kernel`)."""

    to: int
    places: tuple[Place, ...]
    notes: tuple[str, ...] = ()


class Frames(_Tagged, frozen=True, kw_only=True):
    """`lost`: so many more matched since the last message and found no room."""

    frames: tuple[Frame, ...]
    lost: int = 0


class Drops(_Tagged, frozen=True, kw_only=True):
    drops: tuple[Drop, ...]


class NftSteps(_Tagged, frozen=True, kw_only=True):
    """`lost`: so often since the last message there were more, and no room for them."""

    steps: tuple[NftStep, ...]
    lost: int = 0


class Stopped(_Tagged, frozen=True, kw_only=True):
    """All that was seen has been sent before this. `tunnel` is what the UDP tunnel has
    counted since `Observe`, None where the node has none."""

    to: int
    tunnel: TunnelCount | None = None


class Answers(_Tagged, frozen=True, kw_only=True):
    to: int
    decisions: tuple[tuple[Decision, ...], ...]


class Explained(_Tagged, frozen=True, kw_only=True):
    """`text` is what it is; `why` who asked for it, None for what Podwire did not make; `without`
    what breaks if it were gone; `details` further lines (label, value)."""

    to: int
    found: bool
    text: str
    why: Why | None = None
    without: str = ""
    details: tuple[tuple[str, str], ...] = ()


class Checked(_Tagged, frozen=True, kw_only=True):
    """One finding of the doctor. `level` is `ok`, `warn` or `fail`; `lines` are the commands that
    mend it; `fixed` when they were applied. `peer` is the other node that it is about, if any."""

    check: str
    level: Literal["ok", "warn", "fail"]
    text: str
    remedy: str = ""
    lines: tuple[str, ...] = ()
    why: Why | None = None
    fixed: bool = False
    peer: str = ""


class StatusTold(_Tagged, frozen=True, kw_only=True):
    to: int
    status: NodeStatus


class Done(_Tagged, frozen=True, kw_only=True):
    to: int


class Failed(_Tagged, frozen=True, kw_only=True):
    """A request could not be done. The message and remedy are for the person."""

    to: int
    message: str
    remedy: str = ""


Response = (
    Welcome
    | Prepared
    | Fired
    | Observing
    | Frames
    | Drops
    | NftSteps
    | Stopped
    | Answers
    | Explained
    | Checked
    | StatusTold
    | Done
    | Failed
)

_encoder = msgspec.msgpack.Encoder()


def pack(message: Request | Response) -> bytes:
    """The frame of one message."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def unpack_request(body: bytes) -> Request:
    """The request in a frame's body. Raises PodwireError for anything else."""
    try:
        return cast(Request, from_msgpack(body, cast(Any, Request)))
    except msgspec.DecodeError as error:
        raise PodwireError(f"not a request that this agent knows: {error}") from None


def unpack_response(body: bytes) -> Response:
    """The response in a frame's body. Raises PodwireError for anything else."""
    try:
        return cast(Response, from_msgpack(body, cast(Any, Response)))
    except msgspec.DecodeError as error:
        raise PodwireError(
            f"not an answer that this podwire knows: {error}",
            remedy="do the agent and this command have the same version?",
        ) from None


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame's body, None where the stream has ended between frames.

    Raises PodwireError for a frame that is too long or cut short.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise PodwireError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are spoken")
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise PodwireError("the connection ended in the middle of a message") from None
        return None

"""What this node's kernel was last made to hold: the fabric, kept over restarts.

Most of what another fabric left is known by what only Podwire makes. Routes are known by their
protocol, which fabrics choose: so an agent has to know which one the last fabric chose.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from podwire.decoding import from_json
from podwire.errors import PodwireError
from podwire.files import write_atomically
from podwire.log import fields
from podwire.model.cluster import NetworkConfig
from podwire.model.fabric import Fabric
from podwire.plan.change import given_up

log = logging.getLogger(__name__)


class Remembered(msgspec.Struct, frozen=True):
    """`protocols` are those of all routes that may still be there."""

    fabric: Fabric
    network: tuple[str, ...]
    protocols: tuple[int, ...]


class FabricMemory:
    """A file. What it says is none of anybody's that can't be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._load()

    @property
    def last(self) -> Remembered | None:
        return self._known

    def given_up(self, fabric: Fabric) -> tuple[str, ...]:
        """Settings of devices that stay, which are to be as they would be without us."""
        return given_up(self._known.fabric, fabric) if self._known is not None else ()

    def begin(self, network: NetworkConfig) -> tuple[int, ...]:
        """This is being applied: the protocols of the routes that are to go or to come."""
        before = self._known.protocols if self._known is not None else ()
        protocols = tuple(sorted({*before, network.fabric.route_protocol}))
        self._save(network, protocols)
        return protocols

    def done(self, network: NetworkConfig) -> None:
        """Nothing of another fabric is there any more."""
        self._save(network, (network.fabric.route_protocol,))

    def _save(self, network: NetworkConfig, protocols: tuple[int, ...]) -> None:
        self._known = Remembered(network.fabric, tuple(map(str, network.network)), protocols)
        try:
            content = msgspec.json.encode(self._known) + b"\n"
            write_atomically(self._path, content, parents=True)
        except PodwireError as error:
            log.warning("fabric not remembered", extra=fields(error=error))

    def _load(self) -> Remembered | None:
        try:
            return from_json(self._path.read_bytes(), Remembered)
        except (OSError, msgspec.DecodeError):
            return None

"""Where everything is: columns, rows, lanes and the points of the packet's way.

What lives here: coordinates, from a `Scene`. What does not: shapes and colours.

The request goes down and up on the outer lanes and crosses the medium on its lower track, the
reply on the inner lanes and the upper track, so that the two never cross:

    ┌─┆──────┆─┐   ┌─┆──────┆─┐
    │ ┆      ┆ │   │ ┆      ┆ │      rows: what stands in any column, from the pod to the underlay
    └─┆──────┆─┘   └─┆──────┆─┘
      ┆      └┄┄┄┄┄┄┄┘      ┆        reply
      └─────────────────────┘        request

A row is as high in all columns, and the space above it as its longest words need anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from podwire.trace.model import Hop, Path
from podwire.trace.render.svg import notes
from podwire.trace.render.svg.notes import Note
from podwire.trace.render.svg.scene import Scene, Slot, paths

Key = tuple[int, str]

MARGIN = 16.0
TOP = 78.0
#: Of a node's box: the height of its title; devices are inset by this, lanes in them by that.
HEAD = 34.0
INSET = 16.0
LANE = 24.0
LINE = 15.0
#: Of an end's box: the height of its label.
LABEL = 42.0
_COLUMN_GAP = 20.0
_WIDE = 868.0
_NARROWEST = 340.0
_HEIGHTS = {Slot.INSIDE: 30, Slot.PORT: 30, Slot.BRIDGE: 36, Slot.TUNNEL: 36, Slot.NIC: 32}
_MEDIUM = 64.0
_TRACK = 14.0


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    w: float
    h: float

    @property
    def right(self) -> float:
        return self.x + self.w

    @property
    def bottom(self) -> float:
        return self.y + self.h

    @property
    def middle(self) -> float:
        return self.y + self.h / 2


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    column: int


@dataclass(frozen=True)
class Gap:
    """Words in the space above a row of a column, at the lane that they are about."""

    column: int
    row: int
    lane: str
    notes: list[Note]


@dataclass(frozen=True)
class Ending:
    """Where a lost packet's line ends: in the gap above `row`, in the medium, or at the pod."""

    where: Literal["gap", "medium", "end"]
    column: int
    row: int = 0


@dataclass(frozen=True)
class Lane:
    """One path's way: the x of its vertical line in each column."""

    path: Path
    name: str
    xs: list[float]


class Layout:
    """All coordinates of a scene, down to the medium; what stands below starts at `bottom`.

    `columns` are the boxes of the scene's columns, `nodes` those to draw (one where all is on one
    node). `rows` are the y and height of each row.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        count = len(scene.columns)
        room = max(_NARROWEST, (_WIDE - _COLUMN_GAP * (count - 1)) / count)
        self.width = 2 * MARGIN + count * room + _COLUMN_GAP * (count - 1)
        self._xs = [MARGIN + at * (room + _COLUMN_GAP) for at in range(count)]
        self._room = room
        self._row_of, self._slots = _rows(scene)
        self.lanes = self._lanes()
        self.ending = self._ending()
        self.gaps = self._gaps()
        self.rows: list[tuple[float, float]] = []
        self.ends: list[Box] = []
        self.devices: dict[Key, Box] = {}
        self._stack()
        self.bottom = self.medium.bottom if not scene.local else self.nodes[0].bottom

    # --- what is where in the order of things -------------------------------------------------

    def column_of(self, hop: Hop) -> int | None:
        key = (hop.place, hop.interface)
        for at, column in enumerate(self.scene.columns):
            if any(one.key == key for one in column.devices):
                return at
        return None

    def _lanes(self) -> list[Lane]:
        lanes = []
        for name, path in zip(("request", "reply"), paths(self.scene.round), strict=False):
            xs = []
            for at, x in enumerate(self._xs):
                left, right = x + INSET + LANE, x + self._room - INSET - LANE
                outer, inner = (left, right) if at == 0 else (right, left)
                xs.append(outer if name == "request" else inner)
            lanes.append(Lane(path, name, xs))
        return lanes

    def down(self, lane: Lane, column: int) -> bool:
        """Whether a lane leads down in a column."""
        return (column == 0) == (lane.name == "request")

    def _ending(self) -> Ending | None:
        lost = self.scene.lost
        lane = next((one for one in self.lanes if one.path is lost), None)
        if lost is None or lane is None:
            return None
        if not lost.hops:
            return Ending("end", 0 if lane.name == "request" else len(self._xs) - 1)
        column, row = self.column_of(lost.hops[-1]), self._row(lost.hops[-1])
        if column is None or row is None:
            return Ending("medium", 0)
        if not self.down(lane, column):
            inside = self._slots[row] is Slot.INSIDE
            return Ending("end", column) if inside or row == 0 else Ending("gap", column, row)
        mine = {self._row_of[one.key] for one in self.scene.columns[column].devices}
        below = min((other for other in mine if other > row), default=None)
        return Ending("medium", column) if below is None else Ending("gap", column, below)

    def _row(self, hop: Hop) -> int | None:
        return self._row_of.get((hop.place, hop.interface))

    def _gaps(self) -> list[Gap]:
        """The words of one path: the one that was lost, else the request.

        A packet that goes in circles comes by again: then the first time is told, and the end.
        """
        gaps: dict[tuple[int, int], Gap] = {}
        told = self.scene.lost or (self.scene.round and self.scene.round.request)
        for lane in (lane for lane in self.lanes if lane.path is told):
            hops = lane.path.hops
            for a, b in pairwise(hops):
                column, rows = self.column_of(a), (self._row(a), self._row(b))
                if column is None or column != self.column_of(b) or None in rows:
                    continue
                below = max(row for row in rows if row is not None)
                if rows[0] != rows[1] and not self._attached(below):
                    told_here = notes.between(a, b)
                    gaps.setdefault((column, below), Gap(column, below, lane.name, told_here))
        ending = self.ending
        if ending is not None and ending.where == "gap":
            name = "request" if self.scene.lost is self.lanes[0].path else "reply"
            place = (ending.column, ending.row)
            gaps[place] = Gap(*place, name, notes.failure(self.scene.round))
        return list(gaps.values())

    def _attached(self, row: int) -> bool:
        """Ports sit on their bridge without space between the two, unless a packet ends there."""
        ending = self.ending
        if ending is not None and ending.where == "gap" and ending.row == row:
            return False
        pair = self._slots[row - 1 : row + 1] if row else []
        return pair == [Slot.PORT, Slot.BRIDGE]

    # --- coordinates --------------------------------------------------------------------------

    def _stack(self) -> None:
        inside = [at for at, slot in enumerate(self._slots) if slot is Slot.INSIDE]
        top = TOP + HEAD
        y = top + LABEL
        for _ in inside:
            self.rows.append((y, _HEIGHTS[Slot.INSIDE]))
            y += _HEIGHTS[Slot.INSIDE] + 8
        y += 0 if inside else 4
        self.ends = [
            Box(x + INSET, top, self._room - 2 * INSET, (y if column.inside else top + LABEL) - top)
            for x, column in zip(self._xs, self.scene.columns, strict=True)
        ]
        for at in range(len(inside), len(self._slots)):
            y += self._space(at)
            self.rows.append((y, _HEIGHTS[self._slots[at]]))
            y += _HEIGHTS[self._slots[at]]
        for at, column in enumerate(self.scene.columns):
            for device in column.devices:
                row = self._row_of[device.key]
                inset = INSET + (8 if device.slot is Slot.INSIDE else 0)
                self.devices[device.key] = Box(
                    self._xs[at] + inset,
                    self.rows[row][0],
                    self._room - 2 * inset,
                    self.rows[row][1],
                )
        self._enclose(y)

    def _space(self, row: int) -> float:
        """Room above a row, for the longest words in any column."""
        if self._attached(row):
            return 0
        lines = max((len(gap.notes) for gap in self.gaps if gap.row == row), default=0)
        return max(24.0, lines * LINE + 16)

    def _enclose(self, y: float) -> None:
        """Nodes around their devices, and the medium below (or inside of the one node)."""
        left, wide = MARGIN, self.width - 2 * MARGIN
        if self.scene.local:
            on_port = bool(self._slots) and self._slots[-1] is Slot.PORT
            self.medium = Box(left + INSET, y + (0 if on_port else 24), wide - 2 * INSET, _MEDIUM)
            self.nodes = [Box(left, TOP, wide, self.medium.bottom + INSET - TOP)]
            self.columns = self.nodes * len(self._xs)
            return
        # A NIC stands in the edge of its node.
        nics = bool(self._slots) and self._slots[-1] is Slot.NIC
        bottom = y - _HEIGHTS[Slot.NIC] / 2 if nics else y + INSET
        self.columns = [Box(x, TOP, self._room, bottom - TOP) for x in self._xs]
        self.nodes = self.columns
        self.medium = Box(left, max(y, bottom) + 22, wide, _MEDIUM)

    def between(self, clear: float) -> tuple[float, float]:
        """Left and right end of what may be written into the medium."""
        inset = INSET + LANE + clear
        return self._xs[0] + inset, self._xs[-1] + self._room - inset

    def track(self, lane: Lane) -> float:
        """The y of a lane's way through the medium."""
        return self.medium.bottom - _TRACK if lane.name == "request" else self.medium.y + _TRACK

    def point(self, lane: Lane, hop: Hop) -> Point | None:
        """Where a sighting is; None for what is not drawn."""
        key = (hop.place, hop.interface)
        column, box = self.column_of(hop), self.devices.get(key)
        if column is not None and box is not None:
            return Point(lane.xs[column], box.middle, column)
        medium = self.scene.medium
        if medium is not None and medium.key == key:
            # The bridge itself sees what its node sends, at the start, or gets, at the end.
            starts = hop is lane.path.hops[0]
            column = 0 if starts == (lane.name == "request") else len(self._xs) - 1
            return Point(lane.xs[column], self.track(lane), column)
        return None

    def gap_box(self, gap: Gap) -> Box:
        """The space that a gap's words may fill: between the two lanes, above its row."""
        y, _ = self.rows[gap.row]
        above = [
            self.devices[one.key].bottom
            for one in self.scene.columns[gap.column].devices
            if self._row_of[one.key] < gap.row
        ]
        top = max([*above, self.ends[gap.column].bottom if self._row_is_free(gap) else 0])
        x = self._xs[gap.column] + INSET + LANE
        return Box(x, top, self._room - 2 * (INSET + LANE), y - top)

    def _row_is_free(self, gap: Gap) -> bool:
        return self._slots[gap.row] is not Slot.INSIDE


def _rows(scene: Scene) -> tuple[dict[Key, int], list[Slot]]:
    """Each device's row, and each row's slot; two devices in one slot have two rows."""
    rows: dict[Key, int] = {}
    slots: list[Slot] = []
    for slot in Slot:
        stacks = [[one for one in column.devices if one.slot is slot] for column in scene.columns]
        for stack in stacks:
            rows |= {one.key: len(slots) + at for at, one in enumerate(stack)}
        slots += [slot] * max((len(stack) for stack in stacks), default=0)
    return rows, slots

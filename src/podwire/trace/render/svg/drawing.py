"""Nodes, pods, devices and the packet's way through them.

What lives here: shapes at the coordinates of a `Layout`. What does not: packet diagrams
(`packets.py`), and what stands around the picture (`__init__.py`).
"""

from __future__ import annotations

from itertools import pairwise

from podwire.trace.model import Cause, Hop, Outcome, Tunnel, Udp
from podwire.trace.render import words
from podwire.trace.render.svg import notes
from podwire.trace.render.svg.canvas import Canvas, number, width
from podwire.trace.render.svg.layout import (
    INSET,
    LANE,
    LINE,
    Box,
    Gap,
    Lane,
    Layout,
    Point,
)
from podwire.trace.render.svg.scene import Column, Device

#: Words keep this far from a lane: a hop's circle and a little.
_CLEAR = 24.0
_RADIUS = 11.0


def draw(canvas: Canvas, at: Layout) -> None:
    """The whole scene, back to front."""
    for index, box in enumerate(at.nodes):
        _node(canvas, at, index, box)
    _medium(canvas, at)
    for index, column in enumerate(at.scene.columns):
        if column.end and column.end != "cloud":
            _end(canvas, at, index, column)
        for device in column.devices:
            _device(canvas, at.devices[device.key], device)
    for lane in at.lanes:
        _way(canvas, at, lane)
    for lane in at.lanes:
        _numbers(canvas, at, lane)
    for gap in at.gaps:
        _words(canvas, at, gap)
    _medium_words(canvas, at)


# --- boxes ------------------------------------------------------------------------------------


def _node(canvas: Canvas, at: Layout, index: int, box: Box) -> None:
    column = at.scene.columns[index]
    if column.end == "cloud":
        _cloud(canvas, at, index, box)
        return
    canvas.rect(box.x, box.y, box.w, box.h, "node" if column.observed else "ghost", 12)
    used = canvas.text(box.x + INSET, box.y + 23, column.node, "name", room=box.w / 2)
    canvas.text(box.x + INSET + used + 10, box.y + 23, column.address, "code", "m", room=box.w / 3)
    if not column.observed:
        canvas.text(box.right - INSET, box.y + 23, "not observed", "small", "x", anchor="end")


def _cloud(canvas: Canvas, at: Layout, index: int, box: Box) -> None:
    """What is outside of the cluster, just above the underlay."""
    column, y = at.scene.columns[index], cloud_top(box)
    w, h = box.w - 2 * INSET, box.bottom - y
    # Bumps along a flat bottom, for a cloud of 100 × 60.
    points = (
        (24, 60),
        (4, 60, 0, 34, 20, 31),
        (16, 8, 46, 0, 54, 17),
        (68, 4, 90, 16, 84, 32),
        (104, 34, 102, 60, 80, 60),
    )
    d = ""
    for point in points:
        pairs = zip(point[::2], point[1::2], strict=True)
        scaled = [
            f"{number(box.x + INSET + a * w / 100)} {number(y + b * h / 60)}" for a, b in pairs
        ]
        d += ("C" if d else "M") + " ".join(scaled)
    canvas.path(d + "Z", "cloud")
    middle = box.x + box.w / 2
    one = at.scene.round
    unleased = one is not None and one.finding is not None and one.finding.cause is Cause.NO_LEASE
    what = "no node leases this" if unleased else "outside of the cluster"
    canvas.text(middle, y + h * 0.62, what, "name", anchor="middle")
    canvas.text(
        middle, y + h * 0.62 + 20, column.end_ip, "code", "m", anchor="middle", room=w * 0.6
    )


def cloud_top(box: Box) -> float:
    return max(box.y, box.bottom - 170)


def _end(canvas: Canvas, at: Layout, index: int, column: Column) -> None:
    box = at.ends[index]
    looks = {"pod": "pod", "host": "nic", "nobody": "ghost"}
    look = looks[column.end] if column.observed else "ghost"
    canvas.rect(box.x, box.y, box.w, box.h, look, 8)
    names = {"host": f"{column.end_name} itself", "nobody": "nobody has"}
    name = names.get(column.end, f"pod {column.end_name}")
    left, right = box.x + LANE + _CLEAR, box.right - LANE - _CLEAR
    ip = width(column.end_ip, "code")
    canvas.text(left, box.y + 26, name, "name", room=max(60, right - left - ip - 12))
    canvas.text(right, box.y + 26, column.end_ip, "code", "m", anchor="end", room=right - left - 72)


def _device(canvas: Canvas, box: Box, device: Device) -> None:
    canvas.rect(box.x, box.y, box.w, box.h, "idle" if device.idle else device.look, 6)
    inset = LANE + _CLEAR - (8 if device.slot == 0 else 0)
    left, right, y = box.x + inset, box.right - inset, box.middle + 4.5
    ink = "m" if device.idle else "t"
    used = canvas.text(left, y, device.name, "name", ink, room=right - left)
    rest = right - left - used - 12
    if rest > 40:
        canvas.text(right, y, device.detail, "code", "m", anchor="end", room=rest)


def _medium(canvas: Canvas, at: Layout) -> None:
    box, medium = at.medium, at.scene.medium
    look = "under" if medium is None else medium.look
    canvas.rect(box.x, box.y, box.w, box.h, look if _crossing(at) or medium else "idle", 8)


def _medium_words(canvas: Canvas, at: Layout) -> None:
    """In the middle of the medium: what it is, and what goes through it."""
    medium, crossing = at.scene.medium, _crossing(at)
    name, detail = ("underlay", "") if medium is None else (medium.name, medium.detail)
    if crossing is not None:
        a, b = crossing
        decided = [one.text for one in a.decisions if one.kind == "bridge"]
        if medium is not None:
            detail = decided[0] if decided else detail
        else:
            detail = _outer_words(a)
            if b is not None and b.since_us is not None:
                detail += f", {b.since_us:.1f} µs"
    y = at.medium.middle + 4.5
    left, right = at.between(_CLEAR)
    used = canvas.text(left, y, name, "name", room=right - left)
    canvas.text(left + used + 12, y, detail, "small", "m", room=right - left - used - 12)


def _crossing(at: Layout) -> tuple[Hop, Hop | None] | None:
    """The sighting before the medium, and the one after it if there was one."""
    for lane in at.lanes[:1]:
        previous: Hop | None = None
        for hop in lane.path.hops:
            if previous is not None and at.column_of(previous) != at.column_of(hop):
                return previous, hop
            previous = hop
        ending = at.ending
        unseen = not lane.path.arrived and (ending is None or ending.where == "medium")
        if previous is not None and unseen:
            return previous, None
    return None


def _outer_words(hop: Hop) -> str:
    headers = hop.packet.headers
    what = words.summary(headers)
    udp = next((one for one in words.outer(hop.packet) if isinstance(one, Udp)), None)
    if udp is not None:
        is_bare = any(isinstance(one, Tunnel) for one in words.outer(hop.packet))
        what += f"{', port' if is_bare else ' in UDP'} {udp.target_port}"
    return f"{words.addresses(headers)}, {what}, {hop.packet.size} bytes"


# --- the way ----------------------------------------------------------------------------------


def _way(canvas: Canvas, at: Layout, lane: Lane) -> None:
    points = [point for hop in lane.path.hops if (point := at.point(lane, hop)) is not None]
    start = 0 if lane.name == "request" else len(lane.xs) - 1
    goal = len(lane.xs) - 1 - start
    ending = at.ending if at.scene.lost is lane.path else None
    if not points:
        if ending is not None:
            _cross(canvas, lane.xs[start], at.ends[start].y + 21)
        return
    if points[0].column == start and at.scene.columns[start].end not in ("", "cloud"):
        first = Point(points[0].x, at.ends[start].y + 21, start)
        canvas.circle(first.x, first.y, 4, _dot(lane))
        points = [first, *points]
    d = f"M{number(points[0].x)} {number(points[0].y)}"
    for a, b in pairwise(points):
        d += _leg(at, lane, a, b)
    last = points[-1]
    arrived = last.column == goal and lane.path.arrived and bool(at.scene.columns[goal].end)
    if ending is not None:
        d += _to_cross(canvas, at, lane, last)
    elif arrived:
        d += f"V{number(_tip(at, goal) + 6)}"
        _arrow(canvas, last.x, _tip(at, goal), lane)
    canvas.path(d, f"way {lane.name}")
    if ending is None and not arrived:
        _unseen(canvas, at, lane, last, goal)
    if points[0].column != start and at.scene.columns[start].end == "cloud":
        out = Point(lane.xs[start], at.columns[start].bottom - 24, start)
        canvas.path(_unseen_leg(at, lane, out, points[0]), f"way {lane.name} unseen")


def _unseen(canvas: Canvas, at: Layout, lane: Lane, last: Point, goal: int) -> None:
    """Where it went on to, as its answer tells, or where nobody could look."""
    one = at.scene.round
    known = one is not None and one.outcome is not Outcome.DROPPED
    if known and last.column != goal and at.scene.columns[goal].end:
        tip = _tip(at, goal)
        end = Point(lane.xs[goal], tip + 6, goal)
        canvas.path(_unseen_leg(at, lane, last, end), f"way {lane.name} unseen")
        _arrow(canvas, end.x, tip, lane)


def _unseen_leg(at: Layout, lane: Lane, a: Point, b: Point) -> str:
    return f"M{number(a.x)} {number(a.y)}" + _leg(at, lane, a, b)


def _tip(at: Layout, column: int) -> float:
    """Where the arrow into an end points to."""
    if at.scene.columns[column].end == "cloud":
        return at.columns[column].bottom - 44
    return at.ends[column].y + 16


def _leg(at: Layout, lane: Lane, a: Point, b: Point) -> str:
    if a.column == b.column:
        return f"V{number(b.y)}"
    y = at.track(lane)
    radius = 10.0
    if min(abs(a.y - y), abs(b.y - y)) < radius:
        return f"V{number(y)}H{number(b.x)}V{number(b.y)}"
    sign = 1 if b.x > a.x else -1
    up = 1 if b.y < y else -1
    return (
        f"V{number(y - radius)}Q{number(a.x)} {number(y)} {number(a.x + sign * radius)} {number(y)}"
        f"H{number(b.x - sign * radius)}"
        f"Q{number(b.x)} {number(y)} {number(b.x)} {number(y - up * radius)}V{number(b.y)}"
    )


def _to_cross(canvas: Canvas, at: Layout, lane: Lane, last: Point) -> str:
    ending = at.ending
    if ending is None:
        return ""
    if ending.where == "gap":
        gap = next(one for one in reversed(at.gaps) if one.row == ending.row)
        y = at.gap_box(gap).middle
        _cross(canvas, last.x, y)
        return f"V{number(y)}"
    if ending.where == "end":
        y = at.ends[ending.column].y + 21
        _cross(canvas, last.x, y)
        return f"V{number(y)}"
    y = at.track(lane)
    sign = 1 if last.column == 0 else -1
    x = last.x + sign * 150
    _cross(canvas, x, y)
    told = "   ".join(one.text for one in notes.failure(at.scene.round))
    anchor = "start" if sign > 0 else "end"
    canvas.text(x + sign * 16, y + 4, told, "smallb", "x", anchor=anchor, room=400)
    if abs(last.y - y) < 10:
        return f"V{number(y)}H{number(x)}"
    return (
        f"V{number(y - 10)}Q{number(last.x)} {number(y)} {number(last.x + sign * 10)} {number(y)}"
        f"H{number(x)}"
    )


def _cross(canvas: Canvas, x: float, y: float) -> None:
    r = 7.0
    canvas.path(
        f"M{number(x - r)} {number(y - r)}L{number(x + r)} {number(y + r)}"
        f"M{number(x + r)} {number(y - r)}L{number(x - r)} {number(y + r)}",
        "cross",
    )


def _arrow(canvas: Canvas, x: float, y: float, lane: Lane) -> None:
    """Up, with its tip at y."""
    canvas.path(f"M{number(x)} {number(y - 4)}l-7 13h14z", _dot(lane))


def _dot(lane: Lane) -> str:
    return "qdot" if lane.name == "request" else "pdot"


def _numbers(canvas: Canvas, at: Layout, lane: Lane) -> None:
    """A circle for each sighting; one pill where the packet came by several times."""
    spots: dict[tuple[float, float], list[int]] = {}
    for hop in lane.path.hops:
        point = at.point(lane, hop)
        if point is not None:
            spots.setdefault((point.x, point.y), []).append(hop.number)
    for (x, y), numbers in spots.items():
        text = " ".join(str(one) for one in numbers)
        if width(text, "num") > 2 * (_CLEAR - 5):
            text = f"{numbers[0]} …"
        half = max(_RADIUS, width(text, "num") / 2 + 3)
        canvas.rect(x - half, y - _RADIUS, 2 * half, 2 * _RADIUS, _dot(lane), _RADIUS)
        canvas.text(x, y + 4, text, "num", "n", anchor="middle")


def _words(canvas: Canvas, at: Layout, gap: Gap) -> None:
    """Lines beside the lane that they are about, in the middle of the gap's height."""
    box = at.gap_box(gap)
    outer = gap.lane == "request"
    right = (gap.column != 0) == outer
    x = box.right - _CLEAR if right else box.x + _CLEAR
    room = box.w - 2 * _CLEAR
    y = box.middle - (len(gap.notes) - 1) * LINE / 2 + 4
    for note in gap.notes:
        font = "small" if note.ink == "m" else "smallb"
        canvas.text(
            x,
            y,
            note.text,
            font,
            note.ink,
            anchor="end" if right else "start",
            room=room,
            shorter=note.shorter,
        )
        y += LINE

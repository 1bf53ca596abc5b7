"""The one-machine cluster: namespaces as nodes, an API in front, pods as sandboxes.

    from podwire.lab import Lab

    with Lab(nodes=3) as lab:
        a, b = lab.run("a", node="node1"), lab.run("b", node="node2")
        assert a.ping(b).received == 3

`Lab` is the Python face (`handles`). Beneath it, by subject: `lifecycle` (up, down), `supervisor`,
`nodes`, `sandbox`, `kubelet`, `api`.

`Lab` is imported when it is asked for: each of the lab's own processes imports this package first.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from podwire.lab.handles import Lab
    from podwire.lab.places import LabNode, LabPod, Ping

__all__ = ["Lab", "LabNode", "LabPod", "Ping"]


def __getattr__(name: str) -> Any:
    if name == "Lab":
        from podwire.lab.handles import Lab

        return Lab
    if name in __all__:
        from podwire.lab import places

        return getattr(places, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

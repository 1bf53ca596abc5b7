"""Names of host ends."""

from __future__ import annotations

from podwire.cni.naming import host_ifname
from podwire.ipam.record import Key, PodIdentity
from podwire.plan.profiles import PROFILES

POD = PodIdentity("default", "nginx", "")


def test_a_pods_name_is_exactly_calicos() -> None:
    # printf default.nginx | sha1sum
    assert host_ifname(PROFILES["calico"], Key("c1", "eth0"), POD) == "calic440f455693"


def test_what_is_no_pod_or_no_first_interface_has_another_one() -> None:
    fabric = PROFILES["calico-vxlan"]
    names = {
        host_ifname(fabric, Key("c1", "eth0"), POD),
        host_ifname(fabric, Key("c1", "net1"), POD),
        host_ifname(fabric, Key("c1", "eth0"), PodIdentity()),
        host_ifname(fabric, Key("c2", "eth0"), PodIdentity("", "name", "")),
    }
    assert len(names) == 4
    assert all(len(name) == 15 and name.startswith("cali") for name in names)


def test_every_profiles_names_fit() -> None:
    for fabric in PROFILES.values():
        name = host_ifname(fabric, Key("c1", "eth0"), POD)
        assert len(name) == 15
        assert name.startswith(fabric.port_prefix)

"""The kubelet's pure parts: spec and records in, decisions, files and status out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.errors import InputError
from podwire.lab.cni_network import Network
from podwire.lab.kubelet import attachment, decide, environment, files, status
from podwire.lab.kubelet.container import back_off_s
from podwire.lab.kubelet.records import ContainerRecord, PodRecord, Termination
from podwire.lab.kubelet.spec import Pod, ignored, parse
from podwire.lab.sandbox import Sandbox

Json = dict[str, Any]


def pod(containers: int = 1, inits: int = 0, **spec: Any) -> Json:
    def some(prefix: str, count: int) -> list[Json]:
        return [{"name": f"{prefix}{i}", "command": ["true"]} for i in range(count)]

    return {
        "metadata": {"name": "a", "namespace": "ns", "uid": "u"},
        "spec": {"containers": some("c", containers), "initContainers": some("i", inits), **spec},
    }


def ended(name: str, exit_code: int) -> ContainerRecord:
    how = Termination(exit_code, "Error", "", None, "2026-01-01T00:00:00Z", "id")
    return ContainerRecord(name, state="terminated", id="id", ended=how)


def running(name: str) -> ContainerRecord:
    return ContainerRecord(name, state="running", id="id", pid=1, started=1)


def case(obj: Json, *known: ContainerRecord) -> tuple[Pod, PodRecord]:
    record = PodRecord("u", obj, "2026-01-01T00:00:00Z", containers={k.name: k for k in known})
    return parse(obj), record


def startable(obj: Json, *known: ContainerRecord) -> list[str]:
    return [container.name for container in decide.startable(*case(obj, *known))]


def condition(built: Json, kind: str) -> Json:
    return next(one for one in built["conditions"] if one["type"] == kind)


# -- decisions -------------------------------------------------------------------------------------


def test_init_containers_come_one_by_one_and_first() -> None:
    obj = pod(containers=2, inits=2)
    assert startable(obj) == ["i0"]
    assert startable(obj, running("i0")) == []
    assert startable(obj, ended("i0", 0)) == ["i1"]
    assert startable(obj, ended("i0", 0), ended("i1", 0)) == ["c0", "c1"]


@pytest.mark.parametrize(
    ("policy", "exit_code", "again"),
    [
        ("Always", 0, True),
        ("Always", 1, True),
        ("OnFailure", 0, False),
        ("OnFailure", 1, True),
        ("Never", 0, False),
        ("Never", 1, False),
    ],
)
def test_restart_policy(policy: str, exit_code: int, again: bool) -> None:
    obj = pod(restartPolicy=policy)
    assert startable(obj, ended("c0", exit_code)) == (["c0"] if again else [])
    expected = "Running" if again else ("Failed" if exit_code else "Succeeded")
    assert decide.phase(*case(obj, ended("c0", exit_code))) == expected


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
def test_init_container_is_restarted_only_after_a_failure(policy: str) -> None:
    obj = pod(inits=1, restartPolicy=policy)
    assert startable(obj, ended("i0", 1)) == ["i0"]
    assert startable(obj, ended("i0", 0)) == ["c0"]
    assert decide.phase(*case(obj, ended("i0", 1))) == "Pending"


def test_failed_init_container_fails_a_pod_that_is_never_restarted() -> None:
    assert decide.phase(*case(pod(inits=1, restartPolicy="Never"), ended("i0", 1))) == "Failed"


def test_pod_runs_while_one_container_does() -> None:
    obj = pod(containers=2, restartPolicy="Never")
    assert decide.phase(*case(obj, ended("c0", 1), running("c1"))) == "Running"
    assert decide.phase(*case(obj)) == "Pending"
    assert decide.phase(*case(obj, ended("c0", 1), ended("c1", 0))) == "Failed"


def test_back_off_grows_to_a_limit_and_spares_the_first() -> None:
    assert [back_off_s(n) for n in range(1, 9)] == [0, 1, 2, 4, 8, 16, 30, 30]


# -- status ----------------------------------------------------------------------------------------


def test_status_of_a_running_pod() -> None:
    parsed, record = case(pod(), running("c0"))
    record.phase, record.ips, record.attached = "Running", ("10.244.0.2", "fd00::2"), True
    built = status.build(parsed, record, [], ("172.18.0.11", "fd00:172:18::11"))
    assert (built["phase"], built["podIP"], built["hostIP"]) == (
        "Running",
        "10.244.0.2",
        "172.18.0.11",
    )
    assert built["podIPs"] == [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}]
    assert built["hostIPs"] == [{"ip": "172.18.0.11"}, {"ip": "fd00:172:18::11"}]
    assert {one["type"]: one["status"] for one in built["conditions"]} == {
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "Ready": "True",
        "ContainersReady": "True",
        "PodScheduled": "True",
    }
    assert built["containerStatuses"][0]["ready"] is True


def test_status_names_what_is_not_ready() -> None:
    parsed, record = case(pod(containers=2), running("c0"))
    built = status.build(parsed, record, [], ("",))
    ready = condition(built, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")
    assert ready["message"] == "containers with unready status: [c1]"
    assert built["containerStatuses"][1]["state"] == {"waiting": {"reason": "ContainerCreating"}}


def test_status_keeps_times_of_what_did_not_change_and_conditions_of_others() -> None:
    parsed, record = case(pod(), running("c0"))
    long_ago = "2020-01-01T00:00:00Z"
    before = [
        {"type": "Ready", "status": "True", "lastTransitionTime": long_ago},
        {"type": "Initialized", "status": "False", "lastTransitionTime": long_ago},
        {"type": "example.com/gate", "status": "True"},
    ]
    built = status.build(parsed, record, before, ("",))
    assert condition(built, "Ready")["lastTransitionTime"] == long_ago
    assert condition(built, "Initialized")["lastTransitionTime"] != long_ago
    assert condition(built, "example.com/gate") == before[2]


def test_containers_wait_for_init_containers() -> None:
    parsed, record = case(pod(inits=1), running("i0"))
    built = status.build(parsed, record, [], ("",))
    assert built["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert condition(built, "Initialized")["status"] == "False"
    assert built["initContainerStatuses"][0]["state"]["running"]


# -- files -----------------------------------------------------------------------------------------

NODE_RESOLV = "nameserver 192.0.2.1\nsearch corp.example\noptions timeout:1\n"


def test_resolv_conf_by_policy() -> None:
    cluster = files.resolv_conf(parse(pod()), NODE_RESOLV)
    assert cluster == (
        "search ns.svc.cluster.local svc.cluster.local cluster.local\n"
        "nameserver 10.96.0.10\noptions ndots:5\n"
    )
    assert files.resolv_conf(parse(pod(dnsPolicy="Default")), NODE_RESOLV) == (
        "search corp.example\nnameserver 192.0.2.1\noptions timeout:1\n"
    )
    on_host = files.resolv_conf(parse(pod(hostNetwork=True)), NODE_RESOLV)
    assert "nameserver 192.0.2.1" in on_host


def test_dns_config_adds_and_overrides() -> None:
    config = {
        "nameservers": ["10.96.0.10", "192.0.2.9"],
        "searches": ["example.com"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
    }
    assert files.resolv_conf(parse(pod(dnsConfig=config)), "") == (
        "search ns.svc.cluster.local svc.cluster.local cluster.local example.com\n"
        "nameserver 10.96.0.10\nnameserver 192.0.2.9\noptions ndots:2 edns0\n"
    )
    only_own = files.resolv_conf(parse(pod(dnsPolicy="None", dnsConfig=config)), NODE_RESOLV)
    assert only_own.startswith("search example.com\nnameserver 10.96.0.10\n")


def test_hosts_has_the_pods_name_and_aliases() -> None:
    obj = pod(hostname="web", hostAliases=[{"ip": "192.0.2.5", "hostnames": ["x", "y"]}])
    text = files.hosts(parse(obj), ["10.244.0.2"])
    assert "10.244.0.2\tweb\n" in text
    assert "192.0.2.5\tx\ty\n" in text


# -- command line and environment ------------------------------------------------------------------


def variables(env: list[Json], **metadata: Any) -> dict[str, str]:
    obj = pod()
    obj["metadata"].update(metadata)
    obj["spec"]["containers"][0]["env"] = env
    parsed = parse(obj)
    return environment.environment(
        parsed,
        parsed.spec.containers[0],
        ips=["10.244.0.2"],
        node={"spec.nodeName": "node1", "status.hostIP": "172.18.0.11"},
        maps={"settings": {"key": "value"}},
    )


def from_field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def from_map(name: str, key: str, **more: Any) -> Json:
    return {"name": name, "valueFrom": {"configMapKeyRef": {"name": name, "key": key, **more}}}


def test_environment_from_values_fields_and_config_maps() -> None:
    found = variables(
        [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)$(NONE)$$(A)"},
            from_field("IP", "status.podIP"),
            from_field("NODE", "spec.nodeName"),
            from_field("APP", "metadata.labels['app']"),
            from_map("settings", "key"),
            from_map("absent", "key", optional=True),
        ],
        labels={"app": "web"},
    )
    assert found["B"] == "1$(NONE)$(A)"
    assert (found["IP"], found["NODE"], found["APP"]) == ("10.244.0.2", "node1", "web")
    assert found["settings"] == "value"
    assert "absent" not in found


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (from_map("settings", "other"), 'config map "settings" has no key "other"'),
        (from_field("X", "spec.nope"), "'spec.nope' is not supported"),
        ({"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}, "only fieldRef"),
    ],
)
def test_environment_refuses_what_is_not_there(variable: Json, message: str) -> None:
    with pytest.raises(InputError, match=message):
        variables([variable])


def test_container_without_a_command_is_refused_with_a_remedy() -> None:
    obj = pod()
    obj["spec"]["containers"][0] = {"name": "c0", "image": "nginx"}
    with pytest.raises(InputError, match="programs of this machine") as raised:
        environment.command_line(parse(obj).spec.containers[0], {})
    assert "nginx" in str(raised.value.remedy)


@given(st.text(alphabet="$()AB x", max_size=12))
def test_expansion_leaves_no_known_reference(text: str) -> None:
    result = environment.expand(text, {"A": "1"})
    assert len(result) <= len(text)
    assert environment.expand(text.replace("$", ""), {"A": "1"}) == text.replace("$", "")


# -- attachment ------------------------------------------------------------------------------------

SANDBOX = Sandbox("f" * 64, 1, 1, "/run/netns/cni-1", "life")


def test_attachment_is_as_containerd_makes_it() -> None:
    made = attachment.attachment(parse(pod()), SANDBOX)
    assert made.args == (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", "ns"),
        ("K8S_POD_NAME", "a"),
        ("K8S_POD_INFRA_CONTAINER_ID", "f" * 64),
        ("K8S_POD_UID", "u"),
    )
    assert (made.netns, made.ifname, made.capabilities) == ("/run/netns/cni-1", "eth0", {})


def test_capabilities_from_ports_and_annotations() -> None:
    obj = pod()
    obj["spec"]["containers"][0]["ports"] = [
        {"containerPort": 80, "hostPort": 8080},
        {"containerPort": 53, "protocol": "UDP"},
    ]
    obj["metadata"]["annotations"] = {
        "kubernetes.io/ingress-bandwidth": "10M",
        "kubernetes.io/egress-bandwidth": "1Mi",
        "cni.projectcalico.org/ipAddrs": '["10.244.0.9"]',
        "cni.projectcalico.org/hwAddr": "02:00:00:00:00:01",
    }
    offered = attachment.attachment(parse(obj), SANDBOX).capabilities
    assert offered["portMappings"] == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}
    ]
    assert offered["bandwidth"]["ingressRate"] == 10_000_000
    assert offered["bandwidth"]["egressRate"] == 1024 * 1024
    assert (offered["ips"], offered["mac"]) == (["10.244.0.9"], "02:00:00:00:00:01")


def test_what_no_plugin_does_for_a_pod_is_said_with_the_remedy() -> None:
    obj = pod()
    obj["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 8080}]
    obj["metadata"]["annotations"] = {"kubernetes.io/egress-bandwidth": "1Mi"}

    def said(*capabilities: str) -> str | None:
        plugin = {"type": "x", "capabilities": dict.fromkeys(capabilities, True)}
        network = Network("net", "1.0.0", ({"type": "podwire"}, plugin), b"")
        return attachment.without_effect(parse(obj), network)

    assert said() == (
        "hostPort 8080, kubernetes.io/egress-bandwidth: without effect, as no plugin of network net"
        " has the capability portMappings or bandwidth; chain portmap and bandwidth behind it in"
        " /etc/cni/net.d of the node, and create the pod anew"
    )
    assert "chain portmap behind it" in (said("bandwidth") or "")
    assert said("portMappings", "bandwidth") is None


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("kubernetes.io/ingress-bandwidth", "fast"),
        ("cni.projectcalico.org/ipAddrs", "10.244.0.9"),
        ("cni.projectcalico.org/ipAddrs", "[1]"),
    ],
)
def test_bad_annotation_is_named(annotation: str, value: str) -> None:
    obj = pod()
    obj["metadata"]["annotations"] = {annotation: value}
    with pytest.raises(InputError, match=annotation.replace(".", r"\.")):
        attachment.attachment(parse(obj), SANDBOX)


# -- spec ------------------------------------------------------------------------------------------


def test_null_means_absent() -> None:
    obj = pod(hostNetwork=None, dnsConfig=None)
    obj["metadata"]["annotations"] = None
    assert parse(obj).spec.host_network is False


def test_what_a_lab_ignores_is_named() -> None:
    obj = pod(inits=1, volumes=[{"name": "v", "emptyDir": {}}])
    obj["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 80}}
    assert ignored(obj) == ["volumes", "containers[c0].readinessProbe"]
    assert ignored(pod(securityContext={}, volumes=None)) == []


def test_a_pod_that_does_not_fit_is_refused_by_its_field() -> None:
    with pytest.raises(InputError, match=r"spec\.containers"):
        parse(pod(containers=1) | {"spec": {"containers": 5}})


@given(st.text(alphabet="abc.-0", min_size=1, max_size=100).filter(lambda s: s[0] in "abc0"))
def test_hostname_is_one_label_that_the_kernel_takes(name: str) -> None:
    obj = pod()
    obj["metadata"]["name"] = name
    hostname = parse(obj).hostname
    assert 0 < len(hostname) <= 63
    assert hostname[-1] not in "-."

"""Which pod, node or address SRC and DST mean."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from podwire.cli.ends import End, Word, family, find, parse
from podwire.cluster.kube import NAMESPACES, NODES, PODS, ClientConfig, KubeClient
from podwire.errors import InputError

from ..cluster.api_process import ApiProcess


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("web", Word("", "space", "web")),
        ("shop/web", Word("pod", "shop", "web")),
        ("pod/web", Word("pod", "space", "web")),
        ("po/web", Word("pod", "space", "web")),
        ("pod/shop/web", Word("pod", "shop", "web")),
        ("node/node1", Word("node", "", "node1")),
        ("nodes/node1.example.com", Word("node", "", "node1.example.com")),
        ("10.244.2.7", Word("address", "", "10.244.2.7")),
        ("FD00::0001", Word("address", "", "fd00::1")),
        ("10.244.2", Word("", "space", "10.244.2")),  # a fine name for a pod
    ],
)
def test_words_are_read_as_they_are_meant(text: str, word: Word) -> None:
    assert parse(text, "SRC", "space") == word


@pytest.mark.parametrize(
    "text",
    ["", "--count", "-n", "Web", "a/b/c", "node/a/b", "pod/", "/", "a b", "a/../b", "svc%2f"],
)
def test_what_can_name_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"SRC: .* names no pod, node or address"):
        parse(text, "SRC", "space")


def end(*ips: str) -> End:
    return End(kind="pod", name="default/a", node="node1", ips=ips)


def test_the_first_family_that_both_have_is_used() -> None:
    both, six = end("10.0.0.1", "fd00::1"), end("fd00::2")
    assert family(both, both, None) == ("10.0.0.1", "10.0.0.1")
    assert family(both, six, None) == ("fd00::1", "fd00::2")
    assert family(both, both, 6) == ("fd00::1", "fd00::1")


def test_a_node_reaches_pods_with_an_address_of_its_tunnel() -> None:
    node, pod = End(kind="node", name="node1", node="node1", ips=("fd00::1",)), end("10.0.0.2")
    assert family(node, pod, None)[1] == "10.0.0.2"
    with pytest.raises(InputError, match="no family is common"):
        family(pod, node, None)


def test_a_family_that_an_end_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"has no IPv6 address, only 10\.0\.0\.1"):
        family(end("10.0.0.1"), end("10.0.0.1", "fd00::1"), 6)
    with pytest.raises(InputError, match="no family is common"):
        family(end("10.0.0.1"), end("fd00::1"), None)


# --- against an API -----------------------------------------------------------------------------


class Api:
    """A namespace of its own, in which ends are looked for."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self.namespace = f"t-{secrets.token_hex(4)}"
        metadata = {"name": self.namespace}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        self._run(lambda client: client.create(NAMESPACES, namespace))
        self._nodes: list[str] = []

    def find(self, text: str) -> End:
        word = parse(text, "SRC", self.namespace)
        found: End = self._run(lambda client: find(client, word, "SRC"))
        return found

    def pod(self, name: str, status: dict[str, Any], **spec: Any) -> None:
        container = {"name": "main", "image": "none", "command": ["sleep", "infinity"]}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [container], "nodeName": "nowhere", **spec},
        }

        async def make(client: KubeClient) -> None:
            await client.create(PODS, pod, self.namespace)
            await client.merge_patch(PODS, name, {"status": status}, self.namespace, "status")

        self._run(make)

    def node(self, name: str, *ips: str) -> None:
        async def make(client: KubeClient) -> None:
            await client.create(
                NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
            )
            addresses = [{"type": "InternalIP", "address": ip} for ip in ips]
            status = {"status": {"addresses": addresses}}
            await client.merge_patch(NODES, name, status, subresource="status")

        self._nodes.append(name)
        self._run(make)

    def close(self) -> None:
        async def delete(client: KubeClient) -> None:
            for name in self._nodes:
                await client.delete(NODES, name)
            for pod in (await client.list(PODS, self.namespace)).items:
                await client.delete(PODS, pod["metadata"]["name"], self.namespace, 0)

        self._run(delete)

    def _run(self, work: Callable[[KubeClient], Any]) -> Any:
        async def connected() -> Any:
            async with KubeClient(self._config) as client:
                return await work(client)

        return asyncio.run(connected())


@pytest.fixture
def api_of(api: ApiProcess) -> Iterator[Api]:
    made = Api(api.config)
    yield made
    made.close()


def running(*ips: str) -> dict[str, Any]:
    return {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}


def unique_ip() -> str:
    """The tests of this session share one cluster."""
    return f"10.{secrets.randbelow(200)}.{secrets.randbelow(250)}.{secrets.randbelow(250)}"


def test_a_running_pod_is_found_with_its_addresses(api_of: Api) -> None:
    api_of.pod("web", running("10.244.1.2", "fd00::2"))
    found = api_of.find("web")
    assert (found.kind, found.name, found.node) == ("pod", f"{api_of.namespace}/web", "nowhere")
    assert found.ips == ("10.244.1.2", "fd00::2")


def test_a_pod_on_its_nodes_network_is_the_node(api_of: Api) -> None:
    api_of.pod("proxy", running("172.18.0.12"), hostNetwork=True)
    found = api_of.find("pod/proxy")
    assert (found.kind, found.name, found.ips) == ("node", "nowhere", ("172.18.0.12",))
    assert found.host_network == f"{api_of.namespace}/proxy"


def test_a_name_that_a_pod_and_a_node_have_asks_for_more(api_of: Api) -> None:
    name = f"both-{secrets.token_hex(3)}"
    api_of.pod(name, running("10.244.1.2"))
    api_of.node(name, "172.18.0.12")
    with pytest.raises(InputError, match=f"say pod/{name} or node/{name}"):
        api_of.find(name)
    assert api_of.find(f"node/{name}").kind == "node"
    assert api_of.find(f"pod/{name}").kind == "pod"


def test_an_address_is_the_pods_that_has_it(api_of: Api) -> None:
    ip = unique_ip()
    assert api_of.find(ip).kind == "address"
    api_of.pod("ended", {**running(ip), "phase": "Succeeded"})
    assert api_of.find(ip).kind == "address"
    api_of.pod("web", running(ip))
    assert api_of.find(ip).name == f"{api_of.namespace}/web"


def test_a_name_that_nothing_has_suggests_what_is_near(api_of: Api) -> None:
    api_of.pod("frontend", running("10.244.1.2"))
    with pytest.raises(InputError, match=r"there is no pod fronted .*did you mean frontend"):
        api_of.find("fronted")
    with pytest.raises(InputError, match=f"no pod zzz in namespace {api_of.namespace}, and no"):
        api_of.find("zzz")
    with pytest.raises(InputError, match="there is no node zzz"):
        api_of.find("node/zzz")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ({"phase": "Pending"}, "is Pending on nowhere: it has no address yet"),
        ({"phase": "Succeeded", "podIP": "10.244.1.2"}, "it has ended"),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {
                        "name": "main",
                        "image": "",
                        "imageID": "",
                        "ready": False,
                        "restartCount": 0,
                        "state": {"waiting": {"reason": "ContainerCreating"}},
                    }
                ],
            },
            "is ContainerCreating on nowhere",
        ),
    ],
)
def test_a_pod_that_does_not_run_says_what_it_is_at(
    api_of: Api, status: dict[str, Any], text: str
) -> None:
    api_of.pod("web", status)
    with pytest.raises(InputError, match=text):
        api_of.find("web")


def test_a_pod_that_no_node_runs_says_why(api_of: Api) -> None:
    api_of.pod("web", {"phase": "Pending"}, nodeName="", nodeSelector={"no": "such"})
    with pytest.raises(InputError, match="is Pending: no node runs it"):
        api_of.find("web")


def test_a_node_has_an_address_of_each_family(api_of: Api) -> None:
    name = f"dual-{secrets.token_hex(3)}"
    api_of.node(name, "192.0.2.9", "2001:db8::9")
    assert api_of.find(f"node/{name}").ips == ("192.0.2.9", "2001:db8::9")


def test_a_node_without_an_address_is_no_end(api_of: Api) -> None:
    name = f"bare-{secrets.token_hex(3)}"
    api_of.node(name)
    with pytest.raises(InputError, match="has no InternalIP"):
        api_of.find(f"node/{name}")

"""Rules read from what nft lists."""

from __future__ import annotations

import pytest

from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from podwire.kernel.observe import nft_messages
from podwire.kernel.observe.nft_rules import RuleTexts, parse_chain
from tests.conftest import Namespace

LISTING = "\n".join(
    (
        "table inet t {",
        "\tchain f { # handle 1",
        "\t\ttype filter hook forward priority filter; policy accept;",
        "\t\tip saddr 10.0.0.0/8  counter drop # handle 2",
        "\t\tip daddr { 10.0.0.1, 10.0.0.2,",
        "\t\t\t   10.0.0.3 } tcp dport vmap { 80 : accept, 443 : jump other } # handle 4",
        '\t\taccept comment "type of # handle 9" # handle 17',
        "",
        "\t\tmeta mark set 0x00000001 # handle 18",
        "\t}",
        "}",
    )
)


def test_rules_by_handle_on_one_line_each() -> None:
    assert parse_chain(LISTING) == {
        2: "ip saddr 10.0.0.0/8 counter drop",
        4: "ip daddr { 10.0.0.1, 10.0.0.2, 10.0.0.3 }"
        " tcp dport vmap { 80 : accept, 443 : jump other }",
        17: 'accept comment "type of # handle 9"',
        18: "meta mark set 0x00000001",
    }


def test_nothing_has_no_rules() -> None:
    assert parse_chain("") == {}
    assert parse_chain("table ip t {\n\tchain c { # handle 1\n\t}\n}\n") == {}


@pytest.mark.root
def test_a_chain_s_name_is_never_a_command(inside: Namespace) -> None:
    """Whoever may filter in a pod chooses names there; nft reads them with the agent's rights."""
    inside.run("nft 'add table inet t; add chain inet t c; add rule inet t c counter'")
    name = "c\nadd table inet made\nlist chain inet t c"
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        chain = nft_messages.new_chain(nft_messages.INET, "t", name)
        assert sock.request(nft_messages.batch([chain])) == []
    texts = RuleTexts()
    assert texts.text("inet", "t", "c", 2) == "counter"
    assert texts.text("inet", "t", name, 2) == ""
    texts.close()
    assert inside.run("nft list tables") == "table inet t\n"

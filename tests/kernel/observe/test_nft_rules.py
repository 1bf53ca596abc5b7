"""Rules read from what nft lists."""

from __future__ import annotations

from podwire.kernel.observe.nft_rules import parse_chain

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

"""Numbers of packet headers that the three filters of a probe's packets share.

What lives here: protocol numbers, types of messages, and where things are in a header, by IP
version where that differs. What does not: what matches, which is `podwire.model.probe`'s to say.
"""

from __future__ import annotations

#: EtherTypes (linux/if_ether.h).
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
ARP = 0x0806

#: Protocol numbers (IANA).
TCP, UDP, FRAGMENT = 6, 17, 44
ICMP = {4: 1, 6: 58}

#: Source and target, from the IP header on.
SOURCE = {4: 12, 6: 8}
TARGET = {4: 16, 6: 24}

#: Echo request and reply (RFC 792, RFC 4443).
ECHO = {4: (8, 0), 6: (128, 129)}
#: Messages that quote the packet they are about: RFC 792 (and RFC 1122 3.2.2), RFC 4443 section 3.
ERRORS = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4)}
#: From an ICMP header to the packet that an error quotes.
QUOTED = 8
#: Neighbour solicitation and advertisement (RFC 4861).
NDP = (135, 136)

#: Of TCP: where the flags are, and the bits.
FLAGS, SYN, RST, ACK = 13, 0x02, 0x04, 0x10

#: From the UDP header of a VXLAN packet (RFC 7348) to the inner frame, its EtherType, its packet.
VXLAN_FRAME, VXLAN_TYPE, VXLAN_PACKET = 16, 28, 30
#: From the UDP header to a packet that is bare in the datagram.
BARE_PACKET = 8

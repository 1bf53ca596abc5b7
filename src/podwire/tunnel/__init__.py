"""The user-space data path of the UDP transport, a process of its own on each node.

    pod → … → TUN device ─ super-packets ─▶ outbound ─ datagrams (UDP GSO) ─▶ underlay
    pod ← … ← TUN device ◀─ super-packets ─ inbound  ◀─ datagrams (UDP GRO) ─ underlay

Sans-I/O, functions on bytes and arrays: `checksum`, `headers`, `segment`, `rows`, `coalesce`,
`batches`, `icmp`, `table`, `control`. What moves bytes: `sockets`, `outbound`, `inbound`, `area`,
`endpoint` and `loop`.
`client` is the agent's side. The values that both sides exchange are in `podwire.model.tunnel`.
"""

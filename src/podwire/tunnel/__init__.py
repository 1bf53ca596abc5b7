"""The user-space UDP data path: its packets' maths, its handshake, and its own process."""

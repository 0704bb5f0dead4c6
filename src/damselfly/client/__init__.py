"""The agent's unix socket, spoken to with the standard library alone.

Everything in this room may be imported by an engine's process or a command that must start in
60 ms, so it imports nothing but the standard library and `damselfly.errors`. The agent writes its
answers with the same `damselfly.client.answers` that are read here.
"""

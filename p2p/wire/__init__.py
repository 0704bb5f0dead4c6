"""HTTP/2 (RFC 9113) without input or output: bytes and the time go in, events and bytes come out.

Reading order: `frames` (what is on the wire), `inbox` (where the next bytes go), `streams` (the
table of states), `windows`, `headers`, `scheduler`, and `connection`, which holds them together.
"""

"""Damselfly: distributes model artifacts through a swarm of node agents."""

__version__ = "0.1.0"

"""Kubernetes as the source of peers: which agents there are, on which nodes, in which zone."""

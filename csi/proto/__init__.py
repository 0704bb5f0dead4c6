"""The messages of CSI and of the kubelet's plugin registration: generated, see `make proto`."""

"""The schemes of refs that are spoken here. By itself, for configurations are read before refs."""

SCHEMES = ("file", "http", "https", "hf", "s3", "gs", "az", "oci")
"""Others may be spoken too: the configuration names filesystems (`--origin-fsspec`)."""

"""The CSI driver: shows artifacts of the node's store to pods, as read-only mounts."""

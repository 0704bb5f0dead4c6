"""The node's store: verified chunks on local disk, one inode per content, an account of them."""

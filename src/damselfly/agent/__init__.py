"""The node daemon: builds every room, and hands their ports around."""

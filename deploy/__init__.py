"""How Damselfly is deployed: its chart, the manifests made from it, its image, and their makers."""

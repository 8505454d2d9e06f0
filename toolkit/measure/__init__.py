"""``toolkit measure``: published metrics, by published networks, of samples on disk."""

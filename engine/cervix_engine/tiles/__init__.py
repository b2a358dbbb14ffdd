"""A tile: its bytes, header, pixels and quality, and where tiles are found."""

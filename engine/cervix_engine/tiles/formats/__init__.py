"""The formats that a tile may come in, one module each: what its header says, and whether it is whole."""

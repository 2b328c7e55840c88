"""How files come to stores that are not this machine."""

"""Sets written: what the source has against what the set has, packs, snapshots, the catalogue."""

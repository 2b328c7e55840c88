"""Sets written: what the source has against what the set has, packs and snapshots."""

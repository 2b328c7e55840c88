"""Sets: folders of archives, and snapshots that say which of them make a state."""

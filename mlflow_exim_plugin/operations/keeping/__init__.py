"""What is done with sets: packing into them, forgetting, retention."""

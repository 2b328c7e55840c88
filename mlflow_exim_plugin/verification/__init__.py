"""Archives against the rules of the spec."""

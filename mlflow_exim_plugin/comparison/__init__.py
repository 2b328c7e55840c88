"""Two sources beside each other: object by object, field by field, whatever their ids are."""

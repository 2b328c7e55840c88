"""Writers of the kinds whose objects are one document."""

"""Source `server`: a tracking server or store by its API."""

"""Sink ``files``: the artifacts of what comes, as files of a folder of this machine."""

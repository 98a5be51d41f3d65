"""List files, for scripts that read them from their former place."""

from util.data.sources import Pair, read_list

__all__ = ["Pair", "read_list"]

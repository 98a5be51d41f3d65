"""Reading and augmenting pictures, for scripts that import it from its former place."""

from util.data.transform import read_image, read_mask, read_pair

__all__ = ["read_image", "read_mask", "read_pair"]

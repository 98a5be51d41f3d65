"""The project's errors, for scripts that import them from their former place."""

from util.runtime.errors import FewShotError, Interrupted, NonFiniteLoss

__all__ = ["FewShotError", "Interrupted", "NonFiniteLoss"]

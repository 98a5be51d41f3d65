"""The episode sampler, for scripts that import it from its former place."""

from util.data.episodes import Episode, EpisodeSampler

__all__ = ["Episode", "EpisodeSampler"]

"""What a run is told: files, keys, folds; typed, checked, documented in one place."""

from util.config.load import Config, add_config_arguments, config_from_dict, load_config

__all__ = ["Config", "add_config_arguments", "config_from_dict", "load_config"]

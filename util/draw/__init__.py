"""Pictures for people: overlays and heat maps, panels of episodes, charts."""

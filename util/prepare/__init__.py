"""Data preparation: from official archives or unpacked folders to ready masks and lists."""

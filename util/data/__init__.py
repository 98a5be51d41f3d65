"""Data sets: from files on a disk to the tensors of an episode."""

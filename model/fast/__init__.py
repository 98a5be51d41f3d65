"""The same results with less work: subclasses with the same parameters that override single steps.

A file here holds what is faster than its namesake in ``model/``; ``cpu/`` holds forms that pay on
processors only. Without this folder everything runs, slower.
"""

"""The same results with less work: subclasses with the same parameters that override single steps.

Most files hold what is faster than their namesake in ``model/`` (``steps.py`` and ``cpu/``: than
its encoders, ``pooling.py``: than its pyramid pooling); ``cpu/`` holds forms that pay on processors
only. docs/architecture.md says how each is switched off. Without this folder everything runs,
slower.
"""

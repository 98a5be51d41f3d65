"""Which settings a weight file is used with: those kept in it, its own as it ships, the user's."""

from __future__ import annotations

import shutil

from util.weights.load import SHIPPED, model_of, shipped


def test_the_shipped_model_is_the_same_named_or_not(tmp_path, monkeypatch):
    monkeypatch.chdir(SHIPPED.parent)
    for named in (SHIPPED, str(SHIPPED), SHIPPED.name):
        assert model_of(None, named)[0] == shipped()[0]
        assert model_of(None, named, ["amp", "bf16"])[0] == shipped(["amp", "bf16"])[0]
    assert shipped()[0].amp == "off" and shipped(["amp", "bf16"])[0].amp == "bf16"
    copy = shutil.copy(SHIPPED, tmp_path)
    assert model_of(None, copy)[0].amp == "bf16"

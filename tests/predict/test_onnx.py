"""Prediction without PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import predict
from tests.own_pictures import ROOT, disc, small_config, untrained, write
from tests.training_case import environment
from util.data.transform import restore
from util.predict import FewShotPredictor, OnnxPredictor
from util.predict.onnx import enlarged, strongest
from util.runtime.errors import FewShotError

pytest.importorskip("onnxruntime")
HALVES = ("support.onnx", "query.onnx")
BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "timm", "scipy", "matplotlib")))
"""


def without_torch(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """``code`` run where PyTorch, and what requirements-onnx.txt leaves out, cannot be imported."""
    words = [sys.executable, "-c", BLOCKED + code, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an export, and the predictor of the same weights in PyTorch."""
    pytest.importorskip("onnxscript")
    from util.weights.onnx import export_onnx

    folder = tmp_path_factory.mktemp("onnx")
    cfg = small_config(resized_val=False, stages=2)
    weight = folder / "best.pth"
    torch.save({"model": untrained(cfg).state_dict(), "config": cfg.to_dict()}, weight)
    export_onnx(cfg, weight, folder)
    reference = FewShotPredictor.from_config(cfg.replace(compute="textbook"), weight, "cpu")
    return folder, reference


def test_what_needs_no_torch_imports_none():
    done = without_torch("from util.predict import OnnxPredictor, Prediction, box_mask")
    assert done.returncode == 0, done.stderr
    done = without_torch("from util.predict import FewShotPredictor")
    assert "import of torch halted" in done.stderr
    done = without_torch("from util.predict import NoPredictor")
    assert "ImportError: cannot import name 'NoPredictor'" in done.stderr


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)),
                  elements=st.floats(-5, 5, width=16)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
)  # fmt: skip
def test_enlarging_as_tensors_are(values, size):
    expected = restore(torch.from_numpy(values)[None, None], values.shape, size)[0, 0]
    np.testing.assert_allclose(enlarged(values, size), expected, atol=2e-5)


@pytest.mark.parametrize("output", ["final", "meta"])
def test_it_predicts_what_the_other_predicts(exported, output):
    folder, reference = exported
    reference = reference.without_supports()
    reference.output = output
    predictor = OnnxPredictor(folder, output, threads=1)
    for each in (predictor, reference):
        for seed, name in enumerate(("a", "b", "b", "c", "a", "d")):  # 2, 2, 1 and 1 supports
            each.add_support(*disc((70, 90 + seed), seed), name)
    query = disc((100, 64), 9)[0]
    found, expected = predictor.predict(query), reference.predict(query)
    assert found.classes == expected.classes and predictor.shots == reference.shots
    assert found.mask.dtype == np.uint8 and (found.mask == expected.mask).mean() > 0.999
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    for name in found.classes:
        np.testing.assert_allclose(found.priors[name], expected.priors[name], atol=1e-4)
        pairs = zip(found.correlations[name], expected.correlations[name], strict=True)
        for one, other in pairs:
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=1e-3)


def test_its_complaints_are_the_same(exported):
    folder, reference = exported
    for predictor in (OnnxPredictor(folder), reference.without_supports()):
        with pytest.raises(FewShotError, match="no support yet: call add_support before predict"):
            predictor.predict(disc((20, 20), 0)[0])
        with pytest.raises(FewShotError, match="exactly one of mask, box and polygons"):
            predictor.add_support(disc((20, 20), 0)[0])
        with pytest.raises(FewShotError, match="vanishes at the network's input size of 81"):
            predictor.add_support(np.zeros((2000, 2000, 3), np.uint8), box=(1, 1, 3, 3))
    with pytest.raises(FewShotError, match="output is 'final' or 'meta', not 'base'"):
        OnnxPredictor(folder, "base")


def test_files_that_are_no_export(exported, tmp_path):
    folder, _ = exported
    with pytest.raises(FewShotError, match=r"there is no .*support\.onnx: python -m util.export"):
        OnnxPredictor(tmp_path)
    for name in HALVES:
        (tmp_path / name).write_bytes(b"nothing")
    reason = r"support\.onnx cannot be read as an ONNX file by onnxruntime \d\S+: Protobuf parsing"
    with pytest.raises(FewShotError, match=reason):
        OnnxPredictor(tmp_path)


@pytest.mark.parametrize(
    ("field", "reason"),
    [("ir_version", "Unsupported model IR version: 99, max"), ("opset", "ONNX Runtime only .*99")],
)
def test_files_of_a_newer_version_are_refused_with_the_reason(exported, tmp_path, field, reason):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported[0] / "support.onnx")
    if field == "opset":
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    shutil.copy(exported[0] / "query.onnx", tmp_path)
    onnx.save(model, tmp_path / "support.onnx")
    with pytest.raises(FewShotError, match=rf"by onnxruntime \d\S+: {reason}"):
        OnnxPredictor(tmp_path)


@pytest.mark.parametrize("said", [True, False])
def test_halves_in_each_others_place(exported, tmp_path, said):
    onnx = pytest.importorskip("onnx")
    for name in HALVES:
        model = onnx.load(exported[0] / name)
        if not said:
            kept = [each for each in model.metadata_props if each.key != "half"]
            assert len(kept) + 1 == len(model.metadata_props)
            del model.metadata_props[:]
            model.metadata_props.extend(kept)
        onnx.save(model, tmp_path / name)
    OnnxPredictor(tmp_path)
    support, query = (tmp_path / name for name in HALVES)
    contents = support.read_bytes(), query.read_bytes()
    support.write_bytes(contents[1])
    with pytest.raises(FewShotError, match=r"support\.onnx holds what belongs in query\.onnx"):
        OnnxPredictor(tmp_path)
    for path in (support, query):
        path.write_bytes(contents[0])
    with pytest.raises(FewShotError, match=r"query\.onnx holds what belongs in support\.onnx"):
        OnnxPredictor(tmp_path)


def test_what_a_predictor_is_made_of(exported):
    for folder in (None, b"model", 3):
        with pytest.raises(FewShotError, match="folder is the path of an export, not "):
            OnnxPredictor(folder)
    for threads in ("2", -3, 0, 1.5, 10**12):
        with pytest.raises(FewShotError, match=f"threads is None or from 1 to .*, not .*{threads}"):
            OnnxPredictor(exported[0], threads=threads)
    OnnxPredictor(exported[0], threads=np.int64(2))


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
                  elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])),
)  # fmt: skip
def test_the_strongest_class_is_the_first_of_equals(odds):
    mask, largest = strongest(odds)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, odds.argmax(axis=0))
    np.testing.assert_array_equal(largest, odds.max(axis=0))


def test_the_command_without_torch(exported, tmp_path):
    folder, reference = exported
    image, mask = disc((70, 80), 0)
    support = write(tmp_path / "mug.jpg", image)
    drawn = write(tmp_path / "mug.png", mask * 255)
    query = write(tmp_path / "query.png", disc((170, 200), 3)[0])
    code = "import runpy; sys.argv[0] = 'predict.py'; runpy.run_path('predict.py', {}, '__main__')"
    words = ("--onnx", folder, "--support", support, drawn, "mug", "--query", query,
             "--output", tmp_path / "out")  # fmt: skip
    done = without_torch(code, *words)
    assert done.returncode == 0, done.stderr
    predictor = reference.without_supports()
    predictor.add_support(support, drawn, "mug")
    labels = np.array(Image.open(tmp_path / "out" / "labels" / "query.png"))
    assert (labels == predictor.predict(query).mask).mean() > 0.999
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["classes"] == {"mug": {"label": 1, "supports": 1}}
    done = without_torch(code, *words)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert done.returncode == 0 and summary["kept_from_earlier_call"] == 1


@pytest.mark.parametrize("option", ["--config", "--weight", "--device", "--opts"])
def test_the_command_takes_no_other_model_beside_it(option, monkeypatch):
    words = ["predict.py", "--onnx", "x", option, "cpu", "--query", "q", "--output", "o"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(FewShotError, match=f"without {option}"):
        predict.main()


@pytest.mark.parametrize("there", ["nothing", "half", "file"])
def test_the_command_says_what_writes_a_missing_export(there, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    if there == "half":
        write(folder / "0.png", disc((9, 9), 0)[0])
        (folder / "support.onnx").write_bytes(b"")
    elif there == "file":
        folder.write_bytes(b"")
    support = write(tmp_path / "s.png", disc((40, 40), 0)[0])
    words = ["--onnx", folder, "--support", support, "box:1,1,30,30", "--query", support,
             "--output", tmp_path / "out"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
    missing = "query" if there == "half" else "support"
    with pytest.raises(FewShotError, match=rf"^there is no .*{missing}\.onnx: python -m util.exp"):
        predict.main()

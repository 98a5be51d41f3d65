"""Both halves of a model as ONNX files: the same numbers for any size and number of supports."""

from __future__ import annotations

import copy
import errno
import functools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model.ensemble import Ensemble
from model.hsnet import HSNet
from model.matching import MatchingBlock
from model.pspnet import PyramidHead
from tests.models import build, episode
from tests.own_pictures import disc, small_config, untrained
from util.data.transform import MEAN, STD
from util.export import main as export_main
from util.runtime.errors import FewShotError
from util.weights import onnx as halves
from util.weights.onnx_about import QUERY, SUPPORT, About, about, check_half
from util.weights.onnx_forms import METHODS, average, exportable, factor, group_norm, same
from util.weights.onnx_shrink import shrink

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
MODELS = {
    "hdmnet resnet": dict(shot=5, stages=2),
    "hdmnet vgg": dict(backbone="vgg16", ensemble=False, matching="attention", stages=1),
    "hdmnet timm": dict(backbone="timm/tf_efficientnet_lite0", stages=1, object_above=0.3),
    "hsnet resnet": dict(arch="HSNet", stem="7x7", pyramid=(16, 32), hyper_layers="deep",
                         kernel4d="center_pivot", object_above=0.3),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """A textbook model, and sessions of its two halves."""
    model = build(compute="textbook", **MODELS[request.param])
    with torch.no_grad():
        graphs = halves._graphs(exportable(model))
    sessions = {n: ort.InferenceSession(g.SerializeToString()) for n, g in graphs.items()}
    return model, sessions[SUPPORT], sessions[QUERY]


@pytest.mark.parametrize(("size", "batch", "shot"), [((129, 97), 1, 1), ((96, 160), 2, 5)])
def test_onnxruntime_computes_what_the_model_computes(case, size, batch, shot):
    model, support, query = case
    data = episode(size, batch=batch, shot=shot)
    masks = data["support_masks"]
    masks[0, -1] = shot == 1 or 0  # of several supports, one without the object; else it is full
    masks[..., :5] = 255
    with torch.no_grad():
        out = model(data["query_image"], data["support_images"], masks)
    held = [each.name for each in support.get_outputs()]
    images, flat = data["support_images"].flatten(0, 1).numpy(), masks.flatten(0, 1).numpy()
    encoded = support.run(held, {"image": images, "mask": flat})
    given = {n: e.reshape(batch, shot, *e.shape[1:]) for n, e in zip(held, encoded, strict=True)}
    given |= {"image": data["query_image"].numpy(), "picture": np.arange(batch)}
    for (name, value), found in zip(
        halves.outputs(out).items(), query.run(None, given), strict=True
    ):
        assert found.shape == value.shape
        assert halves.apart(value.numpy(), found) < 1e-4, name


def test_one_picture_against_several_sets_of_supports(case):
    model, support, query = case
    data = episode((96, 96), batch=3)
    held = [each.name for each in support.get_outputs()]
    images, masks = data["support_images"][:, 0].numpy(), data["support_masks"][:, 0].numpy()
    encoded = support.run(held, {"image": images, "mask": masks})
    given = {name: each[:, None] for name, each in zip(held, encoded, strict=True)}
    image = data["query_image"][:2].numpy()
    picture = np.array([1, 1, 0])
    together = query.run(["final"], {**given, "image": image, "picture": picture})[0]
    with torch.no_grad():
        out = model(data["query_image"][picture], data["support_images"], data["support_masks"])
    assert halves.apart(out.final.numpy(), together) < 1e-4


# ------------------------------------------------------------------------------- forms of steps


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 7))
def test_pooling_as_products(height, width, bins):
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    assert torch.allclose(average(x, bins), F.adaptive_avg_pool2d(x, bins))


@given(st.integers(1, 6), st.integers(2, 5), st.booleans())
def test_the_factor_of_any_number_of_supports(count, shots, restore_order):
    ensemble = Ensemble(shots, 2, restore_order).double()
    query, supports = torch.rand(2, 4, 4).double(), torch.rand(2, count, 4, 4).double()
    assert torch.allclose(factor(ensemble, query, supports), ensemble.factor(query, supports))


@given(st.integers(1, 30), st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3, 4]))
def test_the_padding_of_tensorflow(length, kernel, stride):
    from timm.layers import Conv2dSame

    conv = Conv2dSame(2, 3, kernel, stride)
    x = torch.randn(1, 2, length, length + 3)
    assert torch.allclose(same(conv, x), conv(x), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (1, 4, 2, 3, 1, 4)])
def test_group_norm_in_steps(shape):
    norm = torch.nn.GroupNorm(4, shape[1]).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 3 + torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(group_norm(norm, x), norm(x), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GroupNorm", {"num_groups": 2}), ("GroupNorm1", {}), ("GroupNorm1", {"affine": False}),
     ("GroupNormAct", {"num_groups": 2}), ("GroupNormAct", {"num_groups": 2, "apply_act": False}),
     ("GroupNormAct", {"num_groups": 2, "drop_layer": torch.nn.Hardtanh}), ("GroupNorm1Act", {})],
)  # fmt: skip
def test_group_norms_of_timm_keep_what_is_behind_them(kind, options):
    norm = getattr(pytest.importorskip("timm.layers"), kind)(8, **options).eval()
    x = 3 * torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0))
    copied = exportable(norm)
    assert "forward" in vars(copied)
    assert torch.allclose(copied(x.clone()), norm(x.clone()), atol=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_a_subclass_has_for_its_own_stays(name):
    known = {"forward": torch.nn.GroupNorm, "grids": PyramidHead, "factor": Ensemble,
             "join": MatchingBlock, "match": HSNet}[name]  # fmt: skip
    own = type(known.__name__, (known,), {name: lambda self: "its own"})
    derived = type("Derived", (known,), {})
    for kind, replaced in ((own, False), (derived, True)):
        part = kind.__new__(kind)
        torch.nn.Module.__init__(part)
        assert (name in vars(exportable(part))) == replaced


def test_a_mean_over_a_million_numbers_keeps_its_digits():
    """onnxruntime's own group norm is 1e-4 off here."""
    norm = torch.nn.GroupNorm(1, 4).requires_grad_(False)
    x = 1 + 0.1 * torch.rand(1, 4, 512, 512)
    norm.forward = functools.partial(group_norm, norm)
    content = halves._graph(norm, (x,), (None,), ["x"], ["y"]).SerializeToString()
    (found,) = ort.InferenceSession(content).run(None, {"x": x.numpy()})
    expected = F.group_norm(x.double(), 1, eps=norm.eps)
    assert halves.apart(expected.numpy(), found) < 1e-5


def test_supports_that_vote_as_one_batch():
    options = dict(MODELS["hsnet resnet"], compute="textbook")
    model = build(**options).double()
    assert isinstance(model, HSNet)
    data = episode((96, 128), batch=2, shot=3, dtype=torch.float64)
    given = data["query_image"], data["support_images"], data["support_masks"]
    with torch.no_grad():
        expected, found = model(*given), exportable(model)(*given)
    assert (expected.final == found.final).float().mean() > 0.999
    for one, other in zip(expected.correlations, found.correlations, strict=True):
        assert torch.allclose(one, other)
    assert "match" not in vars(model)  # the copy alone was changed


# ------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def weight(tmp_path_factory):
    cfg = small_config(stages=1)
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    torch.save({"model": untrained(cfg).state_dict(), "config": cfg.to_dict()}, path)
    return path


def test_the_command_writes_files_that_say_what_they_are(weight, tmp_path, monkeypatch, capsys):
    sizes = {}
    trace, traced = halves._graphs, {}

    def graphs(model):
        if not traced:  # once for the three: it takes long
            traced.update(trace(model))
        return copy.deepcopy(traced)

    monkeypatch.setattr(halves, "_graphs", graphs)
    for weights in ("float32", "float16", "int8"):
        folder = tmp_path / weights
        words = ["onnx", "--weight", weight, "--output", folder, "--weights", weights]
        monkeypatch.setattr(sys, "argv", ["util.export", *map(str, words)])
        export_main()
        told = capsys.readouterr().out
        assert "onnxruntime against PyTorch on random pictures:" in told
        assert (f"random pictures, weights as {weights}:" in told) == (weights != "float32")
        sizes[weights] = sum(path.stat().st_size for path in folder.iterdir())
        found = []
        for name in (SUPPORT, QUERY):
            session = ort.InferenceSession(folder / name)
            properties = session.get_modelmeta().custom_metadata_map
            check_half(properties, (), Path(name))
            assert json.loads(properties["half"]) == Path(name).stem
            found.append(about(properties, name))
        assert found[0] == found[1] and found[0].weights == weights
        assert found[0].val_size == 81 and found[0].arch == "HDMNet"
    assert sizes["float16"] < 0.7 * sizes["float32"] and sizes["int8"] < 0.8 * sizes["float16"]


def test_what_cannot_be_exported_is_refused_by_name(weight, tmp_path, monkeypatch):
    cfg = small_config(stages=1)

    def refuses(*_):
        raise RuntimeError("no such operator\nat some line")

    monkeypatch.setattr(halves, "_graphs", refuses)
    with pytest.raises(FewShotError, match="HDMNet over the backbone resnet18 cannot.*operator$"):
        halves.export_onnx(cfg, weight, tmp_path / "out")
    monkeypatch.setattr(halves, "find_spec", lambda name: None)
    with pytest.raises(FewShotError, match="needs onnx, onnxscript, onnxruntime: pip install"):
        halves.export_onnx(cfg, weight, tmp_path / "out")
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.parametrize(
    ("weights", "exact", "rounded", "message"),
    [("float32", 0.01, None, "ONNX: onnxruntime's results differ from PyTorch's by 1.0e-02"),
     ("float16", 0.01, 0.01, "ONNX: onnxruntime's results differ from PyTorch's by 1.0e-02"),
     ("int8", 0.01, 0.01, "ONNX: onnxruntime's results differ from PyTorch's by 1.0e-02"),
     ("float32", math.inf, None, "ONNX: results are not finite"),
     ("float16", 1e-6, math.inf, "ONNX, weights as float16: results are not finite"),
     ("int8", 1e-6, 0.07, None)],
)  # fmt: skip
def test_files_that_compute_something_else_are_not_written(
    weight, tmp_path, monkeypatch, weights, exact, rounded, message
):
    monkeypatch.setattr(halves, "_graphs", lambda model: dict.fromkeys((SUPPORT, QUERY)))
    monkeypatch.setattr(halves, "_finished", lambda graph, about, name: about.weights.encode())
    differences = {b"float32": exact, weights.encode(): exact if rounded is None else rounded}
    monkeypatch.setattr(halves, "_difference", lambda model, data, _: differences[data[SUPPORT]])
    pictures = [disc((60, 60), seed) for seed in (0, 1)]
    export = functools.partial(halves.export_onnx, small_config(stages=1), weight, tmp_path,
                               weights, photographs=pictures)  # fmt: skip
    if message is None:
        assert max(export().differences.values()) == rounded
        assert (tmp_path / QUERY).read_bytes() == weights.encode()
        return
    with pytest.raises(FewShotError, match=f"{message}$"):
        export()
    assert not list(tmp_path.iterdir())


def test_what_is_no_number_is_infinitely_far():
    nothing, something = np.array([np.nan, 2], np.float32), np.array([1, 2], np.float32)
    for expected, found in ((nothing, something), (something, nothing), (nothing, nothing)):
        assert halves.apart(expected, found) == math.inf
    assert halves.apart(something, something) == 0


def test_a_folder_that_cannot_be_written_in_is_told_first(weight, tmp_path, monkeypatch):
    monkeypatch.setattr(halves, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    for folder, message in (
        (weight, "best.pth is a file: name a folder for support.onnx and query.onnx"),
        (weight / "below", "cannot write in .*below: Not a directory"),
    ):
        with pytest.raises(FewShotError, match=message):
            halves.export_onnx(small_config(stages=1), weight, folder)

    def full(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(halves.tempfile, "TemporaryFile", full)
    with pytest.raises(FewShotError, match="cannot write in .*: Read-only file system"):
        halves.export_onnx(small_config(stages=1), weight, tmp_path)


def test_foreign_files_are_refused():
    with pytest.raises(FewShotError, match="x.onnx was not written by util.export onnx"):
        about({}, "x.onnx")
    with pytest.raises(FewShotError, match="x.onnx is a damaged export: arch is missing"):
        about({"format": "fewshot-onnx-1"}, "x.onnx")


@pytest.mark.parametrize(
    ("field", "text"),
    [("val_size", "null"), ("val_size", "417.0"), ("val_size", "0"), ("val_size", "true"),
     ("mean", "1"), ("mean", "[1, 2]"), ("mean", '["1", "2", "3"]'), ("mean", "[1, 2, NaN]"),
     ("std", "[1, 0, 1]"), ("resized_val", "1"), ("ann_type", '"sketch"'), ("head", "[]"),
     ("arch", "{}"), ("model", "7"), ("weights", "null"), ("backbone", "not JSON")],
)  # fmt: skip
def test_metadata_of_another_type_is_refused(field, text):
    found = About("HDMNet", "vgg16", "0", "int8", "final", 81, True, "mask", MEAN, STD)
    properties = found.properties(SUPPORT)
    assert about(properties, SUPPORT)._replace(mean=MEAN, std=STD) == found
    with pytest.raises(FewShotError, match=f"x.onnx is a damaged export: {field} cannot be ") as e:
        about(properties | {field: text}, "x.onnx")
    assert str(e.value).endswith(text)


def test_a_half_is_told_by_its_word_or_by_its_inputs():
    inputs = {SUPPORT: ("image", "mask"), QUERY: ("image", "picture", "support_values")}
    for name, other in ((SUPPORT, QUERY), (QUERY, SUPPORT)):
        said = {"half": json.dumps(Path(name).stem)}
        for properties, names in ((said, inputs[other]), ({}, inputs[name])):
            check_half(properties, names, Path(name))
            with pytest.raises(FewShotError, match=f"x/{other} holds what belongs in {name}: "):
                check_half(properties, names, Path("x", other))
    with pytest.raises(FewShotError, match="damaged export: half cannot be 5"):
        check_half({"half": "5"}, (), Path(SUPPORT))


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_stored_weights_are_turned_to_float32_as_the_file_is_loaded(weights, tmp_path):
    conv = torch.nn.Conv2d(16, 16, 3).requires_grad_(False)
    kinds = {}
    for kind in ("float32", weights):
        graph = shrink(
            halves._graph(conv, (torch.zeros(1, 16, 9, 9),), (None,), ["x"], ["y"]), kind
        )
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / kind)
        ort.InferenceSession(graph.SerializeToString(), options)
        kinds[kind] = [node.op_type for node in onnx.load(tmp_path / kind).graph.node]
    assert kinds[weights] == kinds["float32"]

"""Every option of the rails with HSNet: training and resume, evaluation and figures, export,
prediction, checks. Sharded evaluation is in test_evaluate.py, the predictor in test_predictor.py.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import predict
from model import build_model
from tests.equality import same_counts, same_weights
from tests.own_pictures import disc, write
from tests.train.test_loop import StopAt, events, same_run
from tests.training_case import ROOT, make_data, train
from train import PICTURES
from util.config import load_config
from util.data.index import build_index
from util.data.transform import read_image
from util.evaluate import Evaluator
from util.lists import main as lists
from util.predict.predictor import FewShotPredictor
from util.report.tables import gather
from util.runtime.errors import FewShotError, Interrupted
from util.train.checkpoints import read_state
from util.weights.export import export
from util.weights.load import load_model, model_of
from util.weights.pretrained import load_pretrained

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Data, encoder weights in torchvision's names, and the configuration."""
    folder = tmp_path_factory.mktemp("hsnet") / "tiny"
    make_data(folder)
    path = folder / "hsnet.yaml"
    text = (folder / "stage2.yaml").read_text().replace("pretrained: none", "")
    encoder = folder / "encoder.pth"
    path.write_text(f"{text}\narch: HSNet\nstem: 7x7\npretrained: '{encoder}'\n")
    torch.manual_seed(1)
    layers = build_model(load_config(path)).encoder.state_dict()
    torch.save({f"encoder.{name}": tensor for name, tensor in layers.items()}, encoder)
    return path


def configure(config: Path, **changes):
    changes = {"max_iterations": 4, "batch_size": 4, **changes}
    return load_config(config, [x for pair in changes.items() for x in pair])


def run(cfg, resume: str | None = None, stop=None) -> dict:
    train(cfg, resume, stop)
    return read_state(cfg.exp_dir() / "last.pth")


@pytest.fixture(scope="module")
def trained(config):
    cfg = configure(config)
    run(cfg)
    return cfg, cfg.exp_dir() / "best.pth"


def evaluation(monkeypatch, *arguments) -> None:
    """test.py's main; the standard library has a package of its name."""
    spec = importlib.util.spec_from_file_location("evaluation_script", ROOT / "test.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", [str(word) for word in ("test.py", *arguments)])
    script.main()


# ------------------------------------------------------------------------------ training


def test_a_run_draws_and_logs_what_the_model_has(trained):
    cfg, _ = trained
    tags = events(cfg.exp_dir())
    assert sum(tag.startswith("validation/") for tag in tags) == PICTURES
    assert {"train/main", "val/miou", "val/fb_iou"} <= tags.keys()
    assert not {"train/meta", "train/base", "train/distill", "val/miou_meta"} & tags.keys()


def test_only_the_learner_moves(trained, config):
    cfg, best = trained
    before, after = build_model(cfg), read_state(best)["model"]
    load_pretrained(before, cfg)
    frozen = {n: t for n, t in before.state_dict().items() if n.startswith("encoder.")}
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    learned = {name for name, p in before.named_parameters() if p.requires_grad}
    assert learned == {name for name in before.learnable_state()} and learned


def test_interrupted_and_resumed_equals_undisturbed(config):
    """Epochs of two steps: 1 is inside the first, 3 inside the second."""
    whole = run(configure(config, name="undisturbed", evaluate=False))
    cfg, resume = configure(config, name="resumed", evaluate=False), None
    for step in (1, 2):
        with pytest.raises(Interrupted, match="--resume auto"):
            run(cfg, resume, StopAt(step))
        resume = "auto"
    assert same_run(whole, run(cfg, "auto"))


def test_accumulated_steps_equal_the_joint_batch(config):
    options = {"optimizer": "sgd", "max_iterations": 2, "evaluate": False}
    joint = run(configure(config, name="joint", **options))["model"]
    parts = run(configure(config, name="parts", batch_size=2, accumulate=2, **options))["model"]
    assert same_weights(parts, joint, 1e-5)


# ------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("shot", [1, 2])
def test_the_walk_counts_what_the_naive_loop_counts(trained, shot, in_double):
    cfg, best = trained
    cfg = cfg.replace(shot=shot, compute="textbook")
    evaluator = Evaluator(cfg, build_index(cfg, "test"))
    model = load_model(cfg, best).double()
    walk, naive = (
        evaluator.run(model, (5, 6), 8, progress=False, engine=e) for e in ("walk", "naive")
    )
    assert same_counts(walk, naive)
    assert walk.mean["miou"] is not None and walk.mean["miou_meta"] is None
    assert walk.timing["encoder_passes"] < naive.timing["encoder_passes"]


def test_figures_result_and_report(trained, config, monkeypatch, tmp_path):
    _, best = trained
    output = tmp_path / "result.json"
    evaluation(
        monkeypatch, "--config", config, "--weight", best, "--output", output, "--episodes", 4,
        "--runs", 2, "--figures", 1, "--baselines",
    )  # fmt: skip
    names = {path.name.split("_")[0] for path in (tmp_path / "figures").glob("*.png")}
    assert {"best", "median", "worst", "class", "runs.png"} <= names
    content = json.loads(output.read_text())
    learned = sum(tensor.numel() for tensor in build_model(trained[0]).learnable_state().values())
    assert content["parameters"] == learned and content["baselines"]["prior"] is None
    (rows,) = gather(tmp_path)[0].values()
    assert [(row.model, row.parameters, row.present) for row in rows] == [
        ("HSNet", learned, "1 of 2 folds")
    ]


def test_swapped_supports(trained, config, monkeypatch, tmp_path):
    output, unnamed = tmp_path / "swapped.json", tmp_path / "unnamed.pth"
    torch.save(read_state(trained[1])["model"], unnamed)  # its own fold holds out one class only
    evaluation(
        monkeypatch, "--config", config, "--weight", unnamed, "--output", output,
        "--episodes", 4, "--runs", 1, "--swap-supports", "--opts", "folds", "[[1, 2], [3, 4]]",
    )  # fmt: skip
    assert json.loads(output.read_text())["swapped_supports"] is True


# ------------------------------------------------------------------------------ export, prediction


def test_the_learned_part_alone_over_its_encoder(trained, tmp_path):
    cfg, best = trained
    size = export(best, tmp_path / "small.pth")
    assert size < best.stat().st_size
    whole, part = load_model(cfg, best), load_model(cfg, tmp_path / "small.pth")
    found = part.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.state_dict().items())
    with pytest.raises(FewShotError, match="another encoder.*pretrained"):
        load_model(cfg.replace(pretrained="none"), tmp_path / "small.pth")


def test_predict_writes_what_the_predictor_says(trained, monkeypatch, tmp_path):
    _, best = trained
    for number, name in enumerate(("mug", "disc")):
        image, mask = disc((70, 80), number)
        write(tmp_path / "supports" / name / "0.jpg", image)
        write(tmp_path / "supports" / name / "0.png", mask * 255)
    query = write(tmp_path / "query.png", disc((60, 90), 5)[0])
    out = tmp_path / "out"
    words = ["predict.py", "--weight", best, "--device", "cpu", "--supports",
             tmp_path / "supports", "--query", query, "--output", out]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    predict.main()
    (entry,) = json.loads((out / "summary.json").read_text())["pictures"]
    predictor = FewShotPredictor.from_config(*model_of(None, best), "cpu")
    for support in predict.supports_in(tmp_path / "supports")[0]:
        predictor.add_support(support.image, class_name=support.class_name, **support.annotation())
    expected = predictor.predict(read_image(query))
    labels = [int((expected.mask == number).sum()) for number in (1, 2)]
    assert [entry["classes"][name]["pixels"] for name in expected.classes] == labels
    assert len(list(out.rglob("*_stage*.jpg"))) == 2 * 3


# ------------------------------------------------------------------------------ checks, weights


def test_lists_are_checked(config, capsys):
    lists(["--config", str(config), "--check"])
    assert "0 bad" in capsys.readouterr().out
    broken = config.parent / "broken.txt"
    broken.write_text((config.parent / "list.txt").read_text() + "gone.jpg 0.png\n")
    with pytest.raises(FewShotError, match="1 bad file"):
        lists(["--config", str(config), "--check", "--opts", "val_list", str(broken)])
    assert "gone.jpg" in capsys.readouterr().out


@pytest.mark.parametrize("changes, words", [
    ({"stem": "deep", "name": "x"}, "encoder"), ({"pretrained": "gone.pth"}, "gone.pth"),
])  # fmt: skip
def test_encoder_weights_that_do_not_fit_are_named(config, changes, words):
    with pytest.raises(FewShotError, match=words):
        run(configure(config, **changes))


@pytest.mark.parametrize("kind, name", [("hsnet", "vgg16"), ("base", "vgg16_bn")])
def test_torchvision_weights_are_those_of_the_backbone(monkeypatch, kind, name):
    """VGG-16: HSNet's has no batch norm, that of HDMNet's base learner has."""
    asked = []

    class Weights:
        def __init__(self, name: str) -> None:
            asked.append(name)

        def get_state_dict(self, **options):
            with torch.device("meta"):
                layers = getattr(torchvision.models, name)(weights=None).features.state_dict()
            return {f"features.{key}": torch.zeros(t.shape) for key, t in layers.items()}

    monkeypatch.setattr(torchvision.models, "get_weight", Weights)
    path = ROOT / f"config/pascal/pascal_split0_vgg16_{kind}.yaml"
    cfg = load_config(path, ["pretrained", "torchvision"])
    model = build_model(cfg)
    report = load_pretrained(model, cfg).report
    assert asked == [f"{name.upper()}_Weights.IMAGENET1K_V1"]
    layers = model.encoder.state_dict()
    counters = {key for key in layers if key.endswith("num_batches_tracked")}
    assert {f"encoder.{key}" for key in layers.keys() - counters} <= set(report.loaded)

"""HDMNet against the published implementation's figures, through the released-layout loader."""

import pytest
import torch

from model import build_model
from model.fewshot import total
from tests.models import options, run, without_dropout
from tests.parity import load_case, load_layout, relative_error, released_state
from util.weights.checkpoint import load_weights
from util.weights.layouts import LAYOUTS

pytestmark = pytest.mark.numeric

CASES = ("hdmnet_resnet50_pascal_1shot", "hdmnet_vgg16_pascal_1shot", "hdmnet_resnet50_coco_5shot")


def load(case, compute, prefix=""):
    arrays, meta = load_case(case)
    layout = load_layout(case)
    num_base = layout["base_learnear.2.weight"][0] - 1
    model = build_model(
        options(
            backbone=meta["backbone"], width=64, shot=meta["shot"], num_base=num_base,
            compute=compute,
        )
    )  # fmt: skip
    state = released_state(layout, meta["weight_seed"])
    report = load_weights(model, {prefix + k: v for k, v in state.items()}, complete=True)
    assert len(report.loaded) == len(layout)
    data = {
        "query_image": torch.from_numpy(arrays["query_image"]).float(),
        "support_images": torch.from_numpy(arrays["support_image"]).float(),
        "support_masks": torch.from_numpy(arrays["support_mask"]),
        "query_mask": torch.from_numpy(arrays["query_mask"]).long(),
        "base_mask": torch.from_numpy(arrays["base_mask"]).long(),
        "class_index": torch.from_numpy(arrays["class_index"]),
    }
    return model, arrays, data, layout


@pytest.mark.parametrize("compute", ["fast", "textbook"])
@pytest.mark.parametrize("case", CASES)
def test_outputs(case, compute):
    model, arrays, data, _ = load(case, compute, prefix="module.")
    model.eval()
    model.derive()
    with torch.no_grad():
        out = run(model, data)
    assert relative_error(out.final, arrays["final"]) < 1e-3
    assert relative_error(out.meta, arrays["meta"]) < 1e-4
    assert relative_error(out.base[:, :, ::4, ::4], arrays["base_s4"]) < 1e-4
    assert relative_error(out.prior, arrays["prior"]) < 1e-4
    for stage, correlation in enumerate(out.correlations, start=1):
        assert relative_error(correlation, arrays[f"corr_mean_stage{stage}"]) < 1e-4


@pytest.mark.parametrize("compute", ["fast", "textbook"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case, compute):
    model, arrays, data, layout = load(case, compute)
    out = run(without_dropout(model).train(), data, training=True)
    losses = model.losses(out, data["query_mask"], data["base_mask"])
    main = (losses["main"].value + losses["meta"].value).item()
    assert main == pytest.approx(float(arrays["loss_main_plus_meta"]), rel=1e-3)
    assert losses["distill"].value.item() == pytest.approx(float(arrays["loss_distill"]), rel=1e-3)
    assert losses["base"].value.item() == pytest.approx(float(arrays["loss_base"]), rel=1e-3)
    total(losses).backward()
    table = next(each for each in LAYOUTS if each.recognises(layout))
    params = dict(model.named_parameters())
    largest = arrays["grad_norms"].max()
    for name, norm in zip(arrays["grad_names"], arrays["grad_norms"], strict=True):
        ours = params[table.rename(str(name))].grad.double().norm().item()
        assert ours == pytest.approx(norm, rel=1e-2, abs=1e-8 * largest), name

"""The predictor, for scripts that import it from its former place."""

from util.predict import FewShotPredictor, Prediction, binary_mask, box_mask, polygon_mask

__all__ = ["FewShotPredictor", "Prediction", "binary_mask", "box_mask", "polygon_mask"]

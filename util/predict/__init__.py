"""Pictures of one's own: the predictor, and the files that it reads and writes."""

from util.data.masks import binary_mask
from util.data.shapes import box_mask, polygon_mask
from util.predict.predictor import FewShotPredictor, Prediction

__all__ = ["FewShotPredictor", "Prediction", "binary_mask", "box_mask", "polygon_mask"]

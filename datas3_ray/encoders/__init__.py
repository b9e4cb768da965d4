"""Images and captions to vectors: one file a family.

>>> from datas3_ray.encoders import parse_encoder
>>> parse_encoder("tiny", {"timm": "test_resnet", "weights": "random", "image_size": 64}).describe()
'tiny: timm test_resnet, weights random, 64 px, precision auto, batches of 64'
"""

from __future__ import annotations

from datas3_ray.encoders.base import Encoder, EncoderConfig, parse_encoder

__all__ = ["Encoder", "EncoderConfig", "parse_encoder"]

"""CAM against its definition."""

import torch
from torch.nn import functional as F

from tests.wsi_pipeline.explain.networks import draw_images, network
from wsi_pipeline.explain import load_method


def test_it_is_the_class_map_stretched_over_the_image():
    model, images = network("cam").eval(), draw_images()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    expected = F.interpolate(
        model.class_map(x)[:, None], size=(32, 40), mode="bilinear", align_corners=False
    )[:, 0]
    found = torch.from_numpy(load_method("cam")(model, images))
    torch.testing.assert_close(found, expected.detach())

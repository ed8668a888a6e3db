"""Regions: the separable RoIAlign against torchvision's, levels, mask targets, and masks put into an image."""

import pytest
import torch
from torch import Tensor
from torchvision import ops
from torchvision.models.detection.roi_heads import paste_masks_in_image

from transxnet.dense.mask_head import mask_targets, paste_masks
from transxnet.dense.roi import pool_regions, region_levels, roi_align, roi_align_separable

# Inside, across the border, beyond it, tall, wide, smaller than a pixel, empty.
ROIS = [
    [0, 3.0, 5.0, 40.0, 31.0],
    [1, -9.0, -5.0, 20.0, 20.0],
    [1, 50.0, 40.0, 90.0, 77.0],
    [0, 10.0, 0.0, 12.5, 60.0],
    [1, 0.0, 10.0, 75.0, 13.0],
    [0, 8.2, 8.1, 8.6, 8.4],
    [1, 7.0, 7.0, 7.0, 7.0],
    [0, 200.0, 200.0, 240.0, 240.0],
]


@pytest.mark.parametrize("size", [7, 14])
def test_the_separable_form_and_its_gradient_equal_torchvisions(size: int):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 13, 19, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    expected = ops.roi_align(x, rois, size, 0.25, sampling_ratio=0, aligned=True)
    actual = roi_align_separable(x, rois, size, 0.25)
    assert torch.allclose(actual, expected, atol=1e-12)
    weight = torch.randn_like(expected)
    for out in (expected, actual):
        out.backward(weight, retain_graph=True)
    (grad,) = torch.autograd.grad((actual * weight).sum(), x)
    (grad_expected,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.allclose(grad, grad_expected, atol=1e-12)


def test_no_region_at_all_keeps_the_graph():
    x = torch.randn(2, 5, 13, 19, requires_grad=True)
    for form in (roi_align, roi_align_separable):
        out = form(x, torch.empty((0, 5)), 7, 0.25)
        assert out.shape == (0, 5, 7, 7)
        out.sum().backward()
        assert x.grad is not None
        assert not x.grad.any()


def test_regions_of_all_levels_come_back_in_their_order():
    torch.manual_seed(0)
    levels = [torch.randn(2, 3, 64 >> k, 64 >> k) for k in range(4)]
    boxes = [torch.tensor([[0.0, 0, 250, 250], [4, 4, 20, 20]]), torch.tensor([[10.0, 10, 140, 150]])]
    assert region_levels(torch.cat(boxes), 4).tolist() == [2, 0, 1]
    # 56 pixels stay on the finest level up to their double.
    sides = torch.tensor([10.0, 56, 111.9, 112.1, 224.1, 448.1, 900])
    assert region_levels(torch.stack((sides * 0, sides * 0, sides, sides), 1), 4).tolist() == [0, 0, 0, 1, 2, 3, 3]
    out = pool_regions(levels, (4, 8, 16, 32), boxes, 7)
    for k, (image, level, box) in enumerate([(0, 2, boxes[0][0]), (0, 0, boxes[0][1]), (1, 1, boxes[1][0])]):
        alone = ops.roi_align(levels[level][image : image + 1], [box[None]], 7, 0.25 / 2**level, 0, aligned=True)
        assert torch.equal(out[k], alone[0])


def rectangle(left: int, top: int, right: int, bottom: int, height: int = 64, width: int = 80) -> Tensor:
    mask = torch.zeros((height, width), dtype=torch.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_mask_targets_are_the_objects_cut_to_the_regions():
    masks = torch.stack((rectangle(10, 10, 38, 38), rectangle(40, 0, 80, 64)))
    boxes = torch.tensor([[10.0, 10, 38, 38], [10, 10, 66, 66], [-20, -20, 30, 30], [40, 8, 68, 36]])
    targets = mask_targets(masks, boxes, torch.tensor([0, 0, 0, 1]))
    assert targets[0].all()
    # The region is twice as large as the object and cut at the lower border of the image.
    assert targets[1, :14, :14].all()
    assert targets[1].sum() == pytest.approx(14 * 14 * 56 / 54, abs=15)
    # Cut to the image: 0 to 30, of which 10 to 30 is the object.
    assert targets[2].sum() == pytest.approx((28 * 20 / 30) ** 2, abs=40)
    assert targets[3].all()
    assert mask_targets(masks, boxes[:0], torch.empty(0, dtype=torch.int64)).shape == (0, 28, 28)


def test_pasted_masks_equal_torchvisions_where_its_coordinates_agree():
    torch.manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.rand(3, 1, 5, 5), size=(28, 28), mode="bilinear")[:, 0]
    boxes = torch.tensor([[3.0, 4, 31, 32], [-10, -6, 18, 22], [60, 50, 100, 90]])
    pasted = paste_masks(coarse, boxes, (64, 80))
    assert pasted.shape == (3, 64, 80)
    # One pixel for each cell of a mask.
    assert torch.equal(pasted[0, 4:32, 3:31], coarse[0] >= 0.5)
    assert torch.equal(pasted[1, :22, :18], coarse[1, 6:, 10:] >= 0.5)
    assert pasted[0].sum() == (coarse[0] >= 0.5).sum()
    assert not pasted[2, :49].any()
    theirs = paste_masks_in_image(coarse[:, None], boxes, (64, 80))[:, 0] >= 0.5
    assert (pasted ^ theirs).float().mean() < 0.02
    assert not paste_masks(coarse[:1], torch.tensor([[90.0, 90, 95, 95]]), (64, 80)).any()

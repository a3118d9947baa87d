"""A 1x1 convolution as a matrix product."""

import pytest
import torch
from torch import nn

from geometry.pointwise import Pointwise


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution(layout):
    torch.manual_seed(0)
    layer, plain = Pointwise(5, 3), nn.Conv2d(5, 3, 1)
    plain.load_state_dict(layer.state_dict())
    image = torch.rand(2, 5, 6, 7)
    inputs = [image.to(memory_format=layout, copy=True).requires_grad_() for _ in range(2)]
    for module, x in zip((layer, plain), inputs, strict=True):
        module(x).square().sum().backward()
    torch.testing.assert_close(layer(inputs[0]), plain(inputs[1]))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_values_of_a_pixel_lie_together():
    assert Pointwise(5, 3)(torch.rand(2, 5, 6, 7)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.cuda
def test_it_is_the_convolution_on_cuda():
    layer, x = Pointwise(5, 3), torch.rand(2, 5, 6, 7)
    torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), layer.cpu()(x), atol=1e-3, rtol=1e-3)

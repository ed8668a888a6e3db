"""Which backend computes an operator on a machine without a GPU."""

import pytest
import torch

import transxnet


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_triton_backend_names_the_devices_it_needs():
    model = transxnet.transxnet_n(num_classes=3, image_size=32, backend="triton")
    with pytest.raises(ValueError, match=r"backend 'triton' needs.*CUDA device.*torch.float32 on cpu"):
        model(torch.zeros(2, 3, 32, 32))


def test_auto_is_the_reference_on_a_cpu():
    torch.manual_seed(0)
    auto = transxnet.transxnet_n(num_classes=3, image_size=32).eval()
    reference = transxnet.transxnet_n(num_classes=3, image_size=32, backend="reference").eval()
    reference.load_state_dict(auto.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(auto(x), reference(x))

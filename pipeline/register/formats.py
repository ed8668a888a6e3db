"""Exports a network as ONNX or by `torch.export`, and compares each export with PyTorch before it is logged."""

import contextlib
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.common.errors import one_line
from pipeline.register.best import best_weights
from pipeline.tracking.client import TrackingError, mlflow_session
from pipeline.tracking.state import load_state, tracking_uri_of
from pipeline.weights.card import WEIGHTS_NAME, ModelCard, ModelCardError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from transxnet.mixer import DynamicConv

    Run = Callable[[Tensor], tuple[Tensor, ...]]
    """An exported network: its outputs for images."""


Format = Literal["onnx", "torch_export"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch_export": "model.pt2"}
FOLDER = "exports"
Shape = tuple[int, int, int]
"""Batch, height and width of an input."""
TOLERANCE = 1e-3
"""Largest difference of a value, relative to the largest one of its output."""
ONNX_PACKAGES = "onnx onnxscript onnxruntime"


def export(run_dir: str | Path, formats: Iterable[Format]) -> list[str]:
    """Export the weights that a run registers and log the files as artifacts of its MLflow run, in `exports/`.

    Input: normalised float32 images `[N, 3, H, W]`, named `images`, with any N, and H and W the card's `image_size` or,
    where the task's networks take others, multiples of `Served.input_multiple`. Output: what the task names
    (`Task.exported`), the logits of a classifier or of a segmentation.

    Args:
        run_dir: directory of a run that has ended.
        formats: formats to export to.

    Returns:
        The paths of the artifacts.

    Raises:
        TrackingError: an export fails or differs from PyTorch, or the server does not accept it.
        ModelCardError: the run exported no weights, or has no MLflow run.
    """
    from pipeline.weights.load import load_model

    folder = Path(run_dir).resolve()
    loaded = load_model(str(best_weights(folder)[0] / WEIGHTS_NAME))
    card, state = loaded.card, load_state(folder)
    run_id = card.mlflow_run_id or (state.run_id if state else None)
    if run_id is None:
        raise ModelCardError(f"{run_dir} has no MLflow run: python -m pipeline.status --sync {run_dir}")
    # Triton kernels cannot be exported: take the operators in plain PyTorch.
    network = card.of_task.build(
        card.name, num_classes=card.num_classes, image_size=card.image_size, backend="reference"
    )
    network.load_state_dict(loaded.network.state_dict())
    exported, names = card.of_task.exported(network)
    exported.eval()
    traced, compared = _shapes(card)
    artifacts = []
    with tempfile.TemporaryDirectory(prefix="exports-") as name:
        for target in formats:
            path = Path(name) / FILES[target]
            try:
                _check(target, exported, _EXPORTERS[target](exported, names, traced, path), compared)
            except (TrackingError, ModelCardError):
                raise
            except Exception as error:
                raise TrackingError(f"{card.name} could not be exported as {target}: {one_line(error)}") from error
            artifacts.append(f"{FOLDER}/{path.name}")
        with mlflow_session(tracking_uri_of(folder)) as client:
            client.log_artifacts(run_id, name, FOLDER)
    return artifacts


def _shapes(card: ModelCard) -> tuple[tuple[Shape, bool], list[Shape]]:
    """Return the shape that an export is traced with and whether its sides may change, and those it is compared at."""
    multiple, size = card.of_task.served.input_multiple, card.image_size
    if multiple is None:
        return ((2, size, size), False), [(1, size, size), (3, size, size)]
    # No two of batch, height and width are equal, which the tracing would take for a rule. It takes a side of 1 of the
    # smallest map for a rule as well.
    least = card.of_task.served.input_from
    sides = [multiple * count for count in range(least, least + 4)]
    square = multiple * max(least, size // multiple)
    return ((2, sides[1], sides[2]), True), [(1, square, square), (3, sides[0], sides[3])]


def _check(target: Format, network: "nn.Module", run: "Run", shapes: Iterable[Shape]) -> None:
    """Compare each output of an export with PyTorch at several shapes."""
    import torch

    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = _as_tuple(network(images))
        pairs = zip(run(images), expected, strict=True)
        difference = max(((found - own).abs().max() / own.abs().max()).item() for found, own in pairs)
        if not difference <= TOLERANCE:
            raise TrackingError(
                f"the {target} export differs from PyTorch by {difference:.1e} at a batch of {batch} of {height} x "
                f"{width} px; {TOLERANCE:.0e} is allowed"
            )


def _as_tuple(outputs: "Tensor | tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _torch_export(network: "nn.Module", names: tuple[str, ...], traced: tuple[Shape, bool], path: Path) -> "Run":
    import torch

    program = torch.export.export(network, (_example(traced[0]),), dynamic_shapes=(_dynamic(traced[1]),))
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda images: _as_tuple(module(images))


def _onnx(network: "nn.Module", names: tuple[str, ...], traced: tuple[Shape, bool], path: Path) -> "Run":
    import torch

    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelCardError(f"exporting to ONNX needs more packages: pip install {ONNX_PACKAGES}") from error
    with _without_batch_in_groups(network):
        torch.onnx.export(
            network,
            (_example(traced[0]),),
            path,
            input_names=["images"],
            output_names=list(names),
            dynamic_shapes=(_dynamic(traced[1]),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))


def _example(shape: Shape) -> "Tensor":
    import torch

    return torch.zeros(shape[0], 3, shape[1], shape[2])


def _dynamic(any_sides: bool) -> dict[int, object]:
    """Return the dimensions of an input that are not fixed."""
    import torch

    return dict.fromkeys((0, 2, 3) if any_sides else (0,), torch.export.Dim.DYNAMIC)


@contextlib.contextmanager
def _without_batch_in_groups(network: "nn.Module") -> Iterator[None]:
    """Let IDConv multiply patches instead of convolving: ONNX has no convolution whose groups depend on the batch."""
    from transxnet.mixer import DynamicConv

    modules = [module for module in network.modules() if isinstance(module, DynamicConv)]
    for module in modules:
        module.forward = types.MethodType(_dynamic_conv_by_patches, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _dynamic_conv_by_patches(module: "DynamicConv", x: "Tensor") -> "Tensor":
    """Compute `DynamicConv.forward` of `x` `[N, C, H, W]` as a sum over the taps of its kernels."""
    import torch.nn.functional as F

    n, c, h, w = x.shape
    taps = module.kernel * module.kernel
    weight, bias = module.kernels(x)
    patches = F.unfold(x, module.kernel, padding=module.kernel // 2)
    mixed = (patches.view(n, c, taps, h * w) * weight.reshape(n, c, taps, 1)).sum(2)
    return mixed.view(n, c, h, w) + bias[:, :, None, None]


_EXPORTERS: "dict[Format, Callable[[nn.Module, tuple[str, ...], tuple[Shape, bool], Path], Run]]" = {
    "onnx": _onnx,
    "torch_export": _torch_export,
}

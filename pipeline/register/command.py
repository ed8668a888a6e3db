"""The command `python -m pipeline.register RUN_DIR`: registers the best weights of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.register.registration import register

if TYPE_CHECKING:
    from pipeline.register.formats import Format


def main(
    run_dir: Path,
    /,
    *,
    alias: str | None = None,
    registered_name: str | None = None,
    onnx: bool = False,
    torch_export: bool = False,
) -> int:
    """Register the best averaged weights of a run as a model version.

    The model is first loaded in a clean process and must reach its recorded metric on a sample. The alias champion
    moves to it if its metric is better on the same validation data.

    Args:
        run_dir: Directory of the run.
        alias: Another alias to point to this version, such as production.
        registered_name: Registered model that gets the version; by default the name given at the launch.
        onnx: Add the network as ONNX to the run's artifacts, checked in onnxruntime.
        torch_export: Add the network as a torch.export program to the run's artifacts.
    """
    formats: list[Format] = [*(["onnx"] if onnx else []), *(["torch_export"] if torch_export else [])]
    done = register(run_dir, alias, registered_name)
    exports = []
    if formats:
        from pipeline.register.formats import export

        exports = export(run_dir, formats)
    print(f"{done.name} version {done.version}, aliases {', '.join(done.aliases) or 'none'}: {done.uri}")
    if exports:
        print(f"added to the run's artifacts: {', '.join(exports)}")
    return 0

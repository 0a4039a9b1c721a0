"""`modelhost infer`: one inference, against a running host or in process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from modelhost.cli.client import api_key, request
from modelhost.cli.options import settings_options, url_options

if TYPE_CHECKING:
    from modelhost.tensors import Array, TensorSpec


@click.command("infer", short_help="Run a model once.")
@click.argument("name")
@click.option("--version", help="Version of the model. [default: the highest]")
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Inputs: a V2 request or name-to-values table (.json), one array (.npy), or arrays by name (.npz).",
)
@click.option("--set", "values", multiple=True, metavar="INPUT=VALUES", help="One input as JSON, or @FILE.npy.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the outputs to this .npz.")
@click.option("--in-process", is_flag=True, help="Load the model here instead of asking a running host.")
@url_options
@settings_options
def command(
    name: str,
    version: str | None,
    file: Path | None,
    values: tuple[str, ...],
    output: Path | None,
    in_process: bool,
    url: str,
    api_key_file: Path | None,
    models_directory: Path | None,
    config_file: Path | None,
) -> None:
    """Run model NAME once and print its outputs as JSON.

    Asks the host at --url; with --in-process, or with --models, the model is loaded here.

    \b
    Examples:
      modelhost infer iris_petals --set 'species=["setosa"]' --set 'sepal=[5.1, 3.4]'
      modelhost infer digits --file digits.npy
      modelhost infer digits --file digits.npy --in-process --models models
    """
    if in_process or models_directory is not None:
        outputs = asyncio.run(_in_process(name, version, file, values, models_directory, config_file))
    else:
        outputs = _over_http(url, api_key(api_key_file), name, version, file, values)
    if output is not None:
        import numpy as np

        from modelhost.tensors import DTYPES

        arrays: dict[str, Any] = {
            out["name"]: np.array(out["data"], _stored_dtype(DTYPES[out["datatype"]])).reshape(out["shape"])
            for out in outputs
        }
        np.savez(output, **arrays)
        click.echo(f"wrote {', '.join(out['name'] for out in outputs)} to {output}", err=True)
        return
    click.echo(json.dumps({"model_name": name, "outputs": outputs}, ensure_ascii=False))


def _stored_dtype(dtype: Any) -> Any:
    """Text is stored as numpy's own, since object arrays are pickles, and BF16 as FP32, which has its numbers."""
    return {"O": str, "V": "float32"}.get(dtype.kind, dtype)


def _over_http(
    url: str, key: str | None, name: str, version: str | None, file: Path | None, values: tuple[str, ...]
) -> list[dict[str, Any]]:
    path = f"/v2/models/{quote(name, safe='')}" + (f"/versions/{version}" if version else "")
    if file is not None and file.suffix == ".json" and "inputs" in (document := _read_json(file)):
        body = document
    else:
        from modelhost.tensors import TensorSpec

        specs = {
            entry["name"]: TensorSpec(entry["name"], entry["datatype"], tuple(entry["shape"]))
            for entry in request(url, path, key=key)["inputs"]
        }
        body = {"inputs": [_wire(specs[given], value) for given, value in _feeds(specs, file, values).items()]}
    outputs: list[dict[str, Any]] = request(url, f"{path}/infer", body, key=key)["outputs"]
    return outputs


async def _in_process(
    name: str,
    version: str | None,
    file: Path | None,
    values: tuple[str, ...],
    models_directory: Path | None,
    config_file: Path | None,
) -> list[dict[str, Any]]:
    from modelhost.config import load_settings
    from modelhost.host import Host

    settings = load_settings(file=config_file, flags={"models.directory": models_directory})
    only_this = {
        "models": settings.models.model_copy(update={"preload": ()}),
        # One run does not repay preparing, and asking a model something is no reason to write to the disk.
        "prepare": settings.prepare.model_copy(update={"on_load": False}),
    }
    async with (
        Host(settings.model_copy(update=only_this)) as host,
        host.pool.lease(name, version) as lease,
    ):
        specs = lease.outputs
        results = await lease.run(_feeds(lease.inputs, file, values))
    return [_wire(specs[key], value) for key, value in results.items()]


def _feeds(specs: Mapping[str, TensorSpec], file: Path | None, values: tuple[str, ...]) -> dict[str, Array]:
    """Reads the inputs and gives them the model's datatypes, and its shapes where those are plain."""
    raw: dict[str, Any] = {} if file is None else _read_file(specs, file)
    for text in values:
        key, separator, value = text.partition("=")
        if not separator:
            raise click.UsageError(f"--set: expected INPUT=VALUES, got {text!r}")
        raw[key] = _read_value(value)
    known = ", ".join(f"'{spec.name}' {spec.describe()}" for spec in specs.values())
    if not raw:
        raise click.UsageError(f"no inputs given: use --file or --set for {known}")
    for key in raw:
        if key not in specs:
            raise click.UsageError(f"unknown input '{key}'; the model's inputs are {known}")
    return {key: _shaped(specs[key], value) for key, value in raw.items()}


def _read_file(specs: Mapping[str, TensorSpec], file: Path) -> dict[str, Any]:
    if file.suffix not in (".json", ".npy", ".npz"):
        raise click.UsageError(f"--file: expected .json, .npy or .npz, got {file.name}")
    try:
        return _read_json_tensors(file) if file.suffix == ".json" else _read_arrays(specs, file)
    except KeyError as error:
        raise click.UsageError(f"{file}: an input has no {error}") from None
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise click.UsageError(f"cannot read {file}: {error}") from None


def _read_json_tensors(file: Path) -> dict[str, Any]:
    import numpy as np

    document = _read_json(file)
    if not isinstance(document.get("inputs"), list):
        return document
    return {
        entry["name"]: np.array(entry["data"], dtype=object).reshape(entry["shape"]) for entry in document["inputs"]
    }


def _read_arrays(specs: Mapping[str, TensorSpec], file: Path) -> dict[str, Any]:
    import numpy as np

    loaded = np.load(file)
    if not isinstance(loaded, np.ndarray):
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    if len(specs) != 1:
        raise click.UsageError(f"{file} has one array, the model has {len(specs)} inputs: use .npz or --set")
    return {next(iter(specs)): loaded}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text())
    except ValueError as error:
        raise click.UsageError(f"{file} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise click.UsageError(f"{file}: expected a JSON object, got {type(document).__name__}")
    return document


def _read_value(text: str) -> Any:
    if text.startswith("@"):
        import numpy as np

        try:
            return np.load(text[1:])
        except (OSError, ValueError) as error:
            raise click.UsageError(f"cannot read {text[1:]}: {error}") from None
    try:
        return json.loads(text)
    except ValueError:
        return [text]  # a bare word is one string


def _shaped(spec: TensorSpec, value: Any) -> Array:
    import numpy as np

    from modelhost.tensors import DTYPES, to_bfloat16

    if spec.datatype not in DTYPES:
        raise click.UsageError(f"input '{spec.name}' is {spec.datatype}, which this command cannot make")
    try:
        if spec.datatype == "BF16":
            array: Array = to_bfloat16(value)
        else:
            array = np.asarray(value).astype(DTYPES[spec.datatype])
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"input '{spec.name}': expected {spec.describe()}: {error}") from None
    if spec.accepts_shape(array.shape) or spec.shape is None:
        return array
    # Flat values, or one row without its batch dimension: at most one dimension is left open.
    wanted = [*spec.shape]
    for position in [index for index, size in enumerate(wanted) if size < 0][1:]:
        wanted[position] = 1
    try:
        return array.reshape(wanted)
    except ValueError:
        raise click.UsageError(
            f"input '{spec.name}': expected {spec.describe()}, got shape {list(array.shape)}"
        ) from None


def _wire(spec: TensorSpec, array: Array) -> dict[str, Any]:
    from modelhost.api.codec import json_texts
    from modelhost.tensors import from_bfloat16

    if spec.is_structured:
        data: list[Any] = json_texts(spec.name, array)
    else:
        data = (from_bfloat16(array) if spec.datatype == "BF16" else array).ravel().tolist()
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "data": data}

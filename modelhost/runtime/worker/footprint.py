"""What a run takes that crosses to a worker: its activations, and its inputs or outputs once more in shared memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.base import Inspection
from modelhost.tensors import DTYPES, TensorSpec

#: What a text is taken to have.
_TEXT_BYTES = 64


def with_transport(run: RunFootprint, inspection: Inspection) -> RunFootprint:
    """Returns the footprint with shared memory in it, for inputs and outputs both: an upper bound."""
    places = {place: name for name, where in run.dims.items() for place in where}
    terms = [
        _term(spec, [places.get((spec.name, axis)) for axis in _axes(spec)]) for spec in inspection.inputs.values()
    ]
    outputs = [_output_term(spec, run, inspection.inputs) for spec in inspection.outputs.values()]
    if all(term is not None for term in outputs):
        terms += outputs
    else:  # of unknown size: as large as all that the run takes
        terms += run.terms
    return replace(run, terms=(*run.terms, *[term for term in terms if term is not None]))


def _axes(spec: TensorSpec) -> Iterable[int]:
    return range(len(spec.shape or ()))


def _output_term(spec: TensorSpec, run: RunFootprint, inputs: Mapping[str, TensorSpec]) -> Term | None:
    """The size of an output by the sizes of inputs; None where its shape does not say."""
    symbols = {
        symbol: name
        for name, where in run.dims.items()
        for at, axis in where
        if at in inputs and axis < len(inputs[at].dim_names) and (symbol := inputs[at].dim_names[axis])
    }
    names = [
        symbols.get(symbol) or (run.rows if axis == 0 else None) or None
        for axis, symbol in zip(_axes(spec), spec.dim_names or ("",) * len(spec.shape or ()), strict=True)
    ]
    return _term(spec, names)


def _term(spec: TensorSpec, names: list[str | None]) -> Term | None:
    """The bytes of a tensor whose free dimensions have these names; None where one has none."""
    if spec.shape is None or spec.datatype not in DTYPES or spec.is_structured:
        return None
    free = [names[axis] for axis, size in enumerate(spec.shape) if size < 0]
    if any(name is None for name in free):
        return None
    each = _TEXT_BYTES if spec.datatype == "BYTES" else DTYPES[spec.datatype].itemsize
    fixed = math.prod(size for size in spec.shape if size >= 0)
    return Term(each * fixed, tuple(name for name in free if name is not None))

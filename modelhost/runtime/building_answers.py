"""Answers compared: a variant's with the original's, and those of rows asked together and alone."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelhost.runtime.building_questions import Asking
from modelhost.runtime.building_steps import StepFailed
from modelhost.tensors import BF16, Array, from_bfloat16

#: Largest difference to the original that still counts as the same answer.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5
#: The same for BF16, whose numbers are this far apart.
_RELATIVE_BF16: Final = 2**-7
#: Numbers compared at a time: the copies that comparing makes stay small.
_CHUNK: Final = 1 << 18
_ROWS_TRIED: Final = 3


def keep(answers: Sequence[Any], folder: Path) -> None:
    """Writes the answers to one question into a new folder."""
    folder.mkdir(parents=True)
    for index, answer in enumerate(answers):
        if isinstance(answer, np.ndarray) and answer.dtype.kind != "O":
            np.save(folder / f"{index}.npy", answer)
        else:
            (folder / f"{index}.pickle").write_bytes(pickle.dumps(answer))


def difference_to_kept(folder: Path, got: Sequence[Any]) -> float:
    """Returns the largest difference to the answers in a folder, as `difference` does."""
    return max((difference(_kept(folder, index), answer) for index, answer in enumerate(got)), default=0.0)


def _kept(folder: Path, index: int) -> Any:
    array = folder / f"{index}.npy"
    if array.exists():
        return np.load(array, mmap_mode="r")  # pages of the file: large answers are not there twice
    return pickle.loads((folder / f"{index}.pickle").read_bytes())


def difference(expected: Any, got: Any) -> float:
    """Returns the largest difference, as a share of the largest number in its tensor.

    Raises StepFailed where answers are not the same.
    """
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(expected):
            raise StepFailed("an output has not as many parts")
        return max((difference(*pair) for pair in zip(expected, got, strict=True)), default=0.0)
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        if list(expected) != list(got):
            raise StepFailed("an output has other keys")
        return difference(list(expected.values()), list(got.values()))
    if isinstance(expected, np.generic):
        return difference(np.asarray(expected), np.asarray(got))
    if isinstance(expected, float) and isinstance(got, float):
        return difference(np.asarray(expected), np.asarray(got))
    if not isinstance(expected, np.ndarray):
        if repr(expected) != repr(got):
            raise StepFailed("an output that is no tensor differs")
        return 0.0
    if not isinstance(got, np.ndarray) or expected.shape != got.shape or expected.dtype != got.dtype:
        raise StepFailed(
            f"output {getattr(got, 'dtype', type(got))} {np.shape(got)}, "
            f"the original gives {expected.dtype} {expected.shape}"
        )
    return _array_difference(expected.reshape(-1), got.reshape(-1))


def _array_difference(expected: Array, got: Array) -> float:
    furthest = largest = 0.0
    is_bf16 = expected.dtype == BF16
    relative = _RELATIVE_BF16 if is_bf16 else _RELATIVE
    for start in range(0, expected.size, _CHUNK):
        wanted, found = expected[start : start + _CHUNK], got[start : start + _CHUNK]
        if is_bf16:
            wanted, found = from_bfloat16(wanted), from_bfloat16(found)
        elif expected.dtype.kind not in "fc":
            if not np.array_equal(wanted, found):
                raise StepFailed("an output differs")
            continue
        kind = np.complex128 if expected.dtype.kind == "c" else np.float64
        numbers = wanted[np.isfinite(wanted)].astype(kind)
        largest = max(largest, float(np.abs(numbers).max(initial=0.0)))
        if np.array_equal(wanted, found, equal_nan=True):
            continue
        if not np.allclose(found, wanted, rtol=relative, atol=_ABSOLUTE, equal_nan=True):
            raise StepFailed("an output differs by more than the tolerance")
        furthest = max(furthest, float(np.abs(found[np.isfinite(wanted)].astype(kind) - numbers).max(initial=0.0)))
    return furthest / max(largest, 1e-30)


def rows_independent(session: Any, asking: Asking) -> bool | None:
    """Says whether rows asked together are answered as each alone; None where that could not be tried."""
    dims = asking.dims
    if not dims.rows or len(asking.batches) < 2 or asking.batches[0] != 1:
        return None
    together = asking.question(_ROWS_TRIED)
    try:
        answers = session.run(None, together)
        alone = [session.run(None, _row(together, dims.places[dims.rows], row)) for row in range(_ROWS_TRIED)]
    except Exception:
        return None
    return all(
        _is_stacked(answer, [answers_alone[index] for answers_alone in alone]) for index, answer in enumerate(answers)
    )


def _row(feed: Mapping[str, Array], places: Sequence[tuple[str, int]], row: int) -> dict[str, Array]:
    """Takes one row out of each input that has rows."""
    taken = dict(feed)
    for name, axis in places:
        taken[name] = np.ascontiguousarray(np.take(taken[name], [row], axis=axis))
    return taken


def _is_stacked(together: Any, alone: Sequence[Any]) -> bool:
    """Says whether an answer is that of its rows, one after the other."""
    try:
        if isinstance(together, np.ndarray):
            if any(np.ndim(part) == 0 for part in alone):
                return False
            difference(together, np.concatenate(list(alone)))
        else:
            difference(list(together), [row for part in alone for row in part])
    except (StepFailed, TypeError, ValueError):
        return False
    return True

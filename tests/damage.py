"""Bytes that were something once: seeds of a corpus, changed in a few places, for hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"


def seeds(*folders: str) -> list[bytes]:
    """Returns the files of folders of the corpus. Raises FileNotFoundError where there are none."""
    found = [file.read_bytes() for folder in folders for file in sorted((CORPUS / folder).iterdir())]
    if not found:
        raise FileNotFoundError(f"no seeds in {', '.join(folders)}")
    return found


@st.composite
def damaged(draw: st.DrawFn, kept: Sequence[bytes], pieces: Sequence[bytes] = (b"\x00",)) -> bytes:
    """One of `kept` with up to four changes: bits turned, parts left out, doubled or overwritten by one of `pieces`."""
    data = bytearray(draw(st.sampled_from(kept)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 5)):
            case 0 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del data[at : at + draw(st.integers(1, 40))]
            case 2:
                data[at:at] = data[at : at + draw(st.integers(1, 80))]
            case 3:
                data[at:at] = draw(st.sampled_from(pieces))
            case 4:
                data[at : at + draw(st.integers(1, 20))] = draw(st.sampled_from(pieces))
            case _:
                del data[at:]
    return bytes(data)

"""What of an error's text is for clients: no path of the host, and everything that only looks like one."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelhost.security import texts
from modelhost.security.texts import hide, without_paths, without_paths_within


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Load model from /srv/models/wine/1/model.onnx failed:Protobuf parsing failed.",
            "Load model from model.onnx failed:",
        ),
        ("[Errno 13] Permission denied: '/var/lib/my models/w.bin'", "[Errno 13] Permission denied: 'w.bin'"),
        ("/onnxruntime_src/onnxruntime/core/framework/op.cc:540 void f() axis == 1", "op.cc:540 void f() axis == 1"),
        ("core/providers/cpu/math/gemm.cc:33: bad", "gemm.cc:33: bad"),
        ('File "/usr/lib/python3.11/json/decoder.py", line 3', 'File "decoder.py", line 3'),
        ("cannot open /elsewhere/secret/model.onnx: gone", "cannot open model.onnx: gone"),
        ("C:\\Users\\me\\model.onnx is gone", "model.onnx is gone"),
        ("~/models/a and ../b/c and \\\\host\\share\\d", "a and c and d"),
        ("in /proc/self/status", "in status"),
        ("(/tmp/a/b.so)", "(b.so)"),
    ],
)
def test_of_a_path_the_files_name_is_left(text: str, said: str) -> None:
    assert without_paths(text).startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        "Name:'/encoder/layer.0/attention/Add' Status Message: axis == 1",
        "tensor 'model/embed/MatMul:0': expected [-1, 4]",
        "POST /v2/models/a/infer: Method Not Allowed",
        "load parameter 'file:1/model.onnx' is not supported",
        "content type application/json",
        "12 MB/s and/or 3",
        "no path at all",
        "'größe & co'",
        "external file 'data/w.bin' is missing",
        "https://example.org/model.onnx",
    ],
)
def test_what_only_looks_like_a_path_stays(text: str) -> None:
    assert without_paths(text) == text


def test_the_hosts_own_folders_are_left_out_though_they_have_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_own_folders", [])
    folder = tmp_path / "all my models"
    hide([folder])
    assert (
        without_paths(f"Load model from {folder}/wine/1/model.onnx failed")
        == "Load model from wine/1/model.onnx failed"
    )
    assert without_paths(f"{folder}: gone") == "all my models: gone"
    monkeypatch.chdir(tmp_path)
    hide([Path("models")])
    assert without_paths(f"{tmp_path}/models/a/model.onnx: gone") == "a/model.onnx: gone"


def test_every_text_in_the_figures_is_cleaned() -> None:
    given = {"a": ["/etc/passwd", {"b": "/root/x", "c": 1}], "d": ("/tmp/y", None)}
    assert without_paths_within(given) == {"a": ["passwd", {"b": "x", "c": 1}], "d": ["y", None]}

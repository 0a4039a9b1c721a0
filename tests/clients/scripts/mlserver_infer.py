"""`mlserver infer` as its program calls it, with one import of the server: `python mlserver_infer.py HOST:PORT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlserver.cli.main import root
from reporting import equal, report

Answers = dict[int, dict[str, Any]]


def infer(address: str, model: str, requests: list[dict[str, Any]], *flags: str) -> Answers:
    """Returns the answers by the line of the request that each belongs to."""
    with TemporaryDirectory() as directory:
        asked, answered = Path(directory, "asked.jsonl"), Path(directory, "answered.jsonl")
        asked.write_text("".join(json.dumps(request) + "\n" for request in requests))
        # --retries 1: after a failure it would wait for a second.
        command = ["infer", "--url", address, "--model-name", model, "--retries", "1", *flags]
        root.main([*command, "--input-data-path", str(asked), "-o", str(answered)], standalone_mode=False)
        answers = [json.loads(line) for line in answered.read_text().splitlines()]
    equal(len(answers), len(requests))
    return {answer["parameters"]["batch_index"]: answer for answer in answers}


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def asking(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **more}


def output(answer: dict[str, Any], name: str) -> list[Any]:
    assert "outputs" in answer, answer
    return next(entry["data"] for entry in answer["outputs"] if entry["name"] == name)


def check_every_line_gets_its_own_answer(address: str) -> None:
    requests = [asking(tensor("x", "FP32", [2], [row, row + 0.5]), id=f"row {row}") for row in range(10)]
    for flags in ((), ("--binary-data",), ("--batch-size", "4"), ("--batch-size", "4", "--binary-data")):
        answers = infer(address, "versions", requests, "--workers", "3", *flags)
        found = {row: (answer["id"], output(answer, "y")) for row, answer in answers.items()}
        equal(found, {row: (f"row {row}", [row + 2.0, row + 2.5]) for row in range(10)})


def check_texts_and_outputs_by_name(address: str) -> None:
    rows = asking(tensor("measurements", "FP32", [2, 13], [1.0] * 26), outputs=[{"name": "label"}])
    flower = asking(tensor("species", "BYTES", [1, 1], ["setosa"]), tensor("sepal", "FP32", [1, 2], [5.1, 3.5]))
    for flags in ((), ("--binary-data",)):
        wine = infer(address, "wine", [rows], *flags)[0]
        equal([entry["name"] for entry in wine["outputs"]], ["label"])
        equal([label[:6] for label in output(wine, "label")], ["class_", "class_"])
        equal(len(output(infer(address, "iris_petals", [flower], *flags)[0], "petal")), 2)


def check_a_line_that_is_wrong_gets_our_text_and_the_others_their_answers(address: str) -> None:
    requests = [asking(tensor(name, kind, [1], [1.0])) for name, kind in (("x", "FP32"), ("x", "FP64"), ("z", "FP32"))]
    answers = infer(address, "versions", requests)
    equal(output(answers[0], "y"), [3.0])
    assert "tensor 'x': expected datatype FP32, got FP64" in answers[1]["error"]["msg"], answers
    assert "'z'" in answers[2]["error"]["msg"], answers


def check_an_unknown_model_is_named(address: str) -> None:
    answers = infer(address, "version", [asking(tensor("x", "FP32", [1], [1.0]))])
    assert "no model 'version'; did you mean 'versions'" in answers[0]["error"]["msg"], answers


report(globals(), sys.argv[1])

"""Writes a transformer encoder to measure with: `python benchmarks/export_transformer.py FILE`.

Six layers, 384 wide, a vocabulary of 30,522, random weights from a seed: 90 MB, the size of a sentence
embedder. Batch and sequence are dynamic; the answer is one normalised vector for each row. Needs torch
and onnx, which this project does not depend on; a virtual environment of its own will do:
`pip install torch==2.13.0 onnx`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 6, 384, 12, 30522, 512


def main() -> None:
    """Exports the encoder to the file that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="where to write the model, for example encoder.onnx")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    arguments = parser.parse_args()
    try:
        torch: Any = importlib.import_module("torch")  # unknown to the type checker where it is not there
    except ModuleNotFoundError:
        sys.exit("this needs torch and onnx, in an environment of their own: pip install torch==2.13.0 onnx")

    nn: Any = torch.nn
    base: Any = nn.Module

    class Layer(base):  # type: ignore[misc]
        """Attention and two dense layers, each added to its input and normalised, as BERT has them."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
            self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, x: Any, bias: Any) -> Any:
            rows, length = x.shape[0], x.shape[1]
            query, key, value = (
                project(x).view(rows, length, HEADS, WIDTH // HEADS).transpose(1, 2)
                for project in (self.query, self.key, self.value)
            )
            scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + bias
            mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, WIDTH)
            x = self.first(x + self.out(mixed))
            return self.second(x + self.narrow(nn.functional.gelu(self.widen(x))))

    class Encoder(base):  # type: ignore[misc]
        """Token and position embeddings, the layers, and the mean over the tokens that are not masked."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(POSITIONS, WIDTH)
            self.first = nn.LayerNorm(WIDTH)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            at = torch.arange(input_ids.shape[1], device=input_ids.device)
            x = self.first(self.tokens(input_ids) + self.positions(at))
            mask = attention_mask.to(x.dtype)
            bias = (1 - mask)[:, None, None, :] * -10000.0
            for layer in self.layers:
                x = layer(x, bias)
            mean = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
            return nn.functional.normalize(mean, dim=1)

    torch.manual_seed(arguments.seed)
    model = Encoder().eval()
    example = torch.ones((2, 16), dtype=torch.int64)
    axes = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        model,
        (example, example),
        str(arguments.file),
        input_names=["input_ids", "attention_mask"],
        output_names=["embedding"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "embedding": {0: "batch"}},
        opset_version=17,
        dynamo=False,  # the other exporter needs onnxscript too
    )
    print(f"{arguments.file}: {arguments.file.stat().st_size / (1 << 20):.1f} MB")


if __name__ == "__main__":
    main()

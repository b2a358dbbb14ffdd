"""Asks a Triton server for predictions of tiles; the pixels it sends are the ones that training saw.

    python examples/triton_client.py REPOSITORY/cervix-fp32 tile.png other.jpg --url http://localhost:8000

It needs `cervix_engine`, which decodes and resizes, and no client library: the protocol is HTTP with binary tensors.

Source: KServe's "Predict Protocol, version 2" and Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.values import Pixels, Probabilities

TIMEOUT_S = 60


def prepared(tiles: Sequence[Path], contract: ModelContract) -> Pixels:
    """Files as the model wants them: `uint8 (N, height, width, 3)`, raw RGB pixels."""
    return np.stack([preprocess(tile.read_bytes(), contract=contract) for tile in tiles])


def ask(url: str, model: str, pixels: Pixels) -> Probabilities:
    """One request: the probabilities of a batch, `float32 (N, classes)`."""
    shape = list(pixels.shape)
    tensor = {"name": "tiles", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": pixels.nbytes}}
    output = {"name": "probabilities", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    request = urllib.request.Request(f"{url}/v2/models/{model}/infer", head + pixels.tobytes(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        length = int(response.headers["Inference-Header-Content-Length"])
        body = response.read()
    (answer,) = json.loads(body[:length])["outputs"]
    return np.frombuffer(body[length:], "<f4").reshape(answer["shape"])


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("tiles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--url", default="http://localhost:8000", show_default=True)
def main(model: Path, tiles: tuple[Path, ...], url: str) -> None:
    """Print the most probable class of each of TILES; MODEL is its folder in the server's repository."""
    contract = ModelContract.load(model / "contract.json")
    for tile, answer in zip(tiles, ask(url, model.name, prepared(tiles, contract)), strict=True):
        best = int(answer.argmax())
        click.echo(f"{tile}\t{contract.class_names[best]}\t{answer[best]:.6f}")


if __name__ == "__main__":
    main()

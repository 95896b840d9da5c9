"""Size and agreement of exported models: prints the table of docs/export.md.

python benchmarks/onnx_export.py --data data/cifar10
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import common
import torch

from ghnqat_sdk import predict_quantized_params
from ghnqat_sdk.data import load_images
from ghnqat_sdk.export import export_onnx

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from models import ResNet20, SmallMobileNetV2

BITS = ((8, 8), (4, 8), (4, 4), (2, 2))
COLUMNS = (
    "network",
    "bits",
    "float, bytes",
    "UINT8",
    "packed",
    "largest difference",
    "of outputs up to",
    "same class",
)


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    options = parser.parse_args()
    calibration = [
        images for images, _ in load_images(options.data, "train").sample(256, seed=0).batches(64)
    ]
    images = next(
        images for images, _ in load_images(options.data, "val").sample(64, seed=0).batches(64)
    )
    print(common.head(COLUMNS, texts=2))
    for make in (ResNet20, SmallMobileNetV2):
        for bits in BITS:
            torch.manual_seed(0)
            qmodel = predict_quantized_params(make(), bits, calibration=calibration)
            with tempfile.TemporaryDirectory() as folder:
                plain, packed = (
                    export_onnx(qmodel, Path(folder) / "model.onnx", images, packed=packed)
                    for packed in (False, True)
                )
            difference = max(plain.largest_difference, packed.largest_difference)
            sizes = [f"{size:,}" for size in (plain.float_size, plain.size, packed.size)]
            cells = [make.__name__, "W{}/A{}".format(*bits), *sizes, f"{difference:.1g}"]
            cells.append(f"{plain.largest_output:.2g}")
            cells.append(f"{100 * min(plain.agreement, packed.agreement):.1f} %")
            print(common.row(cells), flush=True)


if __name__ == "__main__":
    main()

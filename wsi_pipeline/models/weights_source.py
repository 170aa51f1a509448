"""Where initial weights are from, and under which licence, for the model card."""

from pathlib import Path

import safetensors

from tiling.files import digest_file

# Weights that torchvision publishes, by the first 8 digits of their SHA-256, which their file names
# hold: https://download.pytorch.org/models/vgg16-397923af.pth.
_TORCHVISION = {
    "8a719046": "VGG-11",
    "19584684": "VGG-13",
    "397923af": "VGG-16",
    "dcbb9e9d": "VGG-19",
    "f37072fd": "ResNet-18",
    "b627a593": "ResNet-34",
    "0676ba61": "ResNet-50, V1",
    "11ad3fa6": "ResNet-50, V2",
}
_LICENCE_KEYS = ("licence", "license")


def describe_weights(path: Path) -> dict[str, str]:
    """Describe a file of weights: its name, digest and, where known, source and licence.

    They are known of the files that torchvision publishes, and of safetensors files whose header
    has ``source``, ``licence`` or ``license``.

    Returns
    -------
    weights : dict
        ``file`` (the name alone), ``sha256``, and perhaps ``source`` and ``licence``.
    """
    digest = digest_file(path)
    found = {"file": path.name, "sha256": digest}
    if name := _TORCHVISION.get(digest[:8]):
        found["source"] = f"torchvision's {name} (ImageNet), download.pytorch.org"
        found["licence"] = "BSD-3-Clause"
    elif path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="np") as file:
            stated = file.metadata() or {}
        if source := stated.get("source"):
            found["source"] = source
        if licence := next((stated[key] for key in _LICENCE_KEYS if stated.get(key)), None):
            found["licence"] = licence
    return found

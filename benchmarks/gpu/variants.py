"""The part `variants` of `make gpu`: ways to a faster forward pass, against the plain one."""

import copy
import statistics
import time

from measuring import require, synchronize, timed


def four_channels(model):
    """A copy of a model whose first convolution is given a fourth channel, of zeros."""
    import torch
    from torch import nn

    class Padded(nn.Module):
        def __init__(self, convolution):
            super().__init__()
            self.convolution = convolution

        def forward(self, x):
            return self.convolution(torch.cat([x, torch.zeros_like(x[:, :1])], 1))

    model = copy.deepcopy(model)
    name, first = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    widened = nn.Conv2d(
        first.in_channels + 1, first.out_channels, first.kernel_size, first.stride, first.padding
    )
    widened = widened.to(first.weight.device, memory_format=torch.channels_last)
    with torch.no_grad():
        widened.weight.zero_()
        widened.weight[:, : first.in_channels] = first.weight
        widened.bias.copy_(first.bias)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, Padded(widened))
    return model.eval()


def captured(forward, x):
    """The forward pass as a CUDA graph on one piece of memory."""
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # what is chosen at the first passes is not captured
        for _ in range(3):
            forward(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward(x)

    def replay(_):
        graph.replay()
        return logits

    return replay


def variants(report):
    """Ways to compute VGG16 that might pay, against the plain forward pass in bf16."""
    import torch

    from wsi_pipeline.config.devices import compute_in, place_model
    from wsi_pipeline.models import build_model

    device = report.device
    patch_px, size, width = (64, 2, 0.0625) if report.quick else (512, 32, 1.0)
    torch.manual_seed(0)
    model = place_model(build_model("vgg16", width=width), device).eval()
    x = torch.rand(size, 3, patch_px, patch_px, device=device)
    x = x.contiguous(memory_format=torch.channels_last)

    def under(module):
        def forward(pixels):
            with torch.inference_mode(), compute_in("bf16", device):
                return module(pixels)

        return forward

    plain = under(model)
    ways = [
        ("first layer of 4 channels", lambda: under(four_channels(model))),
        ("CUDA graph", lambda: captured(plain, x)),
        ("torch.compile", lambda: under(torch.compile(model))),
        ("torch.compile, 4 channels", lambda: under(torch.compile(four_channels(model)))),
    ]
    if device.type != "cuda":
        ways = [way for way in ways if way[0] != "CUDA graph"]
    expected = plain(x).float()
    for name, make in ways:
        started = time.perf_counter()
        try:
            forward = make()
            found = forward(x).float()
            synchronize(device)
            first = time.perf_counter() - started
            change = float((found.sigmoid() - expected.sigmoid()).abs().max())
            require(change < 0.02, f"{name}: scores differ by {change}")
            ours, theirs = [], []
            for _ in range(5):  # in turn, for clocks fall as the card warms up
                ours += timed(device, lambda: forward(x), 1)  # noqa: B023
                theirs += timed(device, lambda: plain(x), 1)
        except Exception as error:  # one that a machine cannot do says why; the others go on
            report.row(f"{name} / plain", f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        gains = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        report.row(
            f"{name} / plain",
            f"{statistics.median(gains):.2f} ({gains[0]:.2f} to {gains[-1]:.2f}), "
            f"first pass {first:.1f} s, scores differ by {change:.1e}",
        )
        report.more |= {f"gain, {name}": statistics.median(gains)}

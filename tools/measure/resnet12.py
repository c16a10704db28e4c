"""ResNet-12, as few-shot learning has it: Lee et al. 2019, arXiv:1904.03758."""

from torch import nn

import fastmeta

SLOPE, WIDTHS = 0.1, (64, 160, 320, 640)
LAYER = fastmeta.ConvBlock(pool=1, slope=SLOPE)
BLOCK = (LAYER, LAYER, LAYER._replace(relu=False), LAYER._replace(padding=0, kernel=1, skip=3, pool=2))


def normalised(inputs, outputs, side):
    return nn.Sequential(nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.layers = nn.Sequential(
            normalised(inputs, width, 3), nn.LeakyReLU(SLOPE), normalised(width, width, 3), nn.LeakyReLU(SLOPE),
            normalised(width, width, 3),
        )  # fmt: skip
        self.shortcut = normalised(inputs, width, 1)
        self.end = nn.Sequential(nn.LeakyReLU(SLOPE), nn.MaxPool2d(2))

    def forward(self, x):
        return self.end(self.layers(x) + self.shortcut(x))


def resnet12(channels=3, widths=WIDTHS):
    """Images [n, channels, h, w] -> [n, widths[-1] h w / 256], all that the last block leaves."""
    blocks = [Residual(*sizes) for sizes in zip((channels, *widths), widths, strict=False)]
    return nn.Sequential(*blocks, nn.Flatten())

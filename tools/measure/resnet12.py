"""ResNet-12 of few-shot classification, as in TADAM (arXiv:1805.10123) in the widths of MetaOptNet (arXiv:1904.03758)."""

from torch import nn

WIDTHS = (64, 160, 320, 640)


class Block(nn.Module):
    """Three convolutions, and one of 1 x 1 past them; half the side."""

    def __init__(self, inputs, width):
        super().__init__()
        layers = []
        for i in (inputs, width, width):
            layers += [nn.Conv2d(i, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.1)]
        self.convolutions = nn.Sequential(*layers[:-1])
        self.past = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.end = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    def forward(self, x):
        return self.end(self.convolutions(x) + self.past(x))


def resnet12(channels=3):
    blocks = [Block(inputs, width) for inputs, width in zip((channels, *WIDTHS), WIDTHS, strict=False)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())

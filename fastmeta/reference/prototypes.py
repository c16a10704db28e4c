import torch
from torch import Tensor


def prototypes(support: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """[T?, S, D], [T?, S] -> [T?, N, D]: the mean of each class. A label out of range makes its task NaN, an empty class 0/0.

    Sums by class, not a product with the classes' indicators, whose 0 * NaN would carry NaN into every class.
    """
    in_range = ((labels >= 0) & (labels < num_classes)).all(-1)[..., None, None]
    places = labels.clamp(0, num_classes - 1).unsqueeze(-1).expand_as(support)  # [T?, S, D]
    empty = support.new_zeros((*support.shape[:-2], num_classes, support.shape[-1]))
    member = labels.unsqueeze(-2) == torch.arange(num_classes, device=labels.device).unsqueeze(-1)  # [T?, N, S]
    means = empty.scatter_add(-2, places, support) / member.sum(-1, keepdim=True).to(support.dtype)
    return means * torch.where(in_range, support.new_ones(()), torch.nan)  # NaN in the gradient too

import torch
from torch import Tensor


def prototypes(support: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """[T?, S, D], [T?, S] -> [T?, N, D]: the mean of each class. A label out of range makes its task NaN, an empty class 0/0."""
    member = labels.unsqueeze(-2) == torch.arange(num_classes, device=labels.device).unsqueeze(-1)  # [T?, N, S]
    weights = member.to(support.dtype) / member.sum(-1, keepdim=True).to(support.dtype)
    in_range = ((labels >= 0) & (labels < num_classes)).all(-1)[..., None, None]
    return torch.where(in_range, weights, torch.nan) @ support

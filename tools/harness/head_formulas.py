"""The losses of `fastmeta.heads` as their papers write them, with whole matrices: the truth of the tests, eager peers of the bench."""

import math

import torch
import torch.nn.functional as F


def cosines(x, y):
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


def ge2e(x, w, b):
    """x [speakers, utterances, D]."""
    speakers, utterances, _ = x.shape
    centres = x.mean(1)
    without = (x.sum(1, keepdim=True) - x) / (utterances - 1)
    own = F.cosine_similarity(x, without, dim=-1)
    place = torch.arange(speakers)
    similarities = torch.where((place[:, None] == place)[:, None], own[..., None], cosines(x, centres))
    return F.cross_entropy((w * similarities + b).flatten(0, 1), place.repeat_interleave(utterances))


def angle_proto(x, w, b):
    return F.cross_entropy(w * cosines(x[:, 0], x[:, 1:].mean(1)) + b, torch.arange(len(x)))


def ge2e_by_speaker(x, w, b):
    """The same, one speaker's column of similarities after the other, as Real-Time-Voice-Cloning fills it."""
    speakers, utterances, _ = x.shape
    unit, centres = F.normalize(x, dim=-1), F.normalize(x.mean(1), dim=-1)
    without = F.normalize((x.sum(1, keepdim=True) - x) / (utterances - 1), dim=-1)
    filled = x.new_zeros(speakers, utterances, speakers)
    for k in range(speakers):
        others = torch.arange(speakers) != k
        filled[others, :, k] = (unit[others] * centres[k]).sum(-1)
        filled[k, :, k] = (unit[k] * without[k]).sum(-1)
    return F.cross_entropy((w * filled + b).flatten(0, 1), torch.arange(speakers).repeat_interleave(utterances))


def ge2e_by_utterance(x, w, b):
    """The same, one utterance of all speakers after the other, from expanded pairs, as voxceleb_trainer makes it."""
    speakers, utterances, _ = x.shape
    place, columns = torch.arange(speakers), []
    for u in range(utterances):
        rest = torch.cat([x[:, :u], x[:, u + 1 :]], 1).mean(1)
        similarities = F.cosine_similarity(x[:, u, None], x.mean(1), dim=-1)
        own = F.cosine_similarity(x[:, u], rest, dim=-1)
        columns.append(torch.where(place[:, None] == place, own[:, None], similarities))
    return F.cross_entropy((w * torch.stack(columns, 1) + b).flatten(0, 1), place.repeat_interleave(utterances))


def ge2e_by_pair(x, w, b):
    """The same, one utterance after the other against centres of its own, as coqui TTS stacks them."""
    centres, losses = x.mean(1), []
    for speaker, own in enumerate(x):
        for u, utterance in enumerate(own):
            rest = torch.cat([own[:u], own[u + 1 :]]).mean(0)
            beside = torch.stack([rest if k == speaker else centre for k, centre in enumerate(centres)])
            logits = w * F.cosine_similarity(utterance, beside, dim=-1) + b
            losses.append(-logits.log_softmax(0)[speaker])
    return torch.stack(losses).mean()


def angle_proto_of_pairs(x, w, b):
    """`angle_proto` from expanded pairs, as the trainers of speaker encoders make it."""
    similarities = F.cosine_similarity(x[:, 0, None], x[:, 1:].mean(1), dim=-1)
    return F.cross_entropy(w * similarities + b, torch.arange(len(x)))


def info_nce(q, k, temperature):
    return F.cross_entropy(cosines(q, k) / temperature, torch.arange(len(q)))


def nt_xent(z1, z2, temperature):
    z = torch.cat([z1, z2])
    logits = (cosines(z, z) / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z1)))


def clip(images, texts, scale):
    logits, place = scale * cosines(images, texts), torch.arange(len(images))
    return (F.cross_entropy(logits, place) + F.cross_entropy(logits.mT, place)) / 2


def sup_con(z, labels, temperature):
    logits = (cosines(z, z) / temperature).fill_diagonal_(-torch.inf)
    log_p = logits.log_softmax(1)
    same = (labels[:, None] == labels).fill_diagonal_(False)
    mean = torch.where(same, log_p, 0).sum(1) / same.sum(1).clamp(
        min=1
    )  # 0 where there is none; compiles, unlike an index
    return -mean.sum() / same.any(1).sum().clamp(min=1)


def nca(x, labels, temperature):
    square = (x[:, None] - x).square().sum(-1)
    p = (-square / temperature).masked_fill(torch.eye(len(x), dtype=torch.bool), -torch.inf).softmax(1)
    same = (labels[:, None] == labels).fill_diagonal_(False)
    counted = same.any(1)
    return -(p * same).sum(1)[counted].log().mean()


def proxy_nca(x, weight, labels, temperature):
    square = (F.normalize(x, dim=-1)[:, None] - F.normalize(weight, dim=-1)).square().sum(-1)
    return F.cross_entropy(-square / temperature, labels)


def cos_face(x, weight, labels, margin, scale):
    target = F.one_hot(labels, len(weight)).to(x.dtype)
    return F.cross_entropy(scale * (cosines(x, weight) - margin * target), labels)


def arc_face(x, weight, labels, margin, scale):
    cosine = cosines(x, weight)
    angle = cosine.acos()
    moved = torch.where(angle + margin <= math.pi, (angle + margin).cos(), cosine - margin * math.sin(margin))
    return F.cross_entropy(scale * torch.where(F.one_hot(labels, len(weight)) == 1, moved, cosine), labels)
